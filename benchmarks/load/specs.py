"""Random valid specs over probes of every family, and everything that is wrong with a request."""

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

from ksteer_vllm.spec.families import FAMILIES
from testbed.families import FAMILY_NAMES
from testbed.probes import LABELS

PROBES: dict[str, tuple[str, tuple[str, ...], tuple[int, ...]]] = {
    **{family: (family, LABELS, (0, 1, 2, 3)) for family in FAMILY_NAMES},
    "mlp": ("mlp", LABELS, (0, 1, 2, 3)),
    "wide": ("mlp", ("glad", "sad", "mad"), (0, 1, 2, 3)),
    "control": ("vectors", LABELS, (1, 3)),
}
"""name -> (family, labels, layers): what `testbed.families.write_probes` writes."""

GOOD: dict[str, Any] = {"probe": "mlp", "target": ["warm"], "alpha": 3.0}
PRESETS: dict[str, dict[str, Any]] = {
    "warm": GOOD,
    "away": {"probe": "mlp", "target": ["cold"], "avoid": ["warm"], "alpha": 4.0, "where": "both"},
    "stacked": {"stack": [GOOD, {"probe": "vectors", "target": ["dry"], "alpha": 2.0, "layers": [2]}]},
}


def random_edit(source: random.Random) -> dict[str, Any]:
    """An edit the server can run, of any method, labels, weights, strength, steps, layers and windows."""
    name = source.choice(sorted(PROBES))
    family, labels, layers = PROBES[name]
    method = source.choice(sorted(FAMILIES[family].methods))
    takes = FAMILIES[family].methods[method].takes
    edit: dict[str, Any] = {"probe": name, "method": method}
    order = source.sample(labels, len(labels))
    cut = source.randint(1, len(order)) if {"target", "avoid"} <= takes else len(order) * ("target" in takes)
    if "values" in takes:
        edit["values"] = {source.choice(labels): round(source.uniform(-4, 4), 3)}
    else:
        if "target" in takes:
            edit["target"] = {label: round(source.uniform(0.1, 5), 3) for label in order[:cut]}
        if "avoid" in takes and order[cut:]:
            edit["avoid"] = {label: round(source.uniform(0.1, 5), 3) for label in order[cut:]}
    if "alpha" in takes:
        edit["alpha"] = round(source.uniform(-5, 5), 3)
    if "num_steps" in takes and source.random() < 0.5:
        edit["num_steps"] = source.randint(1, 16)
        edit["step_decay"] = round(source.uniform(0.3, 1), 2)
    if "loss" in takes and source.random() < 0.3:
        edit["loss"] = source.choice(["softmin", {"hinge": 0.9}])
    if source.random() < 0.5:
        edit["layers"] = sorted(source.sample(layers, source.randint(1, len(layers))))
    if source.random() < 0.6:
        edit["where"] = source.choice(
            ["prompt", "generation", "both", {"prompt": [0, 2]}, {"prompt": [1, None], "generation": [0, 3]}]
        )
    if source.random() < 0.15:
        edit["fade"] = source.randint(1, 20)
    if source.random() < 0.2:
        edit |= source.choice([{"cap": round(source.uniform(0.1, 2), 2)}, {"preserve_norm": True}])
    if source.random() < 0.15:
        edit["condition"] = {"probe": "linear", "label": source.choice(LABELS), "above": 0.4}
    return edit


def random_spec(source: random.Random) -> dict[str, Any]:
    """One edit, or a stack of two without conditions, which take a stage each."""
    if source.random() < 0.2:
        edits = [random_edit(source) for _ in range(2)]
        for edit in edits:
            edit.pop("condition", None)
        return {"stack": edits}
    return random_edit(source)


class Bad(NamedTuple):
    """A request to refuse. raw: the body as text, where JSON's writer would not write it.

    by_us: the refusal is steering's, so its param begins with `param`.
    """

    path: str
    body: dict[str, Any]
    status: int
    param: str | None = None
    raw: str | None = None
    by_us: bool = True


def _steered(param: str, **fields: Any) -> Bad:
    return Bad("/v1/completions", {"ksteer": {**GOOD, **fields}}, 400, param)


def _deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


BAD: dict[str, Bad] = {
    "unknown probe": _steered("ksteer.probe", probe="nobody"),
    "unknown label": _steered("ksteer.target", target=["hot"]),
    "unknown field": _steered("ksteer.force", force=1),
    "too many steps": _steered("ksteer.num_steps", num_steps=10**6),
    "closed layer": _steered("ksteer.layers", layers=[77]),
    "alpha a word": _steered("ksteer.alpha", alpha="much"),
    "window after the prompt": _steered("ksteer.where.prompt", where={"prompt": [400, 401]}),
    "stack too long": Bad("/v1/completions", {"ksteer": {"stack": [GOOD] * 65}}, 400, "ksteer.stack"),
    "stack too high": Bad("/v1/completions", {"ksteer": {"stack": [GOOD] * 9}}, 400, "ksteer.stack"),
    "too many bytes": _steered("ksteer", padding="x" * 70_000),
    "nested deeply": _steered("ksteer", target=_deep(300)),
    "not an object": Bad("/v1/completions", {"ksteer": [1]}, 400, "ksteer"),
    "path for a probe": _steered("ksteer.probe", probe="../../etc/passwd"),
    "chat, unknown probe": Bad(
        "/v1/chat/completions", {"ksteer": {**GOOD, "probe": "x"}}, 400, "ksteer.probe"
    ),
    "streamed, unknown label": Bad(
        "/v1/completions", {"stream": True, "ksteer": {**GOOD, "target": ["hot"]}}, 400, "ksteer.target"
    ),
    "unknown preset": Bad("/v1/completions", {"ksteer": {"preset": "nobody"}}, 400, "ksteer.preset"),
    "unknown preset as a model": Bad("/v1/completions", {"model": "tiny:nobody"}, 404),
    "spec in xargs is not JSON": Bad("/v1/completions", {"vllm_xargs": {"ksteer": "{"}}, 400, "ksteer"),
    "spec on a route that loses it": Bad("/tokenize", {"ksteer": GOOD}, 400, "ksteer"),
    "beam search": Bad(
        "/v1/completions", {"use_beam_search": True, "n": 2, "logprobs": None, "ksteer": GOOD}, 400, "ksteer"
    ),
    "alpha NaN": Bad(
        "/v1/completions", {}, 400, "ksteer.alpha",
        '{"model": "tiny", "prompt": [1, 5], "max_tokens": 2, '
        '"ksteer": {"probe": "mlp", "target": ["warm"], "alpha": NaN}}',
    ),
    "not JSON": Bad("/v1/completions", {}, 400, raw='{"model": ', by_us=False),
    "unknown model": Bad("/v1/completions", {"model": "nobody"}, 404, by_us=False),
    "prompt too long": Bad("/v1/completions", {"prompt": [5] * 300}, 400, by_us=False),
    "no tokens wanted": Bad("/v1/completions", {"max_tokens": -1}, 400, by_us=False),
}  # fmt: skip


def text_of(bad: Bad, body: dict[str, Any]) -> bytes:
    """The bytes to send: as Python's writer has it, which spells NaN."""
    return (bad.raw if bad.raw is not None else json.dumps(body)).encode()
