"""`ksteer verify` on engines broken on purpose: it fails and names the cause; on a sound one it passes.

One child process holds one tiny engine; see `tests.engine.verify.broken_engines`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from testbed.models import NUM_LAYERS, make_model
from testbed.probes import random_probe
from testbed.serving import child_environment

LIMIT = 400

Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Fault -> what `verify` reported, as JSON."""
    folder = tmp_path_factory.mktemp("verify")
    model, probe = make_model("llama", folder / "model"), random_probe().save(folder / "probe")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.engine.verify.broken_engines",
            str(model),
            str(probe),
            str(folder / "found.json"),
        ],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    print(done.stdout)
    read: Found = json.loads((folder / "found.json").read_text())
    return read


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {finding["name"]: finding["status"] for finding in report["findings"]}


def failures(report: dict[str, Any]) -> dict[str, str]:
    """Failed check -> its cause."""
    return {f["name"]: f["cause"] for f in report["findings"] if f["status"] == "failed"}


EFFECT, RECORDS, ORACLE = (
    "steering has an effect",
    "reports name layers and tokens",
    "edits act at their layer",
)
PLAIN = {"plain equals transformers", "alpha 0 is plain", "plain beside steered", "plain after steered"}
CACHE = {
    f"cache: {name}"
    for name in ("plain after steered", "steered after plain", "two specs", "a steered reply as prompt")
}


def test_a_sound_engine_passes_every_check(found: Found) -> None:
    report = found["sound"]
    assert report["verdict"] == "passed"
    assert set(statuses(report).values()) == {"passed"}
    assert {EFFECT, RECORDS, ORACLE, *PLAIN, *CACHE} <= set(statuses(report))
    assert report["layers"] == list(range(NUM_LAYERS))
    assert report["requests"] < 80
    assert report["not_checked"] == []
    assert report["tolerance"] == 1e-3  # float32: the noise of a tiny model is about 1e-6


def test_what_a_check_saw_is_in_numbers(found: Found) -> None:
    figures = {finding["name"]: finding["figures"] for finding in found["sound"]["findings"]}
    assert max(figures[ORACLE]["difference"].values()) < 1e-3 < min(figures[EFFECT]["effect"].values())
    assert all(figures[name]["power"] > 0.01 for name in CACHE)
    assert all(figures[name]["difference"] < 1e-3 for name in CACHE)
    assert figures["cache: plain prompts hit"]["cached"] == 128  # 4 blocks of 32 of 140 tokens
    assert figures["cache: plain after steered"]["cached"] == 0


def test_the_op_removed(found: Found) -> None:
    report = found["op removed"]
    assert report["verdict"] == "failed"
    assert set(failures(report)) == {EFFECT, RECORDS}
    assert all("the steering op does nothing" in cause for cause in failures(report).values())
    seen = statuses(report)
    assert seen[ORACLE] == seen["plain beside steered"] == seen["cache: plain after steered"] == "skipped"


def test_one_layer_that_is_not_attached(found: Found) -> None:
    causes = failures(found["one layer not attached"])
    assert causes == dict.fromkeys((EFFECT, RECORDS), "steering is not attached at layer 2")
    assert statuses(found["one layer not attached"])[ORACLE] == "passed"  # of the other layers


def test_every_layer_one_too_high(found: Found) -> None:
    causes = failures(found["wrong layer"])
    assert causes[ORACLE] == "; ".join(
        f"edits asked for at layer {layer} act at layer {layer + 1}" for layer in range(NUM_LAYERS - 1)
    )
    assert causes[EFFECT] == "steering is not attached at layer 3"


def test_two_layers_swapped(found: Found) -> None:
    assert failures(found["two layers swapped"]) == {
        ORACLE: "edits asked for at layer 0 act at layer 1; edits asked for at layer 1 act at layer 0"
    }


def test_a_cache_without_steering_keys(found: Found) -> None:
    causes = failures(found["cache unsalted"])
    assert set(causes) == CACHE
    assert causes["cache: plain after steered"] == (
        "the prefix cache is unsalted: a plain request read blocks that a steered one wrote"
    )
    assert "another spec wrote" in causes["cache: two specs"]


def test_a_cache_keyed_by_the_spec_alone(found: Found) -> None:
    causes = failures(found["cache keyed by spec alone"])
    assert set(causes) == {"cache: a steered reply as prompt"}
    assert "do not say which tokens were steered" in causes["cache: a steered reply as prompt"]


def test_plain_requests_that_are_touched(found: Found) -> None:
    report = found["plain touched"]
    causes = failures(report)
    assert "plain requests are edited" in causes["plain beside steered"]
    assert "no edit names are edited" in causes[RECORDS]
    assert statuses(report)["cache"] == statuses(report)[ORACLE] == "skipped"


def test_without_weights_the_order_of_layers_is_looked_at(found: Found) -> None:
    sound = found["sound, no weights"]
    assert sound["verdict"] == "passed"
    assert statuses(sound)[ORACLE] == "skipped"
    assert statuses(sound)["layers act in order"] == statuses(sound)["the last layer is the last"] == "passed"
    assert any("order of layers" in gap for gap in sound["not_checked"])
    swapped = failures(found["two layers swapped, no weights"])
    assert swapped == {"layers act in order": "edits act at the wrong layers: 0 and 1 are out of order"}
    shifted = failures(found["wrong layer, no weights"])
    assert "edits asked for at layer 2 act at the last layer" in shifted["the last layer is the last"]
