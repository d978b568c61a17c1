"""What does steering cost while it is enabled but unused, compared with the same engine without the
plugin? Plain and idle engines in alternating processes, and the plugin's own time from its counters.

    python -m benchmarks.idle_cost --pairs 6 --runs 10
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

import ksteer_vllm
from benchmarks import harness
from benchmarks.random_probes import write_probe
from benchmarks.record import Table, spread, summary, wide_console


def main(
    shape: Annotated[str, typer.Option(help=f"model shape: {', '.join(harness.SHAPES)}")] = "135m",
    batch: Annotated[int, typer.Option(help="decode batch size")] = 8,
    pairs: Annotated[int, typer.Option(help="pairs of processes, plain and idle")] = 6,
    runs: Annotated[int, typer.Option(help="runs per process")] = 10,
    tokens: Annotated[int, typer.Option(help="generated tokens per request")] = 48,
    eager: Annotated[bool, typer.Option(help="no torch.compile, no CUDA graphs")] = False,
    worker: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    if worker:
        run_worker(worker, shape, batch, runs, tokens, eager)
        return
    console = wide_console()
    processes: dict[str, list[dict]] = {"plain": [], "idle": []}
    for pair in track(range(pairs), "pairs", console=console):
        for kind in ("plain", "idle") if pair % 2 == 0 else ("idle", "plain"):
            processes[kind].append(spawn(kind, shape, batch, runs, tokens, eager))
    medians = {kind: [statistics.median(p["seconds"]) for p in found] for kind, found in processes.items()}
    pair_ratios = [plain / idle for plain, idle in zip(medians["plain"], medians["idle"], strict=True)]
    low, high = harness.bootstrap_interval(pair_ratios)
    ours = sum(p["counters"]["prepare_ns"] + p["counters"]["op_ns"] for p in processes["idle"]) / 1e9
    total = sum(sum(p["seconds"]) for p in processes["idle"])
    result = {
        "shape": shape, "batch": batch, "tokens": tokens, "eager": eager, "pair_ratios": pair_ratios,
        "throughput_idle_vs_plain": {"median": statistics.median(pair_ratios), "interval95": [low, high]},
        "host_share_of_step_time": ours / total, "processes": processes,
    }  # fmt: skip
    table = Table(
        f"{shape}, decode batch {batch}: idle cost, enabled but unused",
        (
            "throughput vs plain engine",
            "95 % interval of the median",
            "inside the plugin, share of step time",
        ),
        [(spread(summary(pair_ratios)), f"{low:.3f} to {high:.3f}", f"{100 * ours / total:.4f} %")],
    )
    console.print(table.rich())
    name = f"idle_cost-{shape}-batch{batch}{'-eager' if eager else ''}"
    console.print("written:", harness.write_result(name, result, [table]).name)


def spawn(kind: str, shape: str, batch: int, runs: int, tokens: int, eager: bool) -> dict:
    command = [
        sys.executable, "-m", "benchmarks.idle_cost", "--worker", kind, "--shape", shape,
        "--batch", str(batch), "--runs", str(runs), "--tokens", str(tokens), *(["--eager"] if eager else []),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_worker(kind: str, shape: str, batch: int, runs: int, tokens: int, eager: bool) -> None:
    harness.run_in_process()
    with tempfile.TemporaryDirectory() as folder:
        model = harness.write_model(shape, Path(folder) / "model")
        probe = write_probe("mlp", shape, Path(folder) / "probe")
        additional = ksteer_vllm.enable({"bench": probe}) if kind == "idle" else {}
        llm = harness.engine(model, max_num_seqs=batch, eager=eager, additional_config=additional)
        nobody: list[dict | None] = [None] * batch
        for _ in range(2):
            harness.generate_seconds(llm, nobody, 8)
        before = llm.collective_rpc("ksteer_counters")[0] if kind == "idle" else {}
        seconds = [harness.generate_seconds(llm, nobody, tokens) for _ in range(runs)]
        after = llm.collective_rpc("ksteer_counters")[0] if kind == "idle" else {}
    print(json.dumps({"seconds": seconds, "counters": {name: after[name] - before[name] for name in after}}))


if __name__ == "__main__":
    typer.run(main)
