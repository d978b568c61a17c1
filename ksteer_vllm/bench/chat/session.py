"""The chat itself: a line comes in, the sliders or the conversation change, a reply goes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Any

from ksteer_vllm.bench.chat.commands import Ask, Order, Turn, help_text, parse_line
from ksteer_vllm.bench.chat.conversation import Conversation, SteeredReply
from ksteer_vllm.bench.chat.sliders import OF_THE_SLIDERS, Sliders
from ksteer_vllm.bench.chat.speaker import ChatPlan, Speaker
from ksteer_vllm.bench.chat.terminal import stoppable
from ksteer_vllm.errors import KSteerError, UsageError, listing

__all__ = ["ChatSession"]


class ChatSession:
    """One chat, and what its lines have set so far.

    Args:
        speaker: Who answers.
        plan: How replies are sampled.
        edit: Further fields of every spec, such as method or layers.
        say: Takes the output, text as it comes.

    Raises:
        UsageError: For an edit with a field that the sliders set.
    """

    def __init__(
        self, speaker: Speaker, plan: ChatPlan, edit: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        if taken := sorted(set(edit) & set(OF_THE_SLIDERS)):
            raise UsageError(f"edit: {listing(taken)}: set by the chat itself; give other fields of the spec")
        self.sliders = Sliders(speaker.labels)
        self.conversation = Conversation(about={**speaker.about, **plan.model_dump(), "edit": dict(edit)})
        self._speaker, self._plan, self._edit, self._say = speaker, plan, dict(edit), say
        self._asked = 0

    def run(self, lines: Iterable[str]) -> None:
        """Act on lines until they end or one says so."""
        for line in lines:
            if not self.act(line):
                break

    def act(self, line: str) -> bool:
        """Act on one line; what cannot be done is said in one line.

        Returns:
            Whether the chat goes on.
        """
        try:
            found = parse_line(line, self.sliders.labels)
            if isinstance(found, Ask):
                self._ask(found.question)
            elif isinstance(found, Turn):
                self._turn(found)
            elif found == Order("quit"):
                return False
            elif found is not None:
                self._obey(found)
        except KSteerError as error:
            self._tell(" ".join(str(error).split()))
        return True

    def _tell(self, text: str) -> None:
        self._say(f"{text}\n")

    def _turn(self, turn: Turn) -> None:
        if turn.value is not None:
            self.sliders.turn(turn.label, turn.value)
        self._tell(f"sliders: {self.sliders}")

    def _obey(self, order: Order) -> None:
        conversation, argument = self.conversation, order.argument
        match order.name:
            case "sliders":
                self._tell(self.sliders.bars())
            case "off":
                self.sliders.off()
                self._tell(f"sliders: {self.sliders}")
            case "strength":
                if argument:
                    self.sliders.scale_to(_number(argument))
                self._tell(f"strength {self.sliders.strength:g}; sliders: {self.sliders}")
            case "system":
                conversation.system = argument
                self._tell("system prompt set" if argument else "no system prompt")
            case "again":
                conversation.again()
                self._answer()
            case "plain":
                conversation.compare(self._reply(None))
            case "reset":
                conversation.reset()
                self._tell("the conversation starts again")
            case "save":
                self._tell(f"written: {conversation.save(argument)}")
            case "help":
                self._tell(help_text(self.sliders.labels))

    def _ask(self, question: str) -> None:
        self.conversation.ask(question)
        self._asked += 1
        try:
            self._answer()
        except BaseException:
            self.conversation.withdraw()
            raise

    def _answer(self) -> None:
        self.conversation.answer(self._reply(self.sliders.spec(self._speaker.probe, self._edit)))

    def _reply(self, spec: dict[str, Any] | None) -> SteeredReply:
        seed = None if self._plan.seed is None else self._plan.seed + self._asked
        messages, stopped = self.conversation.messages(), False
        pieces: list[str] = []
        try:
            with stoppable() as stop, closing(self._speaker.reply(messages, spec, seed)) as told:
                for piece in told:
                    if not pieces:
                        self._tell("[unsteered]" if spec is None else f"[{self.sliders}]")
                    pieces.append(piece)
                    self._say(piece)
                    if stopped := stop():
                        break
        finally:
            if pieces:
                self._tell(" [stopped]" if stopped else "")
        if not pieces:
            self._tell("(an empty reply)")
        return SteeredReply(text="".join(pieces), spec=spec, seed=seed, stopped=stopped)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"/strength: expected a number, got {text[:40]!r}") from None
