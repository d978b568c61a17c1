"""K-Steering in vLLM: gradient-based activation steering, per request, inside the serving engine."""

from typing import TYPE_CHECKING, Any

from ksteer_vllm.config import enable
from ksteer_vllm.errors import ConfigError, DecoderNotFoundError, HostVersionError, ProbeError, SpecError
from ksteer_vllm.models import ModelIdentity
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.report import report
from ksteer_vllm.spec.spec import SteeringSpec, Where

if TYPE_CHECKING:
    from ksteer_vllm.ksteering import KSteering, SteeringConfig, TrainerConfig

__all__ = [
    "ConfigError",
    "DecoderNotFoundError",
    "HostVersionError",
    "KSteering",
    "ModelIdentity",
    "Probe",
    "ProbeError",
    "ProbeMetadata",
    "SpecError",
    "SteeringConfig",
    "SteeringSpec",
    "TrainerConfig",
    "Where",
    "enable",
    "report",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The names of `ksteer_vllm.ksteering`, imported when they are first used."""
    if name in ("KSteering", "SteeringConfig", "TrainerConfig"):
        from ksteer_vllm import ksteering

        return getattr(ksteering, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
