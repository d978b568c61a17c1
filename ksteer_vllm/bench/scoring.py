"""Reading a reply with the unsteered model: how likely it finds the text, and what a probe finds in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ksteer_vllm.bench.engines import reading_params, take_captures
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.capture import capture_window

__all__ = ["Scorer"]


class Scorer:
    """Scores replies on the engine that generated them, by one unsteered request each.

    temperature: that of the replies in the same batch. Where those are seeded, scoring requests are, too:
    older vLLM's CPU sampler ignores the seeds of a batch in which any request has none.
    """

    def __init__(self, llm: Any, reader: Probe | None, *, temperature: float = 0.0) -> None:
        self._llm = llm
        self._sampling: dict[str, Any] = {"temperature": temperature, "seed": 0} if temperature > 0 else {}
        self._probe = reader

    def add(self, request: str, prompt: list[int], tokens: list[int], spoken: int) -> None:
        """Put a reply's scoring request into the running batch.

        prompt, tokens: token ids of prompt and reply, its end included; spoken: reply tokens without the end.
        The residual stream is captured where steering a generation edits it: the positions of the passes that
        produce the reply's tokens and its end.
        """
        window = capture_window(request, len(prompt) - 1, len(prompt) + spoken)
        capture = None if self._probe is None else window
        parameters = reading_params(capture=capture, prompt_logprobs=0, **self._sampling)
        self._llm.llm_engine.add_request(request, {"prompt_token_ids": prompt + tokens}, parameters)

    def take(self, finished: Mapping[str, tuple[list[int], Any]]) -> dict[str, dict[str, Any]]:
        """Request -> nll and propensity. finished: request -> the prompt and the request's output."""
        streams = self._streams(list(finished))
        found = {}
        for request, (prompt, output) in finished.items():
            text = output.prompt_token_ids
            logprobs = [
                output.prompt_logprobs[index][text[index]].logprob for index in range(len(prompt), len(text))
            ]
            found[request] = {
                "nll": -sum(logprobs) / len(logprobs),
                "propensity": None if self._probe is None else self._read(streams[request]),
            }
        return found

    def forget(self) -> None:
        """Drop captures left by aborted requests."""
        if self._probe is not None:
            take_captures(self._llm)

    def _read(self, stream: Tensor) -> dict[str, float]:
        assert self._probe is not None
        logits = self._probe.logits(stream.double()).mean(0)
        return dict(zip(self._probe.labels, logits.tolist(), strict=True))

    def _streams(self, requests: list[str]) -> dict[str, Tensor]:
        """Request -> residual stream [positions, d]."""
        if self._probe is None:
            return {}
        captured = take_captures(self._llm, requests)
        return {name.partition("/")[2]: stream for name, stream in captured.items()}
