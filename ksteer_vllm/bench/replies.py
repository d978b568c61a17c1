"""Replies for rows that have none: the model's own, under the row's instruction, from the vLLM engine."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, Final

from rich.progress import Progress

from ksteer_vllm.bench.engines import generation_params, model_of, on_cpu, start_engine, stop_engine
from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.bench.machine import compilation_pays
from ksteer_vllm.data.rows import LabelledRow, row_name, row_number
from ksteer_vllm.errors import DataError

__all__ = ["generate_missing_replies"]

ATTEMPTS: Final = 3
"""Times a row is asked while its reply comes back empty."""
AT_ONCE: Final = 32
"""Replies that are written at once: more are hardly faster on a CPU, and all of them are lost together."""
SEEDS_APART: Final = 600_000
"""Between the seeds of two attempts at a row; more than there are rows."""


def generate_missing_replies(
    model: str,
    rows: Sequence[LabelledRow],
    *,
    engine_options: Mapping[str, Any] | None = None,
    max_tokens: int = 128,
    temperature: float = 1.0,
    at_once: int = AT_ONCE,
    seed: int = 0,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[LabelledRow]:
    """Have the model reply where a row has no reply, in one continuous batch of one engine.

    Without such a row, no engine starts. A row's seed comes from its number in the data, so that the same row
    gets the same reply in any selection of rows, and rows with the same prompt get different ones.

    Args:
        model: A folder, or a name on the hub.
        rows: Those that have a reply stay as they are.
        engine_options: Further arguments of `vllm.LLM`.
        max_tokens: Most tokens of a reply.
        temperature: Sampling temperature; 0 is greedy.
        at_once: Most replies that are written at once.
        seed: Seed of the sampling.
        progress: Where to say how many replies will be written, and to show how many are.
        journal: Gets every reply as soon as it is finished; rows whose reply is there are not run again.

    Returns:
        The rows in their order, each with a reply.

    Raises:
        DataError: For a row whose replies are all empty.
        UsageError: For a prompt that leaves no room for `max_tokens`.
        Exception: Whatever vLLM raises for a model or options it cannot start with.
    """
    replies: dict[int, str] = {}
    known: Journal | dict[str, Any] = {} if journal is None else journal
    without = [index for index, row in enumerate(rows) if row.reply is None]
    engine, task = None, None
    try:
        for attempt in range(ATTEMPTS):
            jobs = {
                index: Job(
                    prompt=rows[index].prompt,
                    seed=seed + row_number(rows[index], index) - 1 + attempt * SEEDS_APART,
                    tags={"max_tokens": max_tokens, "temperature": temperature},
                )
                for index in without
                if index not in replies
            }
            texts = {job.key: known[job.key]["text"] for job in jobs.values() if job.key in known}
            todo = {job.key: job for job in jobs.values() if job.key not in texts}
            if todo and engine is None:
                _announce(progress, len(todo), len(without), max_tokens, temperature)
                options = {"max_num_seqs": at_once, **(engine_options or {})}
                engine = _start_engine(model, options, len(todo) * max_tokens)
            if todo and task is None and progress is not None:
                task = progress.add_task(
                    "writing replies",
                    total=len(without),
                    completed=len(without) - len(todo),
                    together=min(at_once, len(todo)),
                )
            with closing(_run(engine, todo, max_tokens, temperature, at_once)) as finished:
                for key, value in finished:
                    texts[key] = value["text"]
                    if journal is not None:
                        journal.add(key, value)
                    if progress is not None and task is not None:
                        progress.advance(task, bool(value["text"].strip()))
            replies |= {index: texts[job.key] for index, job in jobs.items() if texts[job.key].strip()}
    finally:
        if engine is not None:
            stop_engine(engine)
    for index in without:
        if index not in replies:
            raise DataError(
                f"{row_name(rows[index], index)}: the model's reply is empty, {ATTEMPTS} times over; give a "
                "reply, or drop the row"
            )
    return [
        row if row.reply is not None else row.model_copy(update={"reply": replies[index]})
        for index, row in enumerate(rows)
    ]


def _announce(
    progress: Progress | None, todo: int, without: int, max_tokens: int, temperature: float
) -> None:
    """Say what the model is about to write: a reply that was overlooked would be written over."""
    if progress is None:
        return
    kept = f"; {without - todo} are kept from before" if todo < without else ""
    noun = "reply" if todo == 1 else "replies"
    progress.console.print(
        f"{todo} {noun} will be written by the model (temperature {temperature:g}, at most {max_tokens} "
        f"tokens each), for rows that have none{kept}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _start_engine(model: str, engine_options: Mapping[str, Any] | None, tokens: int = 0) -> Any:
    """An engine to write about that many tokens with."""
    options = dict(engine_options or {})
    if on_cpu() and "enforce_eager" not in options:
        options["enforce_eager"] = not compilation_pays(model_of(model, options), tokens)
    return start_engine(model, options)


def _run(
    engine: Any, jobs: Mapping[str, Job], max_tokens: int, temperature: float, at_once: int
) -> Generator[tuple[str, dict[str, Any]]]:
    if not jobs:
        return
    from ksteer_vllm.bench.batch import run_batch

    def sampling(job: Job) -> Any:
        return generation_params(temperature=temperature, max_tokens=max_tokens, seed=job.seed)

    yield from run_batch(engine, jobs, sampling, max_tokens, None, at_once=at_once)
