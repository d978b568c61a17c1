"""`ksteer verify`: does a running engine steer, where it is asked to, and nowhere else?"""

from __future__ import annotations

from ksteer_vllm.verify.report import Finding, VerifyReport
from ksteer_vllm.verify.run import verify

__all__ = ["Finding", "VerifyReport", "verify"]
