"""Errors a caller can act on. Each names the field, what it got and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = [
    "ConfigError",
    "DecoderNotFoundError",
    "HostVersionError",
    "LifecycleError",
    "ProbeError",
    "SpecError",
    "listing",
]


class SpecError(ValueError):
    """A steering spec that cannot be run: HTTP 400 online, ValueError offline.

    `field` is the dotted path of the offending field, `got` the rejected value; `reason` says why, for the
    metrics, where the field does not (`ksteer_vllm.admission.refusals`).
    """

    def __init__(self, field: str, message: str, got: Any = None, *, reason: str = "") -> None:
        self.field = field
        self.got = got
        self.reason = reason
        path = field if field == "ksteer" or field.startswith("ksteer.") else f"ksteer.{field}"
        super().__init__(f"{path}: {message}")


class ProbeError(ValueError):
    """A probe folder that cannot be read, or that does not fit the engine it is meant for."""


class ConfigError(ValueError):
    """An engine option (`--ksteer-*`, or a key of `additional_config["ksteer"]`) that cannot be used."""


class DecoderNotFoundError(ValueError):
    """No decoder stack was found in the model; the message says what was looked for."""


class HostVersionError(RuntimeError):
    """The installed vLLM is too old, or a symbol this plugin relies on is missing from it."""


class LifecycleError(RuntimeError):
    """A change to a running server's probes or presets that was not made; nothing has changed.

    status: the HTTP status it is answered with; field: what it is about; retry_after: seconds after which
    trying again may help, or None.
    """

    def __init__(self, status: int, field: str, message: str, retry_after: int | None = None) -> None:
        self.status = status
        self.field = field
        self.retry_after = retry_after
        super().__init__(message)


def listing(names: Iterable[Any], limit: int = 20) -> str:
    """`a, b, c` for messages; at most `limit` names."""
    items = [str(name) for name in names]
    if not items:
        return "none"
    more = f", … ({len(items) - limit} more)" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
