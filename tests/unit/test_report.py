"""The worker's records of steered tokens, and the report made of them. Float32 values are compared exactly:
they are stored, not computed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ksteer_vllm.device.report_store import MAX_ENDED, ReportStore
from ksteer_vllm.report import REPORT_ATTRIBUTE, assemble, report
from ksteer_vllm.spec.admitted import AdmittedRequest

LABELS = {"tones": ("warm", "cold"), "moods": ("glad", "sad", "calm")}
WANTED = AdmittedRequest((), report=True)
EDIT = {"probe": "tones", "method": "gradient", "layers": [1], "where": {"generation": [0, None]}}


def step(store: ReportStore, requests: dict[str, tuple[int, int]]) -> torch.Tensor:
    """Begin a step: request -> (first position, tokens). Returns the positions."""
    positions = torch.cat([torch.arange(first, first + count) for first, count in requests.values()])
    store.begin_step(list(requests), [count for _, count in requests.values()], positions)
    return positions


def fire(
    store: ReportStore,
    tokens: Sequence[int],
    values: Sequence[float],
    *,
    edits: Sequence[int] | None = None,
    layer: int = 1,
    probe: str | None = "tones",
    steps: int = 3,
) -> None:
    """Record an edit of some of the step's tokens; every number of a record is made from its value."""
    value = torch.tensor(values)
    before = after = None
    if probe is not None:
        before = torch.stack([value + k for k in range(len(LABELS[probe]))], dim=1)
        after = before + 100
    store.record(
        layer,
        torch.tensor(edits if edits is not None else [0] * len(tokens)),
        torch.tensor(tokens),
        value / 10,
        torch.full((len(tokens),), steps, dtype=torch.int32),
        before,
        after,
        probe or "",
    )


def taken(
    store: ReportStore,
    request_id: str = "a",
    num_tokens: int = 1000,
    *,
    edits: Any = (EDIT,),
    prompt: int = 4,
) -> dict[str, Any]:
    pieces = [store.take(request_id, num_tokens)]
    return assemble(list(edits), prompt, pieces, LABELS)


def recorded(found: dict[str, Any], edit: int = 0, layer: int = 0) -> dict[int, float]:
    """position -> the value its record was made from."""
    tokens = found["edits"][edit]["layers"][layer]["tokens"]
    assert [t["position"] for t in tokens] == sorted({t["position"] for t in tokens})
    return {t["position"]: round(t["shift"] * 10, 3) for t in tokens}


def test_a_record_holds_what_was_recorded() -> None:
    store = ReportStore()
    store.add_request("a", WANTED)
    step(store, {"a": (3, 1)})
    fire(store, [0], [0.5])
    (edit,) = taken(store)["edits"]
    assert edit == {
        "probe": "tones",
        "method": "gradient",
        "layers": [
            {
                "layer": 1,
                "labels": ["warm", "cold"],
                "tokens": [
                    {
                        "position": 3,
                        "part": "generation",
                        "index": 0,
                        "steps": 3,
                        "shift": float(np.float32(0.05)),
                        "dropped": False,
                        "before": {"warm": 0.5, "cold": 1.5},
                        "after": {"warm": 100.5, "cold": 101.5},
                    }
                ],
            }
        ],
    }


def test_only_requests_that_want_a_report_are_recorded() -> None:
    store = ReportStore()
    store.add_request("plain", AdmittedRequest(()))
    store.add_request("steered", AdmittedRequest(()))
    step(store, {"plain": (0, 2), "steered": (5, 1)})
    assert store.wanted_tokens() is None
    fire(store, [0, 1, 2], [1, 2, 3])
    assert store.take("plain", 10) == store.take("steered", 10) == b""

    store.add_request("a", WANTED)
    step(store, {"plain": (2, 2), "a": (7, 3), "steered": (6, 1)})
    wanted = store.wanted_tokens()
    assert wanted is not None
    assert wanted.dtype == torch.int64
    assert wanted.tolist() == [2, 3, 4]
    fire(store, [0, 2, 4, 5], [1, 2, 3, 4])
    assert store.take("plain", 10) == b""
    assert recorded(taken(store)) == {7: 2, 9: 3}


def test_nothing_is_recorded_between_steps() -> None:
    store = ReportStore()
    store.add_request("a", WANTED)
    step(store, {"a": (0, 1)})
    store.end_step()
    assert store.wanted_tokens() is None
    fire(store, [0], [1])
    step(store, {"other": (0, 4)})
    assert store.wanted_tokens() is None
    assert store.take("a", 10) == b""


