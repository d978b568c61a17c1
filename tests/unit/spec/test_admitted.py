"""The record that travels with an admitted request."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from ksteer_vllm.spec.admitted import AdmittedEdit, AdmittedRequest
from ksteer_vllm.spec.fingerprint import block_key

PLAIN = AdmittedEdit({"probe": "tones", "layers": [1]}, "f1", "d1", (0, 0, 9, 2**62))
FULL = AdmittedEdit({"probe": "moods"}, "f2", "d2", (2, 4, 9, 12), "d3", fade=(9, 5), divisor=10)


@pytest.mark.parametrize("encode", ["json", "msgpack"])
def test_a_record_comes_back_as_it_was(encode: str) -> None:
    sent = AdmittedRequest((PLAIN, FULL), report=True, sampled=True)
    wire: Any
    if encode == "json":
        wire = json.loads(json.dumps(sent.to_wire()))
    else:
        wire = msgspec.msgpack.decode(msgspec.msgpack.encode(sent.to_wire()))
    assert AdmittedRequest.from_wire(wire) == sent
    assert set(wire["edits"][0]) == {"edit", "fingerprint", "digest", "windows"}


def test_what_a_request_needs_and_names() -> None:
    assert AdmittedRequest((PLAIN, FULL)).digests == {"d1", "d2", "d3"}
    assert AdmittedRequest((FULL,)).steers_prompt
    assert not AdmittedRequest((PLAIN,)).steers_prompt


def test_the_prefix_cache_reads_the_wire() -> None:
    wire = AdmittedRequest((PLAIN, FULL)).to_wire()
    assert block_key(wire["edits"], 0, 2) is None
    assert block_key(wire["edits"], 2, 11) == ("ksteer", "ksteer:f1:7-9;f2:0-2/10,7-9@-7")
