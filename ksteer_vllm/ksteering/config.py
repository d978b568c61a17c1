"""What `KSteering` is configured with, by the names of k-steering's SteeringConfig and TrainerConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ksteer_vllm.errors import UsageError, choices, listing

__all__ = ["SteeringConfig", "TrainerConfig", "sampling_of"]

Strength = Annotated[float, Field(allow_inf_nan=False)]
Layer = Annotated[int, Field(ge=0)]


class SteeringConfig(BaseModel):
    """Where the classifier is trained and where it steers.

    Attributes:
        train_layer: Decoder block, from 0, whose output (with compat: whose input) is read; default: 60 % of
            the depth.
        steer_layers: Decoder blocks whose outputs are steered; default: `train_layer`.
        steering_strength: Default: the probe's own; with compat: 1.
        layer_strengths: Layer -> strength, before `steering_strength`; steered layers only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    train_layer: Layer | None = None
    steer_layers: tuple[Layer, ...] | None = None
    steering_strength: Strength | None = None
    layer_strengths: dict[int, Strength] = {}


class TrainerConfig(BaseModel):
    """How the classifier is trained; what is not given is `ksteer fit`'s default, or the compat preset's.

    Attributes:
        hidden_dim: Width of the MLP's two hidden layers.
        clf_type: The kind of classifier, which is the family of the probe.
        lr: Learning rate of Adam.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden_dim: Annotated[int, Field(ge=1, le=4096)] | None = None
    clf_type: Literal["mlp", "linear"] = "mlp"
    lr: Annotated[float, Field(gt=0)] | None = None

    def options(self) -> dict[str, Any]:
        """As options of the fit of an MLP."""
        named = {"width": self.hidden_dim, "learning_rate": self.lr}
        return {name: value for name, value in named.items() if value is not None}


_DEFAULTS: dict[str, Any] = {"max_new_tokens": 100, "temperature": 1.0, "top_p": 0.9, "do_sample": True}
"""The package's."""

_TOP_K = 50
"""transformers' own default, which the package leaves in place."""

_SAME_NAME = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop", "seed")
_KNOWN = (*_DEFAULTS, *_SAME_NAME[2:])


def sampling_of(
    generation_kwargs: Mapping[str, Any] | None, max_new_tokens: int | None, *, as_pip: bool
) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams` from transformers' names. Raises UsageError for others."""
    given = {**_DEFAULTS, **({"top_k": _TOP_K} if as_pip else {}), **(generation_kwargs or {})}
    if max_new_tokens is not None:
        given["max_new_tokens"] = max_new_tokens
    unknown = [name for name in given if name not in _KNOWN]
    if unknown:
        known = choices(unknown[0], _KNOWN)
        raise UsageError(f"generation_kwargs: no {listing(unknown)} here; known: {known}")
    sampling = {name: given[name] for name in _SAME_NAME if name in given}
    sampling["max_tokens"] = given["max_new_tokens"]
    return sampling if given["do_sample"] else {**sampling, "temperature": 0.0}
