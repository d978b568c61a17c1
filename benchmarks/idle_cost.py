"""What steering costs while nobody uses it: plain and idle engines in alternating processes, and the time
inside our host preparation and op from counters.

    python -m benchmarks.idle_cost --pairs 6 --runs 10
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import typer
from rich.console import Console
from rich.progress import track

import ksteer_vllm
from benchmarks import harness


def main(
    shape: Annotated[str, typer.Option(help="model shape: 135m or 8b")] = "135m",
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
    console = Console()
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
    console.print(
        f"idle / plain throughput: median {statistics.median(pair_ratios):.4f}, 95 % interval {low:.4f} to "
        f"{high:.4f}; inside host preparation and op: {100 * ours / total:.4f} % of step time"
    )
    name = f"idle_cost-{shape}-batch{batch}{'-eager' if eager else ''}"
    console.print("written:", harness.write_result(name, result).name)


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
    layer = int(0.6 * harness.SHAPES[shape]["num_hidden_layers"])
    with tempfile.TemporaryDirectory() as folder:
        model = harness.write_model(shape, Path(folder) / "model")
        probe = harness.write_probe(shape, layer, Path(folder) / "probe")
        additional = ksteer_vllm.enable({"bench": probe}) if kind == "idle" else {}
        llm = harness.engine(model, max_num_seqs=batch, eager=eager, additional_config=additional)
        nobody: list[dict | None] = [None] * batch
        for _ in range(2):
            harness.decode_seconds(llm, batch, 8, nobody)
        before = llm.collective_rpc("ksteer_counters")[0] if kind == "idle" else {}
        seconds = [harness.decode_seconds(llm, batch, tokens, nobody) for _ in range(runs)]
        after = llm.collective_rpc("ksteer_counters")[0] if kind == "idle" else {}
    print(json.dumps({"seconds": seconds, "counters": {name: after[name] - before[name] for name in after}}))


if __name__ == "__main__":
    typer.run(main)
