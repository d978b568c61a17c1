"""Every way to steer a real model, towards behaviours that code can check.

    python -m benchmarks.verifiable                 # about 100 minutes on 2 cores with nothing else running
    python -m benchmarks.verifiable --minutes 40    # a piece of it; the next run resumes

SmolLM2-135M-Instruct (fetched by `ksteer model smollm2` if --model is left out). Replies with true
labels are written and fitted to, settings are chosen on one half of the questions, and everything is
reported on the other: results/verifiable.md. What is done is kept in OUT, reply by reply.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.harness import run_in_process
from benchmarks.record import RESULTS, provenance, wide_console


def main(
    model: Annotated[str, typer.Option(help="model folder; default: SmolLM2, fetched into OUT/model")] = "",
    out: Annotated[Path, typer.Option(help="folder that keeps what is done")] = Path("verifiable-out"),
    minutes: Annotated[float, typer.Option(help="stop after about so many minutes; 0: run to the end")] = 0,
    results: Annotated[Path, typer.Option(help="folder of the page")] = RESULTS,
    engines: Annotated[int, typer.Option(help="engines at once; 0: one a core, eight at most")] = 0,
    share: Annotated[str, typer.Option(hidden=True, help="PHASE:NUMBER/COUNT, what a process does")] = "",
) -> None:
    """Run what is not done yet, and write the page when everything is."""
    run_in_process()
    from benchmarks.verifiable.share import Share
    from benchmarks.verifiable.stages import Stages, describe
    from ksteer_vllm.bench.machine import cores
    from ksteer_vllm.convert.model import obtain_apart

    console, deadline = wide_console(), time.monotonic() + 60 * minutes if minutes else float("inf")
    out.mkdir(parents=True, exist_ok=True)
    if not model:
        model = str(out / "model")
        obtain_apart("smollm2", Path(model))
    stages = Stages(model, out, console, deadline)
    if share:
        phase, _, part = share.partition(":")
        stages.run_share(phase, Share.parse(part))
        return
    page = stages.run(results, describe(provenance()), engines or min(cores(), 8))
    console.print(f"page: {page}" if page else f"time is up; run the command again to go on (kept in {out})")


if __name__ == "__main__":
    typer.run(main)
