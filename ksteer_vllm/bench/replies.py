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
    """Have the model reply where a row has no reply, in one continuous batch of one engine.

    Without such a row, no engine starts. Rows with the same prompt get different seeds.

    Args:
        model: A folder, or a name on the hub.
        rows: Those that have a reply stay as they are.
        engine_options: Further arguments of `vllm.LLM`.
        max_tokens: Most tokens of a reply.
        temperature: Sampling temperature; 0 is greedy.
        seed: Seed of the sampling.
        progress: Where to show how many are done.
        journal: Gets every reply as soon as it is finished; rows whose reply is there are not run again.

    Returns:
        The rows in their order, each with a reply.

    Raises:
        DataError: For a row whose replies are all empty.
        UsageError: For a prompt that leaves no room for `max_tokens`.
        Exception: Whatever vLLM raises for a model or options it cannot start with.
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
