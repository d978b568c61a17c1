"""The engine core's part in loading and unloading probes: it knows every request that has not finished.

Both functions act only where steering is enabled; elsewhere nobody calls the worker methods, and no request
is admitted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ksteer_vllm.config import CONFIG_KEY
from ksteer_vllm.host.admitted import admitted_request
from ksteer_vllm.host.every_worker import LOAD, UNLOAD

__all__ = ["collective_rpc", "preprocess_add_request"]

Function = Callable[..., Any]


def collective_rpc(original: Function) -> Function:
    """Wrap `EngineCore.collective_rpc(method, timeout, args, kwargs)`: [answer of each worker].

    Unloading a probe that is needed answers [{"ok": False, "why": "in use"}] and asks no worker.
    """

    def rpc(self: Any, method: Any, timeout: float | None = None, args: Any = (), kwargs: Any = None) -> Any:
        if method == UNLOAD:
            (digest,) = args
            if any(
                digest in _digests(request.sampling_params) for request in self.scheduler.requests.values()
            ):
                return [{"ok": False, "why": "in use"}]
            self.ksteer_resident = _resident(self) - {digest}
            return original(self, method, timeout, args, kwargs)
        if method == LOAD:
            _, digest = args
            answers = original(self, method, timeout, args, kwargs)
            if all(answer["ok"] for answer in answers):
                self.ksteer_resident = _resident(self) | {digest}
            return answers
        return original(self, method, timeout, args, kwargs)

    return rpc


def preprocess_add_request(original: Function) -> Function:
    """Wrap `EngineCore.preprocess_add_request(request)`, whose errors fail that request alone.

    Runs on the thread that receives requests; the set of resident probes is replaced, never changed.
    """

    def preprocess(self: Any, request: Any) -> Any:
        needed = _digests(request.sampling_params)
        if needed and not needed <= _resident(self):
            raise RuntimeError(f"request {request.request_id} needs a probe that is no longer loaded")
        return original(self, request)

    return preprocess


def _digests(params: Any) -> frozenset[str]:
    """The probes that an admitted request's edits and conditions need."""
    admitted = admitted_request(params)
    return frozenset() if admitted is None else admitted.digests


def _resident(core: Any) -> frozenset[str]:
    known: frozenset[str] | None = getattr(core, "ksteer_resident", None)
    if known is None:
        configured = (core.vllm_config.additional_config or {}).get(CONFIG_KEY, {}).get("probes", {})
        known = core.ksteer_resident = frozenset(source["digest"] for source in configured.values())
    return known
