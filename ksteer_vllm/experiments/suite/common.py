"""What a fit of one method and a suite of several share: the checks, the replies, and a task per method."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from ksteer_vllm.bench.engines import model_of
from ksteer_vllm.data.rows import LabelledRow, labels_of
from ksteer_vllm.errors import UsageError, did_you_mean, listing
from ksteer_vllm.experiments.suite.plan import SuitePlan
from ksteer_vllm.fit.activations import default_layer
from ksteer_vllm.fit.gates import check_replies
from ksteer_vllm.fit.pipeline import complete_rows
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.fit.visibility import Visibility
from ksteer_vllm.models import ModelIdentity, check_layers
from ksteer_vllm.spec.families import fits

if TYPE_CHECKING:
    from ksteer_vllm.data.dataset import TaskDataset

__all__ = ["ACTIVATIONS", "REPLIES", "Fits"]

ACTIVATIONS = "activations"
REPLIES = "replies.jsonl"
"""In OUT: what the model wrote for rows without a reply; `ksteer layers` and `ksteer fit` share it."""


@dataclass(frozen=True)
class Fits:
    """The fits of one plan.

    methods, labels: those of the plan, or all there are. layers: ascending; layer: the one of them that a
    request steers at unless it names another.
    """

    model: str
    identity: ModelIdentity
    plan: SuitePlan
    methods: tuple[str, ...]
    labels: tuple[str, ...]
    layer: int
    layers: tuple[int, ...]
    out: Path
    engine_options: Mapping[str, Any]
    progress: Progress

    @classmethod
    def of(
        cls,
        model: str,
        dataset: TaskDataset,
        out: Path,
        plan: SuitePlan,
        engine_options: Mapping[str, Any],
        progress: Progress,
    ) -> Fits:
        """The fits of a plan, checked against the model and the data.

        Args:
            model: What vLLM is to load.
            dataset: The labelled rows.
            out: The folder to write.
            plan: What is fitted, and how.
            engine_options: Further arguments of `vllm.LLM`.
            progress: Where progress is shown.

        Raises:
            UsageError: for an unknown method, a layer the model does not have, a preset of a method that is
                not fitted.
            DataError: for a label no row shows.
        """
        known = fits()
        if unknown := [name for name in plan.methods if name not in known]:
            meant = did_you_mean(unknown[0], [*known, "all"])
            raise UsageError(f"method: unknown {unknown[0][:80]!r}; known: {listing(known)}, or all{meant}")
        if plan.preset is not None and plan.methods and "mlp" not in plan.methods:
            raise UsageError(f"preset: {plan.preset} is for mlp, not for {listing(plan.methods)}")
        identity = model_of(model, engine_options)
        layer = default_layer(identity.num_layers) if plan.layer is None else plan.layer
        layers = tuple(sorted(set(plan.layers))) or (layer,)
        check_layers("layers" if plan.layers else "layer", layers, identity.num_layers, UsageError)
        return cls(
            model=model,
            identity=identity,
            plan=plan,
            methods=plan.methods or tuple(known),
            labels=labels_of(dataset.rows, plan.labels or dataset.labels),
            layer=layer if layer in layers else layers[len(layers) // 2],
            layers=layers,
            out=out,
            engine_options=dict(engine_options),
            progress=progress,
        )

    def task(self, method: str, rows: Sequence[LabelledRow], folder: Path, **more: Any) -> FitTask:
        """The task of a method, whose activations are recorded into `folder`; more: further fields."""
        fields: dict[str, Any] = {
            "method": method,
            "options": self.plan.options_of(method),
            "window": self.plan.window,
            "compat": self.plan.compat if method == "mlp" else None,
            "shared_options": len(self.methods) > 1,
            **more,
        }
        return FitTask(
            self.model,
            self.identity,
            rows,
            self.labels,
            self.layer,
            engine_options=self.engine_options,
            progress=self.progress,
            folder=folder,
            **fields,
        )

    def completed(self, rows: Sequence[LabelledRow], labels: Sequence[str] = ()) -> list[LabelledRow]:
        """The rows, with the engine's reply where they have none; see `complete_rows`."""
        return complete_rows(
            self.model,
            rows,
            self.out / REPLIES,
            labels=labels,
            seed=self.plan.seed,
            plan=self.plan.replies,
            engine_options=self.engine_options,
            progress=self.progress,
        )

    def check_replies(self, rows: Sequence[LabelledRow], given: Sequence[LabelledRow]) -> list[Visibility]:
        """What a bag of words finds of the labels in the replies; see `gates.check_replies`."""
        return check_replies(
            rows,
            given,
            self.labels,
            allowed=self.plan.allow_invisible_labels,
            console=self.progress.console,
        )

    def clean_up(self) -> None:
        """Delete the recorded activations, unless they are to be kept."""
        if not self.plan.keep_activations:
            shutil.rmtree(self.out / ACTIVATIONS, ignore_errors=True)
