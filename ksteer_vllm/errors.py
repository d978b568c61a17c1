"""Errors a caller can act on. Each names the field, what it got and what is allowed.

One root; next to each, the built-in class it also is:

    KSteerError
    ├── SpecError             a steering spec that cannot be run                           ValueError
    ├── AdmissionError        the same as vLLM's server answers it, HTTP 400 (host/)       ValueError
    ├── ProbeError            a probe folder that cannot be read or used                   ValueError
    │   └── PoolFullError     no free device slots for a probe
    ├── ConfigError           an engine option that cannot be used                         ValueError
    ├── UsageError            a command or call that asks for the impossible               ValueError
    ├── DataError             labelled text that cannot be used                            ValueError
    │   └── HubError          a dataset that cannot be fetched (data/hub.py)
    ├── DecoderNotFoundError  no decoder stack in the model                                ValueError
    ├── HostVersionError      a vLLM this plugin cannot work with                          RuntimeError
    ├── LifecycleError        a change to a running server that was not made               RuntimeError
    ├── UnreachableError      an engine that cannot be verified (verify/)                  RuntimeError
    └── RefusedError          a request an engine did not run while verified (verify/)     RuntimeError
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = [
    "ConfigError",
    "DataError",
    "DecoderNotFoundError",
    "FieldProblem",
    "HostVersionError",
    "KSteerError",
    "LifecycleError",
    "PoolFullError",
    "ProbeError",
    "SpecError",
    "UsageError",
    "choices",
    "did_you_mean",
    "first_problem",
    "listing",
    "nearest",
]

_LONGEST_GUESS: Final = 80
_MOST_GUESSES: Final = 2000
"""Names that are compared with a wrong one: at most so many, of at most so many characters."""


class KSteerError(Exception):
    """The root: everything this package raises for a caller to act on."""


class SpecError(KSteerError, ValueError):
    """A steering spec that cannot be run: HTTP 400 online, ValueError offline.

    Args:
        field: The dotted path of the offending field.
        message: What is wrong, and what is allowed.
        got: The rejected value.
        reason: Why, for the metrics, where the field does not say (`ksteer_vllm.admission.refusals`).
    """

    def __init__(self, field: str, message: str, got: Any = None, *, reason: str = "") -> None:
        self.field = field
        self.got = got
        self.reason = reason
        path = field if field == "ksteer" or field.startswith("ksteer.") else f"ksteer.{field}"
        super().__init__(f"{path}: {message}")


class ProbeError(KSteerError, ValueError):
    """A probe folder that cannot be read, or that does not fit the engine it is meant for."""


class PoolFullError(ProbeError):
    """There are not enough free device slots for a probe."""


class ConfigError(KSteerError, ValueError):
    """An engine option (`--ksteer-*`, or a key of `additional_config["ksteer"]`) that cannot be used."""


class UsageError(KSteerError, ValueError):
    """A command, or a call into the workbench, that cannot be carried out as given.

    On the command line: exit status 2.
    """


class DataError(KSteerError, ValueError):
    """Labelled text that cannot be used; the message names the row."""


class DecoderNotFoundError(KSteerError, ValueError):
    """No decoder stack was found in the model; the message says what was looked for."""


class HostVersionError(KSteerError, RuntimeError):
    """The installed vLLM is too old, or a symbol this plugin relies on is missing from it."""


class LifecycleError(KSteerError, RuntimeError):
    """A change to a running server's probes or presets that was not made; nothing has changed.

    Args:
        status: The HTTP status of the response.
        field: What the error is about.
        message: What went wrong.
        retry_after: Seconds after which trying again may help, or None.
    """

    def __init__(self, status: int, field: str, message: str, retry_after: int | None = None) -> None:
        self.status = status
        self.field = field
        self.retry_after = retry_after
        super().__init__(message)


class FieldProblem(NamedTuple):
    """One problem pydantic found.

    path: where it is, outermost first. kind: pydantic's type of error. message: one phrase. got: the value.
    """

    path: tuple[str, ...]
    kind: str
    message: str
    got: Any

    @property
    def field(self) -> str:
        """The dotted path; empty for the whole value."""
        return ".".join(self.path)

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.path else self.message


def first_problem(error: ValidationError) -> FieldProblem:
    """The first problem pydantic found, without pydantic's links and its prefix to our own messages."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    return FieldProblem(tuple(map(str, first["loc"])), first["type"], message, first["input"])


def choices(got: Any, known: Iterable[Any], limit: int = 20) -> str:
    """What a name could have been.

    Args:
        got: The unknown one.
        known: Those there are.
        limit: The most that are spelt out.

    Returns:
        `warm, cold`, or, where one comes close, `warm, cold; did you mean 'warm'?`.
    """
    names = [str(name) for name in known]
    return listing(names, limit) + did_you_mean(got, names)


def did_you_mean(got: Any, names: Sequence[str]) -> str:
    """The end of a message about an unknown name: `; did you mean 'warm'?`, or nothing if none is close."""
    near = nearest(str(got), names)
    return "" if near is None else f"; did you mean {near!r}?"


def nearest(got: str, names: Sequence[str]) -> str | None:
    """The name that somebody who wrote `got` probably meant, whatever its capitals; None if none is close."""
    if got.isdecimal() or len(got) > _LONGEST_GUESS or len(names) > _MOST_GUESSES:
        return None  # one number is like another; and a client must not make a server compare for long
    folded = {name.casefold(): name for name in reversed(names)}
    near = get_close_matches(got.casefold(), folded, n=1)
    return folded[near[0]] if near else None


def listing(names: Iterable[Any], limit: int = 20) -> str:
    """Join names for a message.

    Args:
        names: What to list.
        limit: The most names that are spelt out; the others are counted.

    Returns:
        `a, b, c`, or `none`.
    """
    items = [str(name) for name in names]
    if not items:
        return "none"
    more = f", … ({len(items) - limit} more)" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
