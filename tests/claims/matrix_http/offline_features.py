"""The offline engine's answers to what the tests of structured output and prompt scores ask.

A program: MODEL TONES OUTPUT.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from testbed.replies import plain_json
from tests.claims.matrix_http.feature_requests import (
    BOTH,
    PROMPT,
    SPEC,
    STRUCTURED,
    STRUCTURED_LIMIT,
    STRUCTURED_TOP,
    TERSE,
)
from tests.support.engines import prepare_environment, start_engine

HTTP_FLOOR = -9999.0
"""What vLLM's server writes for the log-probability of a token that the grammar forbids."""

SPECS: dict[str, Any] = {"plain": None, "generation": SPEC, "both": BOTH}


def main() -> None:
    model, tones, output = map(Path, sys.argv[1:4])
    prepare_environment()
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    llm = start_engine(model, {"tones": tones}, max_model_len=512)

    def run(spec: Any, **fields: Any) -> Any:
        params = SamplingParams(temperature=0, extra_args=spec and {"ksteer": spec}, **fields)
        return llm.generate([{"prompt_token_ids": PROMPT}], params, use_tqdm=False)[0]

    bias = {int(token): value for token, value in TERSE.items()}
    answers: dict[str, Any] = {}
    for name, spec in SPECS.items():
        for kind, fields in STRUCTURED.items():
            answer = run(
                spec,
                structured_outputs=StructuredOutputsParams(**fields),
                max_tokens=STRUCTURED_LIMIT,
                logprobs=STRUCTURED_TOP,
                logit_bias=bias,
            )
            answers[f"{kind} {name}"] = [
                [tokens, [{token: max(p, HTTP_FLOOR) for token, p in step.items()} for step in steps]]
                for tokens, steps in plain_json(answer)
            ]
        scored = run(spec, max_tokens=2, prompt_logprobs=STRUCTURED_TOP, ignore_eos=True).prompt_logprobs
        answers[f"prompt {name}"] = [
            {str(token): entry.logprob for token, entry in (step or {}).items()} for step in scored
        ]
    output.write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
