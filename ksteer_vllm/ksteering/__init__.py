"""The three lines of withmartian/k-steering, on the vLLM engine.

steering = KSteering("MODEL")
steering.fit(task="tones")
steering.get_steered_output(prompts, target_labels=["empathetic"], avoid_labels=["casual"])
"""

from ksteer_vllm.ksteering.config import SteeringConfig, TrainerConfig
from ksteer_vllm.ksteering.steering import KSteering
from ksteer_vllm.ksteering.sweep import AlphaSweep

__all__ = ["AlphaSweep", "KSteering", "SteeringConfig", "TrainerConfig"]
