"""SAELens: chosen features of a sparse autoencoder folder, as family sae.

Checked against sae-lens 6.54.12. `cfg.json` (since version 6 the hook is under "metadata", before at the top)
and `sae_weights.safetensors`: W_enc [d, n], b_enc [n], W_dec [n, d], b_dec [d], threshold [n] for jumprelu.
With features f = act((x - b_dec) W_enc + b_enc) if apply_b_dec_to_input, the probe's b_enc is
b_enc - b_dec W_enc. The decoder's bias plays no part: only differences of features are written back.

Layer: `blocks.L.hook_resid_post` is the output of decoder block L, `blocks.L.hook_resid_pre` that of block
L - 1; a module path such as `model.layers.L` means the module's output.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ksteer_vllm.convert.common import build, choose_labels, read_json
from ksteer_vllm.convert.options import Options
from ksteer_vllm.errors import ProbeError, listing
from ksteer_vllm.probes.probe import Probe

__all__ = ["convert", "recognises"]

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
AVERAGE = "expected_average_only_in"
ACTIVATIONS = {"standard": "relu", "jumprelu": "jumprelu"}
_RESIDUAL = re.compile(r"blocks\.(?P<layer>\d{1,5})\.hook_resid_(?P<end>pre|post)")
_MODULE = re.compile(r"(?:\w+\.)*(?:layers|h)\.(?P<layer>\d{1,5})")


def recognises(path: Path) -> bool:
    return path.is_dir() and (path / CONFIG).exists() and (path / WEIGHTS).exists()


def convert(path: Path, options: Options) -> Probe:
    """Convert to a probe.

    Args:
        path: The folder that SAELens' `save_model` wrote.
        options: The model, and `features`: which of the SAE's features to keep.

    Raises:
        ProbeError: For a source that cannot be converted.
    """
    file = path / CONFIG
    config = _normalised(read_json(file))
    architecture = config.get("architecture", "standard")
    if architecture not in ACTIVATIONS:
        raise ProbeError(
            f"{file}: architecture {str(architecture)[:80]!r}; {listing(ACTIVATIONS)} can be converted"
        )
    _refuse_other_maths(file, config)
    layer = _layer(file, config, options)
    if not options.features:
        raise ProbeError(f"{path}: choose features, say --features 12,57 (of {config.get('d_sae', 'n')})")
    tensors = _weights(path / WEIGHTS, options.features, options.model.hidden_size, config)
    scale = _input_scale(path, config)
    tensors["w_enc"] = tensors["w_enc"] * scale
    tensors["w_dec"] = tensors["w_dec"] / scale
    names = [f"feature-{index}" for index in options.features]
    return build(
        path,
        "saelens",
        "sae",
        tensors,
        options,
        labels=choose_labels(path, options, len(names), names),
        layer=layer,
        settings={"activation": ACTIVATIONS[architecture]},
        training={
            "features": list(options.features),
            "hook_name": config["metadata"].get("hook_name"),
            "model_name": config["metadata"].get("model_name"),
        },
    )


def _normalised(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of any version with "metadata" and the names of version 6."""
    renamed = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
    config = {renamed.get(name, name): value for name, value in config.items()}
    metadata = config.get("metadata")
    config["metadata"] = metadata if isinstance(metadata, dict) else config
    if isinstance(config.get("normalize_activations"), bool):
        config["normalize_activations"] = AVERAGE if config["normalize_activations"] else "none"
    return config


def _refuse_other_maths(path: Path, config: dict[str, Any]) -> None:
    """ProbeError, by name, for what would make the features another function of the residual stream."""
    metadata = config["metadata"]
    kwargs = metadata.get("model_from_pretrained_kwargs")
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    for name, value, allowed in (
        ("activation_fn", config.get("activation_fn_str", config.get("activation_fn")), ("relu",)),
        ("normalize_activations", config.get("normalize_activations"), ("none", AVERAGE)),
        ("reshape_activations", config.get("reshape_activations"), ("none",)),
        ("finetuning_scaling_factor", config.get("finetuning_scaling_factor"), (False,)),
        ("hook_head_index", metadata.get("hook_head_index"), ()),
        ("center_writing_weights", kwargs.get("center_writing_weights"), (False,)),
    ):
        if value is not None and value not in allowed:
            raise ProbeError(
                f"{path}: {name} {str(value)[:80]!r} changes what the features are; allowed: "
                f"{listing([*allowed, 'absent'])}"
            )


