"""The vLLM engine behind `KSteering`: started when something is generated, one batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ksteer_vllm.bench.jobs import Ask, Reply
from ksteer_vllm.config import enable
from ksteer_vllm.data.rows import LabelledRow, Prompt
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

__all__ = ["PROBE", "Engine"]

PROBE = "steering"
"""The probe's name in specs."""


class Engine:
    """One model that steers with one probe, every layer open.

    width: max_width of the engine. options: further arguments of `vllm.LLM`.
    """

    def __init__(self, model: str, probe: Path, width: int, options: Mapping[str, Any]) -> None:
        self.model = model
        self.probe = probe
        self.width = width
        self.options = dict(options)

    @cached_property
    def llm(self) -> Any:
        from vllm import LLM
        from vllm.platforms import current_platform

        options: dict[str, Any] = {"use_tqdm_on_load": False, **self.options}
        if current_platform.is_cpu():
            # vLLM's CPU sampler stops at a seeded request whose prompt comes in chunks
            options.setdefault("enable_chunked_prefill", False)
        steering = enable(probes={PROBE: self.probe}, layers="all", max_width=self.width)
        return LLM(self.model, additional_config=steering, **options)

    def length_of(self, prompt: Prompt) -> int:
        """Tokens of a prompt."""
        from ksteer_vllm.data.positions import encode_prompt

        row = LabelledRow(prompt=prompt, reply=None, labels=())
        return len(encode_prompt(self.llm.get_tokenizer(), row))

    def run(self, asks: Sequence[Ask], sampling: Mapping[str, Any], *, score: bool = False) -> list[Reply]:
        """Replies to all asks, from one batch. score: with the unsteered model's likelihood of each."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        from ksteer_vllm.bench.batch import run_batch
        from ksteer_vllm.bench.scoring import Scorer

        fields = {name: value for name, value in sampling.items() if name != "seed"}
        seed = sampling.get("seed") if fields["temperature"] else None

        def parameters(ask: Ask) -> Any:
            return SamplingParams(
                **fields,
                seed=None if seed is None else seed + ask.seed,
                extra_args=None if ask.spec is None else {EXTRA_ARGS_KEY: dict(ask.spec)},
                output_kind=RequestOutputKind.FINAL_ONLY,
            )

        named = {str(index): ask for index, ask in enumerate(asks)}
        scorer = Scorer(self.llm, None) if score else None
        found = dict(run_batch(self.llm, named, parameters, fields["max_tokens"], scorer))
        return [Reply(ask=ask, **found[key]) for key, ask in named.items()]

    def close(self) -> None:
        """Stop the engine, if it runs; the next reply starts another."""
        from ksteer_vllm.fit.activations import shut_down

        if "llm" in self.__dict__:
            shut_down(self.__dict__.pop("llm"))
