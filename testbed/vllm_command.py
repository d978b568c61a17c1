"""The `vllm` command as tests start it, many at a time on few cores. Its processes take processor time from
each other, so they

- search for garbage less often while they import vLLM, a sixth of their start;
- sleep a millisecond between two looks for a message. vLLM's look without pause for a second after each,
  which is right where every process has a core.

Processes that the command spawns import this file first, as their main module.
"""

import gc
import time
from functools import partial

gc.set_threshold(100_000)

from vllm.distributed.device_communicators import shm_broadcast  # noqa: E402

assert callable(shm_broadcast.sched_yield)
shm_broadcast.sched_yield = partial(time.sleep, 0.001)

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    main()
