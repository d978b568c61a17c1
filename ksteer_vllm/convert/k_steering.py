"""withmartian/k-steering: the classifier its `save` pickles, as family mlp (or linear, `clf_type="linear"`).

Checked against k-steering 0.1.2. `save(folder, name)` writes `<name>_classifier.pkl` (an
ActivationSteeringTrainer: classifier, optimiser, configuration) beside `<name>_metadata.json` (unique_labels,
model_name) and `<name>_steering_config.json` (train_layer, steering_strength).

Layer: the classifier is fitted on `hidden_states[train_layer]`, which is the output of decoder block
train_layer - 1, and the probe is put there. (The package itself then edits the output of the blocks in
steer_layers; to have that, convert with --layer, or name `layers` in the spec, and to have its step sizes add
`compat: "pip-0.1.2"`.)

The package keeps no label means, so methods that add label vectors are unavailable: `settings["unavailable"]`
names them, and the tensor that would hold them is zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ksteer_vllm.convert.common import build, choose_labels, read_json
from ksteer_vllm.convert.options import Options
from ksteer_vllm.convert.unpickle import Record, names_in, read_pickle, tensor_of
from ksteer_vllm.errors import ProbeError, listing
from ksteer_vllm.probes.probe import Probe

__all__ = ["convert", "recognises"]

SUFFIX = "_classifier.pkl"
_PREFIXES = ("k_steering.steering", "src.k_steering.steering")  # installed; run from a checkout
_TRAINERS = tuple(f"{prefix}.trainer.ActivationSteeringTrainer" for prefix in _PREFIXES)
_MODELS = tuple(f"{prefix}.trainer.MultiLabelSteeringModel" for prefix in _PREFIXES)
_LAYERS = tuple(
    f"torch.nn.modules.{name}" for name in ("container.Sequential", "linear.Linear", "activation.ReLU")
)
_IGNORED = (
    *(f"{prefix}.config.TrainerConfig" for prefix in _PREFIXES),
    "torch.optim.adam.Adam",
    "torch.nn.modules.loss.BCEWithLogitsLoss",
)
CLASSES = (*_TRAINERS, *_MODELS, *_LAYERS, *_IGNORED)

_SEQUENCE = ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
_MLP = {"net.0": ("w1", "b1"), "net.2": ("w2", "b2"), "net.4": ("w3", "b3")}


def recognises(path: Path) -> bool:
    if path.is_dir():
        return any(path.glob(f"*{SUFFIX}"))
    return any(names_in(path, prefix) for prefix in ("k_steering.steering", "MultiLabelSteeringModel"))


def convert(path: Path, options: Options) -> Probe:
    """Convert to a probe.

    Args:
        path: The classifier's file, or the folder that holds exactly one.
        options: The model, and what the source does not say.

    Raises:
        ProbeError: For a source that cannot be converted.
    """
    path = _classifier_file(path)
    weights = _weights(path, read_pickle(path, CLASSES))
    steering, metadata = _beside(path, "steering_config"), _beside(path, "metadata")
    layer, notes = _layer(path, options, steering)
    known = metadata.get("unique_labels")
    strength = steering.get("steering_strength")
    default_alpha = {"gradient": strength} if isinstance(strength, int | float) else {}
    if default_alpha:
        notes.append("the source takes one step: with its strength as alpha, send num_steps 1, or calibrate")
    zeros, ones = torch.zeros(options.model.hidden_size), torch.ones(options.model.hidden_size)
    tensors = {"input_mean": zeros, "input_std": ones}
    if "net.weight" in weights:
        family, settings = "linear", {}
        tensors |= {"weight": weights["net.weight"], "bias": weights["net.bias"]}
        count = len(weights["net.weight"])
    else:
        family, settings = "mlp", {"unavailable": ["add", "random"]}
        notes.append("the source has no label means: methods add and random are not available")
        for layer_name, names in _MLP.items():
            for name, kind in zip(names, ("weight", "bias"), strict=True):
                tensors[name] = weights[f"{layer_name}.{kind}"]
        count = len(tensors["w3"])
        tensors["label_vectors"] = torch.zeros(count, options.model.hidden_size)
    labels = choose_labels(path, options, count, known if isinstance(known, list) else ())
    return build(
        path,
        "k-steering",
        family,
        tensors,
        options,
        labels=labels,
        layer=layer,
        settings=settings,
        notes=notes,
        default_alpha=default_alpha,
        training={k: steering[k] for k in ("train_layer", "steer_layers") if k in steering},
    )


def _classifier_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) != 1:
        found = listing(file.name for file in files)
        raise ProbeError(f"{path}: expected one file *{SUFFIX}, found {found}; name the file itself")
    return files[0]


def _beside(path: Path, what: str) -> dict[str, Any]:
    """The package's JSON file of that kind, empty if it is not there."""
    file = path.with_name(f"{path.name.removesuffix(SUFFIX)}_{what}.json")
    return read_json(file) if path.name.endswith(SUFFIX) and file.exists() else {}


