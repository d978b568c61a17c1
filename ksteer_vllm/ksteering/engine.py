"""The vLLM engine behind `KSteering`: started when something is generated, one batch at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ksteer_vllm.bench.batch import run_batch
from ksteer_vllm.bench.bench import room_for
from ksteer_vllm.bench.engines import generation_params, start_engine, stop_engine
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.scoring import Scorer
from ksteer_vllm.data.positions import encode_prompt
from ksteer_vllm.data.rows import Prompt
from ksteer_vllm.probes.probe import Probe

__all__ = ["PROBE", "Engine", "has_chat_template"]

PROBE = "steering"
"""The probe's name in specs."""


class Engine:
    """One model that steers with one probe, every layer open; options: further arguments of `vllm.LLM`.

    The probe is kept in a temporary folder, from which the engine loads it; `probe` is what is there.
    """

    def __init__(self, model: str, probe: Probe, options: Mapping[str, Any]) -> None:
        self.model = model
        self.options = dict(options)
        self._folder = tempfile.TemporaryDirectory(prefix="ksteer-")
        self.probe = Probe.load(probe.save(self._folder.name))
        self.width = room_for({PROBE: self.probe})["max_width"]

    @cached_property
    def llm(self) -> Any:
        steering = {"probes": {PROBE: self._folder.name}, "layers": "all", "max_width": self.width}
        return start_engine(self.model, self.options, steering=steering)

    def length_of(self, prompt: Prompt) -> int:
        """Tokens of a prompt."""
        return len(encode_prompt(self.llm.get_tokenizer(), prompt))

    def run(self, jobs: Sequence[Job], sampling: Mapping[str, Any], *, score: bool = False) -> list[Reply]:
        """Replies to all jobs, from one batch. score: with the unsteered model's likelihood of each."""
        fields = {name: value for name, value in sampling.items() if name != "seed"}
        seed = sampling.get("seed")

        def parameters(job: Job) -> Any:
            own_seed = None if seed is None else seed + job.seed
            return generation_params(**fields, seed=own_seed, spec=job.spec)

        named = {str(index): job for index, job in enumerate(jobs)}
        scorer = Scorer(self.llm, None) if score else None
        found = dict(run_batch(self.llm, named, parameters, fields["max_tokens"], scorer))
        return [Reply(job=job, **found[key]) for key, job in named.items()]

    def close(self) -> None:
        """Stop the engine, if it runs; the next reply starts another."""
        if "llm" in self.__dict__:
            stop_engine(self.__dict__.pop("llm"))


def has_chat_template(model: str) -> bool:
    """Whether the model's tokenizer has one."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model).chat_template is not None
