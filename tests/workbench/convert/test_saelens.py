"""SAELens folders: what the chosen features read and write, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ksteer_vllm import ProbeError
from ksteer_vllm.convert import convert, detect
from ksteer_vllm.probes.probe import Probe
from tests.workbench.convert.sources import LAYERS, TOLERANCE, D, options, streams

SIZE, FEATURES = 40, (31, 7, 12)
HOOK = "blocks.2.hook_resid_post"


def weights(jumprelu: bool = False) -> dict[str, Tensor]:
    """The tensors of a sae-lens 6.54.12 file; thresholds on both sides of 0 (12: +1)."""
    generator = torch.Generator().manual_seed(8)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        "W_enc": normal(D, SIZE) * 0.3,
        "b_enc": normal(SIZE),
        "W_dec": normal(SIZE, D),
        "b_dec": normal(D),
    }
    return {**tensors, "threshold": (-1.0) ** torch.arange(SIZE)} if jumprelu else tensors


def write(
    folder: Path, tensors: dict[str, Tensor], *, metadata: dict[str, Any] | None = None, **config: Any
) -> Path:
    """The folder that sae-lens 6.54.12 writes."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    fields = {
        "d_in": D,
        "d_sae": SIZE,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": HOOK, "model_name": "m", **(metadata or {})},
        "architecture": "jumprelu" if "threshold" in tensors else "standard",
    }
    (folder / "cfg.json").write_text(json.dumps({**fields, **config}))
    return folder


def read(probe: Probe, x: Tensor) -> Tensor:
    """[..., K] features of x, as the family defines them: p if p > threshold, else 0."""
    t = probe.tensors
    p = x @ t["w_enc"].T + t["b_enc"]
    return torch.where(p > t["threshold"], p, 0.0)


def source_features(tensors: dict[str, Tensor], x: Tensor, apply_b_dec: bool = True) -> Tensor:
    """SAELens' encode: relu, and for jumprelu the mask of what exceeds the threshold."""
    pre = (x - tensors["b_dec"] * apply_b_dec) @ tensors["W_enc"] + tensors["b_enc"]
    return torch.relu(pre) * (pre > tensors.get("threshold", torch.zeros(SIZE)))


@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize("jumprelu", [False, True])
def test_round_trip(jumprelu: bool, apply_b_dec: bool, tmp_path: Path) -> None:
    folder = write(tmp_path / "sae", weights(jumprelu), apply_b_dec_to_input=apply_b_dec)
    assert detect(folder) == "saelens"
    probe = Probe.load(convert(folder, options(features=FEATURES)).save(tmp_path / "out"))
    assert probe.labels == ("feature-31", "feature-7", "feature-12")
    assert probe.metadata.layer == 2
    assert probe.metadata.settings == {"activation": "jumprelu" if jumprelu else "relu"}
    features = source_features(weights(jumprelu), streams(200), apply_b_dec)[:, FEATURES]
    assert ((features > 0).float().mean(0) > 0.03).all()  # every chosen feature fires, and is silent
    assert ((features == 0).float().mean(0) > 0.03).all()
    assert torch.allclose(read(probe, streams(200)), features, **TOLERANCE)
    assert torch.equal(probe.tensors["w_dec"], weights()["W_dec"][list(FEATURES)])


