"""The sizes of a run of the demo. Imports no torch: the command line is made from it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["DemoPlan"]


class DemoPlan(BaseModel):
    """Sizes and seed of one run of the demo."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: Annotated[int, Field(ge=1, description="Number of labelled replies to fit to.")] = 1500
    layer: Annotated[int, Field(ge=0, description="Decoder block to fit and steer at.")] = 2
    epochs: Annotated[int, Field(ge=1, description="Maximum number of epochs of the probe's training.")] = 12
    noise: Annotated[
        float, Field(ge=0, description="Gaussian noise on the training inputs, in standard deviations.")
    ] = 1.0
    calibration_questions: Annotated[
        int, Field(ge=1, description="Number of questions the strengths are chosen on.")
    ] = 20
    test_questions: Annotated[
        int, Field(ge=1, description="Number of test questions per row of the table.")
    ] = 100
    seed: Annotated[int, Field(description="Seed of the labelled text, the fit and the sampling.")] = 0
