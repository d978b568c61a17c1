"""`compat: "pip-0.1.2"` against the package's hook in float64, quirk by quirk.

Everything between a spec and the change of the residual stream is the plugin's: admission, windows, device
tables, kernels (torch and native). The change is compared where it is written, so x's own rounding is not in
it: relative error at most 1e-6 of each token's change, in float32 with a float64 reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ksteer_vllm import ModelIdentity, ProbeMetadata, SpecError
from ksteer_vllm.admission.registry import Registry
from ksteer_vllm.admission.resolve import resolve_config
from ksteer_vllm.config import EngineConfig
from ksteer_vllm.device.state import SteeringState
from ksteer_vllm.probes.probe import Probe
from tests.support.pip_reference import Classifier, request

TOLERANCE = 1e-6
D, WIDTH, LAYERS = 64, 128, 4
LABELS = ("casual", "cautious", "concise", "empathetic", "expert")
MODEL = ModelIdentity(name="tiny", model_type="llama", hidden_size=D, num_layers=LAYERS)
PIP = "pip-0.1.2"

Steer = Callable[..., Tensor]


def drawn(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def classifier(labels: Sequence[str] = LABELS, seed: int = 0) -> Classifier:
    """The package's MLP, 128 units twice, with random weights."""
    sizes = [(WIDTH, D), (WIDTH, WIDTH), (len(labels), WIDTH)]
    layers = [
        (drawn(*size, seed=10 * seed + i, scale=size[1] ** -0.5), drawn(size[0], seed=100 + i, scale=0.3))
        for i, size in enumerate(sizes)
    ]
    return Classifier(labels, layers)


def probe_of(source: Classifier, layer: int = 2, **metadata: Any) -> Probe:
    """Its weights as a probe: the package does not standardise its input."""
    (w1, b1), (w2, b2), (w3, b3) = source.layers
    tensors = {
        "w1": w1, "b1": b1, "w2": w2, "b2": b2, "w3": w3, "b3": b3,
        "input_mean": torch.zeros(D), "input_std": torch.ones(D),
        "label_vectors": torch.zeros(len(source.labels), D),
    }  # fmt: skip
    return Probe(ProbeMetadata(labels=tuple(source.labels), layer=layer, model=MODEL, **metadata), tensors)


def linear_of(source: Classifier, layer: int = 2) -> Probe:
    ((weight, bias),) = source.layers
    tensors = {"weight": weight, "bias": bias, "input_mean": torch.zeros(D), "input_std": torch.ones(D)}
    metadata = ProbeMetadata(family="linear", labels=tuple(source.labels), layer=layer, model=MODEL)
    return Probe(metadata, tensors)


@pytest.fixture(params=["torch", "auto"])
def steer(request: pytest.FixtureRequest, tmp_path: Path) -> Steer:
    """(probe, spec, x [T, d], P, chunks) -> each token's change [T, d] at a layer of one request.

    chunks: how the scheduler cuts the tokens into forward passes; default: prompt, then token by token.
    """

    def run(
        probe: Probe,
        spec: dict[str, Any],
        x: Tensor,
        num_prompt_tokens: int,
        *,
        chunks: Sequence[int] | None = None,
        layer: int = 2,
        options: dict[str, Any] | None = None,
    ) -> Tensor:
        probe.save(tmp_path / "it")
        fields = {"probes": {"it": str(tmp_path / "it")}, "layers": "all", "kernels": request.param}
        config = resolve_config(EngineConfig.parse({**fields, **(options or {})}), MODEL)
        admitted = Registry.from_config(config).admit({"probe": "it", "compat": PIP, **spec})
        state = SteeringState(
            config, hidden_size=D, weight_dtype=torch.float32, device=torch.device("cpu"),
            max_rows=2, max_tokens=len(x),
        )  # fmt: skip
        state.set_row(1, admitted.for_request(num_prompt_tokens, len(x) - num_prompt_tokens + 1))
        changes, start = [], 0
        for size in chunks or [num_prompt_tokens, *[1] * (len(x) - num_prompt_tokens)]:
            positions = torch.arange(start, start + size)
            state.begin_step(torch.tensor([1]), torch.tensor([0, size], dtype=torch.int32), positions, size)
            hidden = torch.zeros(size, D)
            state.at_layer(hidden, x[start : start + size].clone(), layer)
            state.end_step()
            changes.append(hidden)
            start += size
        assert start == len(x)
        return torch.cat(changes)

    return run


