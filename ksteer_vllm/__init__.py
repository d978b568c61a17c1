"""K-Steering in vLLM: gradient-based activation steering, per request, inside the serving engine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ksteer_vllm.report import report  # now: the module of the same name would take its place later
from ksteer_vllm.versions import VERSION

if TYPE_CHECKING:
    from ksteer_vllm.config import enable
    from ksteer_vllm.errors import (
        ConfigError,
        DataError,
        DecoderNotFoundError,
        HostVersionError,
        KSteerError,
        ProbeError,
        SpecError,
        UsageError,
    )
    from ksteer_vllm.ksteering import KSteering, SteeringConfig, TrainerConfig
    from ksteer_vllm.models import ModelIdentity
    from ksteer_vllm.probes.metadata import ProbeMetadata
    from ksteer_vllm.probes.probe import Probe
    from ksteer_vllm.spec import SteeringSpec, Where

__all__ = [
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

__version__ = VERSION

_HOMES = {
    "KSteering": "ksteering",
    "ModelIdentity": "models",
    "Probe": "probes.probe",
    "ProbeMetadata": "probes.metadata",
    "SteeringConfig": "ksteering",
    "SteeringSpec": "spec",
    "TrainerConfig": "ksteering",
    "Where": "spec",
    "enable": "config",
}
"""Where a name of `__all__` lives, if not in `errors`."""


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: a spec needs no torch, serving no workbench."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
