"""The steering spec: what one request asks for, validated field by field.

Pure: no vLLM, no torch. What needs an engine (is the probe loaded, is the layer open) is checked in
`ksteer_vllm.registry`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from ksteer_vllm.errors import SpecError, listing

__all__ = ["EXTRA_ARGS_KEY", "SteeringSpec", "Where", "Window"]

EXTRA_ARGS_KEY = "ksteer"
"""The key of a spec in `SamplingParams.extra_args`, in an HTTP body and in `vllm_xargs`."""

MAX_LABELS_PER_SIDE = 1024
MAX_LAYERS = 1024
MAX_ALPHA = 1e12
"""Beyond every use; keeps float32 sums over steps finite."""

Method = Literal["gradient", "reflect", "project", "add"]
Window = tuple[int, int | None]
"""Half-open range [start, end) of indices; an end of None means no end."""

_STRENGTH_FIELDS = ("target", "alpha", "num_steps", "step_decay")


def _label_weights(value: Any) -> Any:
    """A list of labels means equal weights; weights sum to 1 within their side."""
    if value is None:
        return {}
    if isinstance(value, (list, tuple)) and all(isinstance(label, str) for label in value):
        if len(set(value)) != len(value):
            repeated = sorted({label for label in value if value.count(label) > 1})
            raise ValueError(f"label named twice: {listing(repeated)}")
        value = dict.fromkeys(value, 1.0)
    if not isinstance(value, Mapping):
        raise ValueError("expected a list of label names or an object of label -> weight")
    if len(value) > MAX_LABELS_PER_SIDE:
        raise ValueError(f"at most {MAX_LABELS_PER_SIDE} labels, got {len(value)}")
    return _normalised({str(label): _weight(label, weight) for label, weight in value.items()})


def _weight(label: Any, weight: Any) -> float:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise ValueError(f"weight of {label!r} must be a number, got {type(weight).__name__}")
    try:
        number = float(weight)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"weight of {label!r} must be finite and > 0, got {number}")
    return number


def _normalised(weights: dict[str, float]) -> dict[str, float]:
    try:
        total = math.fsum(weights.values())
    except OverflowError:
        total = math.inf
    if not math.isfinite(total):
        raise ValueError("the sum of the weights is not finite")
    if not weights or math.isclose(total, 1.0, rel_tol=1e-12):  # keep a canonical spec as it is
        return weights
    normalised = {label: weight / total for label, weight in weights.items()}
    if min(normalised.values()) <= 0:
        raise ValueError("weights differ by more than double precision can hold")
    return normalised


LabelWeights = Annotated[dict[str, float], BeforeValidator(_label_weights)]


class Where(BaseModel):
    """Which token positions are steered, as windows over prompt and generation indices.

    With P prompt tokens, prompt index i is position i (0 <= i < P); generation index j is position
    P - 1 + j, the forward pass that produces generated token j. Windows are half-open, positions absolute.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: tuple[StrictInt, StrictInt | None] | None = None
    generation: tuple[StrictInt, StrictInt | None] | None = None

    @field_validator("prompt", "generation", mode="before")
    @classmethod
    def _window(cls, value: Any) -> Any:
        if value is True or value == "all":
            return (0, None)
        if value is False:
            return None
        if value is not None and not (isinstance(value, (list, tuple)) and len(value) == 2):
            raise ValueError("expected true or a window [start, end] (end null: no end)")
        return value

    @field_validator("prompt", "generation")
    @classmethod
    def _not_empty(cls, window: Window | None) -> Window | None:
        if window is not None:
            start, end = window
            if start < 0:
                raise ValueError(f"a window starts at 0 or later, got start {start}")
            if end is not None:
                if end <= start:
                    raise ValueError(f"the window [{start}, {end}) is empty")
                return (start, min(end, NO_END))  # a larger number would not fit the engine's messages
        return window

    @model_validator(mode="after")
    def _some(self) -> Where:
        if self.prompt is None and self.generation is None:
            raise ValueError("selects nothing: give a prompt window, a generation window or both")
        return self

    def positions(self, num_prompt_tokens: int, max_tokens: int | None) -> tuple[int, int, int, int]:
        """Absolute half-open position windows (prompt start, end, generation start, end).

        An unused window is (0, 0). Raises SpecError if a window starts beyond the request.
        """
        prompt = generation = (0, 0)
        if self.prompt is not None:
            start, end = self.prompt
            if start >= num_prompt_tokens:
                raise SpecError(
                    "where.prompt",
                    f"the window [{start}, {'end' if end is None else end}) selects nothing: "
                    f"the prompt has {num_prompt_tokens} tokens",
                    start,
                )
            prompt = (start, num_prompt_tokens if end is None else min(end, num_prompt_tokens))
        if self.generation is not None:
            start, end = self.generation
            if max_tokens is not None and start >= max_tokens:
                raise SpecError(
                    "where.generation",
                    f"the window [{start}, {'end' if end is None else end}) selects nothing: "
                    f"max_tokens is {max_tokens}",
                    start,
                )
            first = num_prompt_tokens - 1
            generation = (first + start, NO_END if end is None else min(first + end, NO_END))
        return (*prompt, *generation)


