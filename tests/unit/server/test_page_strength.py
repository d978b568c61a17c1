"""The strength the page shows is that of a request without one: its code, run by node, beside admission's."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

import ksteer_vllm.server
from ksteer_vllm.admission.completion import complete
from ksteer_vllm.server.endpoints.schemas import ProbeCard
from ksteer_vllm.spec.spec import SteeringSpec
from testbed.families import random_family_probe

NODE = shutil.which("node")
SPEC_JS = f"{ksteer_vllm.server.__path__[0]}/page/spec.js"
PROBE = random_family_probe(
    "mlp", default_edit={"alpha": 0.3}, label_alpha={"warm": 0.6, "cold": 0.1}, default_alpha={"add": 2.0}
).metadata
ASKED: list[dict[str, Any]] = [
    {"target": {"warm": 1}},
    {"target": {"dry": 0.4}},
    {"target": {"warm": 0.5, "dry": 0.25}},
    {"target": {"warm": 0.5}, "avoid": {"cold": 1}},
    {"avoid": {"cold": 0.5, "dry": 1}},
]

SCRIPT = """
const {{ defaultAlpha }} = await import("file://{spec}");
const {{ card, cases }} = JSON.parse(process.argv[1]);
const older = {{ ...card, label_alpha: undefined }};
console.log(JSON.stringify(cases.map((weights) => defaultAlpha(card, "gradient", new Map(weights)))));
console.log(JSON.stringify(defaultAlpha(card, "add", new Map(cases[0]))));
console.log(JSON.stringify(defaultAlpha(older, "gradient", new Map(cases[0]))));
"""


@pytest.mark.skipif(NODE is None, reason="runs the page's own file in node; the browser's tests run it, too")
def test_the_page_shows_the_labels_own_strength() -> None:
    assert NODE is not None
    sides = [
        [
            *asked.get("target", {}).items(),
            *((label, -weight) for label, weight in asked.get("avoid", {}).items()),
        ]
        for asked in ASKED
    ]
    given = json.dumps({"card": ProbeCard.of("knob", PROBE).model_dump(), "cases": [*sides, []]})
    command = [NODE, "--input-type=module", "-e", SCRIPT.format(spec=SPEC_JS), given]
    shown, added, of_an_older_server = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()
    admitted = [
        complete(SteeringSpec.parse({"probe": "knob", **asked}).edits()[0], PROBE)[0].alpha for asked in ASKED
    ]
    assert json.loads(shown) == pytest.approx([*admitted, 0.3])
    assert admitted[0] == 0.6
    assert json.loads(added) == 2.0, "a label's strength is one of the default edit"
    assert json.loads(of_an_older_server) == 0.3