def assert_close(change: Tensor, x: Tensor, expected: Tensor) -> None:
    wanted = expected - x.double()
    assert (wanted.norm(dim=1) > 0).all()
    error = (change.double() - wanted).norm(dim=1) / wanted.norm(dim=1)
    print(f"largest relative error {error.max():.1e}")
    assert error.max() < TOLERANCE


@pytest.mark.parametrize("length", [1, 2, 7, 33, 500])
@pytest.mark.parametrize("avoid", [[], ["casual"], ["casual", "cautious", "concise"]], ids=len)
def test_quirk_a_prompt_tokens_step_is_divided_by_the_prompts_length(
    steer: Steer, length: int, avoid: list[str]
) -> None:
    """And the loss weighs the labels of a side equally, target against avoid."""
    source, x = classifier(), drawn(length, D, seed=1)
    spec = {"target": ["expert", "empathetic"], "avoid": avoid, "alpha": 3.0}
    expected = request(x, length, source, target=spec["target"], avoid=avoid, strength=3.0)
    assert_close(steer(probe_of(source), spec, x, length), x, expected)


def test_quirk_a_decoded_tokens_step_is_whole(steer: Steer) -> None:
    source, x = classifier(), drawn(21, D, seed=2)
    spec = {"target": ["concise"], "avoid": ["expert"], "alpha": 2.5}
    expected = request(x, 9, source, target=["concise"], avoid=["expert"], strength=2.5)
    change = steer(probe_of(source), spec, x, 9)
    assert_close(change, x, expected)
    assert change[9:].norm(dim=1).mean() > 4 * change[:9].norm(dim=1).mean()


def test_quirk_the_prompts_last_token_is_prompt(steer: Steer) -> None:
    """Ours steers it whole: it produces the reply's first token."""
    source, x = classifier(), drawn(9, D, seed=3)
    change = steer(probe_of(source), {"target": ["casual"], "alpha": 2.0}, x, 8)
    ours = steer(probe_of(source), {"target": ["casual"], "alpha": 2.0, "num_steps": 1, "compat": None}, x, 8)
    torch.testing.assert_close(8 * change[7], ours[7])
    torch.testing.assert_close(change[8], ours[8])
    assert not ours[:7].any()


def test_quirk_in_a_padded_batch_the_longest_prompt_divides(steer: Steer) -> None:
    source, x = classifier(), drawn(12, D, seed=4)
    spec = {"target": ["casual"], "alpha": 2.0, "compat": {"version": PIP, "padded_length": 31}}
    expected = request(x, 9, source, target=["casual"], strength=2.0, padded_length=31)
    assert_close(steer(probe_of(source), spec, x, 9), x, expected)


@pytest.mark.parametrize(("steps", "decay"), [(1, 1.0), (4, 1.0), (4, 0.5), (3, 0.0)])
def test_quirk_every_step_of_the_prompt_is_divided(steer: Steer, steps: int, decay: float) -> None:
    """steps and step_size_decay are arguments of the package's hook that its API never sets."""
    source, x = classifier(), drawn(14, D, seed=5)
    spec = {
        "target": ["cautious"],
        "avoid": ["casual"],
        "alpha": 1.5,
        "num_steps": steps,
        "step_decay": decay,
    }
    expected = request(
        x, 11, source, target=["cautious"], avoid=["casual"], strength=1.5, steps=steps, decay=decay
    )
    assert_close(steer(probe_of(source), spec, x, 11), x, expected)


def test_quirk_one_step_of_strength_one_by_default(steer: Steer) -> None:
    source, x = classifier(), drawn(6, D, seed=6)
    expected = request(x, 4, source, target=["expert"])
    assert_close(steer(probe_of(source), {"target": ["expert"]}, x, 4), x, expected)
    calibrated = probe_of(source, default_alpha={"gradient": 7.0})  # for another edit
    assert_close(steer(calibrated, {"target": ["expert"]}, x, 4), x, expected)


def test_quirk_the_same_classifier_steers_the_output_of_any_block(steer: Steer) -> None:
    """train_layer and steer_layers are independent: what it was trained on does not matter to the hook."""
    source, x = classifier(), drawn(6, D, seed=7)
    expected = request(x, 4, source, target=["expert"], strength=2.0)
    for layer in (0, 3):
        spec = {"target": ["expert"], "alpha": 2.0, "layers": [0, 3]}
        assert_close(steer(probe_of(source, layer=2), spec, x, 4, layer=layer), x, expected)
    assert not steer(probe_of(source), {"target": ["expert"], "layers": [0, 3]}, x, 4, layer=2).any()


