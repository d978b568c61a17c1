"""What decides whether a request may run: the registry, its limits, and the known probes and presets.

Pure: no vLLM. `ksteer_vllm.host.lifecycle` brings changes to the workers and publishes them here.
"""
