"""Taking what was captured of some requests leaves that of the others."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from safetensors.torch import load

from ksteer_vllm.device.capture import Capture
from ksteer_vllm.spec.capture import CAPTURE_KEY


def captured() -> Capture:
    """Requests a and b of three tokens each; of b only the first two have been computed."""
    capture = Capture([1, 3])
    for name in ("a", "b"):
        window = {"id": name, "start": 1, "end": 3}
        capture.add_request(name, SimpleNamespace(extra_args={CAPTURE_KEY: window}))
    step(capture, [3, 2], [0, 0])
    return capture


def step(capture: Capture, scheduled: list[int], computed: list[int]) -> None:
    capture.begin_step(["a", "b"], scheduled, computed)
    hidden = torch.arange(sum(scheduled)).float()[:, None]
    for layer in (1, 2, 3):
        capture.record(hidden, None, layer)
    capture.end_step()


def test_what_finished_requests_captured_is_taken_once() -> None:
    capture = captured()
    taken = load(capture.take({"a", "unknown"}))
    assert {name: tensor[:, 0].tolist() for name, tensor in taken.items()} == {"1/a": [1, 2], "3/a": [1, 2]}
    assert load(capture.take({"a"})) == {}


def test_a_request_still_running_keeps_what_it_has() -> None:
    capture = captured()
    capture.take({"a"})
    step(capture, [0, 1], [3, 2])
    taken = load(capture.take())
    assert {name: tensor[:, 0].tolist() for name, tensor in taken.items()} == {"1/b": [4, 0], "3/b": [4, 0]}
    assert load(capture.take()) == {}
