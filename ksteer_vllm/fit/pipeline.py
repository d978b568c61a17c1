"""Labelled rows in, artifact out: what `ksteer fit` and `ksteer demo` both run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ksteer_vllm.artifact import Artifact
from ksteer_vllm.errors import ConfigError, listing
from ksteer_vllm.fit.data import LabelledRow
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.fit.train import FitPlan
from ksteer_vllm.methods import fits, load
from ksteer_vllm.probe import Probe

__all__ = ["fit_probe_to_rows", "fit_to_rows", "progress_bar"]


def fit_to_rows(
    model: str,
    rows: Sequence[LabelledRow],
    method: str = "mlp",
    *,
    labels: Sequence[str] = (),
    layer: int | None = None,
    options: Mapping[str, Any] | None = None,
    engine_options: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Artifact:
    """Fit one method to labelled rows at one layer (default: 60 % depth).

    method: a name in `ksteer_vllm.methods.fits()`. options: its own, by name. engine_options: further
    arguments of `vllm.LLM`. Raises DataError or ConfigError, and what vLLM raises for a model it cannot load.
    """
    known = fits()
    if method not in known:
        raise ConfigError(f"method: unknown {method[:80]!r}; known: {listing(known)}")
    with progress_bar(console) as progress:
        task = FitTask.of(
            model,
            rows,
            method,
            labels=labels,
            layer=layer,
            options=options,
            engine_options=engine_options,
            progress=progress,
        )
        artifact: Artifact = load(known[method])(task)
    return artifact


def fit_probe_to_rows(
    model: str,
    rows: Sequence[LabelledRow],
    *,
    labels: Sequence[str] = (),
    layer: int | None = None,
    plan: FitPlan | None = None,
    engine_options: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Probe:
    """`fit_to_rows` of the MLP probe, its options as a `FitPlan`."""
    return Probe.of(
        fit_to_rows(
            model,
            rows,
            labels=labels,
            layer=layer,
            options=plan.model_dump() if plan else None,
            engine_options=engine_options,
            console=console,
        )
    )


class _Bar(Progress):
    """Nothing is shown before there is something to count: a fit that is refused prints one line."""

    def __enter__(self) -> Self:
        return self

    def add_task(self, *arguments: Any, **options: Any) -> TaskID:
        self.start()
        return super().add_task(*arguments, **options)

    def stop(self) -> None:
        if self.live.is_started:
            super().stop()


def progress_bar(console: Console | None = None) -> Progress:
    """A progress bar with counts and the time left."""
    return _Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )
