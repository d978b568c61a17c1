"""Specs an attacker would send: valid ones for the test probes, and mutations of them, as strategies."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from ksteer_vllm.spec.families import FAMILIES
from testbed.families import FAMILY_NAMES
from testbed.probes import LABELS

PROBES: dict[str, tuple[str, tuple[str, ...], tuple[int, ...]]] = {
    **{family: (family, LABELS, (0, 1, 2, 3)) for family in FAMILY_NAMES},
    "mlp": ("mlp", LABELS, (0, 1, 2, 3)),
    "wide": ("mlp", ("glad", "sad", "mad"), (0, 1, 2, 3)),
    "control": ("vectors", LABELS, (1, 3)),
    "knob": ("mlp", LABELS, (1, 3)),
}
"""What `testbed.families.write_probes` writes: name -> (family, labels, layers it has)."""

SHORT = [
    "", " ", "\0", "\x00warm", "warm\0", "WARM", "warm ", "none", "null", "../../etc/passwd", "..", "/",
    "a/b", "\\..\\", "%2e%2e%2f", "\ud800", "\udfff\ud800", "\u202ewarm", "wa\u0301rm", "ＷＡＲＭ",
    "\u200b", "🔥" * 3, "é", "e\u0301", "ﬀ", "İ", "{{7*7}}", "${x}", "'; --", "<script>", "__class__",
    "__init__", "\n", "\r\n", "w" * 300,
]  # fmt: skip
NUMBERS = [
    0, -0.0, 1, -1, 0.5, 2**31, 2**32, 2**53 + 1, 2**62, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400,
    -(10**400), 1e-320, 5e-324, 1e12, 1e12 + 1, 1.7976931348623157e308, float("inf"), float("-inf"),
    float("nan"), 10**6,
]  # fmt: skip
OTHERS: list[Any] = [
    None, True, False, [], {}, [[]], [{}], {"": {}}, [None], {"a": None}, [1, 2], ["warm", "warm"], [[0, 3]],
    {"probe": "mlp"}, {"warm": {"warm": 1}}, list(range(2000)), {f"l{i}": 1 for i in range(2000)},
    {"stack": []}, {"preset": "none"}, [0] * 3000,
]  # fmt: skip


def deep(depth: int, kind: str) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value] if kind == "list" else {"where": value}
    return value


hostile_values = (
    st.sampled_from([*SHORT, *NUMBERS])
    | st.sampled_from(OTHERS).map(copy.deepcopy)  # mutations change what they are given
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.builds(deep, st.integers(1, 200), st.sampled_from(["list", "object"]))
)
names = st.sampled_from(
    ["probe", "method", "target", "avoid", "values", "alpha", "strength", "num_steps", "step_decay", "loss",
     "until", "unit", "metric", "cap", "preserve_norm", "fade", "layers", "where", "condition", "compat",
     "stack", "report", "preset", "prompt", "generation", "above", "below", "label", "hinge", *SHORT]
)  # fmt: skip

whole_windows = st.tuples(st.integers(0, 6), st.integers(1, 2**70)).map(lambda w: [w[0], w[0] + w[1]])
wheres = st.sampled_from(["prompt", "generation", "both"]) | st.builds(
    dict, prompt=whole_windows, generation=st.none() | whole_windows
)


@st.composite
def admissible_edits(draw: st.DrawFn) -> dict[str, Any]:
    """An edit that the test probes can run, or nearly."""
    name = draw(st.sampled_from(sorted(PROBES)))
    family, labels, layers = PROBES[name]
    method = draw(st.sampled_from(sorted(FAMILIES[family].methods)))
    takes = FAMILIES[family].methods[method].takes
    edit: dict[str, Any] = {"probe": name, "method": method}
    order = draw(st.permutations(labels))
    weights = st.floats(1e-9, 1e9) | st.integers(1, 10**15)
    cut = (
        draw(st.integers(1, len(order))) if {"target", "avoid"} <= takes else len(order) * ("target" in takes)
    )
    if "values" in takes:
        edit["values"] = draw(st.dictionaries(st.sampled_from(labels), st.floats(-1e12, 1e12), min_size=1))
    else:
        if "target" in takes:
            edit["target"] = {label: draw(weights) for label in order[:cut]}
        if "avoid" in takes and order[cut:]:
            edit["avoid"] = {label: draw(weights) for label in order[cut:]}
    optional: dict[str, st.SearchStrategy[Any]] = {
        "alpha": st.floats(-1e12, 1e12),
        "num_steps": st.integers(1, 64),
        "step_decay": st.floats(0, 1),
        "loss": st.sampled_from(["mean", "softmin", {"hinge": 0.9}]),
        "until": st.sampled_from([{"target": 0.9}, {"avoid": 0.1}, {"target": 0.5, "avoid": 0.5}]),
        "unit": st.sampled_from(["raw", "normalised"]),
        "strength": st.floats(0, 1e3) | st.sampled_from([0, 1]),
        "metric": st.sampled_from(["raw", "variance", "covariance"]),
    }
    if "alpha" in takes:
        edit["alpha"] = draw(optional["alpha"])
    for field in sorted(set(optional) & takes - {"alpha"}):
        if draw(st.integers(0, 3)) == 0:
            edit[field] = draw(optional[field])
    common = {
        "layers": st.lists(st.sampled_from(layers), min_size=1, max_size=4, unique=True),
        "where": wheres,
        "fade": st.integers(1, 2**40),
        "cap": st.floats(1e-9, 1e6),
        "preserve_norm": st.booleans(),
        "condition": st.builds(
            lambda probe, label, side, bound: {"probe": probe, "label": label, side: bound},
            st.sampled_from(["mlp", "linear", "vectors", "wide"]),
            st.sampled_from([*LABELS, "glad"]),
            st.sampled_from(["above", "below"]),
            st.floats(0.01, 0.99),
        ),
    }
    for field, values in common.items():
        if draw(st.integers(0, 3)) == 0:
            edit[field] = draw(values)
    return edit


@st.composite
def admissible_specs(draw: st.DrawFn) -> dict[str, Any]:
    """One edit, or a stack of some."""
    if draw(st.integers(0, 3)):
        spec = draw(admissible_edits())
    else:
        spec = {"stack": draw(st.lists(admissible_edits(), min_size=1, max_size=4))}
    return {**spec, "report": True} if draw(st.integers(0, 3)) == 0 else spec


def _places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) in the tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        found.append((value, key))
        _places(part, found)
    return found


@st.composite
def mutated_specs(draw: st.DrawFn) -> Any:
    """A valid spec with one to three parts replaced, removed, renamed, repeated or put elsewhere."""
    spec: Any = copy.deepcopy(draw(admissible_specs()))
    for _ in range(draw(st.integers(1, 3))):
        places = _places(spec, [])
        if not places:
            break
        container, key = places[draw(st.integers(0, len(places) - 1))]
        action = draw(st.sampled_from(["replace", "remove", "rename", "wrap", "copy", "add"]))
        if action == "replace":
            container[key] = draw(hostile_values)
        elif action == "remove":
            del container[key]
        elif action == "wrap":
            container[key] = [container[key]]
        elif action == "copy":
            container[key] = copy.deepcopy(spec)
        elif isinstance(container, dict):
            value = container.pop(key) if action == "rename" else draw(hostile_values)
            container[draw(names)] = value
        else:
            container.append(draw(hostile_values))
    return spec
