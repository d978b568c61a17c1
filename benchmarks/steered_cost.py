"""What does gradient steering cost when every request of a decode batch is steered: by steps, by how many
distinct specs the batch holds, at one layer or at all, against the same engine unsteered?

    python -m benchmarks.steered_cost --batches 1,8,32 --rounds 12
    python -m benchmarks.steered_cost --batches 8 --layers all --cases 1x1,8x1,64x1

On a GPU: --shape 8b --batches 1,32,256 --cases 1x1,8x1,64x1,8x16,8x256
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

import ksteer_vllm
from benchmarks import harness
from benchmarks.paired import UNSTEERED, Load, measure, throughput_table
from benchmarks.random_probes import LABELS, write_probe
from benchmarks.record import Table, paired_ratios, spread, wide_console
from ksteer_vllm import SteeringSpec

BASE = "1 step, 1 spec"


def case_name(steps: int, distinct: int) -> str:
    return f"{steps} {'step' if steps == 1 else 'steps'}, {distinct} {'spec' if distinct == 1 else 'specs'}"


def parse_cases(text: str, batch: int) -> dict[str, tuple[int, int]]:
    """`8x16` is 8 steps and 16 distinct specs; a batch cannot hold more distinct specs than requests."""
    cases = {}
    for part in text.split(","):
        steps, distinct = (int(number) for number in part.split("x"))
        cases[case_name(steps, min(distinct, batch))] = (steps, min(distinct, batch))
    return cases


def specs_of(steps: int, distinct: int, batch: int, layers: list[int] | None) -> list[dict[str, Any] | None]:
    """`distinct` target mixes in turn, each with an alpha of its own."""
    specs: list[dict[str, Any] | None] = []
    for index in range(batch):
        kind = index % distinct
        target = {LABELS[kind % 6]: 1.0, LABELS[(kind + 1) % 6]: 1.0 + kind}
        fields: dict[str, Any] = {} if layers is None else {"layers": layers}
        spec = SteeringSpec(
            probe="bench", target=target, alpha=0.01 + 0.001 * kind, num_steps=steps, **fields
        )
        specs.append(spec.extra_args())
    return specs


def main(
    shape: Annotated[str, typer.Option(help=f"model shape: {', '.join(harness.SHAPES)}")] = "135m",
    batches: Annotated[str, typer.Option(help="decode batch sizes")] = "8,32",
    cases: Annotated[str, typer.Option(help="STEPSxDISTINCT specs, comma separated")] = (
        "1x1,8x1,64x1,8x16,8x32"
    ),
    rounds: Annotated[int, typer.Option(help="rounds; each runs every case once")] = 12,
    tokens: Annotated[int, typer.Option(help="generated tokens per request")] = 48,
    layers: Annotated[str, typer.Option(help="steered layers: one (60 % depth) or all")] = "one",
    eager: Annotated[bool, typer.Option(help="no torch.compile, no CUDA graphs")] = False,
) -> None:
    harness.run_in_process()
    sizes = [int(size) for size in batches.split(",")]
    layer, everywhere = harness.steered_layer(shape), layers == "all"
    steered = list(range(harness.SHAPES[shape]["num_hidden_layers"])) if everywhere else None
    console = wide_console()
    tables: list[Table] = []
    result: dict[str, Any] = {"shape": shape, "layer": layer, "layers": layers, "eager": eager, "batches": {}}
    with tempfile.TemporaryDirectory() as folder:
        model = harness.write_model(shape, Path(folder) / "model")
        probe = write_probe("mlp", shape, Path(folder) / "probe")
        steering = ksteer_vllm.enable({"bench": probe}, layers="all" if everywhere else [layer])
        llm = harness.engine(model, max_num_seqs=max(sizes), eager=eager, additional_config=steering)
        for batch in sizes:
            loads = {
                name: Load(specs_of(steps, distinct, batch, steered), tokens)
                for name, (steps, distinct) in parse_cases(cases, batch).items()
            }
            measured = measure(llm, loads, rounds, console, f"batch {batch}")
            result["batches"][str(batch)] = measured
            title = f"{shape}, {layers} layer{'s' * everywhere} steered, decode batch {batch}"
            tables.append(cost_table(title, measured))
            console.print(tables[-1].rich())
    name = f"steered_cost-{shape}-{layers}{'-eager' if eager else ''}"
    console.print("written:", harness.write_result(name, result, tables).name)


def cost_table(title: str, measured: dict[str, Any]) -> Table:
    table = throughput_table(title, measured)
    seconds = measured["seconds"]
    if BASE in seconds:
        measured["time_vs_1_step"] = {case: paired_ratios(t, seconds[BASE]) for case, t in seconds.items()}
        table.columns = (*table.columns, "time vs 1 step, 1 spec")
        table.rows = [
            (*row, "" if row[0].startswith(UNSTEERED) else spread(measured["time_vs_1_step"][row[0]]))
            for row in table.rows
        ]
    return table


if __name__ == "__main__":
    typer.run(main)
