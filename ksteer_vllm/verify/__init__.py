"""`ksteer verify`: does a running engine steer where it is asked to, and nowhere else?"""

from __future__ import annotations

from ksteer_vllm.verify.run import verify
from ksteer_vllm.verify.verification import Finding, Verification

__all__ = ["Finding", "Verification", "verify"]
