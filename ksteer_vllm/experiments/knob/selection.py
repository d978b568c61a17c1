"""Which replies a probe may be fitted to: those that show what they are labelled with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ksteer_vllm.data.behaviours import Behaviour
from ksteer_vllm.data.readers import broken
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.data.split import MIN_ROWS
from ksteer_vllm.errors import DataError
from ksteer_vllm.experiments.knob.checks import ByReader, Check, readings
from ksteer_vllm.experiments.knob.prompts import Form
from ksteer_vllm.experiments.knob.separable import separate
from ksteer_vllm.experiments.knob.written import Written

__all__ = ["PLAIN", "Counts", "Selection", "select"]

PLAIN = "(plain)"
"""What tables call replies without an instruction."""


@dataclass
class Counts:
    """What became of the replies under one instruction."""

    written: int = 0
    broken: int = 0
    not_shown: int = 0
    contradicting: int = 0
    kept: int = 0


@dataclass
class Selection:
    """The replies that count.

    Attributes:
        kept: Reply -> the behaviours it shows, none for most plain ones.
        counts: Behaviour, or PLAIN, -> what became of its replies.
        checks: Those of the behaviours that are left, in the behaviours' order.
        left_out: Behaviour -> why it cannot be fitted.
        notes: What else a reader has to know of a behaviour.
    """

    kept: dict[Written, frozenset[str]] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def rows(self, form: Form) -> list[LabelledRow]:
        """Labelled text: every reply under its plain question, so that no instruction is left to be read."""
        return [
            LabelledRow(
                prompt=form.plain(reply.asked.question),
                reply=reply.text,
                labels=tuple(name for name in self.checks if name in shown),
            )
            for reply, shown in self.kept.items()
        ]


def select(
    replies: Sequence[Written], behaviours: Mapping[str, Behaviour], checks: Mapping[str, Check]
) -> Selection:
    """Keep the replies that show what was asked for, and the plain ones.

    Args:
        replies: Plain ones and ones under every behaviour's instruction.
        behaviours: What was asked for.
        checks: Of the behaviours that have one. The replies of the others are compared with all that is kept
            so far by their words, see `separable`.

    Raises:
        DataError: If no behaviour is left, with the reason for each.
    """
    found = Selection(counts={name: Counts() for name in (PLAIN, *behaviours)})
    whole = []
    for reply in replies:
        counts = found.counts[reply.asked.behaviour or PLAIN]
        counts.written += 1
        if broken(reply.text):
            counts.broken += 1
        else:
            whole.append(reply)
    shown = dict(zip(whole, readings(checks, whole), strict=True))
    usable = {
        reply: names for reply, names in shown.items() if _usable(reply, names, checks, behaviours, found)
    }
    found.kept = usable
    for name in behaviours:
        if name in checks:
            found.checks[name] = checks[name]
        else:
            _by_words(name, [reply for reply in whole if reply.asked.behaviour == name], found)
    _leave_out_rare(found)
    if not found.checks:
        reasons = "; ".join(f"{name}: {why}" for name, why in found.left_out.items())
        raise DataError(f"behaviours: no probe can be fitted to any of them: {reasons}")
    return found


def _usable(
    reply: Written,
    names: frozenset[str],
    checks: Mapping[str, Check],
    behaviours: Mapping[str, Behaviour],
    found: Selection,
) -> bool:
    """Whether a reply is kept at this stage: of behaviours with a check, and plain ones."""
    own = reply.asked.behaviour
    if own is not None and own not in checks:
        return False
    counts = found.counts[own or PLAIN]
    if own is not None and own not in names:
        counts.not_shown += 1
    elif own is not None and not names.isdisjoint(behaviours[own].without):
        counts.contradicting += 1
    else:
        counts.kept += 1
        return True
    return False


def _by_words(name: str, own: Sequence[Written], found: Selection) -> None:
    """Keep the replies under an instruction that are told from all others on held-out questions."""
    others = list(found.kept)
    texts = [reply.text for reply in (*own, *others)]
    meant = [True] * len(own) + [False] * len(others)
    told = separate(texts, meant, [reply.asked.question for reply in (*own, *others)])
    counts = found.counts[name]
    if told is None or not told.separable:
        counts.not_shown += len(own)
        found.left_out[name] = (
            "too few replies to tell them from others"
            if told is None
            else f"its replies cannot be told from others by their words (balanced accuracy {told.accuracy} "
            "on held-out questions; 0.5 is chance): the model does not follow the instruction, or in a way "
            "that only a check can see"
        )
        return
    found.notes[name] = f"told from other replies by their words, balanced accuracy {told.accuracy}"
    found.checks[name] = ByReader(told.reader, "words")
    for reply, is_told in zip(own, told.found, strict=False):
        if is_told:
            counts.kept += 1
            found.kept[reply] = frozenset({name})
        else:
            counts.not_shown += 1


def _leave_out_rare(found: Selection) -> None:
    """Leave out behaviours that too few of the kept replies show."""
    for name in list(found.checks):
        showing = sum(name in names for names in found.kept.values())
        if showing < MIN_ROWS:
            written = found.counts[name].written
            found.left_out[name] = (
                f"{found.counts[name].kept} of {written} replies show it when asked to, and at least "
                f"{MIN_ROWS} are needed: the model does not do it, or the check is too strict"
            )
            del found.checks[name]
            found.kept = {
                reply: names - {name} for reply, names in found.kept.items() if reply.asked.behaviour != name
            }
