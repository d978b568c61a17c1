"""How many bytes must each kernel move, how fast does it move them, and how near is that to a measured copy
of as many bytes (an equal copy), and of very many (a large copy)?

    PYTHONPATH=kernels python -m benchmarks.kernels --tokens 1,32,256,2048 --steps 1,8,64

Needs torch, Triton, typer and rich, not vLLM. On CUDA every kernel is timed by itself, in a CUDA graph and
with a cold L2 cache. On a CPU the edit is one native call or a few large torch calls per group of tokens, not
split into kernels: the grouped path is timed as a whole. Every result is checked against the reference before
anything is timed. `--implementation fused` under TRITON_INTERPRET=1 on a CPU checks the Triton kernels; the
times mean nothing then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Annotated, Any

import torch
import typer
from rich.progress import track

from benchmarks import kernel_setup as setup
from benchmarks import record
from benchmarks.kernel_checks import check_edit, check_kernels
from benchmarks.record import Table, spread, summary

FLUSH_BYTES = {"cuda": 256 << 20, "cpu": 64 << 20}
LARGE_COPY = {"cuda": 1 << 30, "cpu": 256 << 20}
COLUMNS = (
    "kernel", "tokens", "steps", "MB moved", "us (p20 to p80)", "GB/s", "of an equal copy", "of a large copy",
    "GFLOP/s", "error",
)  # fmt: skip


class Timer:
    """Times of single calls in microseconds, each with cold caches."""

    def __init__(self, device: str, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.flush = torch.zeros(FLUSH_BYTES[device] // 4, device=device)

    def times(self, function: Callable[[], None], capture: bool = True) -> list[float]:
        for _ in range(3):
            function()
        return self._on_cuda(function, capture) if self.device == "cuda" else self._on_cpu(function)

    def _on_cpu(self, function: Callable[[], None]) -> list[float]:
        found = []
        for _ in range(self.repeats):
            self.flush.add_(1)
            started = time.perf_counter_ns()
            function()
            found.append((time.perf_counter_ns() - started) / 1e3)
        return found

    def _on_cuda(self, function: Callable[[], None], capture: bool) -> list[float]:
        """Events around a graph's replay: launching from Python, which an engine does not, is left out."""
        torch.cuda.synchronize()
        launch = function
        if capture:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                function()
            launch = graph.replay
        pairs = []
        for _ in range(self.repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.add_(1)
            start.record()
            launch()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [1e3 * start.elapsed_time(end) for start, end in pairs]

    def copy(self, num_bytes: int) -> dict[str, float]:
        """Times of a copy that reads and writes num_bytes altogether."""
        source = torch.zeros(max(num_bytes // 8, 1), device=self.device)
        target = torch.empty_like(source)
        return summary(self.times(lambda: setup.void(target.copy_(source))))


def main(
    tokens: Annotated[str, typer.Option(help="tokens of a batch")] = "1,32,256,2048",
    steps: Annotated[str, typer.Option(help="gradient steps")] = "1,8,64",
    hidden_size: Annotated[int, typer.Option(help="d")] = 4096,
    width: Annotated[int, typer.Option(help="probe width H")] = 256,
    max_requests: Annotated[int, typer.Option(help="requests; more tokens than this are prefill")] = 256,
    repeats: Annotated[int, typer.Option(help="timed calls of each")] = 50,
    device: Annotated[str, typer.Option(help="cuda or cpu")] = "cuda" if torch.cuda.is_available() else "cpu",
    implementation: Annotated[str, typer.Option(help="auto, fused, naive or grouped")] = "auto",
) -> None:
    console = record.wide_console()
    if implementation == "auto":
        implementation = "fused" if device == "cuda" else "grouped"
    timer = Timer(device, repeats)
    large = LARGE_COPY[device] / timer.copy(LARGE_COPY[device])["p50"] / 1e3
    floor = summary(timer.times(lambda: setup.void(timer.flush[:1].add_(1))))
    console.print(f"a large copy: {large:.1f} GB/s; the shortest call: {floor['p50']:.1f} us")
    if implementation == "grouped":
        console.print("the CPU path is not split into kernels: the grouped path is timed as a whole")
    table = Table(f"{implementation} kernels, d = {hidden_size}, H = {width}, bfloat16, {device}", COLUMNS)
    measured: list[dict[str, Any]] = []
    sizes = [(int(t), int(s)) for t in tokens.split(",") for s in steps.split(",")]
    for count, step_count in track(sizes, "batches", console=console):
        batch = setup.make_batch(
            count, min(count, max_requests), hidden_size, width, step_count, torch.bfloat16, device
        )
        for found in timings(batch, implementation, timer):
            same = timer.copy(found["bytes"])
            rate = found["bytes"] / found["us"]["p50"] / 1e3
            of_copy = same["p50"] / found["us"]["p50"]
            at = {"tokens": count, "steps": step_count, "copy_us": same, "gb_per_s": rate}
            measured.append({**found, **at})
            flops = f"{found['flops'] / found['us']['p50'] / 1e3:.0f}" if found["flops"] else ""
            error = "" if found["error"] is None else f"{found['error']:.1e}"
            table.rows.append(
                (found["kernel"], str(count), str(step_count), f"{found['bytes'] / 1e6:.3f}",
                 spread(found["us"], 1), f"{rate:.1f}", f"{of_copy:.2f}", f"{rate / large:.2f}", flops, error)
            )  # fmt: skip
    console.print(table.rich())
    result = {
        "implementation": implementation, "hidden_size": hidden_size, "width": width,
        "large_copy_gb_per_s": large, "shortest_call_us": floor, "kernels": measured,
    }  # fmt: skip
    name = f"kernels-{record.slug(str(record.provenance()['device']))}-{implementation}"
    console.print("written:", record.write_result(name, result, [table]).name)


def timings(batch: setup.Batch, implementation: str, timer: Timer) -> list[dict[str, Any]]:
    """kernel, bytes, flops, error and us of everything there is to time on a batch, once it is right."""
    if implementation == "grouped":
        return grouped_timings(batch, timer)
    errors = check_kernels(batch, implementation)
    whole = setup.steer_with("triton" if implementation == "fused" else "torch")
    errors |= check_edit(batch, whole)
    work, scaled = batch.copy(), batch.under_variance().copy()
    scaled_error = check_edit(scaled, whole)["whole edit"]
    capture = implementation == "fused"  # plain torch asks the device what to do, which a graph cannot hold
    found = []
    for kernel in setup.KERNELS:
        module = import_module(kernel.module.format(implementation))

        def run(kernel: setup.Kernel = kernel, module: Any = module) -> None:
            kernel.run(work, module)

        cost = (kernel.bytes(batch), kernel.flops(batch))
        found.append(entry(kernel.name, *cost, errors[kernel.name], timer.times(run, capture)))
    totals = (sum(entry["bytes"] for entry in found[1:]), sum(entry["flops"] for entry in found[1:]))
    for name, error, each in (
        ("whole edit", errors["whole edit"], work),
        ("whole edit, variance", scaled_error, scaled),
    ):
        found.append(entry(name, *totals, error, timer.times(partial(whole, each), capture)))
    return found


def grouped_timings(batch: setup.Batch, timer: Timer) -> list[dict[str, Any]]:
    work, scaled = batch.copy(), batch.under_variance().copy()
    errors, scaled_errors = (
        check_edit(each, lambda copy: setup.steer_planned(copy)()) for each in (batch, scaled)
    )
    token_rows = setup.KERNELS[0]
    plan_times = timer.times(lambda: setup.void(setup.steer_planned(work)))
    row_times = timer.times(lambda: setup.cpu_token_rows(work))
    cost = (setup.grouped_bytes(batch), sum(kernel.flops(batch) for kernel in setup.KERNELS))
    edits = (("whole edit", errors, work), ("whole edit, variance", scaled_errors, scaled))
    return [
        entry(token_rows.name, token_rows.bytes(batch), 0, None, row_times),
        entry("plan", 4 * batch.requests * batch.sizes[2], 0, None, plan_times),
        *(
            entry(name, *cost, error["whole edit"], timer.times(setup.steer_planned(each)))
            for name, error, each in edits
        ),
    ]


def entry(name: str, num_bytes: int, flops: int, error: float | None, times: list[float]) -> dict[str, Any]:
    return {"kernel": name, "bytes": num_bytes, "flops": flops, "error": error, "us": summary(times)}


if __name__ == "__main__":
    typer.run(main)
