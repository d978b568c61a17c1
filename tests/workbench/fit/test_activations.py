"""Captured activations against Hugging Face transformers: same site, same positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ksteer_vllm import ConfigError
from ksteer_vllm.data.positions import encode_row
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.device.capture import Capture
from ksteer_vllm.errors import DataError
from ksteer_vllm.fit import collect_activations
from ksteer_vllm.spec.capture import CAPTURE_KEY, check_capture
from tests.support.engines import OPTIONS

LAYERS = [0, 2]


def _expected(model: Path, rows: list[LabelledRow], layer: int) -> list[torch.Tensor]:
    """hidden_states[layer + 1] at P-1 … P-1+R of every row."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(model)
    oracle = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for row in rows:
        prompt, reply = encode_row(tokenizer, row)
        with torch.no_grad():
            states = oracle(torch.tensor([prompt + reply]), output_hidden_states=True).hidden_states
        found.append(states[layer + 1][0, len(prompt) - 1 : len(prompt) + len(reply)])
    return found


@pytest.mark.parametrize("budget", [None, 16])
def test_captures_equal_transformers(llama: Path, rows: list[LabelledRow], budget: int | None) -> None:
    """Also where prompts are computed in chunks of at most 16 tokens."""
    options: dict[str, Any] = dict(OPTIONS)
    if budget is not None:
        options |= {"max_num_batched_tokens": budget, "enable_chunked_prefill": True, "max_num_seqs": 4}
    rows = rows[:24]
    activations = collect_activations(str(llama), rows, LAYERS, engine_options=options)
    assert activations.model.num_layers == 4
    for layer in LAYERS:
        expected = _expected(llama, rows, layer)
        counts = torch.bincount(activations.row, minlength=len(rows)).tolist()
        assert counts == [len(states) for states in expected]
        for found, wanted in zip(activations.streams[layer].split(counts), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_rows_that_do_not_fit_are_named(llama: Path, rows: list[LabelledRow]) -> None:
    long = LabelledRow(prompt="w5", reply=" ".join(["w6"] * 300), labels=())
    with pytest.raises(DataError, match=r"row 2: prompt and reply have 301 tokens; the engine holds 256"):
        collect_activations(str(llama), [rows[0], long], LAYERS, engine_options=OPTIONS)
    with pytest.raises(ConfigError, match=r"capture.layers: the model has no layer 9; its layers are 0 to 3"):
        collect_activations(str(llama), rows[:1], [9], engine_options=OPTIONS)


def test_positions_recorded_twice_are_kept_once() -> None:
    """A preempted request computes its first positions again, in other chunks."""
    capture = Capture([1])
    stream = torch.randn(10, 3)
    parameters = type("Parameters", (), {"extra_args": {CAPTURE_KEY: {"id": "a", "start": 2, "end": 9}}})
    capture.add_request("r", parameters)
    for start, end in ((0, 4), (4, 6), (0, 5), (5, 10)):
        capture.begin_step(["other", "r"], [1, end - start], [0, start])
        capture.record(torch.cat([torch.zeros(1, 3), stream[start:end]]), None, 1)
        capture.end_step()
    from safetensors.torch import load

    assert torch.equal(load(capture.take())["1/a"], stream[2:9])
    assert load(capture.take()) == {}


@pytest.mark.parametrize(
    "wanted", [None, 3, {"id": "a"}, {"id": "a", "start": 2, "end": 2}, {"id": 1, "start": 0, "end": 2}]
)
def test_a_malformed_capture_is_refused(wanted: Any) -> None:
    with pytest.raises(ValueError, match="expected a text id"):
        check_capture(wanted)
