"""What one request asks for, and all that can be checked without an engine. Needs neither torch nor vLLM."""

from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY, SteeringSpec
from ksteer_vllm.spec.where import Where

__all__ = ["EXTRA_ARGS_KEY", "SteeringSpec", "Where"]
