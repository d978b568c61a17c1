"""Steering on one worker: tables, rows, the step and the op. Arrays in, arrays out; no vLLM objects."""