def _layer(path: Path, config: dict[str, Any], options: Options) -> int:
    name = config["metadata"].get("hook_name")
    if name is None and options.layer is not None:
        return options.layer
    match = _RESIDUAL.fullmatch(str(name)) or _MODULE.fullmatch(str(name))
    if match is None:
        raise ProbeError(
            f"{path}: hook {str(name)[:80]!r}; only the residual stream after a decoder block can be steered "
            f"(blocks.L.hook_resid_post, blocks.L.hook_resid_pre for L >= 1, model.layers.L)"
            + ("; give --layer" if name is None else "")
        )
    layer = int(match["layer"]) - (match.re is _RESIDUAL and match["end"] == "pre")
    if layer < 0:
        raise ProbeError(f"{path}: hook {name}: the embedding, which no decoder block puts out")
    if options.layer not in (None, layer):
        raise ProbeError(f"{path}: --layer {options.layer}, but hook {name} is the output of block {layer}")
    return layer


def _weights(
    path: Path, features: tuple[int, ...], hidden_size: int, config: dict[str, Any]
) -> dict[str, Tensor]:
    """Tensors of the chosen features alone (the file is not read whole), float64."""
    jumprelu = config.get("architecture") == "jumprelu"
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            size = _check_shapes(path, shapes, hidden_size, jumprelu)
            beyond = [index for index in features if not 0 <= index < size]
            if beyond or len(set(features)) != len(features):
                raise ProbeError(
                    f"{path}: features {listing(features)}; expected distinct ones of 0 to {size - 1}"
                )

            def chosen(name: str) -> Tensor:
                rows = file.get_slice(name)
                return torch.cat([rows[index : index + 1] for index in features]).double()

            columns = file.get_slice("W_enc")
            w_enc = torch.cat([columns[:, index : index + 1] for index in features], 1).double().T
            b_enc, w_dec, b_dec = chosen("b_enc"), chosen("W_dec"), file.get_tensor("b_dec").double()
            threshold = chosen("threshold").clamp(min=0) if jumprelu else torch.zeros_like(b_enc)
            scaling = file.get_tensor("scaling_factor") if "scaling_factor" in shapes else torch.ones(1)
    except (SafetensorError, OSError) as error:
        raise ProbeError(f"{path}: {getattr(error, 'strerror', None) or str(error)[:200]}") from None
    if not torch.allclose(scaling.float(), torch.ones(1)):
        raise ProbeError(f"{path}: scaling_factor other than 1 (a fine-tuned SAE) cannot be converted")
    if config.get("apply_b_dec_to_input", True):
        b_enc = b_enc - w_enc @ b_dec
    return {"w_enc": w_enc, "b_enc": b_enc, "w_dec": w_dec, "threshold": threshold}


def _check_shapes(path: Path, shapes: dict[str, tuple[int, ...]], hidden_size: int, jumprelu: bool) -> int:
    """The number of features. ProbeError if a tensor is missing or does not fit."""
    size = (*shapes.get("b_enc", ()), 0)[0]
    wanted: dict[str, tuple[int, ...]] = {"W_enc": (hidden_size, size), "W_dec": (size, hidden_size)}
    wanted |= {"b_enc": (size,), "b_dec": (hidden_size,)}
    if jumprelu:
        wanted["threshold"] = (size,)
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            found = f"shape {shapes[name]}" if name in shapes else f"not among {listing(sorted(shapes))}"
            raise ProbeError(f"{path}: {name}: {found}, expected {shape} (hidden size {hidden_size})")
    unknown = sorted({*shapes} - {*wanted, "scaling_factor"})
    if unknown:
        raise ProbeError(f"{path}: holds {listing(unknown)} too; expected {listing(wanted)} alone")
    return size


def _input_scale(path: Path, config: dict[str, Any]) -> float:
    """The constant by which a training checkpoint scales its input; 1 once SAELens has folded it in."""
    if config.get("normalize_activations") != AVERAGE:
        return 1.0
    if not (path / SCALER).exists():
        raise ProbeError(
            f"{path / CONFIG}: normalize_activations {AVERAGE!r} without its factor ({SCALER}); "
            f"fold it with SAE.fold_activation_norm_scaling_factor and save again"
        )
    scale = read_json(path / SCALER).get("scaling_factor")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
        raise ProbeError(f"{path / SCALER}: scaling_factor {scale!r}; expected a number > 0")
    return float(scale)