@pytest.mark.parity
@pytest.mark.parametrize("jumprelu", [False, True])
def test_saelens_itself(jumprelu: bool, tmp_path: Path) -> None:
    """Saved, encoded and decoded by sae-lens (6.54.12): clamping a feature moves x as its decoder does."""
    package = pytest.importorskip("sae_lens")
    name = "JumpReLUSAE" if jumprelu else "StandardSAE"
    metadata = package.saes.sae.SAEMetadata(hook_name=HOOK, model_name="m")
    sae = getattr(package, name)(getattr(package, f"{name}Config")(d_in=D, d_sae=SIZE, metadata=metadata))
    sae.load_state_dict(weights(jumprelu))
    sae.save_model(tmp_path / "theirs")
    ours = write(tmp_path / "ours", weights(jumprelu))
    assert (
        load_file(ours / "sae_weights.safetensors").keys()
        == load_file(tmp_path / "theirs" / "sae_weights.safetensors").keys()
    )
    written = json.loads((tmp_path / "theirs" / "cfg.json").read_text())
    assert {**written, "metadata": 0} == {**json.loads((ours / "cfg.json").read_text()), "metadata": 0}
    probe = convert(tmp_path / "theirs", options(features=FEATURES))
    x = streams()
    with torch.no_grad():
        before = sae.encode(x)
        after = before.clone()
        after[:, FEATURES] = 3.0
        theirs = x + sae.decode(after) - sae.decode(before)
    assert torch.allclose(read(probe, x), before[:, FEATURES], **TOLERANCE)
    ours_after = x + (3.0 - read(probe, x)) @ probe.tensors["w_dec"]
    assert torch.allclose(ours_after, theirs, rtol=1e-4, atol=1e-4)  # theirs adds and takes away all of x


def test_a_constant_input_scale_is_folded(tmp_path: Path) -> None:
    """A training checkpoint: the SAE sees s x and its output is divided by s."""
    folder = write(tmp_path, weights(), normalize_activations="expected_average_only_in")
    with pytest.raises(ProbeError, match=r"without its factor \(activation_scaler\.json\)"):
        convert(folder, options(features=FEATURES))
    for value in (None, 0, "1", True):
        (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": value}))
        with pytest.raises(ProbeError, match=r"activation_scaler\.json: scaling_factor"):
            convert(folder, options(features=FEATURES))
    (folder / "activation_scaler.json").write_text(
        json.dumps({"scaling_factor": 0.25, "has_whitening": False})
    )
    probe = convert(folder, options(features=FEATURES))
    x = streams()
    assert torch.allclose(read(probe, x), source_features(weights(), 0.25 * x)[:, FEATURES], **TOLERANCE)
    assert torch.allclose(probe.tensors["w_dec"], weights()["W_dec"][list(FEATURES)] / 0.25)


def test_configurations_before_version_6(tmp_path: Path) -> None:
    """The hook at the top level, under either name; architecture and normalisation left out or booleans."""
    folder = write(tmp_path, {**weights(), "scaling_factor": torch.ones(SIZE)})
    old = {"d_in": D, "d_sae": SIZE, "hook_point": HOOK, "hook_point_layer": 2, "activation_fn_str": "relu"}
    for config in (old, {**old, "hook_name": HOOK, "normalize_activations": False, "hook_head_index": None}):
        (folder / "cfg.json").write_text(json.dumps(config))
        probe = convert(folder, options(features=FEATURES))
        assert probe.metadata.layer == 2
        x = streams()
        assert torch.allclose(read(probe, x), source_features(weights(), x)[:, FEATURES], **TOLERANCE)


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.3.hook_resid_post", 3),
        ("blocks.3.hook_resid_pre", 2),
        ("blocks.1.hook_resid_pre", 0),
        ("model.layers.1", 1),
        ("transformer.h.1", 1),
        ("model.language_model.layers.1", 1),
    ],
)
def test_hooks(hook: str, layer: int, tmp_path: Path) -> None:
    folder = write(tmp_path, weights(), metadata={"hook_name": hook})
    assert convert(folder, options(features=(1,))).metadata.layer == layer
    assert convert(folder, options(features=(1,), layer=layer)).metadata.layer == layer
    with pytest.raises(ProbeError, match=f"--layer {layer + 1}, but hook"):
        convert(folder, options(features=(1,), layer=layer + 1))


