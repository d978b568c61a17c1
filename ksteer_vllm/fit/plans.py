"""Options of the fits: the plans that the command line is made from. Imports no torch.

Methods with options of their own alone keep their plan beside their fit (`ksteer_vllm/fit/methods/`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ActAddPlan", "EditPlan", "FitPlan", "SplitPlan"]


class SplitPlan(BaseModel):
    """What every method's plan has: how the rows are split, and the seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation_share: Annotated[
        float,
        Field(gt=0, lt=0.5, description="Share of the conversations used to decide when training stops."),
    ] = 0.1
    test_share: Annotated[
        float, Field(gt=0, lt=0.5, description="Share of the conversations that the fit is tested on.")
    ] = 0.2
    seed: Annotated[int, Field(description="Seed of the data split and of everything random in the fit.")] = 0


class FitPlan(SplitPlan):
    """Hyperparameters of K-Steering's probe (`--method mlp`)."""

    width: Annotated[int, Field(ge=1, le=4096, description="Width of both hidden layers.")] = 256
    epochs: Annotated[
        int, Field(ge=1, description="Maximum number of epochs; early stopping may end sooner.")
    ] = 30
    patience: Annotated[
        int, Field(ge=1, description="Epochs without a better validation loss before training stops.")
    ] = 4
    batch_size: Annotated[
        int | None,
        Field(
            ge=1,
            description="Vectors per minibatch; default: 512, or fewer (at least 32) for 16 per epoch.",
        ),
    ] = None
    learning_rate: Annotated[float, Field(gt=0, description="Learning rate of AdamW.")] = 1e-3
    weight_decay: Annotated[
        float,
        Field(
            ge=0,
            description="Weight decay of AdamW; without it and noise, little data is fitted with several of "
            "both, and the best validation loss decides.",
        ),
    ] = 0.01
    noise: Annotated[
        float, Field(ge=0, description="Gaussian noise on the training inputs, in standard deviations.")
    ] = 0.0
    loss: Annotated[
        Literal["bce", "cross-entropy"],
        Field(
            description="Loss to train with, bce (labels separately) or cross-entropy (one label per row)."
        ),
    ] = "bce"
    early_stopping: Annotated[
        bool, Field(description="Keep the epoch with the best validation loss, not the last one.")
    ] = True
    standardise: Annotated[bool, Field(description="Train on (x - mean) / deviation.")] = True
    seeds: Annotated[
        int,
        Field(
            ge=1, description="Number of networks to train; the one with the best validation loss is kept."
        ),
    ] = 1


class EditPlan(SplitPlan):
    """Hyperparameters of an edit fitted through the language model (`--method loreft`, `lorest`)."""

    rank: Annotated[int, Field(ge=1, description="Dimensions of the subspace that is edited.")] = 4
    epochs: Annotated[
        int, Field(ge=1, description="Maximum number of epochs; early stopping may end sooner.")
    ] = 20
    steps: Annotated[
        int, Field(ge=1, description="Approximate maximum number of steps, in whole epochs.")
    ] = 64
    patience: Annotated[
        int, Field(ge=1, description="Epochs without a better validation loss before training stops.")
    ] = 2
    batch_size: Annotated[int, Field(ge=1, description="Replies in a minibatch.")] = 16
    learning_rate: Annotated[
        float, Field(gt=0, description="Learning rate of Adam; falls to 0 over the steps.")
    ] = 1e-2
    system: Annotated[
        bool,
        Field(
            description="Keep system messages; one that asks for the label leaves less for the edit to learn."
        ),
    ] = False


class ActAddPlan(SplitPlan):
    """Options of `--method actadd`."""

    first: Annotated[
        int, Field(ge=1, description="Number of positions to read, from the start of the text.")
    ] = 4
