"""Run as a program: MODEL. Generates without steering; prints tokens, log-probabilities and facts as JSON.

Its environment decides whether the plugin is loaded. Log-probabilities are printed bit for bit.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from testbed.compare import exact
from testbed.models import VOCAB_SIZE
from tests.support.engines import generate, prepare_environment, start_engine, worker


def main(model: str) -> None:
    prepare_environment()
    llm = start_engine(Path(model))
    source = random.Random(0)
    prompts = [[source.randrange(4, VOCAB_SIZE) for _ in range(length)] for length in (5, 40, 17, 70)]
    outputs = generate(llm, prompts, [None] * 4) + generate(llm, prompts, [None] * 4, temperature=1, seed=3)
    runner = worker(llm).model_runner
    model_loaded = runner.get_model()
    facts = {
        "plugin": any(name == "ksteer_vllm" or name.startswith("ksteer_vllm.host") for name in sys.modules),
        "layer_classes": sorted({type(module).__qualname__ for module in model_loaded.modules()}),
        "hooks": sorted(
            name for name, value in vars(runner).items() if callable(value) and name.startswith("_")
        ),
        "model_state": type(getattr(runner, "model_state", None)).__name__,
        "static_forward_context": sorted(runner.compilation_config.static_forward_context),
        "worker": sorted(name for name in vars(worker(llm)) if "ksteer" in name),
        "eager": llm.llm_engine.vllm_config.model_config.enforce_eager,
        "additional_config": llm.llm_engine.vllm_config.additional_config,
        "hash": llm.llm_engine.vllm_config.compute_hash(),
    }
    text = [
        [
            (list(tokens), [{token: value.hex() for token, value in step.items()} for step in steps])
            for tokens, steps in exact(output)
        ]
        for output in outputs
    ]
    print("RESULT " + json.dumps({"outputs": text, "facts": facts}))


if __name__ == "__main__":
    main(sys.argv[1])
