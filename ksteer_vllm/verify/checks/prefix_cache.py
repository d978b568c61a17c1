"""The prefix cache: blocks a request reads were written by requests that did the same to them.

Every request that may share blocks is compared with itself under its own `cache_salt`, which shares none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ksteer_vllm.verify.compare import apart
from ksteer_vllm.verify.edits import PlannedEdit
from ksteer_vllm.verify.subject import Answer, CheckRequest
from ksteer_vllm.verify.trial import Trial

__all__ = ["check_prefix_cache"]

BLOCKS = (128, 1024, 4096)
"""Sizes the cache's blocks may divide, tried in turn; prompts are LONGER than one."""

LONGER = 12

TAIL = 12
"""Prompt tokens at the end that are not steered, so that any effect has come through the cache."""

REPLY = 16
"""Tokens of a steered reply, half of them before the end of a block."""

ENGINES = 3
"""How often a prompt is repeated to get a cache hit: another data-parallel engine may answer."""

UNTOLD = "whether the prefix-cache checks read shared blocks: the server does not report cached tokens"

TRIES = 3
"""Prompts tried until the two requests visibly differ."""

CANDIDATES = 3
"""How many layers are tried for this, from the lowest."""

BOOSTS, BOOST, AMPLE = 5, 2.5, 2.0
"""How many strengths are tried, the factor from each to the next, and how many times a visible effect steered
and plain prompts should differ by."""


@dataclass(frozen=True)
class _Setting:
    """block: a multiple of the cache's. told: whether the engine reports cached tokens. plan: an edit at a
    layer whose edits reach the cached blocks of layers above."""

    block: int
    told: bool
    plan: PlannedEdit

    @property
    def layer(self) -> int:
        return self.plan.layer

    @property
    def spec(self) -> Mapping[str, Any]:
        """Steers the prompt except its tail."""
        return self.plan.spec({"prompt": [0, self.length - TAIL]})

    @property
    def other(self) -> Mapping[str, Any]:
        """Steers the same tokens differently."""
        return self.plan.other().spec({"prompt": [0, self.length - TAIL]})

    @property
    def length(self) -> int:
        """The length of the prompts, in tokens."""
        return self.block + LONGER


def check_prefix_cache(trial: Trial) -> None:
    """Steered then plain, plain then steered, one spec then another, a steered reply that becomes prompt."""
    if trial.edits_others:
        trial.skipped("cache", "tokens are edited that no edit names, so a block's contents show nothing")
        return
    hit = _check_hits(trial)
    if hit is None:
        return
    setting = _setting(trial, *hit)
    if setting is None:
        return
    for name, specs, what in (
        ("plain after steered", (setting.spec, None), "a plain request read blocks that a steered one wrote"),
        ("steered after plain", (None, setting.spec), "a steered request read blocks that a plain one wrote"),
        ("two specs", (setting.spec, setting.other), "a steered request read blocks that another spec wrote"),
    ):
        _check_pair(trial, setting, f"cache: {name}", specs, f"the prefix cache is unsalted: {what}")
    _check_turns(trial, setting)