NO_END = 2**62
"""An absolute position beyond every sequence: the end of an open generation window."""

_WHERE_WORDS: dict[str, dict[str, Window]] = {
    "prompt": {"prompt": (0, None)},
    "generation": {"generation": (0, None)},
    "both": {"prompt": (0, None), "generation": (0, None)},
}


def _where(value: Any) -> Any:
    if isinstance(value, str):
        if value not in _WHERE_WORDS:
            raise ValueError(f"expected {listing(_WHERE_WORDS)} or an object of windows, got {value[:80]!r}")
        return _WHERE_WORDS[value]
    return value


class SteeringSpec(BaseModel):
    """What one request asks for. Unknown fields are refused.

    The loss is L(x) = sum_avoid w_k f_k(x) - sum_target w_k f_k(x) over the probe's logits f
    (arXiv 2505.24535, with the labels' own weights); x is one token's residual-stream vector.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    probe: Annotated[StrictStr, Field(min_length=1, max_length=256, description="name of a loaded probe")]
    target: Annotated[LabelWeights, Field(description="labels to move towards")] = {}
    avoid: Annotated[LabelWeights, Field(description="labels to move away from")] = {}
    method: Annotated[
        Method,
        Field(description="gradient: steps along -grad L; reflect, project: Algorithm 2; add: CAA vectors"),
    ] = "gradient"
    alpha: Annotated[
        StrictFloat | StrictInt | None,
        Field(description="step size; positive towards target, 0 a no-op; default: the probe's"),
    ] = None
    num_steps: Annotated[StrictInt, Field(ge=1, description="gradient steps per token and layer")] = 8
    step_decay: Annotated[
        StrictFloat | StrictInt,
        Field(ge=0, le=1, allow_inf_nan=False, description="step t uses alpha * step_decay^t"),
    ] = 1.0
    layers: Annotated[
        tuple[Annotated[StrictInt, Field(ge=0)], ...] | None,
        Field(description="0-based decoder blocks; default: the probe's own"),
    ] = None
    where: Annotated[Where, BeforeValidator(_where)] = Where(generation=(0, None))

    @field_validator("alpha")
    @classmethod
    def _finite(cls, alpha: float | int | None) -> float | None:
        if alpha is None:
            return None
        try:
            alpha = float(alpha)
        except OverflowError:
            alpha = math.inf
        if not math.isfinite(alpha) or abs(alpha) > MAX_ALPHA:
            raise ValueError(f"must be a finite number of magnitude at most {MAX_ALPHA:g}")
        return alpha

    @field_validator("step_decay")
    @classmethod
    def _one_spelling(cls, step_decay: float | int) -> float:
        """1 and 1.0 are the same spec, with the same fingerprint."""
        return float(step_decay)

    @field_validator("layers")
    @classmethod
    def _distinct_layers(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is None:
            return None
        if not layers:
            raise ValueError("empty list; leave the field out for the probe's own layers")
        if len(layers) > MAX_LAYERS:
            raise ValueError(f"at most {MAX_LAYERS} layers, got {len(layers)}")
        if len(set(layers)) != len(layers):
            raise ValueError("a layer is named twice")
        return tuple(sorted(layers))

    @model_validator(mode="after")
    def _consistent(self) -> SteeringSpec:
        both = sorted(set(self.target) & set(self.avoid))
        if both:
            raise SpecError("target", f"label on both sides, target and avoid: {listing(both)}", both)
        if self.method in ("reflect", "project"):
            for name in _STRENGTH_FIELDS:
                if name in self.model_fields_set and (name != "target" or self.target):
                    message = f"not used by method {self.method!r}, which takes avoid only"
                    raise SpecError(name, message, getattr(self, name))
            if not self.avoid:
                raise SpecError("avoid", f"method {self.method!r} needs at least one label to avoid", {})
        elif self.method == "add":
            for name in ("num_steps", "step_decay"):
                if name in self.model_fields_set:
                    raise SpecError(name, "not used by method 'add', which has no steps", getattr(self, name))
        if not self.target and not self.avoid:
            raise SpecError("target", "target and avoid are both empty: name at least one label", {})
        return self

    @classmethod
    def parse(cls, value: Any) -> SteeringSpec:
        """A spec from a SteeringSpec, a mapping or a JSON string. Raises SpecError, naming the field."""
        if isinstance(value, cls):
            return value
        if isinstance(value, (str, bytes)):
            value = _from_json(value)
        if not isinstance(value, Mapping):
            raise SpecError("ksteer", f"expected an object, got {type(value).__name__}", value)
        try:
            return cls.model_validate(dict(value))
        except ValidationError as error:
            raise _spec_error(error) from None
        except RecursionError:
            raise SpecError("ksteer", "nested too deeply") from None

    def canonical(self) -> dict[str, Any]:
        """The spec as plain JSON types: defaults filled in, keys sorted, unused fields left out."""
        unused: set[str] = set()
        if self.method in ("reflect", "project"):
            unused = set(_STRENGTH_FIELDS)
        elif self.method == "add":
            unused = {"num_steps", "step_decay"}
        fields = self.model_dump(mode="json", exclude=unused, exclude_none=True)
        if "where" in fields:
            fields["where"] = {k: list(v) for k, v in fields["where"].items() if v is not None}
        for side in ("target", "avoid"):
            if side in fields:
                fields[side] = dict(sorted(fields[side].items()))
        return dict(sorted(fields.items()))

    def extra_args(self, other: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A value for `SamplingParams(extra_args=…)`, in plain JSON types, beside the keys of `other`."""
        given = self.model_dump(mode="json", exclude_unset=True)
        return {**(other or {}), EXTRA_ARGS_KEY: {"probe": self.probe, **given}}


