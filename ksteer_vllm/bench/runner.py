"""What experiments need of an engine, so that their logic can be tried on replies that are made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rich.progress import Progress

from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.journal import Journal

__all__ = ["JobRunner", "ReadingRunner"]


class JobRunner(Protocol):
    """Replies to jobs: see `Bench.run`."""

    def run(
        self,
        jobs: Sequence[Job],
        *,
        journal: Journal | None = None,
        progress: Progress | None = None,
        description: str = ...,
    ) -> list[Reply]: ...


class ReadingRunner(JobRunner, Protocol):
    """One that also reads text that nobody generated, and says how it samples: see `Bench`."""

    @property
    def temperature(self) -> float: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def llm(self) -> Any: ...

    def key(self, job: Job) -> str: ...
