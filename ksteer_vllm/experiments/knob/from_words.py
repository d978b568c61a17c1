"""A knob from behaviours in words: the model writes the replies, under instructions and without."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.progress import Progress

from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.data.behaviours import Behaviours
from ksteer_vllm.experiments.knob.checks import checks_of
from ksteer_vllm.experiments.knob.command import KnobRequest, Prepared, complete
from ksteer_vllm.experiments.knob.questions import QuestionParts
from ksteer_vllm.experiments.knob.selection import select
from ksteer_vllm.experiments.knob.written import Asked, Written, fitting_jobs
from ksteer_vllm.fit.progress import progress_bar
from ksteer_vllm.probes.probe import Probe

__all__ = ["knob_from_words"]

_TIMED: Final = 16
"""Replies after which the speed of the engine is known."""
_MORE_AT_ONCE: Final = 1.5
"""How much faster a full batch is than one of _TIMED replies, about."""
_SLOWER: Final = 1.5
"""How much longer a reply takes that is steered and read again, about."""
_ENGINES: Final = 60.0
"""Seconds that starting engines, recording and fitting take, about."""


def knob_from_words(request: KnobRequest, behaviours: Behaviours, console: Console) -> Probe:
    """Make a calibrated probe from behaviours in words. After an interruption it resumes with what it has.

    Args:
        request: What to make.
        behaviours: What the model is asked to do, and how one can tell.
        console: Where everything is told.

    Returns:
        The probe in `request.out`; without a strength if nothing steers.

    Raises:
        DataError: If no behaviour can be seen in the replies, with the reason for each.
        UsageError: For a plan that does not suit the model or the questions.
    """
    parts = QuestionParts.of(behaviours.questions, request.plan)
    form, asked = request.form(), behaviours.behaviours
    with progress_bar(console) as progress:
        plan = request.plan
        jobs = fitting_jobs(form, asked, parts.fit, samples=plan.samples, seed=plan.seed)
        console.print(
            _what_comes(behaviours, form.name, parts, len(jobs), plan.reply_tokens), highlight=False
        )
        checks = checks_of(asked, request.work)
        written = _written(request, jobs, console, progress, count=len(asked))
        selection = select(written, asked, checks)
        instructions = {name: asked[name].instruction for name in selection.checks}
        prepared = Prepared(form, selection, selection.rows(form), parts, instructions)
        return complete(request, prepared, console, progress)


def _written(
    request: KnobRequest,
    jobs: Sequence[tuple[Asked, Job]],
    console: Console,
    progress: Progress,
    *,
    count: int,
) -> list[Written]:
    """The unsteered model's replies; count: how many behaviours there are."""
    bench = Bench(
        request.model,
        {},
        engine_options=request.engine_options,
        temperature=request.plan.reply_temperature,
        max_tokens=request.plan.reply_tokens,
        scored=False,
    )
    with bench, Journal(request.work / "replies.jsonl", bench.identity) as journal:
        there = sum(bench.key(job, scored=False) in journal for _, job in jobs)
        if there:
            console.print(f"resuming: {there} of {len(jobs)} replies are there", highlight=False)
        else:
            begun = time.monotonic()
            timed = bench.run([job for _, job in jobs[:_TIMED]], journal=journal, score=False)
            console.print(
                _estimate(request, timed, time.monotonic() - begun, len(jobs), count), highlight=False
            )
        replies = bench.run(
            [job for _, job in jobs],
            journal=journal,
            progress=progress,
            description="writing replies",
            score=False,
        )
    return [Written(asked, reply.text) for (asked, _), reply in zip(jobs, replies, strict=True)]


def _what_comes(
    behaviours: Behaviours, form: str, parts: QuestionParts, replies: int, max_tokens: int
) -> str:
    names = behaviours.names
    return (
        f"{len(names)} behaviour{'s' * (len(names) > 1)}: {', '.join(names)}; prompts go {form}\n"
        f"{len(parts.fit)} questions to fit to, {len(parts.calibration)} to choose a strength on, "
        f"{len(parts.report)} to report on; {replies} replies will be written by the model, of at most "
        f"{max_tokens} tokens each"
    )


def _estimate(request: KnobRequest, timed: Sequence[Reply], seconds: float, replies: int, count: int) -> str:
    """How long everything will take, from how long the first replies took."""
    tokens = [reply.tokens + 1 for reply in timed]
    speed = sum(tokens) / seconds
    held_out = request.plan.held_out * (count * (len(request.plan.strengths) + 3) + 2)
    to_come = sum(tokens) / len(tokens) * (replies + _SLOWER * held_out)
    minutes = (to_come / (_MORE_AT_ONCE * speed) + _ENGINES) / 60
    return (
        f"about {max(1, round(minutes))} min in all ({speed:.0f} tokens/s with {len(timed)} replies at once)"
    )
