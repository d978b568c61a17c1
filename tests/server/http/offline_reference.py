"""The offline engine's answers to the specs the server tests send, as a program: MODEL TONES MOODS OUTPUT.

A process of its own, so that the tests' process holds no engine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from testbed.replies import CHAT, COMPLETIONS, MESSAGES, PROMPT, SAMPLING, TOP, plain_json
from tests.server.http.specs import MAX_STEPS, MOODS, OPEN_LAYERS, STEERED, TONES
from tests.support.engines import prepare_environment, start_engine


def main() -> None:
    model, tones, moods, output = map(Path, sys.argv[1:5])
    prepare_environment()
    from vllm import SamplingParams

    llm = start_engine(
        model, {TONES: tones, MOODS: moods}, steering={"layers": OPEN_LAYERS, "max_steps": MAX_STEPS}
    )
    names = ["plain", *STEERED]
    extra_args = {name: {"ksteer": spec} for name, spec in STEERED.items()}
    params = [SamplingParams(**SAMPLING, logprobs=TOP, extra_args=extra_args.get(name)) for name in names]
    completions = llm.generate([{"prompt_token_ids": PROMPT}] * len(names), params, use_tqdm=False)
    chats = llm.chat([MESSAGES] * len(names), params, use_tqdm=False)
    replies = {
        route: {name: plain_json(out) for name, out in zip(names, outputs, strict=True)}
        for route, outputs in ((COMPLETIONS, completions), (CHAT, chats))
    }
    output.write_text(json.dumps(replies))


if __name__ == "__main__":
    main()
