"""The routes below `/v1/ksteer`: what the engine can steer with, and changing it while it serves."""

from ksteer_vllm.server.endpoints.plugin import SteeringEndpoints

__all__ = ["SteeringEndpoints"]
