"""A steered `vllm serve`, from its parsed flags until it serves: what it cannot start with is one line that
says what to do, and exit status 2."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ksteer_vllm.admission.preview import check_presets
from ksteer_vllm.config import CONFIG_KEY, EngineConfig
from ksteer_vllm.errors import ConfigError, KSteerError
from ksteer_vllm.models import is_missing_folder

__all__ = ["end_in_one_line"]

_COMMANDS: Final = ("dispatch_function", "launch_command")
"""Where vLLM's parser leaves the function that the command is."""

_ADDRESS: Final = {
    errno.EADDRINUSE: "another process listens there; stop it, or choose another --port",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another --host",
    errno.EACCES: "this user may not listen there; choose a --port above 1023",
}


def end_in_one_line(args: argparse.Namespace) -> None:
    """Have the command that parsed arguments name check them first, and end in one line where it fails.

    Args:
        args: Of a command for which steering is enabled; changed in place.
    """
    for name in _COMMANDS:
        if (command := getattr(args, name, None)) is not None:
            setattr(args, name, partial(_run, command))  # the arguments are pickled, for more API servers


def _run(command: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    try:
        _check(args)
        command(args)
    except (KSteerError, OSError) as error:
        line = _line(error, args)
        if line is None:
            raise
        print(f"ksteer: {line}", file=sys.stderr)
        sys.exit(2)


def _check(args: argparse.Namespace) -> None:
    """Look at what needs no engine: folders and presets. vLLM takes seconds to get there."""
    model = getattr(args, "model_tag", None) or getattr(args, "model", None)
    if isinstance(model, str) and is_missing_folder(model):
        raise ConfigError(f"model {model}: no such folder")
    check_presets(EngineConfig.parse(args.additional_config[CONFIG_KEY]))


def _line(error: Exception, args: argparse.Namespace) -> str | None:
    """What to say of an error; None for one that is not the caller's."""
    if isinstance(error, KSteerError):
        return " ".join(str(error).split())
    remedy = _ADDRESS.get(getattr(error, "errno", None) or 0)
    if remedy is None or getattr(error, "filename", None) is not None:
        return None
    return f"{getattr(args, 'host', None) or '0.0.0.0'}:{getattr(args, 'port', '')}: {remedy}"
