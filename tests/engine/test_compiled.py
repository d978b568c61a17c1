"""torch.compile: a compiled engine steers like an eager one, and no engine runs another one's graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed.compare import assert_all_same, assert_differ
from tests.support.engines import generate, start_engine, worker


def configured(model: Path, **options: Any) -> Any:
    """The VllmConfig of an engine, which is not started."""
    from vllm.engine.arg_utils import EngineArgs

    from tests.support.engines import OPTIONS

    return EngineArgs(model=str(model), **{**OPTIONS, **options}).create_engine_config()


def test_the_compile_cache_key_covers_what_steering_changes(llama: Path, probes: dict[str, Path]) -> None:
    import ksteer_vllm

    def key(**options: Any) -> str:
        return configured(llama, additional_config=ksteer_vllm.enable(**options)).compute_hash()

    keys = [
        configured(llama).compute_hash(),
        key(probes=probes, layers=[1]),
        key(probes=probes, layers=[2]),
        key(probes=probes, layers=[1, 2]),
        key(probes=probes, layers="all"),
        key(probes={"tones": probes["tones"]}, layers="probe"),
        key(probes=probes, layers=[1], max_stages=3),
    ]
    assert len(set(keys)) == len(keys)
    assert key(probes=probes, layers=[1]) == keys[1]


def test_a_refitted_probe_of_another_layer_changes_the_key(llama: Path, tmp_path: Path) -> None:
    """`layers="probe"` is resolved to numbers before the key is made."""
    import ksteer_vllm
    from testbed.probes import random_probe

    keys = []
    for layer in (1, 2):
        random_probe(layer=layer).save(tmp_path)
        enabled = ksteer_vllm.enable(probes={"tones": tmp_path})
        config = configured(llama, additional_config=enabled)
        assert config.additional_config["ksteer"]["layers"] == [layer]
        keys.append(config.compute_hash())
    assert keys[0] != keys[1]


@pytest.mark.slow
def test_compiled_engines_steer_like_an_eager_one_and_keep_their_own_graphs(
    llama: Path,
    probes: dict[str, Path],
    engine: Any,
    tmp_path: Path,
    vllm_environment: Callable[..., None],
    prompts: Callable[..., list[list[int]]],
) -> None:
    """Two engines that differ only in the steered layers, with one cache root: 1e-3 from the eager engine."""
    vllm_environment(VLLM_CACHE_ROOT=str(tmp_path), VLLM_USE_AOT_COMPILE="1")
    vllm_environment(TORCHINDUCTOR_CACHE_DIR=str(tmp_path))  # restored afterwards: vLLM overwrites it
    asked = prompts(8, 24)
    folders = []
    for layers in ([1], [1, 3]):
        compiled = start_engine(
            llama,
            probes,
            steering={"layers": layers},
            enforce_eager=False,
            compilation_config={"mode": 3},  # vLLM's CPU platform makes it mode 2, still with a cache folder
        )
        config = worker(compiled).vllm_config.compilation_config
        assert config.mode != 0, "not compiled"
        folders.append(config.local_cache_dir)
        steered = [
            {"probe": "tones", "target": ["warm"], "alpha": 0.8, "where": "both", "layers": layers},
            {"probe": "tones", "avoid": ["cold"], "method": "reflect", "layers": layers},
            {"probe": "moods", "target": ["glad"], "alpha": -0.8, "where": "prompt", "layers": [1]},
        ]
        specs = [None, *steered, None, *steered]
        outputs = generate(compiled, asked, specs)
        engine.reset_prefix_cache()
        assert_all_same(outputs, generate(engine, asked, specs), f"compiled, layers {layers}")
        engine.reset_prefix_cache()
        for index in (1, 2, 3):
            assert_differ(outputs[index], generate(engine, [asked[index]], [None])[0])
    assert all(folders)
    assert folders[0] != folders[1]
    assert all(Path(folder).is_relative_to(tmp_path) for folder in folders)
