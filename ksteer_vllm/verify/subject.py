"""What is verified: an engine behind one interface, whether it is offline or a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ksteer_vllm.errors import KSteerError
from ksteer_vllm.probes.probe import Probe

__all__ = ["Answer", "Card", "CheckRequest", "Facts", "RefusedError", "Subject", "UnreachableError"]


class UnreachableError(KSteerError, RuntimeError):
    """The engine cannot be verified: no server, no steering, no access. The message says which."""


class RefusedError(KSteerError, RuntimeError):
    """The engine did not run a request; the message is its own."""


@dataclass(frozen=True)
class CheckRequest:
    """One greedy request.

    Attributes:
        prompt: Token ids.
        spec: How to steer it, as JSON; None: as the engine does by default, False: not at all.
        max_tokens: Exactly so many are generated.
        salt: Of the prefix cache; a request with one of its own shares no block.
    """

    prompt: tuple[int, ...]
    spec: Mapping[str, Any] | Literal[False] | None = None
    max_tokens: int = 4
    salt: str | None = None


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        tokens: The ids generated.
        steps: For each of them the log-probabilities of the best few tokens, and its own.
        report: As `ksteer_vllm.report`.
        cached: Prompt tokens read from the prefix cache; None if the engine does not say.
        began: When the request was sent, in seconds on a clock of this process.
        ended: When its answer had come, on the same clock.
    """

    tokens: tuple[int, ...]
    steps: tuple[Mapping[int, float], ...]
    report: Mapping[str, Any] | None = None
    cached: int | None = None
    began: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True)
class Card:
    """One loaded probe.

    Attributes:
        name: What specs call it.
        digest: Of its folder.
        family: One of `FAMILIES`.
        labels: In the order of its tensors.
        layers: Those it has tensors of their own for; empty: one set for all.
        own_layer: The one it was fitted at.
        methods: Those it has, the default first.
        default_alpha: Method -> strength.
        probe: Its tensors, where a copy of the folder is at hand.
    """

    name: str
    digest: str
    family: str
    labels: tuple[str, ...]
    layers: tuple[int, ...]
    own_layer: int
    methods: tuple[str, ...]
    default_alpha: Mapping[str, float]
    probe: Probe | None = None


@dataclass(frozen=True)
class Facts:
    """What the engine says about itself.

    Attributes:
        name: For people.
        weights: Where transformers can load the same model from; "" if nowhere on this machine.
        num_layers: Decoder blocks.
        open_layers: Those that can be steered.
        cards: The loaded probes.
        tokens: Ids to make random prompts of.
        max_model_len: In tokens.
        reports: Whether requests may ask for reports.
        limits: max_steps and the like.
        needs_opt_out: Requests that say nothing of steering are steered, so plain ones must say so.
        versions: Package -> version.
        gaps: What cannot be seen through this subject.
    """

    name: str
    weights: str
    num_layers: int
    open_layers: tuple[int, ...]
    cards: tuple[Card, ...]
    tokens: tuple[int, ...]
    max_model_len: int
    reports: bool
    limits: Mapping[str, int]
    needs_opt_out: bool = False
    versions: Mapping[str, str] = field(default_factory=dict)
    gaps: tuple[str, ...] = ()


class Subject(Protocol):
    """An engine that answers.

    Raises:
        UnreachableError: From any method.
        RefusedError: From `alone` and `together`, with the engine's message.
    """

    def facts(self) -> Facts:
        """Asked once, first."""

    def alone(self, request: CheckRequest) -> Answer:
        """Run one request with nothing of ours beside it."""

    def together(self, requests: Sequence[CheckRequest]) -> list[Answer]:
        """Run requests in one batch, as far as the engine lets the caller choose."""

    def close(self) -> None:
        """Let go of the engine."""
