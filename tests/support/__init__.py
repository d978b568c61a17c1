"""Shared helpers of the test suite: tiny models, random probes, engines, and the Hugging Face oracle."""
