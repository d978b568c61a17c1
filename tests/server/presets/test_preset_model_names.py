"""Presets as model names, on vLLM's own request classes and a stand-in for its handlers."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from ksteer_vllm.host.requests import AdmissionError
from ksteer_vllm.server.preset_models import resolve_preset_model

WARM = {"probe": "tones", "target": ["warm"], "alpha": 3.0}


class OpenAIServingChat:
    """A handler that keeps a spec. Names: `tiny`, `tiny:x` and the adapter `tuned`."""

    def __init__(self, default: str = "", presets: tuple[str, ...] = ("warm", "cold")) -> None:
        registry = SimpleNamespace(
            presets=dict.fromkeys(presets, WARM),
            default=object() if default else None,
            config=SimpleNamespace(default=default),
        )
        self.models = SimpleNamespace(
            engine_client=SimpleNamespace(
                input_processor=SimpleNamespace(ksteer_admission=SimpleNamespace(registry=registry))
            ),
            is_base_model=("tiny", "tiny:x").__contains__,
            lora_requests={"tuned": object()},
        )

    @staticmethod
    def create_error_response(message: str, **fields: Any) -> Any:
        return SimpleNamespace(message=message, **fields)

    async def check(self, request: Any) -> Any:
        return await resolve_preset_model(_vllms_check)(self, request)


class ServingTokenization(OpenAIServingChat):
    """Generates nothing. (The stand-in's own base class must not count.)"""


class ServingTokens:
    """A handler that would lose a spec."""


async def _vllms_check(self: Any, request: Any) -> Any:
    import vllm.envs

    if vllm.envs.VLLM_SKIP_MODEL_NAME_VALIDATION or request.model is None:
        return None
    if self.models.is_base_model(request.model) or request.model in self.models.lora_requests:
        return None
    return SimpleNamespace(message="does not exist", status_code=404)


def chat(**fields: Any) -> Any:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    return ChatCompletionRequest.model_validate({"model": "tiny", "messages": [], **fields})


def resolve(request: Any, serving: Any = None) -> Any:
    return asyncio.run((serving or OpenAIServingChat()).check(request))


def losing(default: str = "") -> Any:
    serving = OpenAIServingChat(default)
    serving.__class__ = type(
        "ServingTokens",
        (),
        {name: vars(OpenAIServingChat)[name] for name in ("check", "create_error_response")},
    )  # type: ignore[assignment]
    return serving


@pytest.mark.parametrize("base", ["tiny", "tiny:x", "tuned"])
def test_a_preset_of_every_served_name_and_adapter(base: str) -> None:
    request = chat(model=f"{base}:warm")
    assert resolve(request) is None
    assert (request.model, request.model_extra) == (base, {"ksteer": {"preset": "warm"}})
    assert resolve(request) is None  # some handlers check twice
    assert request.model_extra == {"ksteer": {"preset": "warm"}}


@pytest.mark.parametrize("model", ["tiny", "tiny:x", "tuned", None])
def test_names_that_are_served_as_they_are_written(model: str | None) -> None:
    request = chat(model=model)
    assert resolve(request) is None
    assert (request.model, request.model_extra) == (model, {})


def test_what_the_body_says_goes_along() -> None:
    request = chat(model="tiny:warm", ksteer={"alpha": 1})
    assert resolve(request) is None
    assert request.model_extra == {"ksteer": {"preset": "warm", "alpha": 1}}
    request = chat(model="tiny:warm", vllm_xargs={"ksteer": '{"alpha": 1}', "mine": 2})
    assert resolve(request) is None
    assert request.model_extra == {"ksteer": {"preset": "warm", "alpha": 1}}
    assert request.vllm_xargs == {"mine": 2}


@pytest.mark.parametrize("said", [{"preset": "cold"}, False, {"preset": "none"}, 7, "{"])
def test_what_does_not_agree_is_refused(said: Any) -> None:
    with pytest.raises(AdmissionError, match=r"^ksteer"):
        resolve(chat(model="tiny:warm", ksteer=said))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("model", ["tiny:hot", "tuned:hot", "tiny:x:hot", "tiny:"])
def test_an_unknown_preset_is_an_unknown_model(
    model: str, skip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vllm.envs

    monkeypatch.setattr(vllm.envs, "VLLM_SKIP_MODEL_NAME_VALIDATION", skip, raising=False)
    request = chat(model=model)
    error = resolve(request)
    assert error.status_code == 404
    assert "Presets: warm, cold." in error.message
    assert request.model == model


def test_names_vllm_does_not_check() -> None:
    """Any name is served where vLLM skips the check: one that ends in a preset's is steered, not ignored."""
    assert resolve(chat(model="llama:warm")).message == "does not exist"
    assert resolve(chat(model="llama:8b")).message == "does not exist"
    with pytest.MonkeyPatch.context() as patch:
        import vllm.envs

        patch.setattr(vllm.envs, "VLLM_SKIP_MODEL_NAME_VALIDATION", True, raising=False)
        request = chat(model="llama:warm")
        assert resolve(request) is None
        assert (request.model, request.model_extra) == ("llama", {"ksteer": {"preset": "warm"}})
        request = chat(model="llama:8b")
        assert resolve(request) is None
        assert (request.model, request.model_extra) == ("llama:8b", {})


def test_handlers_that_would_lose_the_preset_refuse_it() -> None:
    for model in ("tiny:warm", "tuned:cold"):
        error = resolve(chat(model=model), losing())
        assert f"ksteer: the model '{model}' names a preset, which this route would lose" in error.message
    request = chat(model="tiny:none")
    assert resolve(request, losing()) is None
    assert request.model == "tiny"
    assert "would lose" in resolve(chat(model="tiny:none"), losing("warm")).message


def test_requests_of_other_types_are_refused_by_any_handler() -> None:
    request = SimpleNamespace(model="tiny:warm", model_extra={})
    assert "would lose" in resolve(request).message
    assert request.model == "tiny:warm"


def test_counting_tokens_takes_the_name_and_steers_nothing() -> None:
    serving = OpenAIServingChat()
    serving.__class__ = ServingTokenization
    request = SimpleNamespace(model="tiny:warm", model_extra={})
    assert resolve(request, serving) is None
    assert (request.model, request.model_extra) == ("tiny", {})


def test_the_default_is_given_to_requests_that_say_nothing() -> None:
    serving = OpenAIServingChat("warm")
    for said, kept in [
        ({}, {"preset": "warm"}),
        ({"ksteer": None}, {"preset": "warm"}),
        ({"ksteer": False}, False),
        ({"ksteer": {"preset": "cold"}}, {"preset": "cold"}),
    ]:
        request = chat(**said)
        assert resolve(request, serving) is None
        assert request.model_extra["ksteer"] == kept
    request = chat(model="tiny:none")
    assert resolve(request, serving) is None
    assert request.model_extra["ksteer"] == {"preset": "none"}


def test_without_steering_vllm_decides() -> None:
    serving = OpenAIServingChat()
    serving.models.engine_client.input_processor.ksteer_admission.registry = None
    assert resolve(chat(model="tiny:warm"), serving).message == "does not exist"
    serving.models.engine_client = None
    assert resolve(chat(model="tiny:warm"), serving).message == "does not exist"