def test_many_requests_edits_and_layers_in_one_step() -> None:
    store = ReportStore()
    for name in "abc":
        store.add_request(name, WANTED)
    edits = [{**EDIT, "layers": [1, 2]}, {**EDIT, "probe": "moods", "layers": [2]}]
    step(store, {"a": (10, 2), "b": (0, 3), "c": (4, 1)})
    fire(store, [5, 0, 3, 1], [1, 2, 3, 4], layer=1)
    fire(store, [0, 4], [5, 6], layer=2)
    fire(store, [4, 1], [7, 8], layer=2, edits=[1, 1], probe="moods")
    a, b, c = (taken(store, name, edits=edits) for name in "abc")
    assert recorded(a) == {10: 2, 11: 4}
    assert recorded(a, layer=1) == {10: 5}
    assert recorded(a, edit=1) == {11: 8}
    assert a["tokens_steered"] == 2
    assert a["mean_shift"] == pytest.approx((2 + 4 + 5 + 8) / 40)
    assert recorded(b) == {1: 3}
    assert recorded(b, layer=1) == {2: 6}
    assert recorded(b, edit=1) == {2: 7}
    assert b["edits"][1]["layers"][0]["labels"] == ["glad", "sad", "calm"]
    assert recorded(c) == {4: 1}
    assert c["edits"][1]["layers"] == [{"layer": 2, "labels": None, "tokens": []}]


def test_a_rejected_draft_leaves_no_record() -> None:
    """Four tokens are computed, two accepted; the true tokens take the positions of the rejected two. The
    second of them is not edited (a condition shut, say): the draft's record there must go all the same."""
    store = ReportStore()
    store.add_request("a", WANTED)
    step(store, {"a": (8, 4)})
    fire(store, [0, 1, 2, 3], [1, 2, 3, 4])
    step(store, {"a": (10, 2)})
    fire(store, [0], [5])
    assert recorded(taken(store)) == {8: 1, 9: 2, 10: 5}


def test_positions_beyond_the_accepted_tokens_are_dropped() -> None:
    store = ReportStore()
    store.add_request("a", WANTED)
    step(store, {"a": (8, 4)})
    fire(store, [0, 1, 2, 3], [1, 2, 3, 4])
    assert recorded(taken(store, num_tokens=10)) == {8: 1, 9: 2}


@pytest.mark.parametrize("leaves_the_runner", [True, False])
def test_tokens_computed_again_after_a_preemption_are_recorded_once(leaves_the_runner: bool) -> None:
    store = ReportStore()
    store.add_request("a", WANTED)
    for position in range(40):  # more than the rows first allocated
        step(store, {"a": (position, 1)})
        fire(store, [0], [position])
    if leaves_the_runner:  # the V2 runner removes a preempted request and adds it again
        store.remove_request("a")
        store.add_request("a", WANTED)
    step(store, {"a": (0, 25)})
    fire(store, list(range(25)), [100 + i for i in range(25)])
    step(store, {"a": (25, 16)})
    fire(store, list(range(16)), [200 + i for i in range(16)])
    expected = {i: 100 + i for i in range(25)} | {25 + i: 200 + i for i in range(16)}
    assert recorded(taken(store)) == expected


def test_the_last_of_two_records_of_a_token_in_one_step_is_kept() -> None:
    store = ReportStore()
    store.add_request("a", WANTED)
    step(store, {"a": (0, 5)})
    fire(store, [1, 4], [1, 4])
    fire(store, [3, 1, 0], [30, 10, 0])
    assert recorded(taken(store)) == {0: 0, 1: 10, 3: 30, 4: 4}


def test_records_of_an_ended_request_wait_and_are_given_once() -> None:
    store = ReportStore()
    store.add_request("a", WANTED)
    step(store, {"a": (0, 1)})
    fire(store, [0], [1])
    store.remove_request("a")
    step(store, {"a": (1, 1)})
    assert store.wanted_tokens() is None
    assert recorded(taken(store)) == {0: 1}
    assert store.take("a", 10) == b""


def test_a_request_whose_records_were_taken_records_no_more() -> None:
    """Async scheduling: a step beyond the end of the request may be on its way, and its removal later."""
    store = ReportStore()
    store.add_request("a", WANTED)
    step(store, {"a": (0, 1)})
    fire(store, [0], [1])
    assert store.take("a", 10) != b""
    fire(store, [0], [2])
    step(store, {"a": (1, 1)})
    assert store.wanted_tokens() is None
    store.remove_request("a")
    assert store.take("a", 10) == b""


