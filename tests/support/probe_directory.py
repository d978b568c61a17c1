"""A directory of probes as operators keep it: good ones, and some an engine has to refuse."""

from __future__ import annotations

from pathlib import Path

from testbed.probes import random_probe

__all__ = ["NAMES", "write_directory"]

NAMES = ("first", "second", "third")
"""The probes of the directory that fit the tests' model and can be exchanged for each other."""


def write_directory(root: Path) -> Path:
    """Write the probes NAMES, and others that differ in labels, size or layer, into `root`. Returns it."""
    for seed, name in enumerate(NAMES):
        random_probe(seed=seed, default_alpha={"gradient": 2.0}).save(root / name)
    random_probe(labels=("calm", "wild"), seed=7, default_alpha={"gradient": 2.0}).save(root / "other-labels")
    random_probe(hidden_size=32).save(root / "misfit")
    random_probe(layer=3).save(root / "closed-layer")
    return root
