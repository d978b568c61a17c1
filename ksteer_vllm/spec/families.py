"""Every steering method, one entry per family: its probe's tensors, the spec fields it takes, and where its
program and its fits are. Pure: no torch, no vLLM; programs and fits are imported when they are needed.

A method is added by one program file (`ksteer_vllm/methods/`), its reference
(`kernels/ksteer_kernels/reference/`), its fit (`ksteer_vllm/fit/methods/`), its test and its entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

__all__ = ["COVARIANCE_UP", "FAMILIES", "METHODS", "Family", "Use", "fields_of", "fits", "load"]


@dataclass(frozen=True)
class Use:
    """One method of a family.

    takes: the optional spec fields it reads, beside those every method has (layers, where, fade, cap,
    preserve_norm, condition). default_alpha: of requests that give none; None: the probe's own.
    """

    takes: frozenset[str]
    default_alpha: float | None = None


@dataclass(frozen=True)
class Family:
    """Methods that share one kind of probe.

    tensors: name -> dimensions: K labels, d hidden_size, a number a fixed size, any other letter a free one.
    optional: the same, of tensors that a probe may hold beside them.
    program: module:function that gives the family's slots and rows, see `ksteer_vllm.methods.program`.
    fits: name of `ksteer fit --method` -> module:function.
    """

    tensors: Mapping[str, str]
    methods: Mapping[str, Use]
    program: str
    fits: Mapping[str, str] = field(default_factory=dict)
    optional: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_metrics(self) -> bool:
        """Whether any of its methods takes a metric."""
        return any("metric" in use.takes for use in self.methods.values())


def _use(takes: str, default_alpha: float | None = None) -> Use:
    """`strength` multiplies alpha, so every method with the one takes the other."""
    fields = frozenset(takes.split())
    return Use(fields | {"strength"} if "alpha" in fields else fields, default_alpha)


_ADD = _use("target avoid alpha unit")
_MLP = {"w1": "h d", "b1": "h", "w2": "g h", "b2": "g", "w3": "K g", "b3": "K"}
_INPUT = {"input_mean": "d", "input_std": "d"}

COVARIANCE_UP = "covariance_up"
"""W Sigma: the weights that act on x, times the shrunk covariance of the activations. Sigma itself, [d, d],
is never stored: a step in its metric lies in the rows of W Sigma."""

FAMILIES: dict[str, Family] = {
    "mlp": Family(
        {**_MLP, **_INPUT, "label_vectors": "K d"},
        {
            "gradient": _use("target avoid alpha num_steps step_decay loss until unit metric"),
            "reflect": _use("avoid"),
            "project": _use("avoid"),
            "add": _ADD,
            "random": _ADD,
        },
        "ksteer_vllm.methods.mlp:MLPProgram",
        {"mlp": "ksteer_vllm.fit.methods.mlp:fit"},
        {COVARIANCE_UP: "h d"},
    ),
    "linear": Family(
        {"weight": "K d", "bias": "K", **_INPUT},
        {"gradient": _use("target avoid alpha num_steps step_decay unit metric")},
        "ksteer_vllm.methods.linear:LinearProgram",
        {"linear": "ksteer_vllm.fit.methods.linear:fit"},
        {COVARIANCE_UP: "K d"},
    ),
    "vectors": Family(
        {"vectors": "K d"},
        {"add": _ADD, "random": _ADD},
        "ksteer_vllm.methods.vectors:VectorsProgram",
        {
            "caa": "ksteer_vllm.fit.methods.caa:fit",
            "actadd": "ksteer_vllm.fit.methods.actadd:fit",
            "random": "ksteer_vllm.fit.methods.random:fit",
        },
    ),
    "ace": Family(
        {"directions": "K d", "negatives_mean": "K d"},
        {"ace": _use("target avoid alpha", 1.0), "ablate": _use("avoid alpha", 1.0)},
        "ksteer_vllm.methods.ace:ACEProgram",
        {"ace": "ksteer_vllm.fit.methods.ace:fit"},
    ),
    "loreft": Family(
        {"rotation": "K r d", "weight": "K r d", "bias": "K r"},
        {"loreft": _use("target alpha", 1.0)},
        "ksteer_vllm.methods.loreft:LoReFTProgram",
        {"loreft": "ksteer_vllm.fit.methods.loreft:fit"},
    ),
    "lorest": Family(
        {"basis": "K r d", "removed": "K r", "bias": "K d"},
        {"lorest": _use("target alpha", 1.0)},
        "ksteer_vllm.methods.lorest:LoReSTProgram",
        {"lorest": "ksteer_vllm.fit.methods.lorest:fit"},
    ),
    "sae": Family(
        {"w_enc": "K d", "b_enc": "K", "w_dec": "K d", "threshold": "K"},
        {"add": _ADD, "clamp": _use("values")},
        "ksteer_vllm.methods.sae:SAEProgram",
    ),
    "orbit": Family(
        {"plane": "K 2 d", "angle": "K", "gate_weight": "K d", "gate_bias": "K"},
        {"orbit": _use("target alpha", 1.0)},
        "ksteer_vllm.methods.orbit:ORBITProgram",
        {"orbit": "ksteer_vllm.fit.methods.orbit:fit"},
    ),
    "mat": Family(
        {"vectors": "K d", "gate_weight": "K d", "gate_bias": "K"},
        {"mat_steer": _use("target alpha", 1.0)},
        "ksteer_vllm.methods.mat:MATProgram",
        {"mat_steer": "ksteer_vllm.fit.methods.mat_steer:fit"},
    ),
}

METHODS: tuple[str, ...] = tuple(dict.fromkeys(m for family in FAMILIES.values() for m in family.methods))
"""Names a spec's `method` may have."""


def fields_of(method: str) -> frozenset[str]:
    """The optional spec fields a method takes in any family that has it."""
    return frozenset().union(*(f.methods[method].takes for f in FAMILIES.values() if method in f.methods))


def fits() -> dict[str, str]:
    """name of `ksteer fit --method` -> module:function."""
    return {name: path for family in FAMILIES.values() for name, path in family.fits.items()}


def load(path: str) -> Any:
    """The object at `module:name`."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