def test_what_nobody_takes_is_bounded(heard: list[str]) -> None:
    store = ReportStore()
    for index in range(MAX_ENDED + 1):
        store.add_request(f"r{index}", WANTED)
        step(store, {f"r{index}": (0, 1)})
        fire(store, [0], [index])
        store.remove_request(f"r{index}")
    assert store.take("r0", 10) == b""
    assert store.take("r1", 10) != b""
    assert heard == ["steering report of request r0 dropped: nobody has asked for it"]


def test_methods_without_probabilities_or_steps() -> None:
    store = ReportStore()
    store.add_request("a", WANTED)
    step(store, {"a": (6, 1)})
    fire(store, [0], [1], probe=None, steps=-1)
    (layer,) = taken(store)["edits"][0]["layers"]
    assert layer["labels"] is None
    (token,) = layer["tokens"]
    assert token["before"] is token["after"] is token["steps"] is None
    assert token["shift"] == float(np.float32(0.1))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"generation": [0, None]}, [("prompt", 2), ("generation", 0), ("generation", 1)]),
        ({"generation": [1, None]}, [("prompt", 2), ("prompt", 3), ("generation", 1)]),
        ({"prompt": [0, None]}, [("prompt", 2), ("prompt", 3), ("generation", 1)]),
        (
            {"prompt": [0, None], "generation": [0, 2]},
            [("prompt", 2), ("generation", 0), ("generation", 1)],
        ),
    ],
)
def test_indices_are_those_of_the_where_clause(where: Any, expected: list[tuple[str, int]]) -> None:
    """A prompt of four tokens, positions 2 to 4. Position 3 is its last and generation index 0."""
    store = ReportStore()
    store.add_request("a", WANTED)
    step(store, {"a": (2, 3)})
    fire(store, [0, 1, 2], [1, 2, 3])
    tokens = taken(store, edits=[{**EDIT, "where": where}])["edits"][0]["layers"][0]["tokens"]
    assert [(t["part"], t["index"]) for t in tokens] == expected


def test_numbers_that_are_not_finite_are_null() -> None:
    store = ReportStore()
    store.add_request("a", WANTED)
    step(store, {"a": (4, 2)})
    fire(store, [0, 1], [float("inf"), 1])
    found = taken(store)
    json.dumps(found, allow_nan=False)
    first, second = found["edits"][0]["layers"][0]["tokens"]
    assert first["shift"] is first["before"]["warm"] is first["after"]["cold"] is None
    assert second["before"]["warm"] == 1
    assert found["mean_shift"] == second["shift"]


def test_nothing_steered() -> None:
    found = taken(ReportStore())
    assert found["edits"][0]["layers"] == [{"layer": 1, "labels": None, "tokens": []}]
    assert found["tokens_steered"] == 0
    assert found["mean_shift"] is None


def test_tokens_whose_condition_was_not_met_are_not_steered() -> None:
    store = ReportStore()
    store.add_request("a", WANTED)
    step(store, {"a": (4, 3)})
    fire(store, [0, 1, 2], [0, 2, 0], steps=0)
    found = taken(store)
    assert recorded(found) == {4: 0, 5: 2, 6: 0}
    assert found["tokens_steered"] == 1
    assert found["mean_shift"] == pytest.approx(0.2 / 3)


def test_workers_are_merged() -> None:
    """Two tensor-parallel ranks of each of two pipeline stages: the ranks of a stage say the same."""
    pieces = []
    for layer in (1, 1, 2, 2):
        store = ReportStore()
        store.add_request("a", WANTED)
        step(store, {"a": (3, 2)})
        fire(store, [0, 1], [layer, layer + 0.5], layer=layer)
        pieces.append(store.take("a", 100))
    found = assemble([{**EDIT, "layers": [1, 2]}], 4, [b"", *pieces], LABELS)
    assert recorded(found) == {3: 1, 4: 1.5}
    assert recorded(found, layer=1) == {3: 2, 4: 2.5}
    assert found["tokens_steered"] == 2


def test_report_reads_outputs() -> None:
    found = {"edits": []}
    reporting = SimpleNamespace(**{REPORT_ATTRIBUTE: found})
    plain = SimpleNamespace()
    assert report(reporting) is found
    assert report(SimpleNamespace(outputs=[reporting])) is found
    assert report(plain) is None
    assert report(SimpleNamespace(outputs=[plain])) is None
    with pytest.raises(ValueError, match="2: pass one of"):
        report(SimpleNamespace(outputs=[reporting, plain]))
