"""What does steering cost when the work is mostly prompt (steered with where=both), and when it is mostly
generation, by batch size, against the same engine unsteered?

    python -m benchmarks.workload_cost --batches 1,8,32 --prefill-batches 1,4 --rounds 6
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

import ksteer_vllm
from benchmarks import harness
from benchmarks.paired import Load, measure, throughput_table
from benchmarks.random_probes import edit_of, write_probes
from benchmarks.record import Table, wide_console
from ksteer_vllm import SteeringSpec

FAMILIES = ("mlp", "vectors")


def loads_of(batch: int, prompt_tokens: int, tokens: int, where: str) -> dict[str, Load]:
    specs: dict[str, dict[str, Any]] = {
        "gradient, 8 steps": {**edit_of("mlp", "gradient"), "num_steps": 8, "where": where},
        "add": {**edit_of("vectors", "add"), "where": where},
    }
    return {
        name: Load([SteeringSpec.parse(spec).extra_args()] * batch, tokens, prompt_tokens)
        for name, spec in specs.items()
    }


def main(
    shape: Annotated[str, typer.Option(help=f"model shape: {', '.join(harness.SHAPES)}")] = "135m",
    batches: Annotated[str, typer.Option(help="batch sizes of the decode-heavy work")] = "1,8,32",
    prefill_batches: Annotated[str, typer.Option(help="batch sizes of the prefill-heavy work")] = "1,8,32",
    rounds: Annotated[int, typer.Option(help="rounds; each runs every case once")] = 8,
    prefill: Annotated[int, typer.Option(help="prompt tokens of prefill-heavy requests")] = 512,
    tokens: Annotated[int, typer.Option(help="generated tokens of decode-heavy requests")] = 64,
    eager: Annotated[bool, typer.Option(help="no torch.compile, no CUDA graphs")] = False,
) -> None:
    harness.run_in_process()
    console = wide_console()
    sizes = {
        "decode-heavy": [int(size) for size in batches.split(",")],
        "prefill-heavy": [int(size) for size in prefill_batches.split(",")],
    }
    work = {"decode-heavy": (8, tokens, "generation"), "prefill-heavy": (prefill, 8, "both")}
    tables: list[Table] = []
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = harness.write_model(shape, Path(folder) / "model")
        found = write_probes(shape, Path(folder))
        steering = ksteer_vllm.enable({family: found[family] for family in FAMILIES})
        largest = max(max(some) for some in sizes.values())
        llm = harness.engine(
            model, max_num_seqs=largest, eager=eager, additional_config=steering,
            max_model_len=max(prefill, tokens) + 64,
        )  # fmt: skip
        for kind, (prompt_tokens, generated, where) in work.items():
            for batch in sizes[kind]:
                name = f"{kind}, batch {batch}"
                loads = loads_of(batch, prompt_tokens, generated, where)
                results[name] = measure(llm, loads, rounds, console, name)
                about = f"{prompt_tokens} prompt and {generated} generated tokens, where={where}"
                tables.append(throughput_table(f"{shape}, {name}: {about}", results[name]))
                console.print(tables[-1].rich())
    result = {"shape": shape, "layer": harness.steered_layer(shape), "eager": eager, "workloads": results}
    name = f"workload_cost-{shape}{'-eager' if eager else ''}"
    console.print("written:", harness.write_result(name, result, tables).name)


if __name__ == "__main__":
    typer.run(main)
