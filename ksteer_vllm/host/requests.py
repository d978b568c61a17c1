"""Admission: a request's spec is checked in the front end, before the engine ever sees it.

An exception in a worker would stop the engine, so everything a request can get wrong is refused here,
as a client error: ValueError offline, HTTP 400 online.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

from ksteer_vllm.admission.live import LiveRegistry
from ksteer_vllm.admission.refusals import count_refusal
from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.admission.runnable import RunnableSpec
from ksteer_vllm.errors import KSteerError, SpecError
from ksteer_vllm.host.admitted import set_admitted
from ksteer_vllm.host.settings import engine_config
from ksteer_vllm.spec.admitted import ADMISSION_KEY, AdmittedRequest
from ksteer_vllm.spec.capture import CAPTURE_KEY, check_capture
from ksteer_vllm.spec.presets import is_opt_out
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

__all__ = [
    "Admission",
    "AdmissionError",
    "admit_into",
    "asks_for_steering",
    "compute_all_captured",
    "counting_refusals",
    "prompt_length",
    "without_default",
]

Result = TypeVar("Result")

_DEFAULT_IS_OFF: ContextVar[bool] = ContextVar("ksteer_default_is_off", default=False)
"""Set while requests without a spec are made for a search that opted out."""


@contextmanager
def without_default() -> Iterator[None]:
    """Requests made inside, and in tasks created inside, are not given the engine's default."""
    token = _DEFAULT_IS_OFF.set(True)
    try:
        yield
    finally:
        _DEFAULT_IS_OFF.reset(token)


class AdmissionError(VLLMValidationError, KSteerError, ValueError):
    """A request that cannot be steered as asked: HTTP 400 from vLLM's server, a ValueError offline."""

    def __init__(self, message: str, parameter: str = EXTRA_ARGS_KEY, *, reason: str = "") -> None:
        VLLMValidationError.__init__(self, _encodable(message), parameter=_encodable(parameter))
        self.reason = reason

    def __str__(self) -> str:  # vLLM's repeats the parameter, which our messages begin with
        return str(self.args[0])

    @classmethod
    def of(cls, error: SpecError) -> AdmissionError:
        field = error.field
        path = field if field.startswith(EXTRA_ARGS_KEY) else f"{EXTRA_ARGS_KEY}.{field}"
        return cls(str(error), path, reason=error.reason)


def counting_refusals(function: Callable[..., Result]) -> Callable[..., Result]:
    """Count the requests that a gate refuses. A refusal ends the request, so it is counted once."""

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Result:
        try:
            return function(*args, **kwargs)
        except AdmissionError as error:
            count_refusal(str(error.parameter), error.reason)
            raise

    return counted


def _encodable(text: str) -> str:
    """Lone surrogates, which JSON escapes can spell, replaced: the answer must be UTF-8."""
    return text.encode("utf-8", "replace").decode()


def asks_for_steering(params: Any) -> bool:
    """Whether these sampling, pooling or beam-search parameters carry a spec. None and an opt-out do not."""
    said = _said(params)
    return said is not None and not is_opt_out(said)


def _said(params: Any) -> Any:
    """What the parameters say about steering, or None."""
    for name in ("extra_args", "extra_kwargs"):
        extra = getattr(params, name, None)
        if isinstance(extra, Mapping) and extra.get(EXTRA_ARGS_KEY) is not None:
            return extra[EXTRA_ARGS_KEY]
    return getattr(params, EXTRA_ARGS_KEY, None)


def prompt_length(prompt: Any) -> int | None:
    """The number of prompt tokens of anything `AsyncLLM.generate` takes; None if it is not tokenised."""
    if isinstance(prompt, list):
        return len(prompt)  # token ids
    if isinstance(prompt, Mapping):
        read = prompt.get
    else:
        read = functools.partial(_attribute, prompt)
    if (decoder := read("decoder_prompt")) is not None:
        return prompt_length(decoder)
    for name in ("prompt_token_ids", "prompt_embeds"):
        if (tokens := read(name)) is not None:
            return len(tokens)
    return None


def _attribute(prompt: Any, name: str) -> Any:
    return getattr(prompt, name, None)


