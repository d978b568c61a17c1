"""The fit behind `KSteering.fit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksteer_vllm.bench.chance import at_chance
from ksteer_vllm.data.positions import PROMPT_LAST, REPLY, window_of
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.errors import ProbeError, UsageError, listing
from ksteer_vllm.fit.gates import check_replies
from ksteer_vllm.fit.pipeline import fit_to_rows
from ksteer_vllm.fit.presets import preset_of
from ksteer_vllm.fit.progress import progress_bar
from ksteer_vllm.ksteering.config import TrainerConfig
from ksteer_vllm.probes.probe import Probe

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["check_classifier", "fit_classifier", "load_classifier"]


def load_classifier(folder: str | Path) -> Probe:
    """A probe folder of family mlp or linear. Raises ProbeError for any other."""
    probe = Probe.load(folder)
    if probe.metadata.family not in ("mlp", "linear"):
        raise ProbeError(f"{folder}: of family {probe.metadata.family!r}; KSteering takes mlp and linear")
    return probe


def check_classifier(probe: Probe, labels: Sequence[str]) -> None:
    """Refuse to look for the strength of a classifier that steers by chance.

    Args:
        probe: The classifier.
        labels: Those to steer to and away from.

    Raises:
        UsageError: If the balanced accuracy of a label on held-out rows is not above chance for certain.
    """
    if told := _chance(probe, labels):
        raise UsageError(f"{told}, or sweep all the same (allow_chance_classifier=True)")


def fit_classifier(
    model: str,
    rows: Sequence[LabelledRow],
    labels: Sequence[str],
    *,
    layer: int | None,
    trainer: TrainerConfig,
    compat: str | None,
    positions: str | None,
    seed: int,
    engine_options: Mapping[str, Any],
    console: Console | None,
) -> Probe:
    """A probe of family mlp or linear. Without compat, replies that do not show their labels are warned of,
    and so is a classifier that does not tell them.

    positions: default: every token of the reply if all rows have one and compat is not set, else the prompt's
    last.
    """
    preset = preset_of(compat)
    options: dict[str, Any] = {"seed": seed}
    if trainer.clf_type == "mlp":
        options |= {**preset.options, **trainer.options()}
    if positions is not None:
        window = window_of(positions)
    elif compat is not None or any(row.reply is None for row in rows):
        window = PROMPT_LAST
    else:
        window = REPLY
    told = progress_bar(console).console
    if compat is None and window.needs_reply and all(row.reply is not None for row in rows):
        check_replies(rows, rows, labels, allowed=True, console=told)
    probe = fit_to_rows(
        model,
        rows,
        trainer.clf_type,
        labels=labels,
        layer=layer,
        options=options,
        window=window,
        compat=compat,
        engine_options=engine_options,
        console=console,
    )
    if compat is None and (poor := _chance(probe, probe.labels)):
        told.print(f"warning: {poor}", style="yellow", highlight=False)
    return probe


def _chance(probe: Probe, labels: Sequence[str]) -> str:
    """Which labels the classifier does not tell, with figures and what can be done; empty if it tells all."""
    poor = at_chance(probe.metadata.metrics, labels)
    if not poor:
        return ""
    figures = listing((f"{label} {accuracy}" for label, accuracy in poor.items()), 12)
    return (
        f"the classifier does not tell {figures} from other rows (balanced accuracy on held-out rows, chance "
        "is 0.50); fit it to more rows, or to such that show their labels"
    )
