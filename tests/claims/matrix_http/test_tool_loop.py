"""Built-in tools of `/v1/responses`: vLLM's own loop over the turns, with an engine that only admits.

Each turn is a request with the same sampling parameters and a longer prompt. No model: a tiny one would call
no tool, and what matters is what the engine is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ksteer_vllm.report import REPORT_ATTRIBUTE
from testbed.models import HIDDEN_SIZE, NUM_LAYERS
from testbed.probes import random_probe

SPEC: dict[str, Any] = {"probe": "tones", "target": ["warm"], "alpha": 3.0}
PROMPTS = ([1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8, 9])
"""Of the first turn, and of the one after a tool has answered."""


class AdmittingEngine:
    """`AsyncLLM` as far as admission goes; records (windows of the edits, extra_args) of each request."""

    def __init__(self, probe: Path) -> None:
        from ksteer_vllm.admission.live import LiveRegistry
        from ksteer_vllm.admission.resolve import resolve_config
        from ksteer_vllm.config import EngineConfig
        from ksteer_vllm.host.requests import Admission
        from ksteer_vllm.models import ModelIdentity

        model = ModelIdentity(name="tiny", model_type="llama", hidden_size=HIDDEN_SIZE, num_layers=NUM_LAYERS)
        config = resolve_config(EngineConfig.parse({"probes": {"tones": str(probe)}}), model)
        self.input_processor = SimpleNamespace(ksteer_admission=Admission(LiveRegistry(config)))
        self.asked: list[list[Any]] = []

    def generate(self, prompt: Any, params: Any, request_id: str, **_: Any) -> AsyncIterator[Any]:
        from ksteer_vllm.host import requests
        from ksteer_vllm.host.admitted import admitted_request

        admitted = self.input_processor.ksteer_admission.check(
            params, num_prompt_tokens=requests.prompt_length(prompt)
        )
        request = SimpleNamespace(
            prompt_token_ids=prompt["prompt_token_ids"], prompt_embeds=None, sampling_params=params.clone()
        )
        if admitted is not None:
            requests.admit_into(request, admitted)
        found = admitted_request(request.sampling_params)
        self.asked.append([list(edit.windows) for edit in found.edits] if found else [])
        return self._output(len(self.asked))

    async def _output(self, turn: int) -> AsyncIterator[Any]:
        completion = SimpleNamespace(**{REPORT_ATTRIBUTE: {"turn": turn}})
        yield SimpleNamespace(outputs=[completion], metrics=None)


@pytest.fixture
def engine(tmp_path: Path) -> AdmittingEngine:
    random_probe().save(tmp_path / "tones")
    return AdmittingEngine(tmp_path / "tones")


def start(engine: AdmittingEngine, spec: Any) -> tuple[Any, Any]:
    """(the loop, not yet iterated; its conversation context)."""
    from vllm import SamplingParams
    from vllm.entrypoints.openai.responses.context import ParsableContext
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    from ksteer_vllm.server.responses import checked_turns

    class TwoTurns(ParsableContext):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.request = SimpleNamespace(max_output_tokens=8, truncation="disabled", input="hi")
            self.response_messages: list[Any] = []
            self.response_parser = self.parser_cls = self.chat_template = None
            self.tool_dicts: list[Any] = []
            self.chat_template_content_format = "auto"
            self.turns = 0

        def append_output(self, output: Any) -> None:
            self.turns += 1

        def need_builtin_tool_call(self) -> bool:
            return self.turns < len(PROMPTS)

        async def call_tool(self) -> list[Any]:
            return []

    async def render_next_turn(*_: Any) -> list[Any]:
        return [{"prompt_token_ids": PROMPTS[1]}]

    serving = SimpleNamespace(
        engine_client=engine,
        model_config=SimpleNamespace(max_model_len=64),
        default_sampling_params={},
        override_max_tokens=None,
        _log_inputs=lambda *_, **__: None,
        _extract_prompt_len=lambda prompt: len(prompt["prompt_token_ids"]),
        _render_next_turn=render_next_turn,
    )
    context = TwoTurns()
    params = SamplingParams(max_tokens=8, extra_args=spec and {"ksteer": spec}, skip_clone=True)
    original = OpenAIServingResponses._generate_with_builtin_tools
    loop = checked_turns(getattr(original, "__wrapped__", original))(
        serving,
        request_id="r",
        engine_input={"prompt_token_ids": PROMPTS[0]},
        sampling_params=params,
        context=context,
    )
    return loop, context


def run(loop: Any) -> None:
    async def exhaust() -> None:
        async for _ in loop:
            pass

    asyncio.run(exhaust())


@pytest.mark.parametrize(
    ("where", "windows"),
    [
        ("prompt", [[0, 4], [0, 9]]),
        ({"prompt": [1, None]}, [[1, 4], [1, 9]]),
        ({"prompt": [2, 20]}, [[2, 4], [2, 9]]),
    ],
)
def test_each_turn_is_steered_with_windows_of_its_own_prompt(
    engine: AdmittingEngine, where: Any, windows: list[list[int]]
) -> None:
    loop, context = start(engine, {**SPEC, "where": where})
    run(loop)
    assert [list(turn[0][:2]) for turn in engine.asked] == windows
    assert [report["turn"] for report in context.ksteer_reports] == [1, 2]


def test_a_plain_loop_stays_plain(engine: AdmittingEngine) -> None:
    loop, _ = start(engine, None)
    run(loop)
    assert engine.asked == [[], []]


def test_a_bad_spec_is_refused_before_the_loop_starts(engine: AdmittingEngine) -> None:
    with pytest.raises(ValueError, match=r"^ksteer\.where\.prompt: .*4 tokens"):
        start(engine, {**SPEC, "where": {"prompt": [4, 9]}})
    assert engine.asked == []


def test_a_turn_that_a_spec_does_not_fit_is_refused_by_name(engine: AdmittingEngine) -> None:
    """The second turn may generate fewer tokens than the window begins at: no turn runs unsteered."""
    loop, context = start(engine, {**SPEC, "where": {"generation": [6, None]}})
    run_first = anext(loop)

    async def two_turns() -> None:
        await run_first
        context.request.max_output_tokens = 4
        await anext(loop)

    with pytest.raises(ValueError, match=r"^ksteer\.where\.generation: .*max_tokens is 4"):
        asyncio.run(two_turns())
    assert len(engine.asked) == 1
