"""Every steering method in a toy environment where a network's output can be read off exactly.

    python -m benchmarks.steering_clear
    python -m benchmarks.steering_clear --redraw steering_clear

After D. Krasheninnikov and D. Krueger, Steering Clear: A Systematic Study of Activation Steering in a Toy
Setup (2024), from its description alone: attributes of 8 values in R^8, a residual MLP that classifies them,
one to eight attributes steered at once, 4 to 4096 examples. How the classifier is built, where it is
steered and how strengths are found are choices of `benchmarks.toy`. An example is a contrast pair; fits are
`ksteer fit`'s, definitions are `ksteer_kernels.reference`'s, both on the CPU in float32.

How far constant vectors come depends on how much attributes share. At the default, a stream of 24 for
inputs of 64 numbers, CAA reaches all of four targets on 27 % of the inputs and all of eight on 12 % (4096
examples); with `--hidden-size 32` on 62 % and 77 %, with 64 on 93 % and all (1024 examples, two
environments).
"""

from __future__ import annotations

import io
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.record import RESULTS, wide_console, write_result
from benchmarks.toy.environment import ToyPlan
from benchmarks.toy.experiment import Cell, run_cell
from benchmarks.toy.figures import draw, tables
from benchmarks.toy.findings import findings


def main(
    seeds: Annotated[int, typer.Option(help="environments, each with its own classifier and targets")] = 5,
    examples: Annotated[str, typer.Option(help="contrast pairs per value")] = "4,16,64,256,1024,4096",
    sizes: Annotated[str, typer.Option(help="attributes steered at once")] = "1,2,3,4,5,6,7,8",
    hidden_size: Annotated[
        int, typer.Option(help="size of the residual stream; inputs have 64 numbers")
    ] = 24,
    workers: Annotated[int, typer.Option(help="processes of one thread each; 0: one per core")] = 0,
    name: Annotated[str, typer.Option(help="name of the result and the figure")] = "steering_clear",
    redraw: Annotated[str, typer.Option(help="run nothing; show this result again")] = "",
) -> None:
    """Run all cells, print the tables and what they say, write results/NAME.json, .md and .png."""
    console, started = wide_console(), time.perf_counter()
    if redraw:
        lines = json.loads((RESULTS / f"{redraw}.json").read_text())["rows"]
        rows = pd.read_csv(io.StringIO("\n".join(lines)))
        show(rows, redraw, console)
        return
    chosen = tuple(map(int, sizes.split(",")))
    cells = [
        Cell(
            seed=seed,
            examples=count,
            sizes=chosen,
            together=tuple(size for size in (2, 4, 8) if size in chosen),
            toy=ToyPlan(hidden_size=hidden_size),
        )
        for seed in range(seeds)
        for count in sorted(map(int, examples.split(",")), reverse=True)
    ]
    rows = pd.DataFrame(run_cells(cells, workers or os.cpu_count() or 1, console))
    minutes = (time.perf_counter() - started) / 60
    said = show(rows, name, console)
    result = write_result(
        name,
        {
            "minutes": round(minutes, 1),
            "cell": cells[0].model_dump(mode="json", exclude={"seed", "examples", "sizes", "together"}),
            "seeds": seeds,
            "findings": said,
            "rows": rows.round(4).to_csv(index=False).splitlines(),
        },
    )
    console.print(f"{minutes:.1f} minutes; written: {result.name}")


def show(rows: pd.DataFrame, name: str, console: Any) -> list[str]:
    """Print the tables and the findings, write them to NAME.md and the figure to NAME.png; the findings."""
    made, said = tables(rows), findings(rows)
    listed = "\n".join(f"- {sentence}" for sentence in said)
    for table in made:
        console.print(table.rich())
    console.print(listed)
    picture = draw(rows, RESULTS / f"{name}.png")
    parts = [f"# {picture.stem}", f"![{picture.stem}]({picture.name})", listed]
    page = RESULTS / f"{name}.md"
    page.write_text("\n\n".join([*parts, *(table.markdown() for table in made)]) + "\n")
    console.print("written:", page.name, picture.name)
    return said


def run_cells(cells: list[Cell], workers: int, console: Any) -> list[dict[str, Any]]:
    """The rows of all cells, in their order."""
    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn())
    found: dict[int, list[dict[str, Any]]] = {}
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool,
    ):
        bar = progress.add_task("cells", total=len(cells))
        running = {pool.submit(run_cell, cell): index for index, cell in enumerate(cells)}
        for done in as_completed(running):
            found[running[done]] = done.result()
            progress.advance(bar)
    return [row for index in range(len(cells)) for row in found[index]]


if __name__ == "__main__":
    typer.run(main)
