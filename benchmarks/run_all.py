"""Run a machine's benchmarks one after the other, and write one page of results per machine.

python -m benchmarks.run_all --plan cpu     # about 20 minutes on 2 cores with nothing else running
python -m benchmarks.run_all                # only the pages results/MACHINE.md
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.record import RESULTS, Table, slug, wide_console

PLANS: dict[str, tuple[str, ...]] = {
    "none": (),
    "cpu": (
        "idle_cost --eager --pairs 3 --runs 8",
        "steered_cost --batches 1,8,32 --cases 1x1,8x1,64x1,8x16,8x32 --rounds 6",
        "steered_cost --layers all --batches 8,32 --cases 1x1,8x1,64x1 --rounds 4 --tokens 24",
        "method_cost --batch 8 --rounds 6",
        "workload_cost --batches 1,8,32 --prefill-batches 1,4 --rounds 4",
        "host_profile --in-flight 32 --requests 96 --rounds 2",
        "serve_latency --prompts 24 --concurrency 8 --rounds 3",
        "calibration",
        "kernels --tokens 1,32,256 --steps 1,8,64 --hidden-size 576",
    ),
    "gpu": (
        "kernels --tokens 1,32,256,2048 --steps 1,8,64",
        "idle_cost --shape 8b --batch 32 --pairs 4 --runs 8 --tokens 128",
        "steered_cost --shape 8b --batches 1,8,32,256 --cases 1x1,8x1,64x1,8x16,8x256 --tokens 128",
        "steered_cost --shape 8b --layers all --batches 8,256 --cases 1x1,8x1,64x1 --rounds 6 --tokens 128",
        "method_cost --shape 8b --batch 32 --tokens 128",
        "workload_cost --shape 8b --batches 1,8,32,256 --prefill-batches 1,8,32 --tokens 128",
        "host_profile --shape 8b --in-flight 256 --requests 1024 --tokens 64,192",
        "serve_latency --shape 8b --prompts 256 --concurrency 32 --input-len 512 --output-len 128",
    ),
}
"""Commands after `python -m benchmarks.`; `idle_cost --eager` because a process that compiles spends most of
its time on that."""

ORDER = (
    "idle_cost", "steered_cost", "method_cost", "workload_cost", "serve_latency", "host_profile",
    "calibration", "kernels",
)  # fmt: skip


def main(
    plan: Annotated[str, typer.Option(help=f"what to run first: {', '.join(PLANS)}")] = "none",
    show: Annotated[bool, typer.Option(help="only print the plan's commands")] = False,
) -> None:
    console = wide_console()
    failed = []
    for command in PLANS[plan]:
        console.print(f"python -m benchmarks.{command}")
        if show:
            continue
        started = time.monotonic()
        arguments = shlex.split(command)
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{arguments[0]}", *arguments[1:]],
            cwd=RESULTS.parents[1],
            check=False,
        )
        console.print(f"{(time.monotonic() - started) / 60:.1f} minutes")
        if done.returncode:
            failed.append(command)
    if not show:
        for page in write_pages():
            console.print("written:", page.name)
    if failed:
        console.print("failed:", *failed, sep="\n")
        raise typer.Exit(1)


def write_pages(folder: Path = RESULTS) -> list[Path]:
    """One Markdown page per machine from the results that hold tables."""
    machines: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        if result.get("tables") and result.get("shape") != "tiny":
            machines[result["device"]].append((path.stem, result))
    pages = []
    for device, results in machines.items():
        page = folder / f"{slug(device)}.md"
        page.write_text(page_of(device, sorted(results, key=rank)))
        pages.append(page)
    return pages


def rank(named: tuple[str, dict[str, Any]]) -> tuple[int, str]:
    kind = named[0].partition("-")[0]
    return (ORDER.index(kind) if kind in ORDER else len(ORDER), named[0])


def page_of(device: str, results: list[tuple[str, dict[str, Any]]]) -> str:
    parts = [
        f"# {device}",
        "Medians over rounds, p20 to p80 in brackets; ratios are taken within a round. `unsteered, again` "
        "is the unsteered case once more: what differs there is noise. Weights are dummies in bfloat16 "
        "unless a title says otherwise.",
    ]
    for stem, result in results:
        versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        about = f"`{result['command']}` · {result['time'][:10]} · {versions} · load at start " + (
            f"{result['load_at_start']:.1f}"
        )
        tables = [Table(**table).markdown() for table in result["tables"]]
        parts += [f"## {stem}", about, *tables]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    typer.run(main)
