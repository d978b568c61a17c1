"""Which versions of vLLM this plugin runs on."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from packaging.version import Version

from ksteer_vllm.errors import HostVersionError
from ksteer_vllm.versions import VLLM_BUILDS, installed_version

__all__ = ["OLDEST", "TESTED_RANGE", "UNTESTED_FROM", "check_version", "require_methods", "vllm_version"]

OLDEST = Version("0.26.0")
UNTESTED_FROM = Version("0.33")
TESTED_RANGE = "0.26 to 0.32"

logger = logging.getLogger("vllm.ksteer")


def vllm_version() -> Version:
    """The version of the installed vLLM, whichever build. Raises HostVersionError if there is none."""
    found = installed_version(*VLLM_BUILDS)
    if found is None:
        raise HostVersionError("vLLM is not installed; install ksteer-vllm[cuda] or ksteer-vllm[cpu]")
    return Version(found)


def require_methods(owner: type, names: Iterable[str]) -> None:
    """Refuse a class of vLLM's without a method that is wrapped or overridden: it would never be called.

    Args:
        owner: the class, as this engine uses it.
        names: of the methods.

    Raises:
        HostVersionError: naming the class and what it lacks.
    """
    absent = [name for name in names if not hasattr(owner, name)]
    if absent:
        raise HostVersionError(
            f"{owner.__module__}.{owner.__name__} lacks {', '.join(absent)}; tested with vLLM {TESTED_RANGE}"
        )


def check_version(found: Version) -> bool:
    """Check the version of vLLM; warn about one newer than was tested.

    Args:
        found: The installed version.

    Returns:
        Whether it was tested.

    Raises:
        HostVersionError: If it is too old.
    """
    if Version(found.base_version) < OLDEST:
        raise HostVersionError(
            f"ksteer-vllm needs vLLM {OLDEST} or newer (tested: {TESTED_RANGE}); found {found}"
        )
    if Version(found.base_version) >= UNTESTED_FROM:
        logger.warning(
            "ksteer-vllm was tested with vLLM %s, this is %s: checking every patched symbol at start-up",
            TESTED_RANGE,
            found,
        )
        return False
    return True
