"""Who answers in a chat: an engine in this process or a server, both behind `Speaker`."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Annotated, Any, Protocol

from pydantic import Field

from ksteer_vllm.bench.sampling import MaxTokens, Sampling, Temperature
from ksteer_vllm.data.rows import Message

__all__ = ["ChatPlan", "Speaker"]


class ChatPlan(Sampling):
    """How the replies of a chat are sampled."""

    temperature: Temperature = 0.7
    max_tokens: MaxTokens = 200
    seed: Annotated[
        int | None,
        Field(
            ge=0,
            le=2**62,
            description="Seed of the sampling: question N is answered with seed + N, however often and "
            "however it is steered.",
        ),
    ] = None


class Speaker(Protocol):
    """A model that can be steered with one probe."""

    @property
    def probe(self) -> str:
        """What specs call the probe."""

    @property
    def labels(self) -> Sequence[str]:
        """The probe's labels."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What a saved conversation says of model and probe."""

    def reply(
        self, messages: tuple[Message, ...], spec: Mapping[str, Any] | None, seed: int | None
    ) -> Generator[str]:
        """The reply, piece by piece as it is generated. Closing the generator stops it.

        Args:
            messages: The conversation, up to the question.
            spec: How to steer the reply, as JSON; None: not at all.
            seed: Seed of the sampling; None draws one.

        Raises:
            KSteerError: For a spec or a conversation that is refused, or if nobody answers.
        """

    def close(self) -> None:
        """Release what it holds."""
