"""`compat: "pip-0.1.2"` in an engine, against transformers with the package's hook, forward pass by forward
pass: the prompt (a padded batch of them), then one token at a time with a key-value cache.

Log-probabilities of every generated token within 1e-3 in float32, as everywhere; the hook itself is compared
within 1e-6 in tests/workbench/ksteering.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ksteer_vllm import Probe
from ksteer_vllm.probes.fold import fold_mlp
from testbed.compare import TOLERANCE, assert_differ, sampled_log_probs
from tests.support.engines import counter, generate, start_engine
from tests.support.oracle import Oracle
from tests.support.pip_reference import Classifier, hooked

PIP = "pip-0.1.2"
ASKED: dict[str, Any] = {"target": ["warm", "dry"], "avoid": ["cold"]}
ALPHA = 6.0
LAYERS = (1, 2)


class Hooked:
    """transformers' tiny llama with the hook on the output of LAYERS."""

    def __init__(self, model: Path, probe: Probe) -> None:
        oracle = Oracle(model, {})
        self.model, self.layers = oracle.model, oracle.layers
        folded = fold_mlp(probe.tensors)
        layers = [(folded.w1, folded.b1), (folded.w2, folded.b2), (folded.w3, folded.b3)]
        self.classifier = Classifier(probe.labels, layers)

    @torch.no_grad()
    def log_probs(self, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]]) -> Tensor:
        """[prompts, reply length]: of the given replies, equally long, to one batch padded on the left."""
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        tokens = torch.tensor([[0] * n + [*prompt] for n, prompt in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (longest - n) for n in padding])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        chosen = torch.tensor([list(reply) for reply in replies])
        handles = [self.layers[layer].register_forward_hook(self._hook) for layer in LAYERS]
        found, cache = [], None
        try:
            for step in range(chosen.shape[1]):
                out = self.model(
                    tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
                )
                cache = out.past_key_values
                log_probs = torch.log_softmax(out.logits[:, -1].double(), -1)
                found.append(log_probs.gather(1, chosen[:, step : step + 1]))
                tokens = chosen[:, step : step + 1]
                mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=mask.dtype)], 1)
                positions = positions[:, -1:] + 1
        finally:
            for handle in handles:
                handle.remove()
        return torch.cat(found, 1)

    def _hook(self, module: Any, arguments: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        steered = hooked(hidden.double(), self.classifier, strength=ALPHA, **ASKED).to(hidden.dtype)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered


@pytest.fixture(scope="module")
def hooked_model(llama: Path, probes: dict[str, Path]) -> Hooked:
    return Hooked(llama, Probe.load(probes["tones"]))


def spec(**compat: Any) -> dict[str, Any]:
    version = {"version": PIP, **compat} if compat else PIP
    return {"probe": "tones", "compat": version, "alpha": ALPHA, "layers": list(LAYERS), **ASKED}


def errors(outputs: list[Any], expected: Tensor) -> list[float]:
    found = [torch.tensor(sampled_log_probs(output), dtype=torch.float64) for output in outputs]
    return [float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)]


def test_each_request_is_a_batch_of_its_own(
    engine: Any, hooked_model: Hooked, prompts: Callable[..., list[list[int]]]
) -> None:
    asked = [prompt[: 3 + 9 * i] for i, prompt in enumerate(prompts(5, 40))]
    outputs = generate(engine, asked, [spec()] * 5, max_tokens=12)
    expected = [
        hooked_model.log_probs([prompt], [output.outputs[0].token_ids])[0]
        for prompt, output in zip(asked, outputs, strict=True)
    ]
    found = errors(outputs, torch.stack(expected))
    plain = generate(engine, asked, [{**spec(), "compat": None, "num_steps": 1}] * 5, max_tokens=12)
    print("errors", found)
    assert max(found) < TOLERANCE
    for compat, corrected in zip(outputs, plain, strict=True):
        assert_differ(compat, corrected)


def test_a_padded_batch(engine: Any, hooked_model: Hooked, prompts: Callable[..., list[list[int]]]) -> None:
    asked = [prompt[: 8 + 12 * i] for i, prompt in enumerate(prompts(3, 40, 1))]
    outputs = generate(engine, asked, [spec(padded_length=32)] * 3, max_tokens=10)
    replies = [output.outputs[0].token_ids for output in outputs]
    found = errors(outputs, hooked_model.log_probs(asked, replies))
    print("errors", found)
    assert max(found) < TOLERANCE


def test_turn_two_does_not_read_turn_ones_reply_from_the_prefix_cache(
    llama: Path, probes: dict[str, Path], hooked_model: Hooked, prompts: Callable[..., list[list[int]]]
) -> None:
    """The reply was steered whole when it was decoded; as a part of the next prompt it gets 1 / P."""
    llm = start_engine(llama, probes, steering={"layers": "all"}, enable_prefix_caching=True)
    (prompt,) = prompts(1, 70, 2)
    (first,) = generate(llm, [prompt], [spec()], max_tokens=40)
    (again,) = generate(llm, [prompt], [spec()], max_tokens=40)
    assert counter(llm, "vllm:prefix_cache_hits") == 64
    assert again.outputs[0].token_ids == first.outputs[0].token_ids
    turn_two = prompt + list(first.outputs[0].token_ids)
    (second,) = generate(llm, [turn_two], [spec()], max_tokens=8)
    assert counter(llm, "vllm:prefix_cache_hits") == 64, "the prompt's share has changed with its length"
    expected = hooked_model.log_probs([turn_two], [second.outputs[0].token_ids])
    assert max(errors([second], expected)) < TOLERANCE
