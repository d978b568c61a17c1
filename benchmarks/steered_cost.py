"""What steering costs: every request steered at one layer with 1, 8 and 64 steps, against the same engine
unsteered. Configurations take turns within a round, and every ratio is taken within its round.

    python -m benchmarks.steered_cost --shape 135m --batches 8,32 --rounds 12
"""

from __future__ import annotations

import os
import random
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Annotated

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import ksteer_vllm
from benchmarks import harness
from ksteer_vllm import SteeringSpec

CASES = ("unsteered", "1 step", "8 steps", "64 steps", "8 steps, all specs distinct")


def specs_of(case: str, batch: int) -> list[dict | None]:
    if case == "unsteered":
        return [None] * batch
    steps = int(case.split()[0])
    distinct = case.endswith("distinct")
    specs = []
    for index in range(batch):
        target = (
            {f"label{index % 6}": 1.0, f"label{(index + 1) % 6}": 1.0 + index} if distinct else ["label0"]
        )
        specs.append(
            SteeringSpec(probe="bench", target=target, alpha=0.01 + 0.001 * index * distinct, num_steps=steps)
        )
    return [spec.extra_args() for spec in specs]


def main(
    shape: Annotated[str, typer.Option(help="model shape: 135m or 8b")] = "135m",
    batches: Annotated[str, typer.Option(help="decode batch sizes")] = "8,32",
    rounds: Annotated[int, typer.Option(help="rounds; each runs every case once")] = 12,
    tokens: Annotated[int, typer.Option(help="generated tokens per request")] = 48,
    layers: Annotated[str, typer.Option(help="steered layers: one (60 % depth) or all")] = "one",
    eager: Annotated[bool, typer.Option(help="no torch.compile, no CUDA graphs")] = False,
) -> None:
    sizes = [int(size) for size in batches.split(",")]
    depth = harness.SHAPES[shape]["num_hidden_layers"]
    layer = int(0.6 * depth)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        model = harness.write_model(shape, Path(folder) / "model")
        probe = harness.write_probe(shape, layer, Path(folder) / "probe")
        steering = ksteer_vllm.enable({"bench": probe}, layers="all" if layers == "all" else [layer])
        llm = harness.engine(model, max_num_seqs=max(sizes), eager=eager, additional_config=steering)
        result: dict = {"shape": shape, "layer": layer, "layers": layers, "eager": eager, "tokens": tokens}
        result["batches"] = {}
        for batch in sizes:
            specs = {case: specs_of(case, batch) for case in CASES}
            if layers == "all":
                for case in CASES[1:]:
                    for extra in specs[case]:
                        extra["ksteer"]["layers"] = list(range(depth))
            seconds: dict[str, list[float]] = defaultdict(list)
            for case in CASES:
                harness.decode_seconds(llm, batch, 8, specs[case])
            counters = llm.collective_rpc("ksteer_counters")[0]
            order = random.Random(batch)
            for _ in track(range(rounds), f"batch {batch}", console=console):
                for case in order.sample(CASES, len(CASES)):
                    seconds[case].append(harness.decode_seconds(llm, batch, tokens, specs[case]))
            after = llm.collective_rpc("ksteer_counters")[0]
            result["batches"][batch] = {
                "seconds": dict(seconds),
                "throughput_vs_unsteered": ratios(seconds, "unsteered", inverse=True),
                "time_vs_1_step": ratios(seconds, "1 step"),
                "counters": {name: after[name] - counters[name] for name in after},
            }
            show(console, batch, result["batches"][batch])
    name = f"steered_cost-{shape}-{layers}{'-eager' if eager else ''}"
    console.print("written:", harness.write_result(name, result).name)


def ratios(seconds: dict[str, list[float]], base: str, inverse: bool = False) -> dict[str, dict[str, float]]:
    """Per case p20/p50/p80 over rounds of time / time of `base` (inverse: throughput ratio)."""
    pairs = {
        case: [b / a if inverse else a / b for a, b in zip(times, seconds[base], strict=True)]
        for case, times in seconds.items()
    }
    return {case: harness.summary(values) for case, values in pairs.items()}


def show(console: Console, batch: int, result: dict) -> None:
    table = Table(title=f"decode batch {batch}: median (p20 to p80) over rounds")
    for column in ("case", "throughput vs unsteered", "time vs 1 step"):
        table.add_column(column)
    for case in CASES:
        cells = [result[key][case] for key in ("throughput_vs_unsteered", "time_vs_1_step")]
        table.add_row(case, *(f"{c['p50']:.3f} ({c['p20']:.3f} to {c['p80']:.3f})" for c in cells))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
