"""Several processes: tensor, pipeline and data parallel, and pipeline ranks at unit level."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ksteer_vllm import report
from ksteer_vllm.config import ResolvedConfig
from ksteer_vllm.device.layer import is_attached
from ksteer_vllm.device.report_store import ReportStore
from ksteer_vllm.host.attaching import _attach_layers
from ksteer_vllm.report import assemble
from ksteer_vllm.spec.admitted import AdmittedRequest
from tests.claims.matrix.cases import ASKED, SPECS, as_output, records, reporting
from tests.support.engines import generate, start_engine
from tests.support.oracle import Oracle
from tests.support.programs import result_of, start_program

PROMPTS = [prompt for prompt, _ in ASKED]
STEERED = {"generation": 12, "both, two layers": 81, "prompt": 70}
"""Tokens a report counts: of 12 generated tokens the last does not go through the model."""


@pytest.fixture(scope="module")
def one_process(llama: Path, tiny_probes: Callable[[Path], dict[str, Path]]) -> list[dict[str, Any] | None]:
    """The reports of an engine with one worker, in this process."""
    llm = start_engine(llama, tiny_probes(llama), steering={"layers": "all"})
    outputs = generate(llm, PROMPTS, [reporting(spec) for spec in SPECS.values()])
    return [report(output) for output in outputs]


WORKERS: dict[str, tuple[int, dict[str, Any]]] = {
    "tensor parallel": (2, {"tensor_parallel_size": 2}),
    "pipeline parallel": (
        2,
        {
            "pipeline_parallel_size": 2,
            "enforce_eager": False,
            "compilation_config": {"mode": 2, "backend": "eager"},
        },
    ),
}
"""name -> number of workers, engine options. Pipeline parallel needs a warm-up, which vLLM's CPU worker
leaves out of eager engines with a given cache size: their second rank then has nowhere to put its input."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORKERS)
def test_workers_of_their_own(
    kind: str,
    llama: Path,
    tiny_probes: Callable[[Path], dict[str, Path]],
    oracle_of: Callable[[Path], Oracle],
    one_process: list[dict[str, Any] | None],
    vllm_environment: Callable[..., None],
) -> None:
    """Steered, plain and refused requests; every rank steers; a report holds each token once, whichever
    rank has the layer."""
    vllm_environment(VLLM_CPU_OMP_THREADS_BIND="nobind")
    num_workers, options = WORKERS[kind]
    llm = start_engine(llama, tiny_probes(llama), steering={"layers": "all"}, **options)
    try:
        outputs = generate(llm, PROMPTS, [reporting(spec) for spec in SPECS.values()])
        oracle_of(llama).check(SPECS, PROMPTS, outputs, kind)
        for output, expected in zip(outputs, one_process, strict=True):
            same_report(report(output), expected)
        counters = llm.collective_rpc("ksteer_counters")
        assert len(counters) == num_workers
        assert all(c["requests"] == 3 and c["steered_steps"] == 12 for c in counters)
        with pytest.raises(ValueError, match=r"ksteer\.probe: no probe named 'absent'"):
            generate(llm, PROMPTS[:1], [{"probe": "absent", "target": ["warm"]}])
    finally:
        llm.llm_engine.engine_core.shutdown()


@pytest.mark.slow
def test_data_parallel(
    llama: Path,
    tiny_probes: Callable[[Path], dict[str, Path]],
    oracle_of: Callable[[Path], Oracle],
    one_process: list[dict[str, Any] | None],
) -> None:
    """AsyncLLM with two ranks: each steers, reports and refuses; one idles while the other works."""
    probes = {name: str(path) for name, path in tiny_probes(llama).items()}
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    program = start_program(
        "tests.claims.matrix.data_parallel_run", str(llama), json.dumps(probes), environment=environment
    )
    result = result_of(program, timeout=500)
    *answers, after = [as_output(answer) for answer in result["answers"]]
    oracle = oracle_of(llama)
    for rank in (0, 1):
        outputs = answers[rank * len(ASKED) : (rank + 1) * len(ASKED)]
        oracle.check(SPECS, PROMPTS, outputs, f"rank {rank}")
        for output, expected in zip(outputs, one_process, strict=True):
            same_report(output.report, expected)
    oracle.check({"unsteered": None}, PROMPTS[:1], [after], "after the refusals")
    assert [any(word in text for word in ("absent", "where")) for text in result["refusals"]] == [True] * 4
    assert [worker["requests"] for (worker,) in result["counters"]] == [3, 3]


def same_report(found: dict[str, Any] | None, expected: dict[str, Any] | None) -> None:
    """The same records; shifts within 1e-3, as log-probabilities: the ranks sum in another order."""
    assert (found is None) == (expected is None)
    if found is None or expected is None:
        return
    assert records(found) == records(expected)
    assert found["tokens_steered"] == expected["tokens_steered"]
    assert found["mean_shift"] == pytest.approx(expected["mean_shift"], abs=1e-3)


def test_reports_count_every_token(one_process: list[dict[str, Any] | None]) -> None:
    counted = {name: found["tokens_steered"] for name, found in zip(SPECS, one_process, strict=True) if found}
    assert counted == STEERED


def test_pipeline_ranks_steer_the_layers_they_hold() -> None:
    """vLLM fills the other ranks' places with PPMissingLayer: four layers over two ranks, three open."""
    from vllm.model_executor.models.utils import PPMissingLayer

    config = ResolvedConfig(layers=(0, 1, 3), resolved=True)
    vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=4))
    )
    attached = []
    for own in ((0, 1), (2, 3)):
        layers = nn.ModuleList(nn.Linear(2, 2) if i in own else PPMissingLayer() for i in range(4))
        model = nn.Module()
        model.model = nn.Module()
        model.model.layers = layers
        attached.append(_attach_layers(model, vllm_config, config))
        assert [is_attached(layer) for layer in layers] == [i in own and i != 2 for i in range(4)]
    assert attached == [[0, 1], [3]]


def test_reports_of_pipeline_ranks_are_merged() -> None:
    """Each rank records its own layers; tensor-parallel ranks repeat each other."""
    edit = {"probe": "tones", "method": "gradient", "layers": [0, 3], "where": {"generation": [0, None]}}
    pieces = []
    for layer in (0, 3, 3):
        store = ReportStore()
        store.add_request("r", AdmittedRequest((), report=True))
        store.begin_step(["r"], [2], torch.tensor([4, 5]))
        values = torch.full((2,), 0.1 * (layer + 1))
        edit_of_token = torch.zeros(2, dtype=torch.long)
        store.record(layer, edit_of_token, torch.arange(2), values, torch.ones(2).int(), None, None, "digest")
        store.end_step()
        pieces.append(store.take("r", 6))
    merged = assemble([edit], 5, pieces, {"digest": ("warm", "cold")})
    assert records(merged) == {(0, 0): [4, 5], (0, 3): [4, 5]}
    assert merged["mean_shift"] == pytest.approx(0.25)