@pytest.mark.parametrize(
    "hook",
    [
        "blocks.1.hook_mlp_out",
        "blocks.1.attn.hook_z",
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_resid_mid",
        None,
    ],
)
def test_hooks_that_are_refused(hook: str | None, tmp_path: Path) -> None:
    folder = write(tmp_path, weights(), metadata={"hook_name": hook})
    with pytest.raises(ProbeError, match=r"cfg\.json: hook"):
        convert(folder, options(features=(1,)))
    if hook is None:
        assert convert(folder, options(features=(1,), layer=3)).metadata.layer == 3


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architecture": "topk"}, "architecture 'topk'; standard, jumprelu"),
        ({"architecture": "gated"}, "architecture 'gated'"),
        ({"architecture": "jumprelu_transcoder"}, "architecture 'jumprelu_transcoder'"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations 'layer_norm'"),
        ({"normalize_activations": "constant_norm_rescale"}, "normalize_activations 'constant_norm_rescale'"),
        ({"activation_fn_str": "topk"}, "activation_fn 'topk'"),
        ({"activation_fn": "tanh-relu"}, "activation_fn 'tanh-relu'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations 'hook_z'"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor 'True'"),
        ({"metadata": {"hook_name": HOOK, "hook_head_index": 3}}, "hook_head_index '3'"),
        (
            {
                "metadata": {
                    "hook_name": HOOK,
                    "model_from_pretrained_kwargs": {"center_writing_weights": True},
                }
            },
            "center_writing_weights 'True'",
        ),
    ],
    ids=str,
)
def test_other_mathematics(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = write(tmp_path, weights())
    (folder / "cfg.json").write_text(json.dumps({**json.loads((folder / "cfg.json").read_text()), **config}))
    with pytest.raises(ProbeError) as refusal:
        convert(folder, options(features=(1,)))
    assert words in str(refusal.value)
    assert "cfg.json" in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"W_enc": torch.zeros(SIZE, D)}, "W_enc: shape (40, 16), expected (16, 40)"),
        ({"b_dec": torch.zeros(D + 1)}, "b_dec: shape (17,)"),
        ({"b_enc": torch.zeros(())}, "W_enc: shape (16, 40), expected (16, 0)"),
        ({"W_dec": None}, "W_dec: not among W_enc, b_dec, b_enc"),
        ({"r_mag": torch.zeros(SIZE)}, "holds r_mag too"),
        ({"scaling_factor": torch.full((SIZE,), 2.0)}, "scaling_factor other than 1"),
        ({"b_dec": torch.full((D,), float("nan"))}, "b_enc: has values that are not finite"),
        ({"W_dec": torch.full((SIZE, D), float("inf"))}, "w_dec: has values that are not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_are_refused(change: dict[str, Tensor | None], words: str, tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in {**weights(), **change}.items() if tensor is not None}
    with pytest.raises(ProbeError) as refusal:
        convert(write(tmp_path, tensors), options(features=(1,)))
    assert words in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)


@pytest.mark.parametrize("features", [(), (SIZE,), (1, 1)])
def test_features_that_are_not_there(features: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="features"):
        convert(write(tmp_path, weights()), options(features=features))


def test_a_damaged_weights_file(tmp_path: Path) -> None:
    folder = write(tmp_path, weights())
    path = folder / "sae_weights.safetensors"
    for data in (path.read_bytes()[:-8], path.read_bytes()[:4], b""):
        path.write_bytes(data)
        with pytest.raises(ProbeError, match=r"sae_weights\.safetensors"):
            convert(folder, options(features=(1,)))
    path.unlink()
    with pytest.raises(ProbeError, match=r"sae_weights\.safetensors"):
        convert(folder, options(features=(1,)), "saelens")


def test_a_layer_beyond_the_model(tmp_path: Path) -> None:
    folder = write(tmp_path, weights(), metadata={"hook_name": f"blocks.{LAYERS}.hook_resid_post"})
    with pytest.raises(
        ProbeError, match=f"layer: the model has no layer {LAYERS}; its layers are 0 to {LAYERS - 1}"
    ):
        convert(folder, options(features=(1,)))
