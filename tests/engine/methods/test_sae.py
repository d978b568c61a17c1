"""Features of a sparse autoencoder: a few of a dictionary's, against the whole dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ksteer_vllm import ModelIdentity, ProbeMetadata
from ksteer_vllm.probes.probe import Probe
from testbed.families import SCALE
from tests.engine.methods.steering import HIDDEN_SIZE, TOLERANCE, assert_close, assert_moved, steered, vectors

DICTIONARY = 200
CHOSEN = (3, 17, 60, 141, 199)
LABELS = tuple(f"f{index}" for index in CHOSEN)
NEAR = 2e-5
"""A feature nearer to its threshold than this may be on or off in float32: such tokens are left out."""


@dataclass
class Dictionary:
    """f = act(w_enc (x - b_dec) + b_enc); x = w_dec^T f + b_dec + error. Float64; rows are features."""

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    threshold: Tensor

    @classmethod
    def random(cls, activation: str) -> Dictionary:
        generator = torch.Generator().manual_seed(11)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=generator) * scale
            return values.double()

        threshold = normal(DICTIONARY, scale=0.3).abs()
        return cls(
            w_enc=normal(DICTIONARY, HIDDEN_SIZE, scale=2 * HIDDEN_SIZE**-0.5),
            b_enc=normal(DICTIONARY, scale=0.3),
            w_dec=torch.nn.functional.normalize(normal(DICTIONARY, HIDDEN_SIZE), dim=1),
            b_dec=normal(HIDDEN_SIZE, scale=0.2),
            threshold=threshold if activation == "jumprelu" else torch.zeros_like(threshold),
        )

    def before_activation(self, x: Tensor) -> Tensor:
        return (x.double() - self.b_dec) @ self.w_enc.T + self.b_enc

    def encode(self, x: Tensor) -> Tensor:
        z = self.before_activation(x)
        return torch.where(z > self.threshold, z, torch.zeros_like(z))

    def decode(self, features: Tensor) -> Tensor:
        return features @ self.w_dec + self.b_dec

    def clamped(self, x: Tensor, values: dict[str, float]) -> Tensor:
        """Encode with every feature, set some, decode, and add what the dictionary did not explain of x."""
        features = self.encode(x)
        error = x.double() - self.decode(features)
        for label, value in values.items():
            features[:, CHOSEN[LABELS.index(label)]] = value
        return self.decode(features) + error

    def probe(self, activation: str) -> Probe:
        """The chosen features, b_dec folded into their b_enc."""
        rows = torch.tensor(CHOSEN)
        tensors = {
            "w_enc": self.w_enc[rows],
            "b_enc": (self.b_enc - self.w_enc @ self.b_dec)[rows],
            "w_dec": self.w_dec[rows],
            "threshold": self.threshold[rows],
        }
        identity = ModelIdentity(name="tiny", model_type="llama", hidden_size=HIDDEN_SIZE, num_layers=4)
        metadata = ProbeMetadata(
            family="sae", labels=LABELS, layer=1, model=identity, activation_scale=SCALE,
            settings={"activation": activation},
        )  # fmt: skip
        return Probe(metadata, {name: tensor.float() for name, tensor in tensors.items()})

    def clear(self, x: Tensor) -> Tensor:
        """[n] bool: no chosen feature near its threshold."""
        return ((self.before_activation(x) - self.threshold)[:, list(CHOSEN)].abs() > NEAR).all(1)


VALUES: list[dict[str, float]] = [
    {"f17": 4.0},
    {"f3": 0.0, "f199": 0.0},
    {"f3": 2.5, "f60": 0.0, "f141": -1.0, "f17": 0.1, "f199": 7.0},
]


@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
@pytest.mark.parametrize("values", VALUES, ids=str)
def test_clamping_a_few_features_is_clamping_them_in_the_whole_dictionary(
    activation: str, values: dict[str, float]
) -> None:
    dictionary, x = Dictionary.random(activation), vectors(80)
    clear = dictionary.clear(x)
    assert int(clear.sum()) > 70
    on = dictionary.encode(x)[:, list(CHOSEN)] > 0
    assert on.any(0).all(), "a feature that is never on tests nothing"
    assert (~on).any(0).all(), "nor does one that always is"
    actual = steered(dictionary.probe(activation), {"method": "clamp", "values": values}, x)
    assert_close(actual[clear], dictionary.clamped(x, values)[clear])
    assert float((actual - x).norm(dim=1).mean()) > 0.1


def test_the_threshold_decides_which_features_are_on() -> None:
    """The same weights with ReLU and with JumpReLU differ on tokens between 0 and the threshold."""
    values, x = {label: 0.0 for label in LABELS}, vectors(80)
    both = [
        steered(Dictionary.random(name).probe(name), {"method": "clamp", "values": values}, x)
        for name in ("relu", "jumprelu")
    ]
    assert float((both[0] - both[1]).abs().max()) > 1000 * TOLERANCE["atol"]


@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_clamping_a_feature_to_what_it_is_keeps_x(activation: str) -> None:
    dictionary, x = Dictionary.random(activation), vectors(1)
    now = dictionary.encode(x)[0, list(CHOSEN)]
    values = dict(zip(LABELS, now.tolist(), strict=True))
    assert_close(steered(dictionary.probe(activation), {"method": "clamp", "values": values}, x), x)


@pytest.mark.parametrize(
    "mix", [{"target": ["f17"]}, {"target": {"f3": 1, "f60": 3}, "avoid": ["f199"]}], ids=str
)
def test_add_is_the_decoders_directions(mix: dict[str, Any]) -> None:
    dictionary, x = Dictionary.random("jumprelu"), vectors()
    directions = {f"f{index}": dictionary.w_dec[index] for index in CHOSEN}
    shift = torch.zeros(HIDDEN_SIZE, dtype=torch.float64)
    for side, sign in (("target", 1), ("avoid", -1)):
        named = mix.get(side, {})
        named = named if isinstance(named, dict) else dict.fromkeys(named, 1)
        for label, weight in named.items():
            shift = shift + sign * weight / sum(named.values()) * directions[label]
    it = dictionary.probe("jumprelu")
    assert_close(steered(it, {**mix, "alpha": 2.0}, x), x.double() + 2 * shift)
    normalised = steered(it, {**mix, "alpha": 0.25, "unit": "normalised"}, x)
    assert_close((normalised - x).norm(dim=1), torch.full((len(x),), 0.25 * SCALE[1]))
    assert_moved(normalised, x)
