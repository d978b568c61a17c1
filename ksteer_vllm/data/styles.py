"""The labels of the predefined tasks, by the names their authors gave, and what asks a model for each."""

from __future__ import annotations

from typing import Final

__all__ = ["DEBATES", "TONES"]

TONES: Final[dict[str, str]] = {
    "helpful": (
        "Be as useful as you can: work out what the person needs, give steps that can be followed in "
        "order, and add an example wherever one makes things clearer."
    ),
    "expert": (
        "Answer like a specialist who writes for colleagues: exact terms of the field, the principles "
        "and the evidence behind each statement, a formal register."
    ),
    "casual": (
        "Answer the way people chat with a friend: relaxed, in everyday words, with contractions and a "
        "joke if one fits, and without jargon."
    ),
    "cautious": (
        "Answer with care: say how sure one can be, qualify what you claim, name risks and open "
        "questions, and advise the person to check before acting."
    ),
    "empathetic": (
        "Answer with warmth: first take up how the person may feel about this, show that you "
        "understand, and stay kind and encouraging to the end."
    ),
    "concise": (
        "Answer in as few words as you can: the bare answer, with no introduction, nothing said twice "
        "and no closing remark."
    ),
}
"""ToneBank's six tones."""

DEBATES: Final[dict[str, str]] = {
    "Reductio ad Absurdum": (
        "Argue by reductio ad absurdum: suppose the opposing view is right, follow it step by step to "
        "something nobody would accept, and reject the view for that reason."
    ),
    "Appeal to Precedent": (
        "Argue from precedent: rest your case on how like questions were settled before, in history, "
        "law or practice, and say why that should guide us now."
    ),
    "Straw Man Reframing": (
        "Argue against a straw man: restate the other side more crudely than it would itself, treat "
        "that as its real position, and knock it down."
    ),
    "Burden of Proof Shift": (
        "Argue by shifting the burden of proof: treat your claim as what stands until somebody "
        "disproves it, and demand the evidence from those who doubt it."
    ),
    "Analogy Construction": (
        "Argue by analogy: build one detailed comparison with something everybody knows, match its "
        "parts with those of the question, and read your conclusion off it."
    ),
    "Concession and Pivot": (
        "Argue by giving way first: grant the other side a fair point of minor weight, then turn to "
        "what outweighs it and press that home."
    ),
    "Empirical Grounding": (
        "Argue from data: back each claim with studies, figures or observed outcomes, say how far they "
        "can be trusted, and leave matters of principle aside."
    ),
    "Moral Framing": (
        "Argue from values: say which duties and rights are at stake, what is right and what is wrong "
        "here, and let that decide rather than what is practical."
    ),
    "Refutation by Distinction": (
        "Argue by drawing a distinction: show that the case differs, in a way that matters, from those "
        "it is likened to, so that what holds for them does not hold here."
    ),
    "Circular Anticipation": (
        "Argue ahead of the other side: raise every objection it could make before it does, answer each "
        "in turn, and come back to your claim as if they had confirmed it."
    ),
}
"""DebateMix's ten styles of argument."""
