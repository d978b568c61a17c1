"""The specs the server tests send: good ones by name, and each kind of bad one with what its refusal says."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

TONES = "tones"
"""Probe at layer 1 with labels warm, cold, dry; no default alpha."""
MOODS = "moods"
"""Probe at layer 2 with labels of which one is not ASCII; default alphas for gradient and add."""
MOOD_LABELS = ("calm", "größer ☃")
MOOD_ALPHA = {"gradient": 4.0, "add": 1.5}
OPEN_LAYERS = (1, 2)
MAX_STEPS = 64


def spec(**fields: Any) -> dict[str, Any]:
    return {"probe": TONES, "target": ["warm"], "alpha": 3.0, **fields}


STEERED: dict[str, dict[str, Any]] = {
    "generation": spec(),
    "weights": spec(target={"warm": 3, "dry": 1}, avoid=["cold"], num_steps=2, step_decay=0.5),
    "prompt": spec(where="prompt"),
    "both": spec(where="both", num_steps=1),
    "windows": spec(where={"prompt": [1, 3], "generation": [2, 5]}),
    "away": spec(alpha=-3.0),
    "layers": spec(layers=[1, 2]),
    "reflect": {"probe": TONES, "avoid": ["warm"], "method": "reflect", "where": "both"},
    "project": {"probe": TONES, "avoid": ["cold", "dry"], "method": "project", "where": "both"},
    "add": spec(method="add", alpha=2.0),
    "softmin": spec(target=["warm", "dry"], loss="softmin", where="both"),
    "until": spec(loss={"hinge": 0.8}, until={"target": 0.9}, where="both"),
    "cap": spec(cap=0.5, where="both"),
    "norm": spec(preserve_norm=True),
    "fade": spec(fade=3),
    "condition": spec(where="both", condition={"probe": TONES, "label": "dry", "above": 0.5}),
    "stack": {"stack": [spec(alpha=2.0), {"probe": MOODS, "target": [MOOD_LABELS[0]], "where": "prompt"}]},
    "default alpha": {"probe": MOODS, "target": [MOOD_LABELS[1]]},
    "default alpha of add": {"probe": MOODS, "avoid": [MOOD_LABELS[0]], "method": "add"},
}


class Bad(NamedTuple):
    """A spec to refuse, the `param` of the answer, and what its message must say."""

    spec: Any
    field: str
    says: tuple[str, ...]


def _bad(field: str, *says: str, **fields: Any) -> Bad:
    return Bad(spec(**fields), field, says)


_LABELS = ("warm, cold, dry",)
_NUMBER = "valid number"
_FIELDS = ("unknown field", "probe, method, target, avoid, values, alpha", "condition, compat, stack, report")
_LOSSES = 'expected mean, softmin or {"hinge": p}'


def _when(field: str, *says: str, **fields: Any) -> Bad:
    condition = {"probe": MOODS, "label": MOOD_LABELS[0], "above": 0.5, **fields}
    return _bad(f"ksteer.condition{field}", *says, condition=condition)


BAD: dict[str, Bad] = {
    # the spec as a whole
    "a list": Bad([], "ksteer", ("expected an object", "list")),
    "a number": Bad(7, "ksteer", ("expected an object", "int")),
    "true": Bad(True, "ksteer", ("expected an object", "bool")),
    "empty object": Bad({}, "ksteer.probe", ("required",)),
    "unknown field": _bad("ksteer.force", *_FIELDS, force=2),
    "empty field name": _bad("ksteer", *_FIELDS, **{"": 2}),
    "long field name": _bad("ksteer.xxx", *_FIELDS, **{"x" * 60_000: 2}),
    "field name that is no text": _bad("ksteer", "string", **{"\ud800": 2}),
    # probe
    "unknown probe": _bad("ksteer.probe", "'nope'", "tones, moods", probe="nope"),
    "probe of wrong type": _bad("ksteer.probe", "valid string", "3", probe=3),
    "probe null": _bad("ksteer.probe", "required", probe=None),
    "probe empty": _bad("ksteer.probe", "at least 1 character", probe=""),
    "probe very long": _bad("ksteer.probe", "at most 256 characters", probe="p" * 60_000),
    "probe that is no text": _bad("ksteer.probe", "string", probe="\ud800"),
    # labels
    "unknown label": _bad("ksteer.target.hot", "'hot'", *_LABELS, target=["hot"]),
    "unknown label to avoid": _bad("ksteer.avoid.hot", "'hot'", *_LABELS, avoid={"hot": 1}),
    "label of the other probe": _bad("ksteer.target.calm", "'calm'", *_LABELS, target=["calm"]),
    "unknown unicode label": _bad("ksteer.target.wärm ☃", "'wärm ☃'", *_LABELS, target=["wärm ☃"]),
    "label that is no text": _bad("ksteer.target.?", *_LABELS, target=["\ud800"]),
    "empty label": _bad("ksteer.target", "''", *_LABELS, target=[""]),
    "label twice": _bad("ksteer.target", "named twice", "warm", target=["warm", "warm"]),
    "label on both sides": _bad("ksteer.target", "both sides", "warm", avoid=["warm", "cold"]),
    "no labels": _bad("ksteer.target", "at least one label", target=[], avoid={}),
    "labels null": _bad("ksteer.target", "at least one label", target=None),
    "labels as one string": _bad("ksteer.target", "list of label names", "'warm'", target="warm"),
    "labels as a number": _bad("ksteer.avoid", "list of label names", "5", avoid=5),
    "label of wrong type": _bad("ksteer.target", "list of label names", "5", target=[5]),
    "weight zero": _bad("ksteer.target", "'warm'", "> 0", "got 0", target={"warm": 0}),
    "weight negative": _bad("ksteer.target", "'warm'", "> 0", "got -1", target={"warm": -1}),
    "weight NaN": _bad("ksteer.avoid", "'cold'", "finite", "nan", avoid={"cold": math.nan}),
    "weight infinite": _bad("ksteer.avoid", "'cold'", "finite", "inf", avoid={"cold": math.inf}),
    "weight a huge integer": _bad("ksteer.target", "'warm'", "finite", target={"warm": 10**400}),
    "weight a string": _bad("ksteer.target", "'warm'", "number", "str", target={"warm": "1"}),
    "weight null": _bad("ksteer.target", "'warm'", "number", target={"warm": None}),
    "weight true": _bad("ksteer.target", "'warm'", "number", "bool", target={"warm": True}),
    "weights beyond a double": _bad("ksteer.target", "precision", target={"warm": 1e-320, "dry": 1e308}),
    "too many labels": _bad("ksteer.target", "at most 1024", "5000", target=[f"l{i}" for i in range(5000)]),
    # method
    "unknown method": _bad("ksteer.method", "'gradient', 'reflect', 'project', 'add'", "'caa'", method="caa"),
    "method of wrong type": _bad("ksteer.method", "'gradient'", method=1),
    "reflect with target": Bad(
        {"probe": TONES, "target": ["warm"], "method": "reflect"}, "ksteer.target", ("reflect", "avoid only")
    ),
    "project with alpha": Bad(
        {"probe": TONES, "avoid": ["warm"], "alpha": 1, "method": "project"},
        "ksteer.alpha",
        ("not used by method 'project'",),
    ),
    "project without labels": Bad(
        {"probe": TONES, "method": "project"}, "ksteer.avoid", ("at least one label",)
    ),
    "add with steps": _bad("ksteer.num_steps", "not used by method 'add'", method="add", num_steps=3),
    "method of another family": _bad("ksteer.method", "(mlp) has: gradient, reflect", "'ace'", method="ace"),
    # strength
    "alpha missing": Bad(
        {"probe": TONES, "target": ["warm"]}, "ksteer.alpha", ("required", "'tones'", "default_alpha")
    ),
    "alpha NaN": _bad("ksteer.alpha", "finite", "nan", alpha=math.nan),
    "alpha infinite": _bad("ksteer.alpha", "finite", "inf", alpha=math.inf),
    "alpha minus infinite": _bad("ksteer.alpha", "finite", "-inf", alpha=-math.inf),
    "alpha a huge integer": _bad("ksteer.alpha", "finite", "1e+12", alpha=10**400),
    "alpha out of range": _bad("ksteer.alpha", "at most 1e+12", "10000000000000.0", alpha=1e13),
    "alpha a string": _bad("ksteer.alpha", _NUMBER, "'3'", alpha="3"),
    "alpha true": _bad("ksteer.alpha", _NUMBER, "True", alpha=True),
    "alpha a list": _bad("ksteer.alpha", _NUMBER, alpha=[1.0]),
    "no steps": _bad("ksteer.num_steps", "greater than or equal to 1", "0", num_steps=0),
    "negative steps": _bad("ksteer.num_steps", "greater than or equal to 1", "-3", num_steps=-3),
    "too many steps": _bad(
        "ksteer.num_steps", f"at most max_steps={MAX_STEPS}", "65", num_steps=MAX_STEPS + 1
    ),
    "a million steps": _bad("ksteer.num_steps", f"at most max_steps={MAX_STEPS}", "1000000", num_steps=10**6),
    "a huge number of steps": _bad("ksteer.num_steps", f"at most max_steps={MAX_STEPS}", num_steps=10**40),
    "steps a fraction": _bad("ksteer.num_steps", "valid integer", "2.5", num_steps=2.5),
    "steps a string": _bad("ksteer.num_steps", "valid integer", "'8'", num_steps="8"),
    "steps null": _bad("ksteer.num_steps", "valid integer", num_steps=None),
    "decay above one": _bad("ksteer.step_decay", "less than or equal to 1", "1.5", step_decay=1.5),
    "decay negative": _bad("ksteer.step_decay", "greater than or equal to 0", "-0.5", step_decay=-0.5),
    "decay NaN": _bad("ksteer.step_decay", "nan", step_decay=math.nan),
    "decay a string": _bad("ksteer.step_decay", _NUMBER, "'1'", step_decay="1"),
    # loss, until, unit, bounds, fade
    "unknown loss": _bad("ksteer.loss", _LOSSES, "'sum'", loss="sum"),
    "loss a number": _bad("ksteer.loss", _LOSSES, "1", loss=1),
    "hinge below one half": _bad("ksteer.loss.hinge", "greater than 0.5", "0.2", loss={"hinge": 0.2}),
    "unknown field of a loss": _bad("ksteer.loss.at", "allowed: hinge", loss={"hinge": 0.9, "at": 1}),
    "softmin of no target": Bad(
        {"probe": TONES, "avoid": ["cold"], "alpha": 1, "loss": "softmin"}, "ksteer.loss", ("target label",)
    ),
    "until certain": _bad("ksteer.until.target", "less than 1", "got 1", until={"target": 1}),
    "until nothing": _bad("ksteer.until", "give target, avoid or both", until={}),
    "until a number": _bad("ksteer.until", "an object of target, avoid", "0.9", until=0.9),
    "until without labels": _bad("ksteer.until.avoid", "no avoid label", until={"avoid": 0.1}),
    "unknown field of until": _bad("ksteer.until.steps", "allowed: target, avoid", until={"steps": 3}),
    "unknown unit": _bad("ksteer.unit", "'raw' or 'normalised'", "'std'", unit="std"),
    "unit without a scale": _bad("ksteer.unit", "'tones'", "activation scale", "none", unit="normalised"),
    "cap zero": _bad("ksteer.cap", "greater than 0", "got 0", cap=0),
    "cap infinite": _bad("ksteer.cap", "inf", cap=math.inf),
    "cap a string": _bad("ksteer.cap", _NUMBER, "'0.1'", cap="0.1"),
    "cap and norm": _bad("ksteer.preserve_norm", "cannot be combined with cap", cap=1, preserve_norm=True),
    "norm a string": _bad("ksteer.preserve_norm", "valid boolean", "'yes'", preserve_norm="yes"),
    "fade zero": _bad("ksteer.fade", "greater than or equal to 1", "got 0", fade=0),
    "fade huge": _bad("ksteer.fade", "less than or equal to", fade=10**30),
    "fade a fraction": _bad("ksteer.fade", "valid integer", "2.5", fade=2.5),
    "values of a probe": _bad("ksteer.values", "not used by method 'gradient'", values={"warm": 1}),
    "values as a list": _bad("ksteer.values", "label -> activation", "['warm']", values=["warm"]),
    "values NaN": _bad("ksteer.values", "'warm'", "finite", "nan", values={"warm": math.nan}),
    # condition
    "condition a string": _bad(
        "ksteer.condition", "an object of probe, label, above, below", condition="dry"
    ),
    "condition on nothing": _bad("ksteer.condition.", "required", condition={"above": 0.5}),
    "condition of an unknown probe": _when(".probe", "'gate'", "tones, moods", probe="gate"),
    "condition on another's label": _when(".label.warm", "'warm'", "'moods' has: calm", label="warm"),
    "condition both ways": _when("", "either above or below", below=0.5),
    "condition neither way": _when("", "either above or below", above=None),
    "condition that is certain": _when(".above", "a probability between 0 and 1", "1.0", above=1),
    "condition beyond": _when(".above", "less than or equal to 1", "3", above=3),
    "condition NaN": _when(".above", "nan", above=math.nan),
    "unknown field of a condition": _when(".at", "allowed: probe, label, above, below", at=1),
    # stack and report
    "stack a number": Bad({"stack": 3}, "ksteer.stack", ("valid list", "3")),
    "stack empty": Bad({"stack": []}, "ksteer.stack", ("1 to 1024 edits", "got 0")),
    "stack of a hundred": Bad({"stack": [spec()] * 100}, "ksteer.stack", ("max_stack=64", "got 100")),
    "stack of thousands": Bad({"stack": [{}] * 5000}, "ksteer.stack", ("1 to 1024 edits",)),
    "stack of many kilobytes": Bad({"stack": [spec()] * 5000}, "ksteer", ("max_spec_bytes=65536", "got ")),
    "spec of many kilobytes": _bad("ksteer", "max_spec_bytes=65536", target=["warm" * 2**15]),
    "stack of no edits": Bad({"stack": [[]]}, "ksteer.stack.0", ("an object of probe, method", "[]")),
    "stack in a stack": Bad({"stack": [{"stack": [spec()]}]}, "ksteer.stack.0.stack", ("unknown field",)),
    "stack beside an edit": _bad("ksteer.probe", "not allowed beside stack", stack=[spec()]),
    "stack too high": Bad(
        {"stack": [spec()] * 3}, "ksteer.stack", ("needs 3 edits in a row", "max_stages=2")
    ),
    "fault deep in a stack": Bad(
        {"stack": [spec(), spec(until={"target": 2})]}, "ksteer.stack.1.until.target", ("less than 1", "2")
    ),
    "unknown label in a stack": Bad(
        {"stack": [spec(), spec(target=["hot"])]}, "ksteer.stack.1.target.hot", ("'hot'", *_LABELS)
    ),
    "window in a stack": Bad(
        {"stack": [spec(), spec(where={"prompt": [6, 9]})]}, "ksteer.stack.1.where.prompt", ("6 tokens",)
    ),
    "report a number": _bad("ksteer.report", "valid boolean", "1", report=1),
    # layers
    "closed layer": _bad("ksteer.layers", "3", "open: 1, 2", layers=[3]),
    "one layer of two closed": _bad("ksteer.layers", "0", "open: 1, 2", layers=[0, 1]),
    "no such layer": _bad("ksteer.layers", "1000000000000", "open: 1, 2", layers=[10**12]),
    "negative layer": _bad("ksteer.layers.0", "greater than or equal to 0", "-1", layers=[-1]),
    "layer twice": _bad("ksteer.layers", "twice", layers=[1, 1]),
    "no layers": _bad("ksteer.layers", "empty list", layers=[]),
    "layers a number": _bad("ksteer.layers", "valid list", "1", layers=1),
    "layer a string": _bad("ksteer.layers.0", "valid integer", "'1'", layers=["1"]),
    # where
    "unknown word": _bad("ksteer.where", "prompt, generation, both", "'everywhere'", where="everywhere"),
    "where a list": _bad("ksteer.where", "[0, 3]", where=[0, 3]),
    "where empty": _bad("ksteer.where", "selects nothing", where={}),
    "where false": _bad("ksteer.where", "selects nothing", where={"prompt": False}),
    "unknown window": _bad("ksteer.where.reply", "prompt, generation", where={"reply": [0, 3]}),
    "window of one": _bad("ksteer.where.prompt", "[start, end]", "[1]", where={"prompt": [1]}),
    "window of strings": _bad("ksteer.where.prompt.1", "valid integer", "'x'", where={"prompt": [0, "x"]}),
    "window of fractions": _bad("ksteer.where.generation.0", "valid integer", where={"generation": [0.5, 2]}),
    "window before the start": _bad("ksteer.where.prompt", "0 or later", "-1", where={"prompt": [-1, 3]}),
    "window empty": _bad("ksteer.where.generation", "[3, 3)", "empty", where={"generation": [3, 3]}),
    "window backwards": _bad("ksteer.where.prompt", "[3, 1)", "empty", where={"prompt": [3, 1]}),
    "window after the prompt": _bad(
        "ksteer.where.prompt", "[6, 9)", "selects nothing", "6 tokens", where={"prompt": [6, 9]}
    ),
    "window far after the prompt": _bad(
        "ksteer.where.prompt", "selects nothing", where={"prompt": [10**30, None]}
    ),
    "window after max_tokens": _bad(
        "ksteer.where.generation",
        "[12, end)",
        "selects nothing",
        "max_tokens is 12",
        where={"generation": [12, None]},
    ),
    "good window and one after max_tokens": _bad(
        "ksteer.where.generation", "max_tokens is 12", where={"prompt": [0, 2], "generation": [10**30, None]}
    ),
}
