"""Does an engine hold on to memory for each steered request? The same prompts in two processes, one after the
other: an engine without the plugin, and one that steers most of them, by specs it has never seen.

    python -m benchmarks.memory_growth --requests 40000

Every request draws a prompt and a spec of its own. Resident memory grows under both while torch and the
allocator fill their caches; what steering kept of a request would go on growing, and Python objects with it.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from benchmarks.harness import run_in_process
from benchmarks.load.report import chart
from benchmarks.load.specs import random_spec
from benchmarks.load.stage import Stage, prepare
from benchmarks.load.watch import MEBIBYTE, slope
from benchmarks.record import RESULTS, Table, wide_console, write_result
from testbed.models import VOCAB_SIZE
from testbed.serving import child_environment

ARMS = ("plain", "steered")
STEERED_SHARE = 0.6
BATCH = 64
SAMPLE_EVERY = 10
"""Batches between two samples."""
FEWEST_SAMPLES = 6
FEWEST = FEWEST_SAMPLES * SAMPLE_EVERY * BATCH


def main(
    requests: Annotated[int, typer.Option(min=FEWEST, help="requests each engine answers")] = 40_000,
    seed: Annotated[int, typer.Option(help="seed of prompts and specs")] = 0,
    out: Annotated[
        str, typer.Option(help="name of the files in results/, without suffix; empty: write none")
    ] = "memory_growth",
    worker: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    if worker:
        run_worker(worker, requests, seed)
        return
    console = wide_console()
    with Progress(console=console) as progress:
        arms = {arm: watch(arm, requests, seed, progress) for arm in ARMS}
    table = table_of(arms, requests)
    console.print(table.rich())
    if out:
        draw(arms, RESULTS / f"{out}.png")
        console.print("written:", write_result(out, {"requests": requests, "arms": arms}, [table]).name)


def table_of(arms: dict[str, list[dict[str, int]]], requests: int) -> Table:
    columns = (
        "engine",
        "MiB at first",
        "half way",
        "at the end",
        "KiB a request, last quarter",
        "Python objects half way",
        "at the end",
    )
    table = Table(f"tiny float32 model, {requests} requests, {BATCH} at a time, none seen before", columns)
    for arm, samples in arms.items():
        half, end = samples[len(samples) // 2], samples[-1]
        sizes = (f"{sample['resident'] / MEBIBYTE:.0f}" for sample in (samples[0], half, end))
        objects = (str(sample["objects"]) for sample in (half, end))
        table.rows.append((arm, *sizes, f"{kibibytes_per_request(samples):+.2f}", *objects))
    return table


def kibibytes_per_request(samples: list[dict[str, int]]) -> float:
    """Least squares over the last quarter."""
    late = samples[3 * len(samples) // 4 :]
    return (slope((s["requests"], s["resident"] / 1024) for s in late) or 0.0) / 60  # slope is per 60 units


def watch(arm: str, requests: int, seed: int, progress: Progress) -> list[dict[str, int]]:
    """The samples of an engine in a process of its own."""
    options = ["--worker", arm, "--requests", str(requests), "--seed", str(seed)]
    samples: list[dict[str, int]] = []
    task = progress.add_task(arm, total=requests)
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.memory_growth", *options],
        stdout=subprocess.PIPE, text=True, env=child_environment(), cwd=RESULTS.parents[1],
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                samples.append(json.loads(line))
                progress.update(task, completed=samples[-1]["requests"])
    if process.returncode or len(samples) < FEWEST_SAMPLES:
        raise RuntimeError(f"the {arm} engine ended with {process.returncode} after {len(samples)} samples")
    return samples


def run_worker(arm: str, requests: int, seed: int) -> None:
    import psutil

    run_in_process()
    source, process = random.Random(seed), psutil.Process()
    with tempfile.TemporaryDirectory() as name:
        llm = engine(prepare(Path(name)), steered=arm == "steered")
        for index in range(requests // BATCH):
            answer_batch(llm, source, steered=arm == "steered")
            if index % SAMPLE_EVERY == SAMPLE_EVERY - 1:
                gc.collect()
                sample = {
                    "requests": (index + 1) * BATCH,
                    "resident": process.memory_info().rss,
                    "objects": len(gc.get_objects()),
                }
                print(json.dumps(sample), flush=True)


def engine(stage: Stage, *, steered: bool) -> Any:
    """With the load test's model, probes and sizes; without the plugin unless steered."""
    if not steered:
        os.environ["VLLM_PLUGINS"] = ""
    from vllm import LLM

    probes = {name: str(folder) for name, folder in stage.probes.items()}
    settings = {"ksteer": {"probes": probes, "layers": "all", "max_probes": 16, "max_stages": 4}}
    return LLM(
        str(stage.model), dtype="float32", max_model_len=256, max_num_seqs=16, enforce_eager=True,
        block_size=32, gpu_memory_utilization=0.1, kv_cache_memory_bytes=2 << 20,
        additional_config=settings if steered else {},
    )  # fmt: skip


def answer_batch(llm: Any, source: random.Random, *, steered: bool) -> None:
    """The draws are the same for both engines; one of them leaves the specs out."""
    from vllm import SamplingParams

    prompts, params = [], []
    for _ in range(BATCH):
        words = [source.randrange(4, VOCAB_SIZE) for _ in range(source.randint(3, 90))]
        spec, chosen = random_spec(source), source.random() < STEERED_SHARE
        prompts.append({"prompt_token_ids": [1, *words]})
        extra = {"ksteer": spec} if steered and chosen else None
        params.append(
            SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=3, extra_args=extra)
        )
    llm.generate(prompts, params, use_tqdm=False)


def draw(arms: dict[str, list[dict[str, int]]], path: Path) -> None:
    """Resident memory over requests, above that of the first sample."""
    with chart(path, "requests answered", "resident, MiB more than at first") as axis:
        for (arm, samples), colour in zip(arms.items(), ("#b0b0b0", "#4c72b0"), strict=True):
            requests = [sample["requests"] for sample in samples]
            more = [(sample["resident"] - samples[0]["resident"]) / MEBIBYTE for sample in samples]
            axis.plot(requests, more, label=arm, color=colour)


if __name__ == "__main__":
    typer.run(main)
