"""Plain requests are untouched: alone, beside steered ones, after them; alpha 0 is plain, too."""

from __future__ import annotations

from collections.abc import Sequence

from ksteer_vllm.errors import listing
from ksteer_vllm.verify.bench import SHORT, Bench
from ksteer_vllm.verify.compare import apart
from ksteer_vllm.verify.subject import Answer

__all__ = ["check_alpha_zero", "check_plain_after", "check_plain_beside"]

GENERATED = 8
TRIES = 3
NEIGHBOURS = 3

TOUCHED = "plain requests are touched: tokens without a row are edited"


def check_plain_beside(bench: Bench) -> None:
    """Plain requests in one batch with steered ones; and steered ones with other specs beside them."""
    name, neighbours = "plain beside steered", bench.edits[:NEIGHBOURS]
    if not neighbours:
        bench.skipped(name, "steering has no visible effect here, so it could not be seen to leak")
        return
    prompts = [bench.prompt(SHORT + 7 * index) for index in range(2)]
    alone = [bench.alone(bench.ask(prompt, max_tokens=GENERATED)) for prompt in prompts]
    long = min(64, bench.facts.max_model_len - SHORT - 16)
    specs = [fired.plan.spec("both") for fired in neighbours]
    if len(specs) == 1:
        specs.append(neighbours[0].plan.other().spec("both"))
    own = bench.prompt(SHORT)
    steered_alone = [bench.alone(bench.ask(own, spec, GENERATED)) for spec in specs]
    for attempt in range(TRIES):
        length = min(long * 2**attempt, bench.facts.max_model_len - SHORT - 1)
        asks = [bench.ask(own, spec, length) for spec in specs]
        asks += [bench.ask(prompt, max_tokens=GENERATED) for prompt in prompts]
        answers = bench.together(asks)
        steered, plain = answers[: len(specs)], answers[len(specs) :]
        if all(_inside(answer, steered) for answer in plain):
            break
    else:
        bench.skipped(name, f"in {TRIES} tries no steered request was running as long as the plain ones")
        return
    difference = max(apart(a, b) for a, b in zip(alone, plain, strict=True))
    bench.judge(
        name,
        f"{len(plain)} plain requests beside {len(steered)} steered ones differ from themselves alone by at "
        f"most {difference:.1e}",
        TOUCHED,
        difference <= bench.tolerance,
        difference=difference,
    )
    bench.edits_others |= difference > bench.tolerance
    mixed = max(apart(a, b) for a, b in zip(steered_alone, steered, strict=True))
    bench.judge(
        "steered beside steered",
        f"{len(steered)} requests with other specs in one batch differ from themselves alone by at most "
        f"{mixed:.1e}",
        "specs of one batch are mixed up: a token is given another request's row",
        mixed <= bench.tolerance,
        difference=mixed,
    )


def _inside(answer: Answer, others: Sequence[Answer]) -> bool:
    return any(other.began <= answer.began and answer.ended <= other.ended for other in others)


def check_alpha_zero(bench: Bench) -> None:
    """Every probe at strength 0, where that means no edit."""
    name, plain = "alpha 0 is plain", bench.short_plain
    plans = {fired.plan.card.name: fired.plan for fired in bench.fired if fired.plan.method != "ace"}
    if not plans or plain is None:
        bench.skipped(name, "no probe has a method for which strength 0 means no edit")
        return
    specs = [{**plan.spec("both"), "alpha": 0.0} for plan in plans.values()]
    answers = bench.together([bench.ask(bench.short_prompt, spec) for spec in specs])
    difference = max(apart(answer, plain) for answer in answers)
    bench.judge(
        name,
        f"{listing(plans)} at alpha 0 differ from plain by at most {difference:.1e}",
        "the strength of a request does not reach its edit",
        difference <= bench.tolerance,
        difference=difference,
    )


def check_plain_after(bench: Bench) -> None:
    """The first plain request again, when everything else is over."""
    plain = bench.short_plain
    if plain is None:
        bench.skipped("plain after steered", "there is no plain answer to hold it against")
        return
    again = bench.alone(bench.ask(bench.short_prompt, max_tokens=len(plain.tokens)))
    difference = apart(plain, again)
    bench.judge(
        "plain after steered",
        f"after {bench.requests} requests the first plain one differs from itself by {difference:.1e}",
        "plain requests are touched: rows of requests that have left still edit",
        difference <= bench.tolerance,
        difference=difference,
    )
