"""Does a server with steering lose, mix up or leak anything under sustained mixed traffic?

    python -m benchmarks.load_test --minutes 10

A plain `vllm serve` answers a fixed set of greedy float32 requests first. Then a server with steering, once
it has answered its own known requests one at a time, gets everything at once: those requests again, specs
never seen before, reports, presets, bad requests of every kind, clients that give up or leave a stream, while
probes are loaded, replaced and retired and presets change. Each request is entered in a ledger, sent =
answered + refused + cancelled; known answers are compared token by token (a differing token only where the
two best are within 1e-3, counted); the server's own counters must agree. Exit status 1 if anything does not.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import typer

from benchmarks.load import changes, checks, stage, traffic
from benchmarks.load.client import Ask, send
from benchmarks.load.ledger import Ledger
from benchmarks.load.report import draw, markdown, tables_of
from benchmarks.load.watch import MemoryLog, metrics_of
from benchmarks.record import RESULTS, provenance, wide_console, write_result
from testbed.replies import Reply, reply_of
from testbed.serving import Server

WARM_UP_SHARE = 0.25


def main(
    minutes: Annotated[float, typer.Option(help="how long the load lasts")] = 10.0,
    concurrency: Annotated[int, typer.Option(help="requests at once; the engine runs 16")] = 24,
    specs: Annotated[int, typer.Option(help="steered requests with a known answer")] = 200,
    change_every: Annotated[float, typer.Option(help="seconds between changes of probes and presets")] = 1.0,
    seed: Annotated[int, typer.Option(help="seed of the requests")] = 0,
    out: Annotated[
        str, typer.Option(help="name of the files in results/, without suffix; empty: write none")
    ] = "load_test",
) -> None:
    console = wide_console()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        prepared = stage.prepare(Path(name))
        source = random.Random(seed)
        known = traffic.known_requests(source, specs)
        console.print("a plain server answers")
        with stage.plain_server(prepared) as plain:
            plain_answers = quiet_answers(plain.url, [k for k in known if k.kind == "plain"])
        console.print("starting the server with steering")
        server = stack.enter_context(stage.steering_server(prepared))
        result, samples = asyncio.run(
            under_load(server, known, plain_answers, source, 60 * minutes, concurrency, change_every)
        )
    result |= {"minutes": minutes, "concurrency": concurrency, "specs": specs, "seed": seed}
    tables = tables_of(result)
    for table in tables:
        console.print(table.rich())
    console.print("memory:", {key: value for key, value in result["memory"].items() if key != "samples"})
    if out:
        plot = RESULTS / f"{out}.png"
        written = write_result(out, result, tables)
        draw(samples, result["memory"]["warm_up_seconds"], plot)
        page = markdown({**provenance(), **result}, tables, plot.name)
        written.with_suffix(".md").write_text(page)
        console.print("written:", written.name)
    for problem in [*result["problems"], *result["ledger"]["failures"]]:
        console.print("PROBLEM", problem, markup=False)
    raise typer.Exit(1 if result["problems"] else 0)


def quiet_answers(url: str, known: list[traffic.Known]) -> dict[str, tuple[Reply, ...]]:
    """Each request's reply while no other runs."""
    answers = {}
    with httpx.Client(base_url=url, timeout=60) as client:
        for request in known:
            response = client.post(request.path, json=request.body)
            if response.status_code != 200:
                raise RuntimeError(f"{request.name}: {response.status_code} {response.text}: {request.body}")
            answers[request.name] = (reply_of(request.path, response.json()["choices"]),)
    return answers


async def under_load(
    server: Server,
    known: list[traffic.Known],
    plain_answers: dict[str, tuple[Reply, ...]],
    source: random.Random,
    seconds: float,
    concurrency: int,
    change_every: float,
) -> tuple[dict[str, Any], list[tuple[float, float, float]]]:
    """The result, and the samples of memory."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=concurrency, keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=server.url, timeout=None, limits=limits) as client:
        resident = await changes.residency(client)
        answers = plain_answers | quiet_answers(server.url, [k for k in known if k.kind != "plain"])
        changing = traffic.changing_requests() if changes.changes_are_possible(server.url) else {}
        if changing:
            answers |= await changing_answers(server, client, changing)
        draws = traffic.Traffic(source, known, answers, changing)
        ledger = Ledger()
        memory = MemoryLog(psutil.Process(server.process.pid))
        before, start = metrics_of(server.url), time.monotonic()
        stop, seeded = asyncio.Event(), random.Random(source.random())
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(memory.keep_sampling(start, max(0.25, seconds / 600)))
            if changing:
                group.create_task(changes.change_until(stop, client, seeded, ledger, change_every))
            await send_until(client, draws.draw, ledger, start + seconds, concurrency)
            stop.set()
            watching.cancel()
        lasted = time.monotonic() - start
        for ask in draws.every_known():  # and once more, now that it is quiet
            await send(client, ask, ledger)
        if changing:
            await changes.clear_up(client)
        final = await checks.final_state(server.url, client, resident)
        account = checks.accounts(before, metrics_of(server.url), ledger)
        memory.sample(start)
    problems = [*ledger.problems(), *account.problems, *final.problems]
    if "Traceback" in server.log:
        problems.append("the server's log has a traceback: " + server.log.partition("Traceback")[2][:2000])
    result = {
        "seconds": lasted,
        "ledger": ledger.as_json(),
        "accounts": account.found,
        "final": final.found,
        "memory": memory_result(memory, lasted),
        "problems": problems,
    }
    return result, memory.samples


async def changing_answers(
    server: Server, client: httpx.AsyncClient, changing: dict[str, traffic.Known]
) -> dict[str, tuple[Reply, ...]]:
    """The replies of the probe and the preset that change, in each of their states."""
    found: dict[str, tuple[Reply, ...]] = {name: () for name in changing}
    for folder, spec in zip(changes.FOLDERS, traffic.MOVING_SPECS, strict=True):
        (await changes.load(client, folder)).raise_for_status()
        (await changes.put_preset(client, spec)).raise_for_status()
        for name, request in changing.items():
            reply = await asyncio.to_thread(quiet_answers, server.url, [request])
            found[name] += reply[request.name]
    return found


async def send_until(
    client: httpx.AsyncClient, draw_ask: Any, ledger: Ledger, deadline: float, concurrency: int
) -> None:
    """Keep `concurrency` requests under way until the deadline, and wait for the last of them."""

    async def sender() -> None:
        while time.monotonic() < deadline:
            ask: Ask = draw_ask()
            await send(client, ask, ledger)

    await asyncio.gather(*(sender() for _ in range(concurrency)))


def memory_result(memory: MemoryLog, lasted: float) -> dict[str, Any]:
    """MiB, and the slopes after the warm-up and over the last quarter."""
    warm_up = WARM_UP_SHARE * lasted
    return {
        "first": memory.samples[0][1],
        "last": memory.samples[-1][1],
        "warm_up_seconds": warm_up,
        "slope_mib_per_minute": memory.slope(warm_up),
        "last_quarter_mib_per_minute": memory.slope(0.75 * lasted),
        "samples": [[round(value, 2) for value in sample] for sample in memory.samples],
    }


if __name__ == "__main__":
    typer.run(main)
