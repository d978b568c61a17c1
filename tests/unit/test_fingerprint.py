"""Prefix-cache keys: which blocks of which requests may be shared."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksteer_vllm import SteeringSpec
from ksteer_vllm.fingerprint import block_key, fingerprint, steered_ranges

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
        {"probe": "the same folder under another name"},
    ],
    ids=str,
)
def test_whatever_does_not_change_the_edit_keeps_the_fingerprint(same: dict[str, Any]) -> None:
    assert digest(**same) == digest()


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
    return SteeringSpec.parse({**BASE, "where": where}).where.positions(num_prompt, None)


def test_specs_that_differ_only_in_where_share_exactly_the_blocks_steered_alike() -> None:
    """A prompt of 68 tokens in blocks of 32: [0, 32) and [32, 64) prompt, [64, 96) both, [96, 128) reply."""
    blocks = [(0, 32), (32, 64), (64, 96), (96, 128)]

    def keys(where: Any) -> list[Any]:
        return [block_key("d", windows_of(where, 68), *block) for block in blocks]

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
    written = block_key("d", windows_of("prompt", 64), 64, 96)
    read = block_key("d", windows_of("prompt", 110), 64, 96)
    assert written is None
    assert read is not None
    both = [block_key("d", windows_of("both", length), 64, 96) for length in (64, 110)]
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

    keys = [block_key("d", windows, start, end) for windows in (left, right)]
    assert (keys[0] == keys[1]) == (steered(left) == steered(right))
    assert [key is None for key in keys] == [not steered(left), not steered(right)]
