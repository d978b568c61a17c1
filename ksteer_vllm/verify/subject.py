"""What is verified: an engine behind one interface, whether it is offline or a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ksteer_vllm.probes.probe import Probe

__all__ = ["Answer", "Card", "CheckRequest", "Facts", "Refused", "Subject", "Unreachable"]


class Unreachable(RuntimeError):
    """The engine cannot be verified: no server, no steering, no access. The message says which."""


class Refused(RuntimeError):
    """The engine did not run a request; the message is its own."""


@dataclass(frozen=True)
class CheckRequest:
    """One greedy request.

    spec: False: explicitly not steered. salt: of the prefix cache; one of its own shares no block.
    """

    prompt: tuple[int, ...]
    spec: Mapping[str, Any] | Literal[False] | None = None
    max_tokens: int = 4
    salt: str | None = None


@dataclass(frozen=True)
class Answer:
    """What came back: per generated token the log-probabilities of the best few and its own.

    report: as `ksteer_vllm.report`. cached: prompt tokens read from the prefix cache, None if not told.
    began, ended: seconds on one clock, around the request.
    """

    tokens: tuple[int, ...]
    steps: tuple[Mapping[int, float], ...]
    report: Mapping[str, Any] | None = None
    cached: int | None = None
    began: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True)
class Card:
    """One loaded probe. layers: those it has tensors of its own for, empty: one set for all.

    methods: those it has, the default first. probe: its tensors, where a copy of the folder is at hand.
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

    tokens: ids to make random prompts of. weights: where transformers can load the same model from, "" if not
    from here. limits: max_steps and the like. needs_opt_out: requests that say nothing of steering are
    steered, so that plain ones must say so. gaps: what cannot be seen through this subject.
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
    """An engine that answers. Raises Unreachable, or Refused with the engine's message."""

    def facts(self) -> Facts:
        """Asked once, first."""

    def alone(self, request: CheckRequest) -> Answer:
        """Run one request with nothing of ours beside it."""

    def together(self, requests: Sequence[CheckRequest]) -> list[Answer]:
        """Run requests in one batch, as far as the engine lets the caller choose."""

    def close(self) -> None:
        """Let go of the engine."""
