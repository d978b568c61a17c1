"""What a calibration tries, and how it chooses. Imports no torch: the command line is made from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ksteer_vllm.bench.combinations import Avoid
from ksteer_vllm.bench.sampling import Sampling
from ksteer_vllm.errors import UsageError, first_problem

__all__ = ["CalibrationPlan", "Metric", "Rule"]

Metric = Literal["judge", "propensity"]
Rule = Literal["best", "largest_coherent"]
Layer = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]


class CalibrationPlan(Sampling):
    """The strengths to try, on what, and how to choose among them."""

    variants: Annotated[
        tuple[str, ...],
        Field(
            description="A variant to calibrate, or a probe of the suite, to calibrate all its variants; "
            "may be repeated; default: all except random directions, which take the strength of the vectors "
            "they are a control for."
        ),
    ] = ()
    sizes: Annotated[
        tuple[Size, ...],
        Field(min_length=1, description="Numbers of labels to steer towards at once."),
    ] = (1, 2, 3)
    strengths: Annotated[int, Field(ge=2, le=64, description="Number of strengths in the first grid.")] = 8
    layers: Annotated[
        tuple[Layer, ...], Field(description="Layers to choose from; default: each probe's own layer.")
    ] = ()
    prompts: Annotated[
        int,
        Field(ge=1, description="Number of prompts per single label; combinations share as many requests."),
    ] = 12
    budget: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Least share of coherent replies, relative to that of the unsteered model.",
        ),
    ] = 0.9
    metric: Annotated[
        Metric,
        Field(
            description="How the best strength is chosen: by the judge's verdicts, or by propensity, the "
            "evaluation probe's probability of the target labels."
        ),
    ] = "judge"
    rounds: Annotated[
        int,
        Field(
            ge=0, le=32, description="Number of bisection rounds; each generates one more batch of replies."
        ),
    ] = 3
    rule: Annotated[Rule, Field(description="Which strength becomes the probes' default.")] = "best"
    avoid: Annotated[
        Avoid, Field(description="Labels to steer away from: rest (all but the targets) or none.")
    ] = "rest"
    seed: Annotated[int, Field(description="Seed of the sampling.")] = 0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> CalibrationPlan:
        """Make a plan. Raises UsageError, naming the field that is wrong."""
        try:
            return cls.model_validate(dict(fields))
        except ValidationError as error:
            first = first_problem(error)
            raise UsageError(f"{first}, got {first.got!r}") from None

    def sizes_of(self, labels: int) -> tuple[int, ...]:
        """The sizes to calibrate with that many labels: those asked for, or those of the default that fit."""
        if "sizes" in self.model_fields_set:
            return self.sizes
        return tuple(size for size in self.sizes if size <= labels)
