"""Steered and unsteered replies to demo questions, all from one batch of one engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ksteer_vllm.bench.engines import generation_params, start_engine
from ksteer_vllm.demo.corpus import Question, prompt_messages
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.demo.reader import Reading, read

__all__ = ["ENGINE_OPTIONS", "PROBE_NAME", "Ask", "Method", "Reply", "demo_engine", "generate_replies"]

Method = Literal["gradient", "add"]

PROBE_NAME = "tones"
TEMPERATURE = 1.0
MAX_TOKENS = 96

ENGINE_OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "gpu_memory_utilization": 0.1,
    "kv_cache_memory_bytes": 512 << 20,
    "max_model_len": 256,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    # vLLM's CPU sampler stops the engine when a seeded request's prompt is computed in chunks
    "enable_chunked_prefill": False,
    "use_tqdm_on_load": False,
}


@dataclass(frozen=True)
class Ask:
    """One request: a question, and how to steer the reply. method None: unsteered."""

    question: Question
    target: tuple[str, ...] = ()
    method: Method | None = None
    alpha: float = 0.0

    def spec(self) -> dict[str, Any] | None:
        """Towards the target tones and away from all others; both methods get the same labels."""
        if self.method is None:
            return None
        rest = [tone for tone in TONES if tone not in self.target]
        return {
            "probe": PROBE_NAME,
            "target": list(self.target),
            "avoid": rest,
            "method": self.method,
            "alpha": self.alpha,
        }


@dataclass(frozen=True)
class Reply:
    """What came back, and what the exact reader finds in it."""

    ask: Ask
    text: str
    reading: Reading

    @property
    def on_target(self) -> bool:
        """Shows every target tone and is well formed."""
        return self.shows_target and self.reading.well_formed

    @property
    def shows_target(self) -> bool:
        return set(self.ask.target) <= self.reading.tones


def demo_engine(model: Path, probe: Path) -> Any:
    """A vLLM engine that can steer the demo model with the probe."""
    return start_engine(str(model), ENGINE_OPTIONS, steering={"probes": {PROBE_NAME: probe}})


def generate_replies(llm: Any, asks: Sequence[Ask], *, seed: int = 0) -> list[Reply]:
    """All asks in one call, so in one mixed batch. Requests on one question share a sampling seed."""
    seeds = {question: seed + index for index, question in enumerate(dict.fromkeys(a.question for a in asks))}
    sampling = [
        generation_params(
            temperature=TEMPERATURE, max_tokens=MAX_TOKENS, seed=seeds[ask.question], spec=ask.spec()
        )
        for ask in asks
    ]
    chats = [prompt_messages(ask.question.text) for ask in asks]
    outputs = llm.chat(chats, sampling, use_tqdm=False)
    replies = []
    for ask, output in zip(asks, outputs, strict=True):
        completion = output.outputs[0]
        finished = completion.finish_reason == "stop"
        replies.append(
            Reply(ask, completion.text, read(ask.question.text, completion.text, finished=finished))
        )
    return replies
