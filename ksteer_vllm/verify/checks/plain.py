"""Plain requests are not edited: alone, beside steered ones, or after them; nor are those at alpha 0."""

from __future__ import annotations

from collections.abc import Sequence

from ksteer_vllm.errors import listing
from ksteer_vllm.verify.compare import apart
from ksteer_vllm.verify.subject import Answer
from ksteer_vllm.verify.trial import SHORT, Trial

__all__ = ["check_alpha_zero", "check_plain_after", "check_plain_beside"]

GENERATED = 8
TRIES = 3
NEIGHBOURS = 3

TOUCHED = "plain requests are edited: tokens without a row are not left alone"


def check_plain_beside(trial: Trial) -> None:
    """Plain requests in one batch with steered ones, and steered ones with other specs beside them."""
    name, neighbours = "plain beside steered", trial.edits[:NEIGHBOURS]
    if not neighbours:
        trial.skipped(name, "steering has no visible effect here, so a leak could not be seen")
        return
    prompts = [trial.prompt(SHORT + 7 * index) for index in range(2)]
    alone = [trial.alone(trial.request(prompt, max_tokens=GENERATED)) for prompt in prompts]
    long = min(64, trial.facts.max_model_len - SHORT - 16)
    specs = [fired.plan.spec("both") for fired in neighbours]
    if len(specs) == 1:
        specs.append(neighbours[0].plan.other().spec("both"))
    own = trial.prompt(SHORT)
    steered_alone = [trial.alone(trial.request(own, spec, GENERATED)) for spec in specs]
    for attempt in range(TRIES):
        length = min(long * 2**attempt, trial.facts.max_model_len - SHORT - 1)
        requests = [trial.request(own, spec, length) for spec in specs]
        requests += [trial.request(prompt, max_tokens=GENERATED) for prompt in prompts]
        answers = trial.together(requests)
        steered, plain = answers[: len(specs)], answers[len(specs) :]
        if all(_inside(answer, steered) for answer in plain):
            break
    else:
        trial.skipped(name, f"in {TRIES} tries no steered request was running as long as the plain ones")
        return
    difference = max(apart(a, b) for a, b in zip(alone, plain, strict=True))
    trial.judge(
        name,
        f"{len(plain)} plain requests beside {len(steered)} steered ones differ from themselves alone by at "
        f"most {difference:.1e}",
        TOUCHED,
        difference <= trial.tolerance,
        difference=difference,
    )
    trial.edits_others |= difference > trial.tolerance
    mixed = max(apart(a, b) for a, b in zip(steered_alone, steered, strict=True))
    trial.judge(
        "steered beside steered",
        f"{len(steered)} requests with other specs in one batch differ from themselves alone by at most "
        f"{mixed:.1e}",
        "specs of one batch are mixed up: a token is given another request's row",
        mixed <= trial.tolerance,
        difference=mixed,
    )


def _inside(answer: Answer, others: Sequence[Answer]) -> bool:
    return any(other.began <= answer.began and answer.ended <= other.ended for other in others)


def check_alpha_zero(trial: Trial) -> None:
    """Every probe at strength 0, where that means no edit."""
    name, plain = "alpha 0 is plain", trial.short_plain
    plans = {fired.plan.card.name: fired.plan for fired in trial.fired if fired.plan.method != "ace"}
    if not plans or plain is None:
        trial.skipped(name, "no probe has a method for which strength 0 means no edit")
        return
    specs = [{**plan.spec("both"), "alpha": 0.0} for plan in plans.values()]
    answers = trial.together([trial.request(trial.short_prompt, spec) for spec in specs])
    difference = max(apart(answer, plain) for answer in answers)
    trial.judge(
        name,
        f"{listing(plans)} at alpha 0 differ from plain by at most {difference:.1e}",
        "the strength of a request does not reach its edit",
        difference <= trial.tolerance,
        difference=difference,
    )


def check_plain_after(trial: Trial) -> None:
    """The first plain request again, after everything else."""
    plain = trial.short_plain
    if plain is None:
        trial.skipped("plain after steered", "there is no plain answer to compare with")
        return
    again = trial.alone(trial.request(trial.short_prompt, max_tokens=len(plain.tokens)))
    difference = apart(plain, again)
    trial.judge(
        "plain after steered",
        f"after {trial.requests} requests the first plain one, repeated, differs by {difference:.1e}",
        "plain requests are edited: rows of requests that have left are still in use",
        difference <= trial.tolerance,
        difference=difference,
    )
