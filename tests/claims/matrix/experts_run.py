"""Run as a program: JOBS (JSON: [model, {name: probe folder}, dtype, method or null]). Answers as JSON.

In a process of its own: vLLM makes the group that experts need only if the first engine has experts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.claims.matrix.cases import SPECS, as_json, prompts, with_method
from tests.support.engines import generate, prepare_environment, start_engine


def main(jobs: list[Any]) -> None:
    prepare_environment()
    answers = []
    for model, probes, dtype, method in jobs:
        folders = {name: Path(path) for name, path in probes.items()}
        llm = start_engine(Path(model), folders, steering={"layers": "all"}, dtype=dtype)
        outputs = generate(llm, prompts(len(SPECS)), list(with_method(method).values()))
        answers.append([as_json(output) for output in outputs])
    print("RESULT " + json.dumps(answers))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
