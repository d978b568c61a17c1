"""Replies for rows that have none: the model's own, under the row's instruction, from the vLLM engine."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, Final

from rich.progress import Progress

from ksteer_vllm.bench.engines import generation_params, on_cpu, start_engine, stop_engine
from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.data.rows import LabelledRow, row_name
from ksteer_vllm.errors import DataError

__all__ = ["generate_missing_replies"]

ATTEMPTS: Final = 3
"""Times a row is asked while its reply comes back empty."""


def generate_missing_replies(
    model: str,
    rows: Sequence[LabelledRow],
    *,
    engine_options: Mapping[str, Any] | None = None,
    max_tokens: int = 128,
    temperature: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[LabelledRow]:
    """The rows in their order, each with a reply; those that have one stay as they are.

    One continuous batch of one engine, which has stopped again; without a row to ask, none starts. Every
    reply goes into the journal as it is done, and rows whose reply is there are not asked again; rows with
    the same prompt get different seeds. Raises DataError for a row whose replies are all empty, UsageError
    for a prompt that leaves no room for `max_tokens`, and what vLLM raises for a model it cannot load.
    """
    replies: dict[int, str] = {}
    engine = None
    without = [index for index, row in enumerate(rows) if row.reply is None]
    task = progress.add_task("generating replies", total=len(without)) if progress and without else None
    try:
        for attempt in range(ATTEMPTS):
            jobs = {
                index: Job(
                    prompt=rows[index].prompt,
                    seed=seed + index + attempt * len(rows),
                    tags={"max_tokens": max_tokens, "temperature": temperature},
                )
                for index in without
                if index not in replies
            }
            known: Journal | dict[str, Any] = {} if journal is None else journal
            texts = {a.key: known[a.key]["text"] for a in jobs.values() if a.key in known}
            todo = {job.key: job for job in jobs.values() if job.key not in texts}
            if progress is not None and task is not None:
                progress.advance(task, sum(bool(text.strip()) for text in texts.values()))
            if todo and engine is None:
                engine = _start_engine(model, engine_options)
            with closing(_run(engine, todo, max_tokens, temperature)) as finished:
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


def _start_engine(model: str, engine_options: Mapping[str, Any] | None) -> Any:
    eager = {"enforce_eager": True} if on_cpu() else {}  # compiling there takes longer than it saves
    return start_engine(model, {**(engine_options or {}), **eager})


def _run(
    engine: Any, jobs: Mapping[str, Job], max_tokens: int, temperature: float
) -> Generator[tuple[str, dict[str, Any]]]:
    if not jobs:
        return
    from ksteer_vllm.bench.batch import run_batch

    def sampling(job: Job) -> Any:
        return generation_params(temperature=temperature, max_tokens=max_tokens, seed=job.seed)

    yield from run_batch(engine, jobs, sampling, max_tokens, None)
