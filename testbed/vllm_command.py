"""The `vllm` command as tests start it: its processes import vLLM with less searching for garbage meanwhile.

That takes a sixth of the processor time of a start, of which the suite has many. Processes that the command
spawns import this file first, as their main module.
"""

import gc

gc.set_threshold(100_000)

if __name__ == "__main__":
    from vllm.entrypoints.cli.main import main

    main()
