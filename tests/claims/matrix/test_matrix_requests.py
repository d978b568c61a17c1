"""Prompt embeddings, async scheduling with tiny chunks, several engines in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from ksteer_vllm import report
from testbed.compare import assert_all_same
from tests.claims.matrix.cases import SPECS, prompts, records, reporting
from tests.support.engines import async_scheduling, generate, sampling, start_engine, token_prompt, worker
from tests.support.oracle import Oracle

Probes = Callable[[Path], dict[str, Path]]


def test_prompt_embeddings(llama: Path, tiny_probes: Probes, oracle_of: Callable[[Path], Oracle]) -> None:
    """A steered prompt of embeddings is the steered prompt of their tokens, cold and from the cache."""
    llm = start_engine(llama, tiny_probes(llama), steering={"layers": "all"}, enable_prompt_embeds=True)
    table = load_file(llama / "model.safetensors")["model.embed_tokens.weight"]
    asked = prompts(len(SPECS))
    as_embeddings = [{"prompt_embeds": table[torch.tensor(prompt)]} for prompt in asked]
    params = [sampling(reporting(spec)) for spec in SPECS.values()]
    for title in ("cold", "cached"):
        outputs = llm.generate(as_embeddings, params, use_tqdm=False)
        oracle_of(llama).check(SPECS, asked, outputs, f"embeddings, {title}")
    by_token = llm.generate([token_prompt(prompt) for prompt in asked], params, use_tqdm=False)
    for left, right in zip(outputs[1:], by_token[1:], strict=True):
        found, expected = report(left), report(right)
        assert found is not None
        assert expected is not None
        assert records(found) == records(expected)


def test_async_scheduling_with_a_tiny_budget(
    llama: Path, tiny_probes: Probes, oracle_of: Callable[[Path], Oracle]
) -> None:
    """Eight tokens a step: every prompt in nine chunks or more, scheduled a step ahead."""
    with async_scheduling():
        llm = start_engine(
            llama,
            tiny_probes(llama),
            steering={"layers": "all"},
            max_num_batched_tokens=8,
            max_num_seqs=4,
            enable_chunked_prefill=True,
        )
    assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling
    asked = prompts(len(SPECS))
    outputs = generate(llm, asked, [reporting(spec) for spec in SPECS.values()])
    oracle_of(llama).check(SPECS, asked, outputs, "tiny budget")
    counted = [found["tokens_steered"] for found in map(report, outputs) if found]
    assert counted == [12, 81, 70]


def test_several_engines_in_one_process(
    llama: Path, tiny_model: Callable[..., Path], tiny_probes: Probes, oracle_of: Callable[[Path], Oracle]
) -> None:
    """Two steered engines of different models and a plain one, taking turns: each keeps its own state."""
    other = tiny_model("qwen2")
    first = start_engine(llama, tiny_probes(llama), steering={"layers": "all"})
    second = start_engine(other, tiny_probes(other), steering={"layers": "all"})
    plain = start_engine(llama)
    asked = prompts(len(SPECS))
    expected = generate(plain, asked, [None] * len(asked))
    for title in ("once", "again"):
        for llm, model in ((first, llama), (second, other)):
            outputs = generate(llm, asked, list(SPECS.values()))
            oracle_of(model).check(SPECS, asked, outputs, f"{model.name} {title}")
        assert_all_same(generate(plain, asked, [None] * len(asked)), expected, f"plain {title}")
    assert worker(first).ksteer_state is not worker(second).ksteer_state
    assert not hasattr(worker(plain), "ksteer_state")
