"""From labelled text to a probe: read rows, take activations from the vLLM engine, fit, evaluate."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ksteer_vllm.data.rows import ContrastPair, LabelledRow, labels_of, read_rows, write_rows
    from ksteer_vllm.errors import DataError
    from ksteer_vllm.fit.activations import Activations, collect_activations
    from ksteer_vllm.fit.pipeline import fit_probe_to_rows, fit_to_rows
    from ksteer_vllm.fit.plans import FitPlan
    from ksteer_vllm.fit.task import FitTask
    from ksteer_vllm.fit.train import fit_probe

__all__ = [
    "Activations",
    "ContrastPair",
    "DataError",
    "FitPlan",
    "FitTask",
    "LabelledRow",
    "collect_activations",
    "fit_probe",
    "fit_probe_to_rows",
    "fit_to_rows",
    "labels_of",
    "read_rows",
    "write_rows",
]

_HOMES = {
    "Activations": "fit.activations",
    "ContrastPair": "data.rows",
    "DataError": "errors",
    "FitPlan": "fit.plans",
    "FitTask": "fit.task",
    "LabelledRow": "data.rows",
    "collect_activations": "fit.activations",
    "fit_probe": "fit.train",
    "fit_probe_to_rows": "fit.pipeline",
    "fit_to_rows": "fit.pipeline",
    "labels_of": "data.rows",
    "read_rows": "data.rows",
    "write_rows": "data.rows",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: the plans need no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ksteer_vllm.{_HOMES[name]}"), name)
