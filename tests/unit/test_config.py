"""Engine options: `additional_config["ksteer"]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm import ConfigError, enable
from ksteer_vllm.config import EngineConfig, ResolvedConfig

pytestmark = pytest.mark.pure


def test_defaults() -> None:
    config = EngineConfig()
    assert (config.layers, config.max_probes, config.max_width, config.max_steps) == ("probe", 8, 256, 256)
    assert (config.max_stages, config.reports, config.kernels) == (2, True, "auto")
    assert not ResolvedConfig.recognises(config.as_json())


def test_enable_gives_plain_json_that_parses_back() -> None:
    enabled = enable(probes={"tones": Path("some") / "folder"}, layers=[3, 1, 3], max_steps=64)
    assert json.loads(json.dumps(enabled)) == enabled
    assert set(enabled) == {"ksteer"}
    config = EngineConfig.parse(enabled["ksteer"])
    assert config.probes["tones"].path == str(Path("some") / "folder")
    assert config.layers == (1, 3)
    assert config.as_json() == enabled["ksteer"]


@pytest.mark.parametrize(
    ("layers", "parsed"),
    [("probe", "probe"), ("all", "all"), ("3", (3,)), ("5,3,3", (3, 5)), ([2], (2,)), ((0, 1), (0, 1))],
)
def test_layers(layers: Any, parsed: Any) -> None:
    assert EngineConfig.parse({"layers": layers}).layers == parsed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": "some"}, ["layers", "probe, all or a list", "'some'"]),
        ({"layers": [-1]}, ["layers", "count from 0", "-1"]),
        ({"layers": "1,-1"}, ["layers"]),
        ({"layers": 3}, ["layers"]),
        ({"max_probes": 0}, ["max_probes", "greater than or equal to 1"]),
        ({"max_width": 1.5}, ["max_width", "integer"]),
        ({"max_steps": "many"}, ["max_steps", "integer", "'many'"]),
        ({"max_stages": 0}, ["max_stages", "greater than or equal to 1"]),
        ({"max_stages": 65}, ["max_stages", "less than or equal to 64", "65"]),
        ({"reports": "sometimes"}, ["reports", "boolean", "'sometimes'"]),
        ({"kernels": "cuda"}, ["kernels", "'auto', 'torch' or 'triton'"]),
        ({"probes": ["tones"]}, ["probes", "name -> probe folder"]),
        ({"probes": {"tones": 3}}, ["probes.tones"]),
        ({"capture": {"layers": []}}, ["capture.layers"]),
        ({"resolved": True}, ["resolved", "unknown"]),
        ({"layerz": "all"}, ["layerz", "unknown", "probes, layers, max_probes"]),
        ({"probes": {"a": "x", "b": "y"}, "max_probes": 1}, ["max_probes", "at most 1 probes, got 2"]),
    ],
    ids=str,
)
def test_refusals_name_the_key(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refusal:
        EngineConfig.parse(options)
    assert str(refusal.value).startswith("ksteer option ")
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_enable_refuses_too() -> None:
    with pytest.raises(ConfigError, match="ksteer option strength: unknown"):
        enable(strength=3)
    with pytest.raises(ConfigError, match="ksteer option layers"):
        enable(layers="every")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, 3, "probe", []])
def test_an_option_object_of_another_type(value: Any) -> None:
    with pytest.raises(ConfigError, match="ksteer option ksteer"):
        EngineConfig.parse(value)
