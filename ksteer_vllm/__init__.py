"""K-Steering in vLLM: gradient-based activation steering, per request, inside the serving engine."""

from ksteer_vllm.config import enable
from ksteer_vllm.errors import ConfigError, DecoderNotFoundError, HostVersionError, ProbeError, SpecError
from ksteer_vllm.probe import ModelIdentity, Probe, ProbeMetadata
from ksteer_vllm.report import report
from ksteer_vllm.spec import SteeringSpec, Where

__all__ = [
    "ConfigError",
    "DecoderNotFoundError",
    "HostVersionError",
    "ModelIdentity",
    "Probe",
    "ProbeError",
    "ProbeMetadata",
    "SpecError",
    "SteeringSpec",
    "Where",
    "enable",
    "report",
]

__version__ = "0.1.0"