def _layer(path: Path, options: Options, steering: dict[str, Any]) -> tuple[int, list[str]]:
    if options.layer is not None:
        return options.layer, []
    trained = steering.get("train_layer")
    if not isinstance(trained, int):
        raise ProbeError(f"{path}: no steering configuration beside it that names train_layer; give --layer")
    if not 1 <= trained < options.model.num_layers:
        raise ProbeError(
            f"{path}: train_layer {trained}: no decoder block's output is read there (allowed: 1 to "
            f"{options.model.num_layers - 1}, the blocks before them); give --layer"
        )
    note = f"fitted on hidden_states[{trained}], the output of decoder block {trained - 1}"
    if steering.get("steer_layers"):
        note += f"; the source edits blocks {listing(steering['steer_layers'])}"
    return trained - 1, [note]


def _weights(path: Path, found: Any) -> dict[str, Tensor]:
    """`net.0.weight` ... of a trainer, a classifier, or a classifier's state dict."""
    if isinstance(found, Record) and found.kind in _TRAINERS:
        found = found.state.get("classifier")
    if isinstance(found, Record) and found.kind in _MODELS:
        values = _parameters(path, found, "")
    elif isinstance(found, dict):
        values = found
    else:
        kind = found.kind if isinstance(found, Record) else type(found).__name__
        raise ProbeError(f"{path}: expected {_TRAINERS[0]} or {_MODELS[0]}, found {kind}")
    linear = {"net.weight", "net.bias"}
    mlp = {f"{name}.{kind}" for name in _MLP for kind in ("weight", "bias")}
    if set(values) not in (linear, mlp):
        raise ProbeError(
            f"{path}: classifier with {listing(values)}; expected {listing(sorted(mlp))}, "
            f"or {listing(sorted(linear))}"
        )
    tensors = {str(name): tensor_of(path, value, str(name)) for name, value in values.items()}
    for name, tensor in tensors.items():
        if tensor.ndim != (2 if name.endswith("weight") else 1):
            raise ProbeError(f"{path}: {name}: shape {tuple(tensor.shape)}")
    return tensors


def _parameters(path: Path, module: Record, prefix: str, depth: int = 0) -> dict[str, Any]:
    """Every parameter below a module, and a check that the activations between them are ReLU."""
    if depth > 4:
        raise ProbeError(f"{path}: {prefix}: modules nested too deep for this classifier")
    found: dict[str, Any] = {}
    for name, value in dict(module.state.get("_parameters") or {}).items():
        if value is not None:
            found[f"{prefix}{name}"] = value
    children = dict(module.state.get("_modules") or {})
    if module.kind.endswith("Sequential"):
        kinds = [child.kind.rpartition(".")[2] for child in children.values() if isinstance(child, Record)]
        if kinds != _SEQUENCE:
            raise ProbeError(f"{path}: classifier of {listing(kinds)}; expected {listing(_SEQUENCE)}")
    for name, child in children.items():
        if not isinstance(child, Record):
            raise ProbeError(f"{path}: {prefix}{name}: expected a module, found {type(child).__name__}")
        found |= _parameters(path, child, f"{prefix}{name}.", depth + 1)
    return found
