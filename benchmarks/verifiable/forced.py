"""A given text as the reply: the same edits at the same positions, without generating anything.

With P prompt tokens, steering a generation edits the positions P-1, P, ...: the passes that produce the
reply's tokens. Where the reply is given, those positions are part of the request's prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from ksteer_vllm.spec.where import GENERATION, Where, WhereClause

__all__ = ["forced_spec"]

_WHERE: TypeAdapter[Where] = TypeAdapter(WhereClause)


def forced_spec(spec: Mapping[str, Any], prompt_tokens: int) -> dict[str, Any]:
    """The spec that edits a given reply where `spec` would edit a generated one.

    A fade is left out: it counts generated tokens. The reading is then of the edit at its full strength.

    Args:
        spec: An edit or a stack, as JSON; one without a where-clause counts as `generation`, whatever its
            probe's default is.
        prompt_tokens: The number of tokens before the reply.

    Returns:
        The spec, with every where-clause a window of the prompt.

    Raises:
        ValueError: For an edit whose windows do not touch, so that they cannot be one window.
    """
    if "stack" in spec:
        return {**spec, "stack": [_forced(edit, prompt_tokens) for edit in spec["stack"]]}
    return _forced(spec, prompt_tokens)


def _forced(edit: Mapping[str, Any], prompt_tokens: int) -> dict[str, Any]:
    where = GENERATION if edit.get("where") is None else _WHERE.validate_python(edit["where"])
    kept = {name: value for name, value in edit.items() if name not in ("where", "fade")}
    return {**kept, "where": {"prompt": list(_window(where, prompt_tokens))}}


def _window(where: Where, prompt_tokens: int) -> tuple[int, int | None]:
    """[start, end) over the prompt and the given reply together."""
    first = prompt_tokens - 1
    spoken = where.generation and tuple(end if end is None else first + end for end in where.generation)
    read = where.prompt and (where.prompt[0], min(where.prompt[1] or prompt_tokens, prompt_tokens))
    if spoken and read:
        if read[1] < spoken[0]:
            raise ValueError(f"where: a gap between the windows {list(read)} and {list(spoken)}")
        return read[0], spoken[1]
    window = spoken or read
    assert window is not None, "a where-clause selects something"
    return window[0], window[1]
