"""From labelled text to a probe: read rows, take activations from the vLLM engine, fit, evaluate."""

from ksteer_vllm.data.rows import ContrastPair, LabelledRow, labels_of, read_rows, write_rows
from ksteer_vllm.errors import DataError
from ksteer_vllm.fit.activations import Activations, collect_activations
from ksteer_vllm.fit.pipeline import fit_probe_to_rows, fit_to_rows
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.fit.train import FitPlan, fit_probe

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
