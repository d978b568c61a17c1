"""Presets as models: `BASE:NAME` steers with preset NAME, where BASE is a served name or a LoRA adapter.

The request's model becomes BASE and the preset goes into its `ksteer` field before vLLM looks up the model
or the adapter. `BASE:none` is BASE, unsteered. A model that is served under the full name takes precedence.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from vllm import envs

from ksteer_vllm.admission.refusals import count_refusal
from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.errors import SpecError, listing, nearest
from ksteer_vllm.host.requests import AdmissionError, counting_refusals
from ksteer_vllm.server.protocol import spec_of
from ksteer_vllm.spec.presets import NO_STEERING, PRESET_KEY, with_model_preset
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

__all__ = ["list_presets", "resolve_preset_model"]

Function = Callable[..., Any]

_STEERED = ("ChatCompletionRequest", "CompletionRequest", "ResponsesRequest")
_STEERED_BY = ("OpenAIServingChat", "OpenAIServingCompletion", "OpenAIServingResponses")
_GENERATES_NOTHING = ("ServingTokenization",)


def resolve_preset_model(original: Function) -> Function:
    """Wrap `BaseServing._check_model(self, request)`, which every handler calls first.

    Requests on steered routes that do not mention steering are given the engine's default preset here, too.
    """

    async def _check_model(self: Any, request: Any) -> Any:
        registry = _registry(self.models)
        if registry is None:
            return await original(self, request)
        asked, steered = request.model, _keeps_spec(self, request)
        split = _split(self.models, asked, registry)
        if split is not None:
            base, preset = split
            if preset not in registry.presets and preset != NO_STEERING:
                return await _unknown(original, self, request, registry)
            if not steered and preset != NO_STEERING and not _is(self, _GENERATES_NOTHING):
                return _refusal(self, asked)
            if steered:
                _ask_for(request, preset)
            elif preset == NO_STEERING and registry.default is not None and not _is(self, _GENERATES_NOTHING):
                return _refusal(self, asked)
            request.model = base
        elif steered and registry.default is not None and spec_of(request) is None:
            request.model_extra[EXTRA_ARGS_KEY] = {PRESET_KEY: registry.config.default}
        error = await original(self, request)
        if error is not None:
            request.model = asked
        return error

    return _check_model


def list_presets(original: Function) -> Function:
    """Wrap `OpenAIServingModels.show_available_models(self)`: one more card per served name and preset."""

    async def show_available_models(self: Any) -> Any:
        models = await original(self)
        registry = _registry(self)
        if registry is None:
            return models
        presets = [*registry.presets, *([NO_STEERING] if registry.default is not None else [])]
        taken = {card.id for card in models.data}
        base_names = {path.name for path in self.base_model_paths}
        for card in [card for card in models.data if card.id in base_names]:
            for name in presets:
                model = f"{card.id}:{name}"
                if model not in taken:
                    own = {"id": model, "root": card.id, "parent": card.id}
                    models.data.append(type(card)(**{**card.model_dump(exclude={"permission"}), **own}))
                    models.data[-1].permission = [type(permission)() for permission in card.permission]
        return models

    return show_available_models


def _registry(models: Any) -> Registry | None:
    """The engine's current registry; None without an engine, or without steering."""
    engine = getattr(models, "engine_client", None)
    admission = getattr(getattr(engine, "input_processor", None), "ksteer_admission", None)
    return None if admission is None else admission.registry


def _split(models: Any, name: Any, registry: Registry) -> tuple[str, str] | None:
    """(BASE, preset) of a name that is not itself served; None for a name that is left to vLLM."""
    if not isinstance(name, str) or _is_served(models, name):
        return None
    base, colon, preset = name.rpartition(":")
    if not colon or not base:
        return None
    known = preset in registry.presets or preset == NO_STEERING
    if _is_served(models, base) or (known and _takes_other_names()):
        return base, preset
    return None


def _is_served(models: Any, name: str) -> bool:
    return bool(models.is_base_model(name)) or name in models.lora_requests


def _takes_other_names() -> bool:
    """Whether vLLM accepts names it does not list: any name, or adapters it can find."""
    return bool(envs.VLLM_SKIP_MODEL_NAME_VALIDATION or envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING)


def _keeps_spec(serving: Any, request: Any) -> bool:
    return _is(serving, _STEERED_BY) and _is(request, _STEERED)


def _is(instance: Any, names: tuple[str, ...]) -> bool:
    """Whether an instance is of one of vLLM's classes, or of one derived from it, without importing them."""
    return any(kind.__name__ in names for kind in type(instance).__mro__)


@counting_refusals
def _ask_for(request: Any, preset: str) -> None:
    """Put the preset into a request's `ksteer` field, with what its body says. Raises AdmissionError."""
    try:
        spec = with_model_preset(spec_of(request), preset)
    except SpecError as error:
        raise AdmissionError.of(error) from None
    xargs = getattr(request, "vllm_xargs", None)
    if xargs and EXTRA_ARGS_KEY in xargs:
        request.vllm_xargs = {name: value for name, value in xargs.items() if name != EXTRA_ARGS_KEY} or None
    request.model_extra[EXTRA_ARGS_KEY] = spec


def _refusal(serving: Any, name: str) -> Any:
    count_refusal("model", "route")
    return serving.create_error_response(
        message=f"{EXTRA_ARGS_KEY}: the model {name!r} names a preset, which this route would lose; use "
        "/v1/completions, /v1/chat/completions or /v1/responses",
        param="model",
    )


async def _unknown(original: Function, serving: Any, request: Any, registry: Registry) -> Any:
    """The answer to BASE:NAME where there is no preset NAME: an adapter vLLM can find, or 404."""
    if not envs.VLLM_SKIP_MODEL_NAME_VALIDATION:
        error = await original(serving, request)
        if error is None:
            return None
    count_refusal("model", "preset")
    base, _, preset = request.model.rpartition(":")
    near = nearest(preset, list(registry.presets))
    meant = f" Did you mean `{base}:{near}`?" if near is not None else ""
    return serving.create_error_response(
        message=f"The model `{request.model[:200]}` does not exist. Presets: "
        f"{listing(registry.presets)}.{meant}",
        err_type="NotFoundError",
        status_code=HTTPStatus.NOT_FOUND,
        param="model",
    )
