"""The small public door."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import ksteer_vllm


def test_all_is_pinned() -> None:
    assert sorted(ksteer_vllm.__all__) == [
        "ConfigError",
        "DataError",
        "DecoderNotFoundError",
        "HostVersionError",
        "KSteerError",
        "KSteering",
        "ModelIdentity",
        "Probe",
        "ProbeError",
        "ProbeMetadata",
        "SpecError",
        "SteeringConfig",
        "SteeringSpec",
        "TrainerConfig",
        "UsageError",
        "Where",
        "enable",
        "report",
    ]
    assert all(hasattr(ksteer_vllm, name) for name in ksteer_vllm.__all__)


def test_importing_the_package_imports_neither_vllm_nor_triton() -> None:
    program = (
        "import sys, ksteer_vllm, ksteer_kernels\n"
        "import ksteer_vllm.admission.registry, ksteer_vllm.device.pool, ksteer_vllm.device.state\n"
        "assert not {'vllm', 'ksteer_vllm.host'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_the_entry_point_is_named_ksteer() -> None:
    (entry,) = entry_points(group="vllm.general_plugins", name="ksteer")
    assert entry.value == "ksteer_vllm.plugin:register"
