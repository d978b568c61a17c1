"""The `vllm.general_plugins` entry point."""

from __future__ import annotations

__all__ = ["register"]


def register() -> None:
    """Called by vLLM in every process, possibly twice. Applies the ledgers; enables nothing by itself.

    Raises:
        HostVersionError: If vLLM is too old, or lacks a symbol the ledgers replace (the start-up self-check).
    """
    from ksteer_vllm.host.version import check_version, vllm_version

    check_version(vllm_version())

    from ksteer_vllm.host.ledger import apply
    from ksteer_vllm.host.seams import ENGINE
    from ksteer_vllm.server.seams import LAUNCH

    apply((*ENGINE, *LAUNCH))
