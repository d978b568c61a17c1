"""What does each method cost when every request of a decode batch uses it at one layer, against the same
engine unsteered? And what do reports, conditions and stacks add?

    python -m benchmarks.method_cost --batch 8 --rounds 8
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

import ksteer_vllm
from benchmarks import harness
from benchmarks.paired import Load, measure, throughput_table
from benchmarks.random_probes import LABELS, edit_of, write_probes
from benchmarks.record import wide_console
from ksteer_vllm import SteeringSpec
from ksteer_vllm.spec.families import FAMILIES


def method_cases() -> dict[str, dict[str, Any]]:
    """`family: method` -> spec, for every method of every family."""
    return {
        f"{family}: {method}": edit_of(family, method)
        for family, about in FAMILIES.items()
        for method in about.methods
    }


def option_cases() -> dict[str, dict[str, Any]]:
    """What a request may add to an edit, on the same 8 gradient steps or on the same vectors."""
    gradient, vectors = edit_of("mlp", "gradient"), edit_of("vectors", "add")
    condition = {"probe": "linear", "label": LABELS[2], "above": 0.1}
    return {
        "mlp: gradient, softmin": {**gradient, "loss": "softmin"},
        "mlp: gradient, until": {**gradient, "until": {"target": 0.999999}},
        "mlp: gradient, variance": {**gradient, "metric": "variance"},
        "mlp: gradient, cap": {**gradient, "cap": 0.5},
        "mlp: gradient, preserve_norm": {**gradient, "preserve_norm": True},
        "mlp: gradient, report": {**gradient, "report": True},
        "vectors: add, condition": {**vectors, "condition": condition},
        "stack of gradient and add": {"stack": [gradient, vectors]},
    }


def main(
    shape: Annotated[str, typer.Option(help=f"model shape: {', '.join(harness.SHAPES)}")] = "135m",
    batch: Annotated[int, typer.Option(help="decode batch size")] = 8,
    rounds: Annotated[int, typer.Option(help="rounds; each runs every case once")] = 8,
    tokens: Annotated[int, typer.Option(help="generated tokens per request")] = 32,
    options: Annotated[bool, typer.Option(help="the options of an edit, too")] = True,
    eager: Annotated[bool, typer.Option(help="no torch.compile, no CUDA graphs")] = False,
) -> None:
    harness.run_in_process()
    console = wide_console()
    specs = {**method_cases(), **(option_cases() if options else {})}
    loads = {
        name: Load([SteeringSpec.parse(spec).extra_args()] * batch, tokens) for name, spec in specs.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        model = harness.write_model(shape, Path(folder) / "model")
        probes = write_probes(shape, Path(folder))
        steering = ksteer_vllm.enable(probes, max_probes=len(probes))
        llm = harness.engine(model, max_num_seqs=batch, eager=eager, additional_config=steering)
        measured = measure(llm, loads, rounds, console, f"batch {batch}")
    table = throughput_table(f"{shape}, one layer steered, decode batch {batch}, by method", measured)
    console.print(table.rich())
    result = {
        "shape": shape,
        "layer": harness.steered_layer(shape),
        "eager": eager,
        "specs": specs,
        **measured,
    }
    name = f"method_cost-{shape}-batch{batch}{'-eager' if eager else ''}"
    console.print("written:", harness.write_result(name, result, [table]).name)


if __name__ == "__main__":
    typer.run(main)
