"""Installed but not enabled changes nothing, bit for bit; enabled but idle neither, in eager mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm import SteeringSpec
from testbed.compare import exact
from tests.support.engines import generate, generate_one, start_engine, worker
from tests.support.programs import result_of, start_program


@pytest.fixture(scope="module")
def with_and_without(llama: Path) -> tuple[Any, Any]:
    """What the same program reports with the plugin loaded by vLLM, and with plugins turned off."""
    programs = [
        start_program("tests.support.plain_run", str(llama), environment={"VLLM_PLUGINS": names})
        for names in ("ksteer", "")
    ]
    with_plugin, without = (result_of(program) for program in programs)
    return with_plugin, without


def test_installed_but_not_enabled_gives_the_same_bits(with_and_without: tuple[Any, Any]) -> None:
    with_plugin, without = with_and_without
    assert with_plugin["facts"]["plugin"], "the plugin was not loaded: the comparison would be empty"
    assert with_plugin["outputs"] == without["outputs"]


def test_installed_but_not_enabled_touches_no_layer_class_and_no_runner(
    with_and_without: tuple[Any, Any],
) -> None:
    with_plugin, without = with_and_without
    facts = dict(with_plugin["facts"])
    assert {**facts, "plugin": None} == {**without["facts"], "plugin": None}
    assert not any("Steered" in name for name in facts["layer_classes"])
    assert not any("ksteer" in name for name in facts["static_forward_context"])
    assert facts["worker"] == []


def test_the_enabled_engine_differs_in_all_that(engine: Any) -> None:
    """So the facts above are the right ones to look at."""
    runner = worker(engine).model_runner
    assert any(
        type(module).__qualname__ == "SteeredLlamaDecoderLayer" for module in runner.get_model().modules()
    )
    assert "ksteer" in runner.compilation_config.static_forward_context
    assert worker(engine).ksteer_state is runner.compilation_config.static_forward_context["ksteer"]


@pytest.mark.parametrize(
    "spec",
    [
        {"probe": "tones", "target": ["warm"], "alpha": 1},
        SteeringSpec(probe="tones", target=["warm"], alpha=1),
        '{"probe": "tones", "target": ["warm"]}',
        "anything",
        {},
    ],
)
def test_a_spec_sent_to_an_engine_without_steering_is_refused(
    plain_engine: Any, prompts: Callable[..., list[list[int]]], spec: Any
) -> None:
    prompt = prompts(1, 10)[0]
    with pytest.raises(ValueError, match=r"not enabled in this engine: start it with --plugin ksteer"):
        generate_one(plain_engine, prompt, spec)
    assert len(generate_one(plain_engine, prompt).outputs[0].token_ids) == 12


def test_enabled_but_idle_gives_the_same_bits_in_eager_mode(
    llama: Path, probes: dict[str, Path], prompts: Callable[..., list[list[int]]]
) -> None:
    """Fresh engines, same requests, same schedule."""
    asked = prompts(3, 40) + prompts(3, 9)
    idle = start_engine(llama, probes, steering={"layers": "all"})
    plain = start_engine(llama)
    for changes in ({}, {"temperature": 1, "seed": 5}):
        left, right = (generate(llm, asked, [None] * 6, **changes) for llm in (idle, plain))
        assert [exact(output) for output in left] == [exact(output) for output in right]
    assert worker(idle).ksteer_state.counters.op_calls == 0


def test_enabling_steering_leaves_the_rest_of_the_configuration_alone(
    llama: Path, probes: dict[str, Path], engine: Any, plain_engine: Any
) -> None:
    enabled, plain = engine.llm_engine.vllm_config, plain_engine.llm_engine.vllm_config
    assert plain.additional_config == {}
    for part in ("model_config", "cache_config", "parallel_config", "scheduler_config"):
        assert getattr(enabled, part).compute_hash() == getattr(plain, part).compute_hash()
    assert enabled.model_config.enforce_eager == plain.model_config.enforce_eager
    assert enabled.compilation_config.mode == plain.compilation_config.mode
