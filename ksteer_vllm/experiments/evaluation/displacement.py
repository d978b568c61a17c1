"""How far every setting moves the stream, and the strengths at which all move it equally far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from ksteer_vllm.bench.combinations import Avoid, name_of
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.experiments.evaluation.forced import ForcedReader, ForcedText
from ksteer_vllm.experiments.evaluation.matching import Attempt, match_strengths
from ksteer_vllm.experiments.evaluation.settings import Setting

if TYPE_CHECKING:
    import pandas as pd
    from rich.progress import Progress

__all__ = ["Displacement"]

SettingAndSize = tuple[str, int]
"""A setting's name and a size of combinations."""


class Displacement:
    """Measures settings towards targets on a few unsteered replies."""

    def __init__(
        self,
        reader: ForcedReader,
        texts: Sequence[ForcedText],
        targets: Sequence[Sequence[str]],
        labels: Sequence[str],
        avoid: Avoid,
        *,
        journal: Journal | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._reader, self._texts, self._targets = reader, texts, targets
        self._labels, self._avoid = labels, avoid
        self._journal, self._progress = journal, progress

    def table(self, settings: Sequence[Setting], *, kl: bool = True) -> pd.DataFrame:
        """Rows of variant, target, size, shift (mean |x' - x| / |x|) and kl (nats): means over the texts."""
        import pandas as pd

        cells = [(s, target) for s in settings for target in self._targets if len(target) in s.alpha]
        moved = self._reader.read(
            [text for _ in cells for text in self._texts],
            [s.spec(target, self._labels, self._avoid) for s, target in cells for _ in self._texts],
            journal=self._journal,
            progress=self._progress,
            description="measuring displacement" if kl else "matching displacement",
            kl=kl,
        )
        count, rows = len(self._texts), []
        for index, (setting, target) in enumerate(cells):
            group = moved[index * count : (index + 1) * count]
            shift, away = fmean(m.shift for m in group), fmean(m.kl for m in group)
            rows.append(
                {
                    "variant": setting.name,
                    "target": name_of(target),
                    "size": len(target),
                    "shift": shift,
                    "kl": away,
                }
            )
        return pd.DataFrame(rows)

    def matched(
        self, settings: Sequence[Setting], wanted: Mapping[SettingAndSize, float]
    ) -> dict[SettingAndSize, Attempt]:
        """Per setting and size the strength that gives the wanted mean displacement, and the one it gives."""
        by_name = {setting.name: setting for setting in settings}

        def measure(strengths: Mapping[SettingAndSize, float]) -> dict[SettingAndSize, float]:
            trying: dict[str, dict[int, float]] = {}
            for (name, size), alpha in strengths.items():
                trying.setdefault(name, {})[size] = alpha
            table = self.table([by_name[name].at(alpha) for name, alpha in trying.items()], kl=False)
            means = table.groupby(["variant", "size"])["shift"].mean()
            return {cell: float(means[cell]) for cell in strengths}

        start = {(s.name, size): alpha for s in settings for size, alpha in s.alpha.items()}
        return match_strengths(start, {cell: wanted[cell] for cell in start}, measure)

    @staticmethod
    def common(table: pd.DataFrame, without: Sequence[str] = ()) -> dict[int, float]:
        """Per size, the median over variants of their mean displacement."""
        means = table[~table["variant"].isin(without)].groupby(["size", "variant"])["shift"].mean()
        return {int(size): float(median(group)) for size, group in means.groupby("size")}
