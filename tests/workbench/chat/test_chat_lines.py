"""What a typed line means, and which spec the sliders make."""

from __future__ import annotations

import pytest

from ksteer_vllm import SteeringSpec, UsageError
from ksteer_vllm.bench.chat.commands import COMMANDS, Ask, Order, Turn, help_text, parse_line
from ksteer_vllm.bench.chat.sliders import Sliders

LABELS = ("warm", "dry", "first person", "Formal")


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("How are you?", Ask("How are you?")),
        ("  and 1 / 2?  ", Ask("and 1 / 2?")),
        ("//etc is what?", Ask("/etc is what?")),
        ("", None),
        ("  \n", None),
        ("/warm 0.5", Turn("warm", 0.5)),
        ("/ warm   .5 ", Turn("warm", 0.5)),
        ("/WARM -1", Turn("warm", -1.0)),
        ("/formal 1", Turn("Formal", 1.0)),
        ("/first person 1e-1", Turn("first person", 0.1)),
        ("/warm off", Turn("warm", 0.0)),
        ("/warm", Turn("warm", None)),
        ("/off", Order("off")),
        ("/strength", Order("strength")),
        ("/strength 1.5", Order("strength", "1.5")),
        ("/system Be brief, please.", Order("system", "Be brief, please.")),
        ("/system", Order("system")),
        ("/save a file.json", Order("save", "a file.json")),
        ("/Quit", Order("quit")),
        ("/exit", Order("quit")),
    ],
)
def test_meaning(line: str, meaning: object) -> None:
    assert parse_line(line, LABELS) == meaning


def test_a_label_named_like_a_command_is_a_slider_where_a_value_follows() -> None:
    assert parse_line("/plain 1", ("plain", "warm")) == Turn("plain", 1.0)
    assert parse_line("/plain", ("plain", "warm")) == Order("plain")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/wram 1", r"^/wram: unknown; did you mean /warm\? Labels: warm, dry, .* Commands: sliders, off,"),
        ("/relpy", r"^/relpy: unknown"),
        ("/agian", r"did you mean /again\?"),
        ("/first persn 1", r"^/first persn: unknown; did you mean /first person\?"),
        ("/warm much", r"^/warm: expected a number or off, got 'much'$"),
        ("/warm nan", r"^/warm: expected a number or off, got 'nan'$"),
        ("/reset now", r"^/reset: takes nothing, got 'now'$"),
        ("/save", r"^/save: expected FILE$"),
        ("/", r"^/: unknown\."),
    ],
)
def test_what_it_cannot_mean_is_one_line(line: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        parse_line(line, LABELS)
    assert "\n" not in str(refused.value)


def test_help_names_every_command_and_label() -> None:
    shown = help_text(LABELS)
    assert all(f"/{name}" in shown for name in COMMANDS)
    assert all(label in shown for label in LABELS)


def sliders(**values: float) -> Sliders:
    found = Sliders(LABELS)
    for label, value in values.items():
        found.turn(label, value)
    return found


def test_strength_is_the_largest_slider_and_weights_are_ratios() -> None:
    found = sliders(warm=0.5, dry=0.25)
    assert found.strength == 0.5
    assert found.spec("p", {}) == {"probe": "p", "target": {"warm": 1.0, "dry": 0.5}, "strength": 0.5}


def test_a_slider_below_0_is_avoided() -> None:
    spec = sliders(warm=0.5, dry=-2).spec("p", {"method": "gradient"})
    assert spec == {
        "probe": "p", "method": "gradient", "target": {"warm": 0.25}, "avoid": {"dry": 1.0}, "strength": 2.0,
    }  # fmt: skip
    assert sliders(dry=-1).spec("p", {}) == {"probe": "p", "avoid": {"dry": 1.0}, "strength": 1.0}


def test_all_at_0_is_not_steered() -> None:
    found = sliders(warm=1, dry=-1)
    found.off()
    assert found.spec("p", {}) is None
    assert str(found) == "all at 0"
    with pytest.raises(UsageError, match="all sliders are at 0"):
        found.scale_to(1)


def test_specs_are_valid() -> None:
    assert SteeringSpec.parse(sliders(warm=0.3, dry=-0.1).spec("p", {"layers": [3]})).edits()


def test_scaling_keeps_the_ratios() -> None:
    found = sliders(warm=0.5, dry=-0.25)
    found.scale_to(2)
    assert found.turned() == {"warm": 2.0, "dry": -1.0}
    assert str(found) == "warm 2, dry -1"


@pytest.mark.parametrize("value", [10.5, -11, float("inf"), float("nan")])
def test_a_slider_has_ends(value: float) -> None:
    with pytest.raises(UsageError, match="warm: expected a number from -10 to 10"):
        sliders(warm=value)


def test_bars() -> None:
    assert sliders(warm=0.5, dry=-1).bars().splitlines() == [
        "warm             0.5  +++++",
        "dry               -1  ----------",
        "first person       0",
        "Formal             0",
    ]
