"""Prefix-cache keys: which blocks of which requests may be shared."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksteer_vllm import SteeringSpec
from ksteer_vllm.spec.fingerprint import block_key, fingerprint, steered_ranges

pytestmark = pytest.mark.pure

BASE: dict[str, Any] = {"probe": "tones", "target": ["warm"], "alpha": 1.0, "layers": [1]}


def digest(**changes: Any) -> str:
    return fingerprint(SteeringSpec.parse({**BASE, **changes}).canonical(), "probe digest")


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": 1.5},
        {"alpha": -1.0},
        {"num_steps": 9},
        {"step_decay": 0.5},
        {"target": ["cold"]},
        {"target": ["warm", "cold"]},
        {"target": {"warm": 1, "cold": 2}},
        {"avoid": ["cold"]},
        {"method": "add"},
        {"layers": [2]},
        {"layers": [1, 2]},
        {"loss": "softmin"},
        {"loss": {"hinge": 0.9}},
        {"loss": {"hinge": 0.8}},
        {"until": {"target": 0.9}},
        {"unit": "normalised"},
        {"cap": 0.5},
        {"preserve_norm": True},
        {"fade": 8},
        {"condition": {"probe": "p", "label": "warm", "above": 0.5}},
    ],
    ids=str,
)
def test_whatever_changes_the_edit_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert digest(**change) != digest()


@pytest.mark.parametrize(
    "same",
    [
        {"where": "prompt"},
        {"where": {"generation": [4, 9]}},
        {"target": {"warm": 7}},
        {"alpha": 1},
        {"step_decay": 1},
        {"num_steps": 8},
        {"avoid": []},
        {"loss": "mean"},
        {"until": None},
        {"unit": "raw"},
        {"preserve_norm": False},
        {"report": False},
        {"probe": "the same folder under another name"},
    ],
    ids=str,
)
def test_whatever_does_not_change_the_edit_keeps_the_fingerprint(same: dict[str, Any]) -> None:
    assert digest(**same) == digest()


WHEN: dict[str, Any] = {"probe": "gate", "label": "dry", "above": 0.5}


@pytest.mark.parametrize(
    "change", [{"label": "warm"}, {"above": 0.25}, {"above": None, "below": 0.5}], ids=str
)
def test_what_a_condition_says_enters_the_fingerprint(change: dict[str, Any]) -> None:
    assert digest(condition={**WHEN, **change}) != digest(condition=WHEN)


def test_a_conditions_probe_enters_by_its_digest_not_by_its_name() -> None:
    gated, renamed = (
        SteeringSpec.parse({**BASE, "condition": {**WHEN, "probe": name}}).canonical()
        for name in ("gate", "x")
    )
    assert fingerprint(gated, "probe", "gate") == fingerprint(renamed, "probe", "gate")
    digests = [("probe", "gate"), ("probe", "other"), ("other", "gate"), ("gate", "probe"), ("probe", "")]
    assert len({fingerprint(gated, *pair) for pair in digests}) == len(digests)


def test_clamped_values_enter_and_their_order_does_not() -> None:
    def of(values: dict[str, float]) -> str:
        fields = {"probe": "p", "method": "clamp", "values": values}
        return fingerprint(SteeringSpec.parse(fields).canonical(), "d")

    assert of({"a": 1, "b": 2.0}) == of({"b": 2, "a": 1.0})
    assert len({of({"a": 1, "b": 2}), of({"a": 2, "b": 1}), of({"a": 1}), of({"a": 2, "b": 4})}) == 4


def test_reflect_and_project_differ() -> None:
    spec = {"probe": "p", "avoid": ["a"], "layers": [0]}
    reflect, project = (SteeringSpec.parse({**spec, "method": m}).canonical() for m in ("reflect", "project"))
    assert fingerprint(reflect, "d") != fingerprint(project, "d")


@pytest.mark.parametrize(
    ("windows", "block", "ranges"),
    [
        ((0, 0, 0, 0), (0, 32), []),
        ((0, 10, 0, 0), (0, 32), [(0, 10)]),
        ((0, 100, 0, 0), (32, 64), [(0, 32)]),
        ((40, 50, 0, 0), (32, 64), [(8, 18)]),
        ((0, 0, 63, 2**62), (32, 64), [(31, 32)]),
        ((0, 0, 64, 2**62), (32, 64), []),
        ((0, 40, 39, 2**62), (32, 64), [(0, 32)]),
        ((34, 36, 50, 52), (32, 64), [(2, 4), (18, 20)]),
        ((34, 50, 50, 52), (32, 64), [(2, 20)]),
    ],
)
def test_steered_ranges(windows: Any, block: tuple[int, int], ranges: list[tuple[int, int]]) -> None:
    assert steered_ranges(windows, *block) == ranges


def windows_of(where: Any, num_prompt: int) -> tuple[int, ...]:
    clause = SteeringSpec.parse({**BASE, "where": where}).where
    assert clause is not None
    return clause.positions(num_prompt, None)


def key_of(windows: Any, start: int, end: int, **record: Any) -> Any:
    """The key of a request with one edit."""
    return block_key([{"fingerprint": "d", "windows": windows, **record}], start, end)


def test_specs_that_differ_only_in_where_share_exactly_the_blocks_steered_alike() -> None:
    """A prompt of 68 tokens in blocks of 32: [0, 32) and [32, 64) prompt, [64, 96) both, [96, 128) reply."""
    blocks = [(0, 32), (32, 64), (64, 96), (96, 128)]

    def keys(where: Any) -> list[Any]:
        return [key_of(windows_of(where, 68), *block) for block in blocks]

    prompt, generation, both = keys("prompt"), keys("generation"), keys("both")
    assert [key is None for key in prompt] == [False, False, False, True]
    assert [key is None for key in generation] == [True, True, False, False]
    assert all(both)
    assert prompt[:2] == both[:2]
    assert generation[3] == both[3]
    assert len({prompt[2], generation[2], both[2]}) == 3
    window = keys({"prompt": [0, 40]})
    assert window[0] == both[0]
    assert window[1] not in (both[1], None)
    assert window[2:] == [None, None]


def test_the_reply_of_turn_one_is_not_the_prompt_of_turn_two() -> None:
    """where=prompt: plain KV when written, steered when it is prompt. A key of the spec alone would hit."""
    written = key_of(windows_of("prompt", 64), 64, 96)
    read = key_of(windows_of("prompt", 110), 64, 96)
    assert written is None
    assert read is not None
    both = [key_of(windows_of("both", length), 64, 96) for length in (64, 110)]
    assert both[0] == both[1], "steered in either role: the reply's blocks are shared"


@given(
    st.lists(st.integers(0, 80), min_size=4, max_size=4),
    st.lists(st.integers(0, 80), min_size=4, max_size=4),
    st.integers(0, 2),
)
def test_keys_agree_exactly_when_the_same_tokens_are_steered(
    left: list[int], right: list[int], block: int
) -> None:
    start, end = 32 * block, 32 * block + 32

    def steered(windows: list[int]) -> set[int]:
        a, b, c, d = windows
        return {p for p in range(start, end) if a <= p < b or c <= p < d}

    keys = [key_of(windows, start, end) for windows in (left, right)]
    assert (keys[0] == keys[1]) == (steered(left) == steered(right))
    assert [key is None for key in keys] == [not steered(left), not steered(right)]


def test_several_edits_enter_where_they_steer() -> None:
    """Tokens [0, 32): the first edit steers all, the second some, the third none."""
    first = {"fingerprint": "a", "windows": [0, 64, 0, 0]}
    second = {"fingerprint": "b", "windows": [8, 16, 0, 0]}
    third = {"fingerprint": "c", "windows": [0, 0, 40, 50]}

    def at(*edits: Any, start: int = 0) -> Any:
        return block_key(edits, start, start + 32)

    assert at(first, second, third) == at(first, second)
    assert len({at(first), at(second), at(first, second), at(second, first), at(first, first)}) == 5
    assert at(first, second, third, start=32) == at(first, third, start=32)
    assert at(first, second, third, start=64) is None
    assert at() is None


def test_the_windows_of_two_edits_are_not_confused() -> None:
    left, right = [0, 4, 0, 0], [4, 8, 0, 0]

    def key(one: Any, other: Any) -> Any:
        edits = [{"fingerprint": "a", "windows": one}, {"fingerprint": "b", "windows": other}]
        return block_key(edits, 0, 32)

    assert key(left, right) != key(right, left)


ALWAYS = [0, 1000, 0, 0]


@pytest.mark.parametrize(
    ("start", "end", "knows"),
    [
        (0, 32, False),
        (32, 64, False),  # ends before position 69
        (38, 70, False),  # its last token is where the fade starts, at full strength
        (39, 71, True),
        (64, 96, True),
        (96, 128, True),
    ],
)
def test_a_block_knows_how_far_a_fade_has_gone(start: int, end: int, knows: bool) -> None:
    """A prompt of 70 tokens: the fade starts at position 69. Another distance to it is another strength."""

    def fading(first: int) -> Any:
        return key_of(ALWAYS, start, end, fade=[first, 20])

    steady = key_of(ALWAYS, start, end)
    assert (fading(69) != steady) is knows
    assert (fading(69) != fading(70)) is knows
    assert fading(69) == key_of(ALWAYS, start + 5, end + 5, fade=[74, 20]), "the same tokens, five later"
    assert fading(900) == steady


def test_a_fade_knows_nothing_of_blocks_it_does_not_steer_late_enough() -> None:
    """Only tokens before the fade's start are steered in the block, at full strength."""
    early = [0, 40, 0, 0]
    assert key_of(early, 32, 64, fade=[50, 20]) == key_of(early, 32, 64)
    assert key_of([0, 52, 0, 0], 32, 64, fade=[50, 20]) != key_of([0, 52, 0, 0], 32, 64)


