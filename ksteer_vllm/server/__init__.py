"""HTTP: the `vllm serve` flags, how a spec enters a request, and which routes refuse one."""
