"""What does steering do to time to first token and inter-token latency under `vllm bench serve`?

    python -m benchmarks.serve_latency --prompts 32 --concurrency 8 --rounds 4

Two servers run side by side, one without the plugin and one with it; only one gets requests at a time. In
each round every arm runs the same random prompts once: the plain server, the other one unsteered, and
steered where prompt and generation are. Ratios are taken within a round, and medians over rounds.
"""

from __future__ import annotations

import random
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track

from benchmarks import harness, serving
from benchmarks.random_probes import edit_of, write_probe
from benchmarks.record import Table, paired_ratios, percentile, spread, summary, wide_console

PLAIN, IDLE, STEERED = "plain engine", "enabled, unsteered", "steered, 8 steps"
METRICS = {
    "ttft_p50": "TTFT, median",
    "ttft_p99": "TTFT, p99",
    "itl_p50": "ITL, median",
    "itl_p99": "ITL, p99",
    "duration": "duration",
}


def main(
    shape: Annotated[str, typer.Option(help=f"model shape: {', '.join(harness.SHAPES)}")] = "135m",
    prompts: Annotated[int, typer.Option(help="requests per arm and round")] = 32,
    concurrency: Annotated[int, typer.Option(help="requests at once")] = 8,
    input_len: Annotated[int, typer.Option(help="prompt tokens")] = 128,
    output_len: Annotated[int, typer.Option(help="generated tokens")] = 32,
    rounds: Annotated[int, typer.Option(help="rounds; each runs every arm once")] = 4,
    eager: Annotated[bool, typer.Option(help="no torch.compile, no CUDA graphs")] = False,
) -> None:
    console = wide_console()
    arguments = [
        "--num-prompts", str(prompts), "--max-concurrency", str(concurrency), "--num-warmups", "2",
        "--random-input-len", str(input_len), "--random-output-len", str(output_len),
    ]  # fmt: skip
    steered = {"ksteer": {**edit_of("mlp", "gradient"), "probe": "bench", "num_steps": 8, "where": "both"}}
    arms: dict[str, list[dict[str, float]]] = {PLAIN: [], IDLE: [], STEERED: []}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model = harness.write_model(shape, folder / "model")
        harness.write_tokenizer(shape, model)
        probe = write_probe("mlp", shape, folder / "probe")
        flags = engine_flags(input_len + output_len, concurrency, eager)
        console.print("starting two servers")
        with_plugin = ["--plugin", "ksteer", "--ksteer-probe", f"bench={probe}"]
        plain = stack.enter_context(serving.serve(model, folder / "plain.log", *flags))
        other = stack.enter_context(serving.serve(model, folder / "ksteer.log", *flags, *with_plugin))
        runs = {PLAIN: (plain, {}), IDLE: (other, {}), STEERED: (other, steered)}
        order = random.Random(0)
        for index in track(range(-1, rounds), "rounds", console=console):  # the first one warms up
            for arm in order.sample(list(runs), len(runs)):
                address, body = runs[arm]
                seed = ["--seed", str(index + 1)]
                if index < 0:
                    seed += ["--num-prompts", str(concurrency)]
                try:
                    result = serving.bench(address, model, folder, [*arguments, *seed], body)
                except RuntimeError as error:
                    log = (folder / f"{'plain' if arm == PLAIN else 'ksteer'}.log").read_text(
                        errors="replace"
                    )
                    raise RuntimeError(f"{arm}: {error}\nserver's log:\n{log[-4000:]}") from None
                if index >= 0:
                    arms[arm].append(metrics_of(result))
    load = f"{prompts} requests, {concurrency} at once, {input_len} + {output_len} tokens"
    tables = [ratio_table(shape, arms, load)]
    console.print(tables[0].rich())
    result = {
        "shape": shape, "prompts": prompts, "concurrency": concurrency, "input_len": input_len,
        "output_len": output_len, "eager": eager, "arms": arms,
    }  # fmt: skip
    stem = f"serve_latency-{shape}-{concurrency}{'-eager' if eager else ''}"
    console.print("written:", harness.write_result(stem, result, tables).name)


def engine_flags(length: int, concurrency: int, eager: bool) -> list[str]:
    """Of both servers, which share the machine. Without prefix caching every round does the same work."""
    memory = "0.42" if torch.cuda.is_available() else "0.1"
    return [
        "--load-format", "dummy", "--max-model-len", str(length + 32), "--max-num-seqs", str(concurrency),
        "--no-enable-prefix-caching", "--gpu-memory-utilization", memory,
        *(["--enforce-eager"] if eager else []),
    ]  # fmt: skip


def metrics_of(result: dict[str, Any]) -> dict[str, float]:
    """Milliseconds, but for the duration in seconds; ITL over all gaps of all requests."""
    gaps = [gap for request in result["itls"] for gap in request]
    return {
        "ttft_p50": 1e3 * percentile(result["ttfts"], 50),
        "ttft_p99": 1e3 * percentile(result["ttfts"], 99),
        "itl_p50": 1e3 * percentile(gaps, 50),
        "itl_p99": 1e3 * percentile(gaps, 99),
        "duration": result["duration"],
    }


def ratio_table(shape: str, arms: dict[str, list[dict[str, float]]], load: str) -> Table:
    table = Table(
        f"{shape}, vllm bench serve, {load}",
        ("metric", f"{PLAIN}, ms", *(f"{arm} / {base}" for arm, base in COMPARED)),
    )
    for metric, label in METRICS.items():
        values = {arm: [run[metric] for run in runs] for arm, runs in arms.items()}
        scale = 1e3 if metric == "duration" else 1.0
        table.rows.append(
            (
                label,
                spread(summary([scale * value for value in values[PLAIN]]), 1),
                *(spread(paired_ratios(values[arm], values[base])) for arm, base in COMPARED),
            )
        )
    return table


COMPARED = ((IDLE, PLAIN), (STEERED, PLAIN), (STEERED, IDLE))


if __name__ == "__main__":
    typer.run(main)