@dataclass(frozen=True)
class Admission:
    """The gate of one engine.

    Args:
        live: The engine's registry; None where steering is not enabled.
        captures: Whether requests may have activations recorded.
    """

    live: LiveRegistry | None
    captures: bool = False

    @classmethod
    def for_engine(cls, vllm_config: Any) -> Admission:
        config = engine_config(vllm_config)
        if config is None:
            return cls(None)
        return cls(LiveRegistry(config), captures=config.capture is not None)

    @property
    def registry(self) -> Registry | None:
        """What requests can ask for now; None where steering is not enabled."""
        return None if self.live is None else self.live.current

    @counting_refusals
    def check(
        self, params: Any, *, num_prompt_tokens: int | None = None, resumable: bool = False
    ) -> RunnableSpec | None:
        """Check what a request asks for.

        A request that does not mention steering gets the engine's default, if there is one.

        Args:
            params: vLLM's sampling, pooling or beam-search parameters.
            num_prompt_tokens: The prompt's length, if known: the windows are then checked too.
            resumable: Whether the request belongs to a streaming-input session.

        Returns:
            The spec to run, or None for a plain request.

        Raises:
            AdmissionError: If the request cannot be steered as asked.
        """
        self._check_reserved(params)
        said, registry = _said(params), self.registry
        if is_opt_out(said):
            return None
        if said is None:
            return self._default(registry, params, num_prompt_tokens, resumable)
        if registry is None:
            raise AdmissionError(
                "steering is not enabled in this engine: start it with --plugin ksteer, or offline with "
                "additional_config=ksteer_vllm.enable(…)",
                reason="disabled",
            )
        if not isinstance(params, SamplingParams):
            raise AdmissionError(
                f"steering needs SamplingParams; {type(params).__name__} would lose the spec"
            )
        if resumable:
            raise AdmissionError("steering is not supported in streaming-input sessions")
        assert params.extra_args is not None
        try:
            admitted = registry.admit(params.extra_args[EXTRA_ARGS_KEY])
            if admitted is not None and num_prompt_tokens is not None:
                admitted.for_request(num_prompt_tokens, params.max_tokens)
        except SpecError as error:
            raise AdmissionError.of(error) from None
        return admitted

    def _default(
        self, registry: Registry | None, params: Any, num_prompt_tokens: int | None, resumable: bool
    ) -> RunnableSpec | None:
        """What a request that does not mention steering gets; None if it generates nothing."""
        if registry is None or registry.default is None or _DEFAULT_IS_OFF.get():
            return None
        if not isinstance(params, SamplingParams):
            return None
        if resumable:
            raise AdmissionError(
                "this engine steers by default, which streaming-input sessions do not support; "
                'opt out with {"preset": "none"}'
            )
        if num_prompt_tokens is not None:
            try:
                registry.default.for_request(num_prompt_tokens, params.max_tokens)
            except SpecError as error:
                raise AdmissionError.of(error) from None
        return registry.default

    def labels(self, admitted: AdmittedRequest) -> dict[str, tuple[str, ...]]:
        """Digest -> labels, for the probes an admitted request uses."""
        assert self.live is not None
        return self.live.labels(admitted.digests)

    def _check_reserved(self, params: Any) -> None:
        extra = getattr(params, "extra_args", None) or {}
        if ADMISSION_KEY in extra:
            raise AdmissionError(f"extra_args.{ADMISSION_KEY} is reserved for the engine", ADMISSION_KEY)
        if CAPTURE_KEY in extra:
            if not self.captures:
                raise AdmissionError(
                    f"extra_args.{CAPTURE_KEY}: this engine does not capture activations", CAPTURE_KEY
                )
            try:
                check_capture(extra[CAPTURE_KEY])
            except ValueError as error:
                raise AdmissionError(f"extra_args.{CAPTURE_KEY}: {error}", CAPTURE_KEY) from None


def compute_all_captured(request: Any) -> None:
    """Let a request that captures skip the prefix cache: a token read from it would not be recorded.

    Written into the request's own copy of the sampling parameters.
    """
    params = request.sampling_params
    if params is not None and CAPTURE_KEY in (params.extra_args or {}):
        params.skip_reading_prefix_cache = True


@counting_refusals
def admit_into(request: Any, spec: RunnableSpec) -> None:
    """Write the record of an admitted request into its own copy of the sampling parameters.

    The caller's SamplingParams and its extra_args dict are left alone: the copy may be shallow.
    """
    params = request.sampling_params
    length = prompt_length(request)
    assert length is not None  # a request object is tokenised
    try:
        admitted = spec.for_request(length, params.max_tokens)
    except SpecError as error:
        raise AdmissionError.of(error) from None
    set_admitted(params, admitted)
    if admitted.report and admitted.steers_prompt:  # a token read from the prefix cache would have no record
        params.skip_reading_prefix_cache = True
