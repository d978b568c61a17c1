"""The public names, for mkdocstrings: `ksteer_vllm.__all__` and what a user of the workbench imports."""

from __future__ import annotations

from typing import Any

import ksteer_vllm

__all__ = ["python_api"]

SECTIONS: dict[str, tuple[str, ...]] = {
    "Serving": ("enable", "SteeringSpec", "Where", "report"),
    "Probes": ("Probe", "ProbeMetadata", "ModelIdentity"),
    "K-Steering's own interface": ("KSteering", "SteeringConfig", "TrainerConfig"),
}
"""Names by what they are for; whatever is left of `__all__` is an error."""

BESIDE = "## Labelled text\n\n::: ksteer_vllm.data.dataset.TaskDataset\n"
"""What users of the workbench import from where it is."""


def python_api() -> str:
    """A section for each group of names, with an entry for each name."""
    grouped = [name for names in SECTIONS.values() for name in names]
    rest = tuple(name for name in ksteer_vllm.__all__ if name not in grouped)
    lines = []
    for title, names in {**SECTIONS, "Errors": ("KSteerError", *_without(rest, "KSteerError"))}.items():
        lines += [f"## {title}\n", *(f"::: {_path(name)}\n" for name in names)]
    return "\n".join([*lines, BESIDE])


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(other for other in names if other != name)


def _path(name: str) -> str:
    """The dotted path of a public name where it is defined: what mkdocstrings reads without importing it."""
    value: Any = getattr(ksteer_vllm, name)
    return f"{value.__module__}.{value.__qualname__}"
