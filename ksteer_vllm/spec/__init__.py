"""What one request asks for, and what can be said of it without an engine. Neither torch nor vLLM."""

from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY, SteeringSpec
from ksteer_vllm.spec.where import Where

__all__ = ["EXTRA_ARGS_KEY", "SteeringSpec", "Where"]
