"""What decides whether a request may run: the registry, its limits, and the probes and presets there are.

Pure: no vLLM. `ksteer_vllm.host.lifecycle` brings changes to the workers and publishes them here.
"""
