"""What making a knob takes: sizes, strengths, limits. Imports no torch: the command line is made from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ksteer_vllm.bench.sampling import Temperature
from ksteer_vllm.errors import UsageError, choices, first_problem

__all__ = ["QUICK", "RECIPE", "KnobPlan", "plan_of", "step_alpha"]

Layer = Annotated[int, Field(ge=0)]
Strength = Annotated[float, Field(gt=0)]

RECIPE: Final[Mapping[str, Any]] = {
    "method": "gradient",
    "metric": "variance",
    "unit": "normalised",
    "num_steps": 8,
}
"""The edit that is calibrated: its fields beside labels, layers and alpha. One for all behaviours."""

DEPTHS: Final = (0.3, 0.4, 0.5)
"""Where the probe is fitted unless layers are named, as shares of the model's depth. A little at each of
several layers does more than much at one."""


class KnobPlan(BaseModel):
    """Options of `ksteer fit --behaviours` and `--calibrate`; a file of behaviours may set them, too.

    Attributes:
        layers: Empty: at the shares DEPTHS of the depth.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    fit_questions: Annotated[int, Field(ge=30, description="Maximum number of questions to fit to.")] = 60
    samples: Annotated[
        int, Field(ge=1, description="Replies per behaviour and fitting question, and as many plain ones.")
    ] = 2
    held_out: Annotated[
        int,
        Field(
            ge=20,
            description="Number of questions kept apart to choose the strength on, and as many to report on.",
        ),
    ] = 30
    reply_tokens: Annotated[int, Field(ge=8, description="Maximum number of tokens per reply.")] = 48
    reply_temperature: Temperature = 0.8
    strengths: Annotated[
        tuple[Strength, ...],
        Field(
            min_length=1,
            description="Strengths to try: how far the edit moves an activation at each layer, all steps "
            "together, in mean distances of an activation from the mean, measured in standard deviations.",
        ),
    ] = (0.15, 0.2, 0.27, 0.35, 0.45)
    max_broken: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Largest share of a behaviour's replies that may be broken at its strength.",
        ),
    ] = 0.05
    layers: Annotated[
        tuple[Layer, ...], Field(description="Decoder blocks to fit and steer at; default: three.")
    ] = ()
    width: Annotated[int, Field(ge=1, le=4096, description="Width of the probe's hidden layers.")] = 256
    epochs: Annotated[int, Field(ge=1, description="Maximum number of epochs of the probe's training.")] = 12
    noise: Annotated[
        float, Field(ge=0, description="Gaussian noise on the training inputs, in standard deviations.")
    ] = 4.0
    """Much, on purpose: a probe fitted through noise finds directions that a label's activations share, and
    its gradient in the variance metric comes near the difference of means (at infinite noise it is that).
    On SmolLM2's five behaviours of the demo, strengths chosen apart, 4 showed .78 on the calibration
    questions, 1 showed .66."""
    seed: Annotated[int, Field(description="Seed of the split, the sampling and the fit.")] = 0

    def layers_of(self, num_layers: int) -> tuple[int, ...]:
        """The decoder blocks, ascending; num_layers: how many the model has."""
        if self.layers:
            return tuple(sorted(set(self.layers)))
        return tuple(sorted({min(int(share * num_layers), num_layers - 1) for share in DEPTHS}))

    def fit_options(self) -> dict[str, Any]:
        """The options of the fit's method `mlp`."""
        return self.model_dump(include={"width", "epochs", "noise", "seed"})


def step_alpha(strength: float, recipe: Mapping[str, Any] = RECIPE) -> float:
    """The alpha of an edit, the length of one step, for a total length."""
    return strength / int(recipe.get("num_steps", 1))


QUICK: Final[Mapping[str, Any]] = {
    "fit_questions": 50,
    "samples": 1,
    "held_out": 20,
    "reply_tokens": 32,
    "strengths": (0.18, 0.25, 0.35),
}
"""What `--quick` changes: fewer replies and strengths, so wider intervals and a coarser choice."""


def plan_of(*sources: Mapping[str, Any], quick: bool = False) -> KnobPlan:
    """The plan of several sources of options, of which the later win; `quick` comes before all of them.

    Raises:
        UsageError: For an option that does not exist or a value it does not allow.
    """
    options: dict[str, Any] = dict(QUICK) if quick else {}
    for source in sources:
        options |= source
    try:
        return KnobPlan(**options)
    except ValidationError as error:
        problem = first_problem(error)
        if problem.kind == "extra_forbidden":
            allowed = choices(problem.field, KnobPlan.model_fields, len(KnobPlan.model_fields))
            raise UsageError(f"options: unknown {problem.field!r}; allowed: {allowed}") from None
        raise UsageError(f"options.{problem} (got {problem.got!r:.80})") from None
