"""How a message says which names there are, and which was probably meant."""

from __future__ import annotations

import time

import pytest

from ksteer_vllm.errors import choices, nearest

pytestmark = pytest.mark.pure

NAMES = ("warm", "cold", "formal English", "none")


@pytest.mark.parametrize(
    ("got", "meant"),
    [
        ("warn", "warm"), ("wam", "warm"), ("warmm", "warm"), ("WARM", "warm"), ("Cold", "cold"),
        ("formal_english", "formal English"), ("dry", None), ("", None), ("7", None), (7, None),
        (None, "none"),
    ],
)  # fmt: skip
def test_the_nearest_name_is_offered(got: object, meant: str | None) -> None:
    listed = "warm, cold, formal English, none"
    assert choices(got, NAMES) == listed + (f"; did you mean {meant!r}?" if meant else "")


def test_what_is_listed_is_limited_and_what_is_meant_may_lie_beyond() -> None:
    names = [f"label-{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    assert choices("lable-z", names, 2) == "label-a, label-b, … (24 more); did you mean 'label-z'?"
    assert choices("warm", ()) == "none"


def test_a_client_cannot_make_a_server_compare_for_long() -> None:
    begun = time.process_time()
    assert nearest("x" * 65536, ["x" * 65536]) is None
    assert nearest("warm", ["warn"] * 100_000) is None
    nearest("w" * 80, [f"{'w' * 70}{number}" for number in range(2000)])
    assert time.process_time() - begun < 5
