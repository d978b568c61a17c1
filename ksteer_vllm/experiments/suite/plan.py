"""Options of a fit of one method or of a suite. Imports no torch: the command line is made from it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ksteer_vllm.bench.sampling import ReplyPlan
from ksteer_vllm.data.positions import Window, window_of
from ksteer_vllm.fit.presets import FitPreset, preset_of
from ksteer_vllm.spec.families import fits

__all__ = ["THROUGH_THE_MODEL", "AllowInvisibleLabels", "SuitePlan"]

Layer = Annotated[int, Field(ge=0)]
AllowInvisibleLabels = Annotated[
    bool,
    Field(
        description="Fit even if the replies that the model wrote under instructions do not show their "
        "labels."
    ),
]

THROUGH_THE_MODEL = frozenset({"loreft", "lorest"})
"""Methods that are fitted through the language model itself."""

_NEED_REPLIES = THROUGH_THE_MODEL | {"actadd"}


class SuitePlan(BaseModel):
    """What is fitted, and how.

    Attributes:
        methods: Names in `spec.families.fits()`; empty: all of them.
        options: Options of the methods, by name; each method takes those it knows.
        replies: How the model writes replies for rows that have none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: tuple[str, ...] = ()
    layer: Annotated[
        int | None, Field(ge=0, description="Decoder block to fit at; default: the one at 60 % of the depth.")
    ] = None
    layers: Annotated[
        tuple[Layer, ...],
        Field(description="Several decoder blocks to fit at, each with its own tensors."),
    ] = ()
    labels: Annotated[
        tuple[str, ...], Field(description="Labels to fit; default: every label in the data.")
    ] = ()
    positions: Annotated[
        str | None,
        Field(
            description="Which activations to fit to: reply (those of every reply token), reply-mean (their "
            "mean) or prompt-last (the prompt's last token); default: reply, or what the preset uses."
        ),
    ] = None
    preset: Annotated[
        str | None,
        Field(description="For mlp: published settings to use, paper or pip-0.1.2 (the package k-steering)."),
    ] = None
    options: dict[str, Any] = {}
    replies: ReplyPlan = ReplyPlan()
    seed: Annotated[int, Field(description="Seed of the data split and of everything random in the fit.")] = 0
    keep_activations: Annotated[
        bool, Field(description="Keep the recorded activations, in OUT/activations.")
    ] = False
    allow_invisible_labels: AllowInvisibleLabels = False

    @property
    def window(self) -> Window:
        """The positions read, except by methods that choose their own. Raises UsageError."""
        return self._preset.window if self.positions is None else window_of(self.positions)

    @property
    def compat(self) -> str | None:
        """Which other package the probe of method mlp is fitted like, see `FitTask`. Raises UsageError."""
        return self._preset.compat

    @property
    def reads_replies(self) -> bool:
        """Whether any method uses the rows' replies."""
        return self.window.needs_reply or bool(_NEED_REPLIES & set(self.methods or fits()))

    def options_of(self, method: str) -> dict[str, Any]:
        """The options a method is given: those of the preset, overridden by `options`."""
        return {**(self._preset.options if method == "mlp" else {}), **self.options, "seed": self.seed}

    @property
    def _preset(self) -> FitPreset:
        return preset_of(self.preset)
