"""Jobs and the scoring of their replies, in one running batch of an engine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.bench.scoring import Scorer
from ksteer_vllm.data.positions import encode_prompt
from ksteer_vllm.data.rows import Prompt
from ksteer_vllm.errors import UsageError
from ksteer_vllm.report import report

__all__ = ["run_batch"]

_ids = itertools.count()


@dataclass(frozen=True)
class _Generated:
    """A reply whose scoring is under way."""

    key: str
    prompt: list[int]
    tokens: list[int]
    value: dict[str, Any]


def run_batch(
    llm: Any,
    jobs: Mapping[str, Job],
    sampling: Callable[[Job], Any],
    max_tokens: int,
    scorer: Scorer | None,
    *,
    at_once: int | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and reply (the fields of `Reply` but `job`) of every job, as they finish.

    A scoring request goes before the next job, so little is lost if the run is stopped. When the iterator is
    closed early, what is under way is aborted.

    Args:
        llm: The engine.
        jobs: Key -> job.
        sampling: What the request of a job says.
        max_tokens: Most tokens of a reply.
        scorer: Scores replies; None: nobody does.
        at_once: Most requests under way; None: as many as the engine runs at once.

    Raises:
        UsageError: For a prompt that leaves no room for its reply.
    """
    engine = llm.llm_engine
    prompts = _encoded(llm, jobs.values(), max_tokens + 1)
    most = engine.vllm_config.scheduler_config.max_num_seqs
    most = min(most, at_once or most)
    waiting = iter(jobs.items())
    generating: dict[str, str] = {}
    scoring: dict[str, _Generated] = {}

    def start(count: int) -> None:
        for key, job in itertools.islice(waiting, count):
            request = f"job-{next(_ids)}"
            engine.add_request(request, {"prompt_token_ids": prompts[job.prompt]}, sampling(job))
            generating[request] = key

    try:
        start(most)
        while generating or scoring:
            scored: dict[str, Any] = {}
            for output in engine.step():
                if not output.finished:
                    continue
                if output.request_id in scoring:
                    scored[output.request_id] = output
                elif (key := generating.pop(output.request_id, None)) is not None:
                    found = _generated(key, output)
                    if scorer is None or not found.value["tokens"]:
                        yield key, found.value
                        continue
                    found = replace(found, prompt=prompts[jobs[key].read_under or jobs[key].prompt])
                    request = f"score-{next(_ids)}"
                    scorer.add(request, found.prompt, found.tokens, found.value["tokens"])
                    scoring[request] = found
            if scored and scorer is not None:
                scores = scorer.take({r: (scoring[r].prompt, output) for r, output in scored.items()})
                for request, score in scores.items():
                    found = scoring.pop(request)
                    yield found.key, found.value | score
            start(most - len(generating) - len(scoring))
    finally:
        if left := [*generating, *scoring]:
            engine.abort_request(left)
            while engine.has_unfinished_requests():
                engine.step()
            if scorer is not None:
                scorer.forget()


def _generated(key: str, output: Any) -> _Generated:
    completion = output.outputs[0]
    finished = completion.finish_reason == "stop"
    tokens = list(completion.token_ids)
    told = report(completion)
    value = {
        "text": completion.text,
        "tokens": len(tokens) - finished,
        "finished": finished,
        "shift": told["mean_shift"] if told is not None else None,
        "prompt_tokens": len(output.prompt_token_ids),
    }
    return _Generated(key, list(output.prompt_token_ids), tokens, value)


def _encoded(llm: Any, jobs: Iterable[Job], room: int) -> dict[Prompt, list[int]]:
    """Prompt -> token ids. Raises UsageError for one that leaves no room for the reply."""
    tokenizer, most = llm.get_tokenizer(), llm.llm_engine.model_config.max_model_len
    found: dict[Prompt, list[int]] = {}
    for job in jobs:
        for prompt in (job.prompt, job.read_under):
            if prompt is None or prompt in found:
                continue
            found[prompt] = encode_prompt(tokenizer, prompt)
            if len(found[prompt]) + room > most:
                raise UsageError(
                    f"prompt {job.question[:60]!r} has {len(found[prompt])} tokens, its reply needs {room}; "
                    f"the engine holds {most}: give a larger max_model_len or a smaller max_tokens"
                )
    return found
