"""From labelled rows to a probe: what `ksteer fit` and `ksteer demo` both run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from ksteer_vllm.bench.engines import model_of
from ksteer_vllm.bench.sampling import ReplyPlan
from ksteer_vllm.data.positions import REPLY, Window
from ksteer_vllm.data.rows import LabelledRow, row_name
from ksteer_vllm.data.split import check_labels, targets_of
from ksteer_vllm.errors import DataError, UsageError, choices
from ksteer_vllm.fit.plans import FitPlan
from ksteer_vllm.fit.progress import progress_bar
from ksteer_vllm.fit.stacking import fit_at
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.models import ModelIdentity, check_layers
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import fits

__all__ = ["complete_rows", "few_threads", "fit_probe_to_rows", "fit_to_rows", "progress_bar"]

_SMALL = 512
"""Hidden size up to which a model counts as small."""


def fit_to_rows(
    model: str,
    rows: Sequence[LabelledRow],
    method: str = "mlp",
    *,
    labels: Sequence[str] = (),
    layer: int | None = None,
    layers: Sequence[int] = (),
    options: Mapping[str, Any] | None = None,
    window: Window = REPLY,
    compat: str | None = None,
    folder: Path | None = None,
    engine_options: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Probe:
    """Fit one method to labelled rows at one layer (default: 60 % depth), or at several.

    Args:
        model: A folder, or a name on the hub.
        rows: Labelled text.
        method: A name in `spec.families.fits()`.
        labels: The labels to fit; empty: all of the data's, sorted.
        layer: Decoder block, from 0; None: the one at 60 % of the depth.
        layers: Several decoder blocks, each with its own tensors.
        options: The method's own options, by name.
        window: Which positions of a row are read.
        compat: Fit as another package does, see `FitTask`.
        folder: Where recorded activations are kept, so that they need not fit in memory and a fit that is
            started again finds them; None: in memory.
        engine_options: Further arguments of `vllm.LLM`.
        console: Where progress is shown.

    Returns:
        The probe; it is not saved yet.

    Raises:
        DataError: For rows the method cannot be fitted to.
        UsageError: For an unknown method, option or layer.
        Exception: Whatever vLLM raises for a model it cannot load.
    """
    known = fits()
    if method not in known:
        raise UsageError(f"method: unknown {method[:80]!r}; known: {choices(method, known)}")
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
            window=window,
            compat=compat,
            folder=folder,
        )
        check_layers("layers", layers, task.identity.num_layers, UsageError)
        with few_threads(task.identity):
            return fit_at(task, layers)


def complete_rows(
    model: str,
    rows: Sequence[LabelledRow],
    journal: Path,
    *,
    labels: Sequence[str] = (),
    seed: int = 0,
    plan: ReplyPlan | None = None,
    engine_options: Mapping[str, Any] | None = None,
    console: Console | None = None,
    progress: Progress | None = None,
) -> list[LabelledRow]:
    """Have the engine reply where a row has no reply.

    Args:
        model: A folder, or a name on the hub.
        rows: Labelled text; rows that have a reply stay as they are.
        journal: A file that keeps the replies, so that an interrupted run resumes, and that other runs may
            share; `plan.replies` wins.
        labels: The labels that will be fitted.
        seed: Seed of the sampling.
        plan: How the replies are written; None: the defaults.
        engine_options: Further arguments of `vllm.LLM`.
        console, progress: Where to show how many replies are done; `progress` wins.

    Returns:
        The rows in their order, each with a reply.

    Raises:
        DataError: For a label with too few rows, or a prompt that ends with a reply, before anything is
            generated.
    """
    if all(row.reply is not None for row in rows):
        return list(rows)
    check_labels(targets_of(rows, labels), labels, rows=rows)
    _check_last_turns(rows)
    from ksteer_vllm.bench.journal import Journal
    from ksteer_vllm.bench.replies import generate_missing_replies

    plan, identity = plan or ReplyPlan(), {"model": model_of(model, engine_options).model_dump()}
    with Journal(plan.replies or journal, identity) as kept, progress_bar(console) as bar:
        return list(
            generate_missing_replies(
                model,
                rows,
                engine_options=engine_options,
                max_tokens=plan.reply_tokens,
                temperature=plan.reply_temperature,
                at_once=plan.reply_batch,
                seed=seed,
                progress=progress or bar,
                journal=kept,
            )
        )


def _check_last_turns(rows: Sequence[LabelledRow]) -> None:
    """Raise DataError for a row without a reply whose prompt ends with one: nobody wants a second."""
    for index, row in enumerate(rows):
        if row.reply is None and not isinstance(row.prompt, str) and row.prompt[-1].role == "assistant":
            raise DataError(
                f"{row_name(row, index)}: no reply, and the prompt ends with the assistant's message; make "
                "that the reply"
            )


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
    """Fit the MLP probe: `fit_to_rows` with its options given as a `FitPlan`.

    Args:
        model: A folder, or a name on the hub.
        rows: Labelled text.
        labels: The labels to fit; empty: all of the data's, sorted.
        layer: Decoder block, from 0; None: the one at 60 % of the depth.
        plan: Options of the fit; None: the defaults.
        engine_options: Further arguments of `vllm.LLM`.
        console: Where progress is shown.

    Returns:
        The probe; it is not saved yet.

    Raises:
        DataError: For rows the probe cannot be fitted to.
        UsageError: For a layer the model does not have.
    """
    return fit_to_rows(
        model,
        rows,
        labels=labels,
        layer=layer,
        options=plan.model_dump(exclude_unset=True) if plan else None,
        engine_options=engine_options,
        console=console,
    )


@contextmanager
def few_threads(model: ModelIdentity) -> Iterator[None]:
    """One thread for a small model: its threads would only wait for each other."""
    before = torch.get_num_threads()
    if model.hidden_size < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
