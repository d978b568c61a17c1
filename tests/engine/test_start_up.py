"""What cannot work is refused when the engine starts, by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ksteer_vllm
from ksteer_vllm import ConfigError, DecoderNotFoundError, ProbeError
from testbed.compare import assert_differ
from testbed.probes import random_probe
from tests.support.engines import OPTIONS, generate_one, start_engine, worker


def configure(model: Path, enabled: dict[str, Any] | None = None, **options: Any) -> Any:
    """What every way to start an engine goes through first, `vllm serve` too."""
    from vllm.engine.arg_utils import EngineArgs

    arguments = {**OPTIONS, **options, "additional_config": enabled or {}}
    return EngineArgs(model=str(model), **arguments).create_engine_config()


@pytest.mark.parametrize(
    ("made_for", "words"),
    [
        ({"hidden_size": 32}, ["'tones'", "hidden_size 32", "has 64"]),
        ({"model_type": "qwen2"}, ["'tones'", "model_type qwen2", "has llama"]),
        ({"num_layers": 5}, ["'tones'", "num_layers 5", "has 4"]),
        ({"width": 300}, ["'tones'", "width 300", "max_width=256"]),
    ],
    ids=["hidden size", "model type", "number of layers", "width"],
)
def test_a_probe_that_does_not_fit(
    llama: Path, tmp_path: Path, made_for: dict[str, Any], words: list[str]
) -> None:
    random_probe(**made_for).save(tmp_path)
    with pytest.raises(ProbeError) as refusal:
        configure(llama, ksteer_vllm.enable(probes={"tones": tmp_path}))
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_a_wider_limit_lets_a_wide_probe_in(llama: Path, tmp_path: Path) -> None:
    random_probe(width=300).save(tmp_path)
    config = configure(llama, ksteer_vllm.enable(probes={"tones": tmp_path}, max_width=300))
    assert config.additional_config["ksteer"]["resolved"]


@pytest.mark.parametrize("name", ["probe.safetensors", "probe.json"])
def test_a_damaged_or_missing_probe(llama: Path, probes: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "probe"
    shutil.copytree(probes["tones"], folder)
    enabled = ksteer_vllm.enable(probes={"tones": folder})
    data = bytearray((folder / name).read_bytes())
    place = data.index(b'"layer": 1') + 9 if name == "probe.json" else len(data) - 3
    data[place] = ord("2")
    (folder / name).write_bytes(data)
    with pytest.raises(ProbeError, match=r"probe 'tones': .* digest .* does not match"):
        configure(llama, enabled)
    (folder / name).unlink()
    with pytest.raises(ProbeError, match=f"probe 'tones': .*{name}: No such file"):
        configure(llama, enabled)


def test_a_probe_that_changes_between_configuration_and_loading(llama: Path, tmp_path: Path) -> None:
    random_probe().save(tmp_path)
    config = configure(llama, ksteer_vllm.enable(probes={"tones": tmp_path}))
    random_probe(seed=5).save(tmp_path)
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor.abstract import Executor

    with pytest.raises(ProbeError, match="has changed since the engine was configured"):
        LLMEngine(config, executor_class=Executor.get_class(config), log_stats=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": [4]}, ["layers", "4", "0 to 3"]),
        ({"layers": [0, 99]}, ["layers", "99", "0 to 3"]),
        ({"capture": {"layers": [7]}}, ["capture.layers", "7", "0 to 3"]),
    ],
    ids=["layer", "layers", "capture"],
)
def test_a_layer_that_does_not_exist(
    llama: Path, probes: dict[str, Path], options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as refusal:
        configure(llama, ksteer_vllm.enable(probes=probes, **options))
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_options_given_by_hand_are_checked_too(llama: Path, probes: dict[str, Path]) -> None:
    """additional_config is plain JSON: no `enable` needed, the same checks."""
    with pytest.raises(ConfigError, match=r"ksteer option layerz: unknown; allowed: probes, layers"):
        configure(llama, {"ksteer": {"layerz": [1]}})
    config = configure(llama, {"ksteer": {"probes": {"tones": str(probes["tones"])}}, "other": {"kept": 1}})
    assert config.additional_config["ksteer"]["layers"] == [1]
    assert config.additional_config["other"] == {"kept": 1}


@pytest.mark.parametrize(
    ("part", "name", "words"),
    [
        ("parallel_config", "enable_dbo", "dual-batch overlap"),
        ("parallel_config", "ubatch_size", "micro-batching"),
        ("cache_config", "kv_sharing_fast_prefill", "KV-sharing fast prefill"),
        ("parallel_config", "prefill_context_parallel_size", "prefill context parallelism"),
        ("compilation_config.pass_config", "enable_sp", "sequence parallelism"),
        ("model_config", "runner_type", "generation engine"),
    ],
)
def test_engine_features_that_split_the_tokens(
    llama: Path, probes: dict[str, Path], part: str, name: str, words: str
) -> None:
    """Set on a finished configuration: vLLM's CPU platform turns most of them off before that."""
    from ksteer_vllm.host.settings import refuse_unsupported

    config = configure(llama, ksteer_vllm.enable(probes=probes))
    refuse_unsupported(config)
    owner = config
    for step in part.split("."):
        owner = getattr(owner, step)
    if not hasattr(owner, name):
        pytest.skip(f"this vLLM has no {name}")
    object.__setattr__(owner, name, "pooling" if name == "runner_type" else 2)
    with pytest.raises(ConfigError, match=words):
        refuse_unsupported(config)


def test_float16_is_refused(llama: Path, probes: dict[str, Path]) -> None:
    configure(llama, dtype="float16")
    with pytest.raises(ConfigError, match=r"cannot run with float16.*use bfloat16 or float32"):
        configure(llama, ksteer_vllm.enable(probes=probes), dtype="float16")


def test_capturing_needs_an_eager_engine(llama: Path) -> None:
    enabled = ksteer_vllm.enable(capture={"layers": [1]})
    configure(llama, enabled)
    with pytest.raises(ConfigError, match="needs an eager engine"):
        configure(llama, enabled, enforce_eager=False)


def test_a_decoder_that_is_not_there_stops_the_start(llama: Path, probes: dict[str, Path]) -> None:
    with pytest.raises(DecoderNotFoundError, match=r"'model.blocks' .* not a ModuleList.*model\.layers"):
        start_engine(llama, probes, steering={"decoder": "model.blocks"})


def test_a_decoder_named_by_hand(
    llama: Path, probes: dict[str, Path], prompts: Callable[..., list[list[int]]]
) -> None:
    llm = start_engine(llama, probes, steering={"decoder": "model.layers"})
    layers = worker(llm).model_runner.get_model().model.layers
    assert [type(layer).__name__.startswith("Steered") for layer in layers] == [False, True, True, False]
    spec = {"probe": "tones", "target": ["warm"], "alpha": 1}
    prompt = prompts(1, 12)[0]
    assert_differ(generate_one(llm, prompt, spec), generate_one(llm, prompt))


def test_only_open_layers_are_touched_and_the_rest_keep_their_names(llama: Path, engine: Any) -> None:
    one = start_engine(llama, steering={"layers": [2]}, probes={})
    model = worker(one).model_runner.get_model()
    assert [type(layer).__name__.startswith("Steered") for layer in model.model.layers] == [
        False,
        False,
        True,
        False,
    ]
    assert isinstance(model.model.layers[2], type(model.model.layers[1]))
    every = worker(engine).model_runner.get_model()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in every.named_parameters()]
