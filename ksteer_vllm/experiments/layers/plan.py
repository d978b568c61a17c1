"""What a layer sweep tries. Imports no torch: the command line is made from it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ksteer_vllm.bench.judges import AllowChanceJudge
from ksteer_vllm.bench.sampling import ReplyPlan, Sampling
from ksteer_vllm.experiments.suite.plan import AllowInvisibleLabels

__all__ = ["LayerPlan"]

Layer = Annotated[int, Field(ge=0)]
Length = Annotated[float, Field(gt=0)]


class LayerPlan(Sampling):
    """The layers to compare, and what is fitted and steered at each.

    Attributes:
        options: Further options of the fits.
        replies: How the model writes replies for rows that have none.
    """

    layers: Annotated[tuple[Layer, ...], Field(description="Decoder blocks to compare; default: all.")] = ()
    labels: Annotated[
        tuple[str, ...], Field(description="Labels to use; default: every label in the data.")
    ] = ()
    strengths: Annotated[
        tuple[Length, ...],
        Field(
            min_length=1,
            description="Strengths to try, in units of the layer's mean |x - mean(x)|.",
        ),
    ] = (0.125, 0.25, 0.5, 1.0)
    prompts: Annotated[int, Field(ge=1, description="Number of prompts to steer, per label.")] = 8
    rows: Annotated[int, Field(ge=1, description="Maximum number of labelled rows to fit to.")] = 600
    epochs: Annotated[
        int, Field(ge=1, description="Maximum number of training epochs for each layer's probe.")
    ] = 8
    noise: Annotated[
        float | None,
        Field(ge=0, description="Gaussian noise on the training inputs, in standard deviations; default: 0."),
    ] = None
    judge: Annotated[
        str | None,
        Field(
            description="Who judges the replies: reader (exact rules) or probe; default: the task's judge."
        ),
    ] = None
    allow_chance_judge: AllowChanceJudge = False
    allow_invisible_labels: AllowInvisibleLabels = False
    options: dict[str, Any] = Field(default_factory=dict)
    replies: ReplyPlan = ReplyPlan()
    seed: Annotated[int, Field(description="Seed of the data split, the fits and the sampling.")] = 0

    @property
    def fit_options(self) -> dict[str, Any]:
        """Options of the fits, by name."""
        return {"epochs": self.epochs, "noise": self.noise or 0.0, "seed": self.seed, **self.options}
