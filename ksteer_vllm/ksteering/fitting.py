"""The fit behind `KSteering.fit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksteer_vllm.data.positions import PROMPT_LAST, REPLY, window_of
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.errors import ProbeError
from ksteer_vllm.fit.pipeline import fit_to_rows
from ksteer_vllm.fit.presets import preset_of
from ksteer_vllm.ksteering.config import TrainerConfig
from ksteer_vllm.probes.probe import Probe

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["fit_classifier", "load_classifier"]


def load_classifier(folder: str | Path) -> Probe:
    """A probe folder of family mlp or linear. Raises ProbeError for any other."""
    probe = Probe.load(folder)
    if probe.metadata.family not in ("mlp", "linear"):
        raise ProbeError(f"{folder}: of family {probe.metadata.family!r}; KSteering takes mlp and linear")
    return probe


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
    """A probe of family mlp or linear.

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
    return fit_to_rows(
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
