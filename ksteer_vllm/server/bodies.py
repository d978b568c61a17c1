"""Whether a request body carries a spec, in any spelling, on any route. Text with the word in it does not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ksteer_vllm.spec.presets import is_opt_out
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

__all__ = [
    "CARRIERS",
    "carries_spec",
    "form_asks_for_steering",
    "json_asks_for_steering",
    "json_opts_out_beside_a_preset",
    "may_carry_spec",
]

CARRIERS = ("vllm_xargs", "extra_args", "extra_body", "sampling_params", "session", "body", "requests")
"""Fields of a body that hold parameters or whole requests: where a spec can be, besides the top level."""

_WORD = EXTRA_ARGS_KEY.encode()


def carries_spec(value: Any, *, opt_outs: bool = False) -> bool:
    """Whether a decoded body holds a spec: at the top, in a carrier, or in a list of either.

    Null is not a spec. An explicit opt-out counts only with opt_outs.
    """
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, Mapping):
            said = item.get(EXTRA_ARGS_KEY)
            if said is not None and (opt_outs or not is_opt_out(said)):
                return True
            waiting.extend(item[name] for name in CARRIERS if name in item)
    return False


def may_carry_spec(body: bytes) -> bool:
    """A quick check of the bytes: False means that no JSON parser can find the key in them.

    A key can be written with \\u escapes, and JSON may come as UTF-16 or UTF-32, which is full of zero bytes.
    """
    return _WORD in body or b"\\u" in body or b"\0" in body


def json_asks_for_steering(body: bytes, *, opt_outs: bool = False) -> bool:
    """Whether a JSON body carries a spec (with opt_outs, or an opt-out). False if it is not JSON: the route
    answers that itself."""
    if not may_carry_spec(body):
        return False
    try:
        return carries_spec(json.loads(body), opt_outs=opt_outs)
    except RecursionError:
        return _WORD in body  # too deep to tell: no route can run it either
    except ValueError:
        return False


def json_opts_out_beside_a_preset(body: bytes) -> bool:
    """Whether a JSON body opts out of steering and its model may name a preset (BASE:NAME)."""
    if not json_asks_for_steering(body, opt_outs=True):
        return False
    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(decoded, dict) and ":" in str(decoded.get("model"))


def form_asks_for_steering(fields: Iterable[tuple[str, Any]], *, opt_outs: bool = False) -> bool:
    """Whether form fields (name, value) carry a spec (with opt_outs, or an opt-out): under its own name, or
    in the JSON text of a carrier."""
    for name, value in fields:
        base, _, rest = name.partition("[")
        if base == EXTRA_ARGS_KEY or (base in CARRIERS and EXTRA_ARGS_KEY in rest):
            whole = name in (EXTRA_ARGS_KEY, f"{base}[{EXTRA_ARGS_KEY}]")
            if opt_outs or not (whole and is_opt_out(value)):
                return True
        elif base not in CARRIERS or not isinstance(value, str):
            continue
        elif json_asks_for_steering(value.encode(), opt_outs=opt_outs):
            return True
    return False
