"""What tests and benchmarks share: tiny models, random probes of every family, `vllm serve` as a child
process, its replies, and how two runs' replies are compared."""
