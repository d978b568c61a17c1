"""Why an engine did not start, in one line; what nobody can mend keeps its traceback."""

from __future__ import annotations

import pytest
import torch
from pydantic import BaseModel, ValidationError

from ksteer_vllm.bench.start_failure import reason_in, start_failure

SHORT_OF_MEMORY = {
    "a CPU's": "Available memory on node 0 (2.1/15.6 GiB) on startup is less than desired CPU memory "
    "utilization (0.92, 14.3 GiB). On the CPU backend, the `--gpu-memory-utilization` flag controls",
    "a GPU's": "Free memory on device cuda:0 (3.2/79.1 GiB) on startup is less than desired GPU memory "
    "utilization (0.92, 72.8 GiB). Decrease GPU memory utilization",
    "the cache": "To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is "
    "needed, which is larger than the available KV cache memory (2.0 GiB). Based on the available memory",
    "no cache": "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
}
"""vLLM 0.32's messages."""


@pytest.mark.parametrize("said", SHORT_OF_MEMORY.values(), ids=SHORT_OF_MEMORY)
def test_too_little_memory(said: str) -> None:
    line = start_failure(ValueError(said))
    assert line is not None
    assert line.startswith(said.split(". ")[0] + "; there is too little memory: ")
    assert "--max-model-len" in line
    assert "--gpu-memory-utilization" in line


def test_memory_that_ran_out() -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError()):
        line = start_failure(error)
        assert line is not None
        assert "too little memory" in line


def test_a_cause_is_found_and_is_one_line() -> None:
    error = RuntimeError("the worker failed")
    error.__cause__ = ValueError(SHORT_OF_MEMORY["a GPU's"])
    found = start_failure(error)
    assert found is not None
    assert found.startswith("Free memory on device cuda:0")
    assert "\n" not in found


def test_options_that_vllm_does_not_have() -> None:
    error = TypeError("EngineArgs.__init__() got an unexpected keyword argument 'max_model_length'")
    assert start_failure(error) == "vllm.LLM has no option 'max_model_length'"


def test_values_that_vllm_does_not_take() -> None:
    class Options(BaseModel):
        block_size: int

    with pytest.raises(ValidationError) as caught:
        Options.model_validate({"block_size": "many"})
    line = "block_size: Input should be a valid integer, unable to parse string as an integer (got 'many')"
    assert start_failure(caught.value) == reason_in(caught.value) == line


@pytest.mark.parametrize("error", [RuntimeError("unexpected"), AssertionError(), TypeError("f() takes 1")])
def test_other_failures_are_not_explained_away(error: Exception) -> None:
    assert start_failure(error) is None
