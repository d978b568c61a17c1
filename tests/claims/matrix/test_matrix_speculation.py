"""Speculative decoding: the target is steered, the draft is not; the tokens are those without speculation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ksteer_vllm import SteeringSpec, report
from ksteer_vllm.device.layer import is_attached
from ksteer_vllm.models import find_decoder_layers
from testbed.compare import assert_all_same
from tests.claims.matrix.cases import SPECS, prompts, records, reporting
from tests.support.engines import counter, generate, start_engine, worker
from tests.support.oracle import Oracle

LENGTH = 40
WHERES: dict[str, Any] = {
    "window of the prompt": {"prompt": [10, 31]},
    "window of the reply": {"generation": [5, 17]},
}
"""Counted by true positions, whatever was drafted."""
ASKED: dict[str, SteeringSpec | None] = {
    **SPECS,
    **{
        name: SteeringSpec.parse({"probe": "tones", "target": ["warm"], "alpha": 0.8, "where": where})
        for name, where in WHERES.items()
    },
}


def acceptance(llm: Any, run: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
    """(accepted of the drafted tokens, by vLLM's own metrics, the outputs of a run)."""
    names = ("vllm:spec_decode_num_accepted_tokens", "vllm:spec_decode_num_draft_tokens")
    before = [counter(llm, name) for name in names]
    outputs = run()
    accepted, drafted = (counter(llm, name) - start for name, start in zip(names, before, strict=True))
    assert drafted > 0, "nothing was drafted"
    return accepted / drafted, outputs


@pytest.fixture(scope="module")
def repetitive() -> list[list[int]]:
    """Prompts that repeat themselves, from which n-grams can be drafted."""
    return [prompt[:7] * 8 for prompt in prompts(len(ASKED), 7)]


@pytest.fixture(scope="module")
def without(
    llama: Path, tiny_probes: Callable[[Path], dict[str, Path]], repetitive: list[list[int]]
) -> list[Any]:
    """The outputs, with reports, of an engine that does not speculate."""
    llm = start_engine(llama, tiny_probes(llama), steering={"layers": "all"})
    return generate(llm, repetitive, [reporting(spec) for spec in ASKED.values()], max_tokens=LENGTH)


def check(outputs: list[Any], without: list[Any], title: str) -> None:
    """The same tokens; every accepted token is reported once, a rejected draft not at all."""
    assert_all_same(outputs, without, title)
    for output, plain in zip(outputs, without, strict=True):
        found, expected = report(output), report(plain)
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert records(found) == records(expected)
            assert found["mean_shift"] == pytest.approx(expected["mean_shift"], abs=1e-3)


@pytest.mark.slow
def test_ngram(
    llama: Path,
    tiny_probes: Callable[[Path], dict[str, Path]],
    repetitive: list[list[int]],
    without: list[Any],
    vllm_environment: Callable[..., None],
) -> None:
    """In a process of its own: n-gram drafting imports numba, after which vLLM starts no other engine."""
    vllm_environment(VLLM_ENABLE_V1_MULTIPROCESSING="1")
    ngram = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}
    llm = start_engine(llama, tiny_probes(llama), steering={"layers": "all"}, speculative_config=ngram)
    try:
        asked = [reporting(spec) for spec in ASKED.values()]
        rate, outputs = acceptance(llm, lambda: generate(llm, repetitive, asked, max_tokens=LENGTH))
        check(outputs, without, "n-gram speculation")
        print(f"n-gram: {rate:.2f} of the drafted tokens accepted")
        assert 0 < rate < 1, "tokens must have been accepted and rejected"
    finally:
        llm.llm_engine.engine_core.shutdown()


def test_draft_model(
    llama: Path,
    tiny_model: Callable[..., Path],
    tiny_probes: Callable[[Path], dict[str, Path]],
    oracle_of: Callable[[Path], Oracle],
    repetitive: list[list[int]],
    without: list[Any],
) -> None:
    """The draft has the target's weights: it guesses all of a plain reply and little of a steered one."""
    draft = {"method": "draft_model", "model": str(llama), "num_speculative_tokens": 3, "max_model_len": 256}
    llm = start_engine(llama, tiny_probes(llama), steering={"layers": "all"}, speculative_config=draft)
    plain, _ = acceptance(llm, lambda: generate(llm, repetitive, [None] * len(repetitive), max_tokens=LENGTH))
    asked = [reporting(spec) for spec in ASKED.values()]
    steered, outputs = acceptance(llm, lambda: generate(llm, repetitive[1:], asked[1:], max_tokens=LENGTH))
    print(f"draft model: accepted {plain:.2f} of plain, {steered:.2f} of steered")
    check(outputs, without[1:], "draft model")
    assert plain > 0.95
    assert steered < 0.8
    runner = worker(llm).model_runner
    assert all(is_attached(layer) for layer in runner.get_model().model.layers)
    assert not any(is_attached(module) for module in runner.drafter.model.modules())


@pytest.mark.parametrize(
    "draft", ["model.layers", "mtp.layers", "draft_model.model.layers", "medusa_heads", "drafter.layers"]
)
def test_a_draft_head_is_no_decoder(draft: str) -> None:
    """EAGLE, MTP and Medusa heads are modules of their own (runner.drafter) or are named as what they are:
    a draft of the target's depth inside its tree does not make the decoder ambiguous, nor is it chosen."""
    stacks = {"model.layers": 4, draft: 4} if draft != "model.layers" else {"model.layers": 4}
    root = nn.Module()
    for path, length in stacks.items():
        owner = root
        *parents, name = path.split(".")
        for parent in parents:
            if not hasattr(owner, parent):
                owner.add_module(parent, nn.Module())
            owner = getattr(owner, parent)
        owner.add_module(name, nn.ModuleList(nn.Identity() for _ in range(length)))
    assert find_decoder_layers(root, 4) is root.get_submodule("model.layers")