def _from_json(text: str | bytes) -> Any:
    try:
        return json.loads(text)  # NaN passes here and is refused by the field that holds it
    except RecursionError:
        raise SpecError("ksteer", "nested too deeply") from None
    except ValueError as error:
        raise SpecError("ksteer", f"not valid JSON: {error}") from None


def _spec_error(error: ValidationError) -> SpecError:
    """The first problem pydantic found, as one sentence that names the field."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SpecError):
        return cause
    field = ".".join(str(part)[:80] for part in first["loc"] if not _is_type_branch(part)) or "ksteer"
    if first["type"] == "extra_forbidden":
        known = Where.model_fields if field.startswith("where.") else SteeringSpec.model_fields
        return SpecError(field, f"unknown field; allowed: {listing(known)}", first["input"])
    if first["type"] == "missing":
        return SpecError(field, "required", None)
    message = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a valid list")
    if ", got " not in message:
        message = f"{message} (got {_shown(first['input'])})"
    return SpecError(field, message, first["input"])


def _shown(value: Any) -> str:
    try:
        return repr(value)[:120]
    except RecursionError:
        return "a value nested too deeply"


def _is_type_branch(part: Any) -> bool:
    """pydantic adds the tried type of a union to the path; that is no field of ours."""
    return isinstance(part, str) and part in {"float", "int", "bool", "constrained-int", "nullable"}