@given(
    st.integers(0, 90),
    st.integers(0, 90),
    st.integers(1, 40),
    st.lists(st.integers(0, 96), min_size=2, max_size=2).map(sorted),
    st.integers(0, 2),
)
def test_equal_keys_of_fading_edits_mean_equal_strengths(
    left: int, right: int, length: int, window: list[int], block: int
) -> None:
    """Token by token: key -> strength of every token of the block."""
    start, end = 32 * block, 32 * block + 32
    windows = [*window, 0, 0]

    def strengths(first: int) -> list[float]:
        gain = [max(0.0, 1 - max(0, p - first) / length) for p in range(start, end)]
        return [g * (window[0] <= p < window[1]) for p, g in zip(range(start, end), gain, strict=True)]

    keys = [key_of(windows, start, end, fade=[first, length]) for first in (left, right)]
    if keys[0] == keys[1]:
        assert strengths(left) == strengths(right)
    if all(first >= end for first in (left, right)):
        assert keys[0] == keys[1]


def test_a_divided_prompt_shares_with_equal_prompts_only() -> None:
    """`compat`: tokens of the prompt window have a strength of their own, which depends on its length."""
    whole = [0, 40, 40, 2**62]
    divided = key_of(whole, 32, 64, divisor=40)
    assert divided == key_of(whole, 32, 64, divisor=40)
    others = [
        key_of(whole, 32, 64),
        key_of(whole, 32, 64, divisor=41),
        key_of([0, 41, 41, 2**62], 32, 64, divisor=40),
        key_of([0, 64, 64, 2**62], 32, 64, divisor=40),
    ]
    assert len({divided, *others}) == 5
    assert key_of(whole, 64, 96, divisor=40) == key_of(whole, 64, 96), "generated tokens are steered whole"
    assert key_of(whole, 0, 32, divisor=40) == key_of([0, 50, 50, 2**62], 0, 32, divisor=40)
