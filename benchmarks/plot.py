"""Draw a steered-cost result: `python -m benchmarks.plot benchmarks/results/steered_cost-135m-one.json`."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import typer


def main(result: Path) -> None:
    """Write RESULT with the suffix .png: median throughput against unsteered, p20 to p80 as bars."""
    data = json.loads(result.read_text())
    figure, axes = plt.subplots(1, len(data["batches"]), figsize=(10, 3.2), sharey=True, squeeze=False)
    for axis, (batch, cases) in zip(axes[0], data["batches"].items(), strict=True):
        ratios = cases["throughput_vs_unsteered"]
        names = sorted((name for name in ratios if name != "unsteered"), key=place)
        medians = [ratios[name]["p50"] for name in names]
        below = [ratios[name]["p50"] - ratios[name]["p20"] for name in names]
        above = [ratios[name]["p80"] - ratios[name]["p50"] for name in names]
        colours = ["#b0b0b0" if name.startswith("unsteered") else "#4c72b0" for name in names]
        axis.bar(range(len(names)), medians, yerr=[below, above], capsize=3, color=colours)
        axis.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names], fontsize=7)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_title(f"decode batch {batch}")
        axis.set_ylim(0, 1.1)
    axes[0][0].set_ylabel("throughput / unsteered")
    layers = "one steered layer" if data["layers"] == "one" else "every layer steered"
    figure.suptitle(f"{data['shape']} shape, {layers}, {data['device']}")
    figure.tight_layout()
    figure.savefig(result.with_suffix(".png"), dpi=120)


def place(name: str) -> tuple[int, ...]:
    """Unsteered first, then by steps and by distinct specs."""
    return tuple(int(word) for word in name.replace(",", "").split() if word.isdigit())


if __name__ == "__main__":
    typer.run(main)
