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
    figure, axes = plt.subplots(1, len(data["batches"]), figsize=(9, 3.2), sharey=True, squeeze=False)
    for axis, (batch, cases) in zip(axes[0], data["batches"].items(), strict=True):
        ratios = cases["throughput_vs_unsteered"]
        names = sorted((name for name in ratios if name != "unsteered"), key=lambda n: (int(n.split()[0]), n))
        shown = {name: ratios[name] for name in names}
        medians = [case["p50"] for case in shown.values()]
        below = [case["p50"] - case["p20"] for case in shown.values()]
        above = [case["p80"] - case["p50"] for case in shown.values()]
        labels = [name.replace(", all specs distinct", ",\nall distinct") for name in shown]
        axis.bar(labels, medians, yerr=[below, above], capsize=4, color="#4c72b0")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_title(f"decode batch {batch}")
        axis.set_ylim(0, 1.1)
    axes[0][0].set_ylabel("throughput / unsteered")
    figure.suptitle(f"{data['shape']} shape, one steered layer, {data['device']}")
    figure.tight_layout()
    figure.savefig(result.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    typer.run(main)
