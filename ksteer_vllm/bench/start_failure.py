"""Why an engine did not start, as far as whoever started it can do something about it.

vLLM raises built-in exceptions, some deep inside its own; they are known by what they say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from pydantic import ValidationError

from ksteer_vllm.errors import first_problem

__all__ = ["reason_in", "start_failure"]

_LONGEST: Final = 300

_MEMORY: Final = (
    "available memory on node",
    "free memory on device",
    "no available memory for the cache blocks",
    "max seq len",
    "max_model_len is larger than",
    "out of memory",
    "can't allocate memory",
)
"""What vLLM and torch say where memory is short, in small letters."""
_LESS_MEMORY: Final = (
    "there is too little memory: end what else uses it, or ask for less (--max-model-len, "
    "--gpu-memory-utilization; on a CPU VLLM_CPU_KVCACHE_SPACE, in GiB)"
)
_UNKNOWN_OPTION: Final = re.compile(r"__init__\(\) got an unexpected keyword argument '(\w+)'")


def start_failure(error: BaseException) -> str | None:
    """Why an engine did not start, in one line.

    Args:
        error: What `vllm.LLM` raised.

    Returns:
        The reason with its remedy; None for a failure that the caller cannot mend, which keeps its traceback.
    """
    for cause in _chain(error):
        said = str(cause)
        if isinstance(cause, MemoryError) or any(words in said.lower() for words in _MEMORY):
            return f"{reason_in(cause).split('. ')[0]}; {_LESS_MEMORY}"
        if isinstance(cause, TypeError) and (option := _UNKNOWN_OPTION.search(said)):
            return f"vllm.LLM has no option {option[1]!r}"
        if isinstance(cause, ValidationError):
            return reason_in(cause)
    return None


def reason_in(error: BaseException) -> str:
    """The first thing an exception says, in one line."""
    if isinstance(error, ValidationError):
        problem = first_problem(error)
        return f"{problem} (got {problem.got!r:.80})" if problem.path else problem.message[:_LONGEST]
    lines = filter(None, map(str.strip, str(error).splitlines()))
    return next(lines, type(error).__name__)[:_LONGEST].rstrip(".")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