def _check_hits(trial: Trial) -> tuple[int, bool] | None:
    """(a multiple of the cache's blocks, whether hits are reported); None if no block is ever shared."""
    name = "cache: plain prompts hit"
    longest = trial.facts.max_model_len - LONGER - REPLY - TAIL
    blocks = [block for block in BLOCKS if block <= longest] or [max(16, longest // 16 * 16)]
    for block in blocks:
        length = block + LONGER
        prompt = trial.prompt(length)
        first = trial.alone(trial.request(prompt, shared=True))
        for _ in range(ENGINES):
            again = trial.alone(trial.request(prompt, shared=True))
            if again.cached != 0:
                break
        difference = apart(first, again)
        if again.cached is None:
            trial.skipped(
                name,
                "this server does not report cached tokens (--enable-prompt-tokens-details does), so it is "
                "unknown whether the checks below read shared blocks",
            )
            trial.gaps.append(UNTOLD)
            return block, False
        if again.cached:
            trial.judge(
                name,
                f"of {length} prompt tokens sent again, {again.cached} come from the cache; the answers "
                f"differ by {difference:.1e}",
                "cached blocks do not hold what the prompt's tokens produced",
                difference <= trial.tolerance,
                cached=again.cached,
                difference=difference,
            )
            return block, True
    trial.skipped(
        name,
        f"a plain prompt of {blocks[-1] + LONGER} tokens sent twice reads no cached block: prefix caching is "
        "off, or its blocks are larger; no block is shared, so the cache cannot be wrong here",
    )
    return None


def _setting(trial: Trial, block: int, told: bool) -> _Setting | None:
    """The strongest way to write blocks that differ; None, with a finding, if there is none."""
    name, last = "cache: plain after steered", trial.facts.num_layers - 1
    candidates = [fired for fired in trial.edits if fired.plan.layer < last]
    if not candidates:
        trial.skipped(
            name,
            "steering has no visible effect below the last layer, so steered blocks could not be told from "
            "plain ones",
        )
        return None
    prompt = trial.prompt(block + LONGER)
    plain = trial.alone(trial.request(prompt))
    best, reach = None, 0.0
    for fired in sorted(candidates, key=lambda found: found.plan.layer)[:CANDIDATES]:
        setting = _Setting(block, told, fired.plan)
        for _ in range(BOOSTS):
            seen = apart(plain, trial.alone(trial.request(prompt, setting.spec)))
            if seen >= AMPLE * trial.visible:
                return setting
            if seen > reach:
                best, reach = setting, seen
            setting = replace(setting, plan=setting.plan.scaled(BOOST))
    if reach >= trial.visible:
        return best
    trial.skipped(
        name,
        f"steering a prompt moves the tokens after it by {reach:.1e} only, so steered blocks could not be "
        "told from plain ones",
    )
    return None


def _check_pair(
    trial: Trial,
    setting: _Setting,
    name: str,
    specs: Sequence[Mapping[str, Any] | None],
    cause: str,
) -> None:
    """Two requests on a fresh prompt, one after the other; the second against itself under its own salt."""
    for _ in range(TRIES):
        prompt = trial.prompt(setting.length)
        own = trial.alone(trial.request(prompt, specs[1]))
        expected_first = trial.alone(trial.request(prompt, specs[0]))
        power = apart(own, expected_first)
        if power >= trial.visible:
            break
    else:
        trial.skipped(name, f"the two requests differ by {power:.1e} only: a mix-up could not be seen")
        return
    first = trial.alone(trial.request(prompt, specs[0], shared=True))
    second, far = _worst(trial, trial.request(prompt, specs[1], shared=True), own)
    difference = max(far, apart(first, expected_first))
    hits = f"; it read {second.cached} cached tokens" if setting.told else ""
    trial.judge(
        name,
        f"layer {setting.layer}: the second request is {difference:.1e} from itself under a salt of its own, "
        f"{power:.2g} from the first{hits}",
        cause,
        difference <= trial.tolerance,
        difference=difference,
        power=power,
        cached=second.cached,
    )


def _worst(trial: Trial, request: CheckRequest, expected: Answer) -> tuple[Answer, float]:
    """(an answer, how far it is from the expected one), of ENGINES tries: the first that is too far, else the
    first of all. Later ones may read blocks that an earlier one wrote, which is what they should hold."""
    answers = [trial.alone(request) for _ in range(ENGINES)]
    distances = [apart(answer, expected) for answer in answers]
    shown = next((a for a, far in zip(answers, distances, strict=True) if far > trial.tolerance), answers[0])
    return shown, max(distances)


def _check_turns(trial: Trial, setting: _Setting) -> None:
    """Turn one steers its reply, whose last blocks turn two reads as prompt."""
    name = "cache: a steered reply as prompt"
    for _ in range(BOOSTS):
        prompt = trial.prompt(setting.block - REPLY // 2)
        replied = setting.plan.spec("generation")
        one = trial.alone(trial.request(prompt, replied, REPLY, shared=True))
        turn = (*prompt, *one.tokens, *trial.prompt(TAIL))
        expected = trial.alone(trial.request(turn))
        as_written = setting.plan.spec({"prompt": [len(prompt) - 1, len(prompt) + REPLY]})
        power = apart(expected, trial.alone(trial.request(turn, as_written)))
        if power >= trial.visible:
            break
        setting = replace(setting, plan=setting.plan.scaled(BOOST))
    else:
        trial.skipped(
            name, f"blocks of a steered reply differ by {power:.1e} only: a mix-up could not be seen"
        )
        return
    plain, plain_far = _worst(trial, trial.request(turn, shared=True), expected)
    expected_steered = trial.alone(trial.request(turn, replied))
    _, steered_far = _worst(trial, trial.request(turn, replied, shared=True), expected_steered)
    difference = max(plain_far, steered_far)
    trial.judge(
        name,
        f"layer {setting.layer}: plain and steered turn two are {difference:.1e} from themselves under salts "
        f"of their own; keeping the reply's steered blocks would show as {power:.2g}",
        "the prefix cache's keys do not say which tokens were steered: turn two read blocks of the reply as "
        "turn one had steered them",
        difference <= trial.tolerance,
        difference=difference,
        power=power,
        cached=plain.cached,
    )
