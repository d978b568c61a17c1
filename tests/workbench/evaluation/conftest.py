"""A suite of random probes for a tiny model."""

from __future__ import annotations

import pytest

from tests.support.engines import prepare_environment

prepare_environment()

from ksteer_vllm.bench.suite import Suite, SuiteFile  # noqa: E402
from ksteer_vllm.probes.probe import Probe  # noqa: E402
from testbed.families import random_family_probe  # noqa: E402
from testbed.models import make_model  # noqa: E402
from testbed.probes import LABELS  # noqa: E402


def probes() -> dict[str, Probe]:
    return {
        "mlp": random_family_probe("mlp"),
        "caa": random_family_probe("vectors"),
        "ace": random_family_probe("ace"),
        "actadd": random_family_probe("vectors", seed=2, default_where={"prompt": (0, 4)}),
        "evaluation": random_family_probe("mlp", seed=5, layer=2),
    }


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    folder = tmp_path_factory.mktemp("evaluate") / "suite"
    model = make_model("llama", folder.parent / "llama")
    for name, probe in probes().items():
        probe.save(folder / name)
    prompts = [" ".join(f"w{10 + 7 * index + k}" for k in range(6)) for index in range(4)]
    file = SuiteFile.model_validate(
        {
            "model": str(model),
            "task": "tiny",
            "data_digest": "d",
            "labels": LABELS,
            "layers": (1,),
            "judge": "probe",
            "engine_options": {
                "dtype": "float32",
                "max_model_len": 128,
                "kv_cache_memory_bytes": 8 << 20,
                "gpu_memory_utilization": 0.1,
                "max_num_seqs": 32,
            },
            "prompts": {"calibration": prompts[:2], "evaluation": prompts[2:]},
        }
    )
    Suite(folder, file).write()
    return Suite.open(folder)
