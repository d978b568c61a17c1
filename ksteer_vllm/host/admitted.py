"""Where a request carries its steering once it is admitted: in its own copy of the sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ksteer_vllm.spec.admitted import ADMISSION_KEY, AdmittedRequest
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

__all__ = ["admission_record", "admitted_request", "set_admitted"]


def admission_record(params: Any) -> Mapping[str, Any] | None:
    """What admission wrote into a request's sampling parameters (`AdmittedRequest.to_wire`), or None."""
    extra = params.extra_args if params is not None else None
    return extra.get(ADMISSION_KEY) if extra else None


def admitted_request(params: Any) -> AdmittedRequest | None:
    """The steering of an admitted request, from its sampling parameters; None for a plain one."""
    record = admission_record(params)
    return None if record is None else AdmittedRequest.from_wire(record)


def set_admitted(params: Any, admitted: AdmittedRequest) -> None:
    """Write the steering of a request into its own copy of the sampling parameters, in place of its spec.

    The dict of `extra_args` is replaced, never changed: the caller's may be the same one.
    """
    extra = {name: value for name, value in (params.extra_args or {}).items() if name != EXTRA_ARGS_KEY}
    params.extra_args = {**extra, ADMISSION_KEY: admitted.to_wire()}