def test_quirk_labels_are_steered_by_name_in_whatever_order_the_classifier_has_them(steer: Steer) -> None:
    """The package sorts a predefined task's labels; a data set's come in the order of a Python set."""
    order = ["expert", "casual", "empathetic", "concise", "cautious"]
    rows = [LABELS.index(label) for label in order]
    source, x = classifier(), drawn(7, D, seed=8)
    (first, second, (w3, b3)) = source.layers
    shuffled = Classifier(order, [first, second, (w3[rows], b3[rows])])
    spec = {"target": ["expert"], "avoid": ["concise"], "alpha": 2.0}
    expected = request(x, 5, shuffled, target=["expert"], avoid=["concise"], strength=2.0)
    for each in (source, shuffled):
        assert_close(steer(probe_of(each), spec, x, 5), x, expected)


def test_a_linear_classifier(steer: Steer) -> None:
    """The package's clf_type "linear"."""
    source = Classifier(LABELS, [(drawn(len(LABELS), D, seed=9), drawn(len(LABELS), seed=10))])
    x = drawn(9, D, seed=11)
    spec = {"target": ["expert"], "avoid": ["casual", "concise"], "alpha": 0.7}
    expected = request(x, 6, source, target=["expert"], avoid=["casual", "concise"], strength=0.7)
    assert_close(steer(linear_of(source), spec, x, 6), x, expected)


@pytest.mark.parametrize("chunks", [[3, 6, 1, 1, 1], [4, 7, 1], [12]], ids=str)
def test_how_the_engine_cuts_a_request_into_passes_does_not_matter(steer: Steer, chunks: list[int]) -> None:
    """Chunked prefill, speculation, and a preempted request whose reply is read again like a prompt."""
    source, x = classifier(), drawn(12, D, seed=12)
    expected = request(x, 9, source, target=["casual"], strength=2.0)
    spec = {"target": ["casual"], "alpha": 2.0}
    assert_close(steer(probe_of(source), spec, x, 9, chunks=chunks), x, expected)


def test_prompt_and_reply_are_one_stage(steer: Steer) -> None:
    source, x = classifier(), drawn(12, D, seed=13)
    expected = request(x, 9, source, target=["casual"], strength=2.0)
    spec = {"target": ["casual"], "alpha": 2.0}
    assert_close(steer(probe_of(source), spec, x, 9, options={"max_stages": 1}), x, expected)


def test_a_reply_of_one_token_has_no_generation_window(steer: Steer) -> None:
    source, x = classifier(), drawn(5, D, seed=14)
    expected = request(x, 5, source, target=["casual"])
    assert_close(steer(probe_of(source), {"target": ["casual"]}, x, 5), x, expected)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"loss": "softmin"}, "loss"),
        ({"until": {"target": 0.9}}, "until"),
        ({"unit": "normalised"}, "unit"),
        ({"cap": 0.5}, "cap"),
        ({"preserve_norm": True}, "preserve_norm"),
        ({"fade": 9}, "fade"),
        ({"condition": {"probe": "it", "label": "casual", "above": 0.5}}, "condition"),
        ({"where": "generation"}, "where"),
        ({"method": "add"}, "method"),
        ({"target": {"casual": 1, "expert": 2}}, "target"),
        ({"compat": {"version": PIP, "padded_length": 4}}, "compat.padded_length"),
        ({"compat": "pip-0.1.3"}, "compat.version"),
        ({"compat": {"version": PIP, "padded_length": 0}}, "compat.padded_length"),
    ],
    ids=str,
)
def test_what_the_package_cannot_do_is_refused(steer: Steer, change: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        steer(probe_of(classifier()), {"target": ["casual"], "alpha": 1.0, **change}, drawn(8, D, seed=1), 6)
    assert caught.value.field == field
    print(caught.value)


def test_the_canonical_form_is_admitted_as_itself(tmp_path: Path) -> None:
    probe_of(classifier()).save(tmp_path / "it")
    config = EngineConfig.parse({"probes": {"it": str(tmp_path / "it")}})
    registry = Registry.from_config(resolve_config(config, MODEL))
    first = registry.admit({"probe": "it", "target": ["casual"], "compat": PIP})
    (edit,) = first.edits
    assert edit.canonical["compat"] == {"version": PIP}
    assert edit.canonical["num_steps"] == 1
    again = registry.admit(edit.canonical)
    assert again.for_request(7, 3) == first.for_request(7, 3)
    plain = registry.admit(
        {"probe": "it", "target": ["casual"], "alpha": 1.0, "num_steps": 1, "where": "both"}
    )
    assert plain.edits[0].fingerprint != edit.fingerprint
