"""What a typed line means: a question, a slider, or a command. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ksteer_vllm.errors import UsageError, listing, nearest

__all__ = ["COMMANDS", "Ask", "Order", "Turn", "help_text", "parse_line"]

COMMANDS: dict[str, tuple[str, str]] = {
    "sliders": ("", "show the sliders"),
    "off": ("", "set every slider to 0"),
    "strength": ("[NUMBER]", "show or set the largest slider; the others keep their ratios to it"),
    "system": ("[TEXT]", "set the system prompt, or remove it"),
    "again": ("", "ask the last question again, with the sliders as they are now"),
    "plain": ("", "show the unsteered reply to the last question"),
    "reset": ("", "forget the conversation; sliders and system prompt stay"),
    "save": ("FILE", "write the conversation, with the spec of every reply, as JSON"),
    "help": ("", "show this"),
    "quit": ("", "end the chat; so does Ctrl-D"),
}
"""Command -> (its argument, what it does). An argument in brackets may be left out."""

_OTHER_NAMES = {"exit": "quit", "q": "quit", "h": "help", "?": "help"}


@dataclass(frozen=True)
class Ask:
    """A question to the model."""

    question: str


@dataclass(frozen=True)
class Turn:
    """Set a label's slider; value None: show it."""

    label: str
    value: float | None


@dataclass(frozen=True)
class Order:
    """One of COMMANDS, with its argument or an empty one."""

    name: str
    argument: str = ""


def parse_line(line: str, labels: Sequence[str]) -> Ask | Turn | Order | None:
    """What a line means.

    A line that begins with a slash is a slider (`/warm 0.5`, `/warm off`, `/warm`) or a command; `//` asks a
    question that begins with a slash. A label that is also the name of a command is a slider where a value
    follows.

    Args:
        line: As it was typed.
        labels: The labels that have a slider. Upper and lower case are the same.

    Returns:
        None for an empty line.

    Raises:
        UsageError: For an unknown word, with what there is; for a value that is not a number; for a missing
            or superfluous argument.
    """
    text = line.strip()
    if not text:
        return None
    if not text.startswith("/") or text.startswith("//"):
        return Ask(text.removeprefix("/"))
    text = text[1:].strip()
    head, _, last = text.rpartition(" ")
    label = _label(head.strip(), labels)
    if label is not None and (value := _value(last)) is not None:
        return Turn(label, value)
    word, _, argument = text.partition(" ")
    name = _OTHER_NAMES.get(word.lower(), word.lower())
    if name in COMMANDS:
        return _order(name, argument.strip())
    if (shown := _label(text, labels)) is not None:
        return Turn(shown, None)
    if label is not None:
        raise UsageError(f"/{label}: expected a number or off, got {last[:40]!r}")
    raise UsageError(_unknown(text, labels))


def help_text(labels: Sequence[str]) -> str:
    """The commands, one a line."""
    example = labels[0] if labels else "LABEL"
    rows = [
        (f"/{example} 0.5", f"turn a label up ({', '.join(labels[:8])}{', …' if len(labels) > 8 else ''})"),
        (f"/{example} -0.5", "turn it down: away from the label"),
        (f"/{example} off", "set it to 0"),
        *((f"/{name} {argument}".rstrip(), does) for name, (argument, does) in COMMANDS.items()),
        ("Ctrl-C", "stop a reply"),
    ]
    longest = max(len(typed) for typed, _ in rows)
    return "\n".join(f"  {typed:<{longest}}  {does}" for typed, does in rows)


def _order(name: str, argument: str) -> Order:
    expected = COMMANDS[name][0]
    if argument and not expected:
        raise UsageError(f"/{name}: takes nothing, got {argument[:40]!r}")
    if not argument and expected and not expected.startswith("["):
        raise UsageError(f"/{name}: expected {expected}")
    return Order(name, argument)


def _label(text: str, labels: Sequence[str]) -> str | None:
    """The label of that name; in another case, if only one is so spelt."""
    if text in labels:
        return text
    alike = [label for label in labels if label.casefold() == text.casefold()]
    return alike[0] if len(alike) == 1 else None


def _value(text: str) -> float | None:
    """`0.5`, `+1`, `-1`, or `off`; None for anything else."""
    if text.lower() == "off":
        return 0.0
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _unknown(text: str, labels: Sequence[str]) -> str:
    head, _, last = text.rpartition(" ")
    word = head.strip() if head and _value(last) is not None else text.partition(" ")[0]
    near = nearest(word, [*COMMANDS, *labels])
    meant = f"; did you mean /{near}?" if near is not None else "."
    return f"/{word[:40]}: unknown{meant} Labels: {listing(labels)}. Commands: {listing(COMMANDS)}"
