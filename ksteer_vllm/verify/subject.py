"""What is verified: an engine, offline or a server, behind one interface."""

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
        max_tokens: Exactly this many are generated.
        salt: The `cache_salt`; requests with different ones share no block.
    """

    prompt: tuple[int, ...]
    spec: Mapping[str, Any] | Literal[False] | None = None
    max_tokens: int = 4
    salt: str | None = None


@dataclass(frozen=True)
class Answer:
    """The engine's answer to one request.

    Attributes:
        tokens: The generated token ids.
        steps: For each of them, token id -> log-probability of the most likely few tokens and of itself.
        report: What `ksteer_vllm.report` returns.
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
        name: The name that specs use.
        digest: The digest of its folder.
        family: One of `FAMILIES`.
        labels: In the order of its tensors.
        layers: The layers it has tensors of their own for; empty: one set for all.
        own_layer: The layer it was fitted at.
        methods: Its methods, the default first.
        default_alpha: Method -> strength.
        default_edit: Fields of requests of the default method that leave them out.
        metrics: Metric -> the layers with statistics for it.
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
    default_edit: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Sequence[int]] = field(default_factory=dict)
    probe: Probe | None = None


@dataclass(frozen=True)
class Facts:
    """What the engine says about itself.

    Attributes:
        name: The engine, as shown to people.
        weights: Where transformers can load the same model from; "" if nowhere on this machine.
        num_layers: How many decoder blocks the model has.
        open_layers: The layers that can be steered.
        cards: The loaded probes.
        tokens: Token ids to make random prompts of.
        max_model_len: The longest sequence, in tokens.
        reports: Whether requests may ask for reports.
        limits: The max_ options, such as max_steps.
        needs_opt_out: Whether the engine steers by default, so that plain requests must opt out.
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
        """What the engine says about itself; asked once, first."""

    def alone(self, request: CheckRequest) -> Answer:
        """Run one request with no other of ours beside it."""

    def together(self, requests: Sequence[CheckRequest]) -> list[Answer]:
        """Run requests in one batch, as far as the engine lets the caller choose."""

    def close(self) -> None:
        """Release the engine."""
