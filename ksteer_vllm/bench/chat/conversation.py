"""What was said: every question, all replies to it, how each was steered; what the model is shown. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from ksteer_vllm.data.rows import Message
from ksteer_vllm.errors import UsageError

__all__ = ["Conversation", "Exchange", "SteeredReply"]


class SteeredReply(BaseModel):
    """One reply.

    Attributes:
        text: What the model wrote.
        spec: How it was steered, as JSON; None: not at all.
        seed: Of the sampling; None: the engine drew one.
        stopped: Whether it was cut short by whoever asked.
    """

    text: str
    spec: dict[str, Any] | None
    seed: int | None = None
    stopped: bool = False


class Exchange(BaseModel):
    """A question and all replies to it, in order.

    Attributes:
        kept: The reply that the conversation goes on from: the last that was not asked for beside it.
    """

    question: str
    system: str = ""
    replies: list[SteeredReply] = []
    kept: int | None = None


class Conversation(BaseModel):
    """A chat from its start or its last reset.

    Attributes:
        about: What it was held with: model, probe, sampling.
        system: The system prompt; empty: none.
        earlier: Exchanges before resets; the model is not shown them.
    """

    about: dict[str, Any] = {}
    system: str = ""
    exchanges: list[Exchange] = []
    earlier: list[Exchange] = Field(default_factory=list)

    def ask(self, question: str) -> None:
        """Begin an exchange."""
        self.exchanges.append(Exchange(question=question, system=self.system))

    def again(self) -> None:
        """The last exchange is to get another reply. Raises UsageError if nothing was asked."""
        self._last().system = self.system

    def withdraw(self) -> None:
        """Forget the last question, to which there was no reply."""
        if self.exchanges and not self.exchanges[-1].replies:
            self.exchanges.pop()

    def messages(self) -> tuple[Message, ...]:
        """What the model is shown: up to the last question, with the reply that was kept of each exchange."""
        shown = [Message(role="system", content=self.system)] if self.system else []
        for exchange in self.exchanges[:-1]:
            shown.append(Message(role="user", content=exchange.question))
            if exchange.kept is not None:
                shown.append(Message(role="assistant", content=exchange.replies[exchange.kept].text))
        return (*shown, Message(role="user", content=self._last().question))

    def answer(self, reply: SteeredReply) -> None:
        """The model's reply, from which the conversation goes on."""
        exchange = self._last()
        exchange.replies.append(reply)
        exchange.kept = len(exchange.replies) - 1

    def compare(self, reply: SteeredReply) -> None:
        """A reply that is only looked at."""
        self._last().replies.append(reply)

    def reset(self) -> None:
        """Start again with the same system prompt."""
        self.earlier += self.exchanges
        self.exchanges = []

    def save(self, file: str | Path) -> Path:
        """Write everything as JSON. Raises UsageError if the file cannot be written."""
        path = Path(file).expanduser()
        try:
            path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"save: {path}: {error.strerror or error}") from None
        return path

    def _last(self) -> Exchange:
        if not self.exchanges:
            raise UsageError("nothing was asked yet")
        return self.exchanges[-1]
