"""What this machine has to give just now, cores beside other processes and memory, and what an engine on its
CPU does best with it. Imports no torch."""

from __future__ import annotations

import hashlib
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from ksteer_vllm.models import ModelIdentity

__all__ = [
    "Threads",
    "cache_bytes",
    "compilation_pays",
    "cores",
    "free_cores",
    "free_memory",
    "gpu_share",
    "threads_here",
]

_CGROUP: Final = Path("/sys/fs/cgroup")
_QUIET: Final = 0.85
"""Share of the cores that has to be free for a machine to count as quiet."""
_PROBE_SECONDS: Final = 0.2
_CACHE_BYTES: Final = 2 << 30
"""Most bytes of key-value cache that a command takes."""
_CACHE_SHARE: Final = 4
"""It takes at most one part in so many of what is free."""
_GPU_SHARE: Final = 0.92
"""vLLM's default of `gpu_memory_utilization`."""
_BLOCK: Final = 128
"""Tokens of a block of vLLM's CPU attention, of which a sequence has whole ones."""
_WEIGHTS_PER_SECOND: Final = 2e10
_SAVED: Final = 0.2
_COMPILING: Final = 2.0
"""What compiling costs and saves, measured with SmolLM2-135M in bfloat16 on two cores: a thread multiplies so
many weights with tokens in a second, compiled code takes so much less time, a layer so many seconds."""


class Threads(NamedTuple):
    """A number of threads, and why it is not the default."""

    number: int
    reason: str


def threads_here() -> Threads | None:
    """How many threads an engine should take; None: what it takes by itself, one per core.

    Threads of one engine wait for each other several times a layer, spinning. Where another process holds one
    of the cores, all wait for the one that shares its core, so fewer threads are faster than one per core.
    """
    allowed = cores()
    if allowed == 1:
        return None
    free = free_cores(allowed)
    if free < _QUIET * allowed:
        return Threads(
            max(1, math.floor(free)), f"other processes are busy: {free:.1f} of {allowed} cores free"
        )
    visible = _visible_cores()
    if allowed < visible:
        return Threads(allowed, f"the quota is {allowed} of {visible} cores")
    return None


def cores() -> int:
    """Cores that this process may use, by its affinity and by the quota of its control group; at least 1."""
    visible = _visible_cores()
    quota, _, period = _read("cpu.max").partition(" ")
    if not quota.isdigit() or not period.strip().isdigit():
        return visible
    return max(1, min(visible, math.ceil(int(quota) / int(period))))


def _visible_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_cores(count: int, seconds: float = _PROBE_SECONDS) -> float:
    """Cores' worth of time that `count` busy threads get, measured for some seconds."""
    block = bytes(1 << 18)  # hashing it takes no interpreter lock

    def spin(until: float) -> float:
        start = time.thread_time()
        while time.perf_counter() < until:
            hashlib.sha256(block)
        return time.thread_time() - start

    with ThreadPoolExecutor(count) as pool:
        began = time.perf_counter()
        used = sum(pool.map(spin, [began + seconds] * count))
        return used / (time.perf_counter() - began)


def free_memory() -> int:
    """Bytes that can be allocated, by the system and by the limit of the control group."""
    import psutil

    available = int(psutil.virtual_memory().available)
    limit = _read("memory.max")
    return min(available, int(limit)) if limit.isdigit() else available


def cache_bytes(config: Any, sequences: int, free: int) -> int:
    """A size for the key-value cache: what all sequences need, within 2 GiB and a quarter of what is free.

    Args:
        config: vLLM's ModelConfig.
        sequences: Most sequences that run at once.
        free: Bytes that can be allocated.

    Returns:
        Bytes; whatever is free, as many as a single sequence of the greatest length needs.
    """
    heads = config.get_total_num_kv_heads() * config.get_head_size()
    token = 2 * config.hf_text_config.num_hidden_layers * heads * config.dtype.itemsize
    longest = token * (config.max_model_len + _BLOCK)
    return max(longest, min(longest * sequences, _CACHE_BYTES, free // _CACHE_SHARE))


def gpu_share(free: int, total: int) -> float:
    """The share of a GPU's memory that an engine may use beside what else is on it: `gpu_memory_utilization`.

    Args:
        free: Bytes that can be allocated.
        total: Bytes there are.

    Returns:
        vLLM's default, or where that is not free, nine tenths of what is.
    """
    return min(_GPU_SHARE, 0.9 * free / total)


def compilation_pays(model: ModelIdentity, tokens: int) -> bool:
    """Whether an engine writes that many tokens, in batches, sooner if it is compiled first."""
    weights = 12 * model.num_layers * model.hidden_size**2
    threads = int(os.environ.get("OMP_NUM_THREADS") or cores())
    eager = tokens * weights / (_WEIGHTS_PER_SECOND * threads)
    return eager * _SAVED > _COMPILING * model.num_layers


def _read(name: str) -> str:
    """A value of this process's control group; empty if there is none."""
    try:
        return (_CGROUP / name).read_text().strip()
    except OSError:
        return ""
