"""What the checks share: requests that are counted, fresh prompts and salts, the tolerance, the strengths."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ksteer_vllm.verify.edits import PlannedEdit
from ksteer_vllm.verify.subject import Answer, CheckRequest, Facts, Subject
from ksteer_vllm.verify.verification import Finding

__all__ = ["SHORT", "Fired", "Trial"]

SHORT = 24
"""The length of a short prompt, in tokens."""

BATCH = 16
"""The most requests sent at once."""


@dataclass(frozen=True)
class Fired:
    """A steered request of the firing check and its answer, which the later checks start from.

    effect: how far its log-probabilities are from the plain answer's; ahead: the same for the first token
    only, which no edit of the tokens after the prompt can reach.
    """

    plan: PlannedEdit
    prompt: tuple[int, ...]
    answer: Answer
    effect: float
    ahead: float


@dataclass
class Trial:
    """One verification in progress. plans: an edit per layer and probe. tell: called with what is done."""

    subject: Subject
    facts: Facts
    plans: Sequence[PlannedEdit]
    seed: int | None = None
    tell: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        self.requests = 0
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.tolerance = 1e-3
        self.floor = 0.0
        self.is_coarse = False
        self.fired: list[Fired] = []
        self.short_prompt: tuple[int, ...] = ()
        self.short_plain: Answer | None = None
        self.findings: list[Finding] = []
        self.gaps: list[str] = []
        """What stays unchecked."""
        self.edits_others = False
        """Whether tokens were seen to be edited that no edit names: cached blocks then show nothing."""
        self._random = random.Random(self.seed)  # None: seeded by the operating system

    @property
    def visible(self) -> float:
        """The smallest effect that cannot be mistaken for noise."""
        return max(4 * self.tolerance, 0.02)

    @property
    def edits(self) -> list[Fired]:
        """The steered requests whose effect can be told from noise."""
        return [fired for fired in self.fired if fired.effect >= self.visible]

    def prompt(self, length: int) -> tuple[int, ...]:
        """Random tokens, which nobody has sent before."""
        return tuple(self._random.choice(self.facts.tokens) for _ in range(length))

    def request(
        self,
        prompt: Sequence[int],
        spec: Mapping[str, Any] | None = None,
        max_tokens: int = 4,
        *,
        shared: bool = False,
    ) -> CheckRequest:
        """A request. shared: without its own salt, so that it may read cached blocks of other requests."""
        asked: Mapping[str, Any] | Literal[False] | None = spec
        if spec is None and self.facts.needs_opt_out:
            asked = False
        salt = None if shared else f"ksteer-verify-{uuid.uuid4()}"
        return CheckRequest(tuple(prompt), asked, max_tokens, salt)

    def alone(self, request: CheckRequest) -> Answer:
        self._count([request])
        return self.subject.alone(request)

    def together(self, requests: Sequence[CheckRequest]) -> list[Answer]:
        """Run requests in batches of at most BATCH."""
        self._count(requests)
        found: list[Answer] = []
        for first in range(0, len(requests), BATCH):
            found += self.subject.together(requests[first : first + BATCH])
        return found

    def _count(self, requests: Sequence[CheckRequest]) -> None:
        self.requests += len(requests)
        self.prompt_tokens += sum(len(request.prompt) for request in requests)
        self.generated_tokens += sum(request.max_tokens for request in requests)

    def passed(self, name: str, says: str, **figures: Any) -> None:
        self.findings.append(Finding(name, "passed", says, "", figures))

    def failed(self, name: str, says: str, cause: str, **figures: Any) -> None:
        self.findings.append(Finding(name, "failed", says, cause, figures))

    def skipped(self, name: str, says: str, **figures: Any) -> None:
        self.findings.append(Finding(name, "skipped", says, "", figures))

    def judge(self, name: str, says: str, cause: str, ok: bool, **figures: Any) -> None:
        """Passed, or failed with its likely cause."""
        self.findings.append(Finding(name, "passed" if ok else "failed", says, "" if ok else cause, figures))
