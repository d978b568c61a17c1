"""Methods fitted to an environment, and what an engine that steers with them shows: words and streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress
from torch import Tensor, stack

import ksteer_vllm
from benchmarks.pairs.environment import Environment, Pair, word_of
from ksteer_vllm.bench.engines import running_engine, take_captures
from ksteer_vllm.data.positions import PROMPT_LAST
from ksteer_vllm.fit.task import FitTask
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.capture import CAPTURE_KEY, capture_window
from ksteer_vllm.spec.families import fits, load
from ksteer_vllm.spec.spec import EXTRA_ARGS_KEY

__all__ = ["METHODS", "Ask", "Bank", "fit_methods"]

METHODS = ("mlp", "linear", "caa", "ace", "loreft", "lorest")
THROUGH_THE_MODEL = ("loreft", "lorest")
MAX_TOKENS = 5
CHUNK = 4096


def fit_methods(
    environment: Environment,
    folder: Path,
    methods: Sequence[str] = METHODS,
    *,
    alone: bool = False,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Fit every method to the environment's examples. Returns name -> folder.

    Most see the last token of the prompts with their contexts, recorded once; those through the language
    model learn to make the replies follow the prompts without. They are fitted one label at a time, to the
    replies that show it, and are given those that show nothing else; alone: so are all others.
    """
    recorded: dict[Any, Any] = {}
    paths = {}
    for name in methods:
        through = name in THROUGH_THE_MODEL
        task = FitTask.of(
            environment.model,
            environment.rows(context=not through, alone=alone or through),
            name,
            labels=environment.behaviours,
            layer=environment.layer,
            options=environment.fit_options.get(name, {}),
            engine_options=environment.engine_options,
            progress=progress,
            window=PROMPT_LAST,
        )
        if not through:
            task.recorded = recorded
        probe: Probe = load(fits()[name])(task)
        paths[name] = probe.save(folder / name)
    return paths


@dataclass(frozen=True)
class Ask:
    """A pair's prompt, with its context or without, and the spec it is run with (None: unsteered)."""

    pair: Pair
    spec: Mapping[str, Any] | None = None
    with_context: bool = False


class Bank:
    """An engine that steers with the probes and records the residual stream where the dictionary reads.

    Use `Bank.start` as a context manager.
    """

    def __init__(self, llm: Any, environment: Environment, layer: int, progress: Progress | None) -> None:
        self._llm, self._environment, self._layer, self._progress = llm, environment, layer, progress
        self._tokenizer = llm.get_tokenizer()

    @classmethod
    @contextmanager
    def start(
        cls,
        environment: Environment,
        probes: Mapping[str, Path],
        layer: int,
        progress: Progress | None = None,
    ) -> Iterator[Bank]:
        """layer: the block whose output is recorded, before any edit there: one above the steered block."""
        options = {"enforce_eager": True, "dtype": "float32", **environment.engine_options}
        steering = {
            "probes": dict(probes),
            "max_width": 512,
            "max_stages": 1,
            "capture": {"layers": [layer]},
        }
        with running_engine(environment.model, options, steering=steering) as llm:
            yield cls(llm, environment, layer, progress)

    def observe(self, asks: Sequence[Ask], description: str = "steering") -> tuple[list[str], Tensor]:
        """Per ask the word produced, and x [N, d] where it is produced: at the first position steered."""
        bar = self._progress.add_task(description, total=len(asks)) if self._progress else None
        words, streams = [], []
        for start in range(0, len(asks), CHUNK):
            chunk = asks[start : start + CHUNK]
            outputs = self._run(chunk, {"max_tokens": MAX_TOKENS}, capture=True)
            words += [
                word_of(output.outputs[0].text, ask.pair.skipped)
                for ask, output in zip(chunk, outputs, strict=True)
            ]
            captured = take_captures(self._llm)
            streams += [captured[f"{self._layer}/{index}"][0] for index in range(len(chunk))]
            if self._progress is not None and bar is not None:
                self._progress.advance(bar, len(chunk))
        return words, stack(streams)

    def shift(self, asks: Sequence[Ask]) -> list[float]:
        """Per ask |x' - x| / |x| where the word is produced; every ask has a spec."""
        reported = [Ask(ask.pair, {**(ask.spec or {}), "report": True}) for ask in asks]
        outputs = self._run(reported, {"max_tokens": 1}, capture=False)
        return [ksteer_vllm.report(output)["mean_shift"] for output in outputs]

    def _run(self, asks: Sequence[Ask], sampling: Mapping[str, Any], *, capture: bool) -> list[Any]:
        """Requests on one neutral prompt share a seed, whatever is done to them."""
        from vllm import SamplingParams

        seeds = {text: index for index, text in enumerate(sorted({ask.pair.neutral for ask in asks}))}
        prompts, params = [], []
        for index, ask in enumerate(asks):
            tokens = self._tokenizer.encode(ask.pair.context if ask.with_context else ask.pair.neutral)
            place = capture_window(str(index), len(tokens) - 1, len(tokens))
            extra = {
                **({EXTRA_ARGS_KEY: dict(ask.spec)} if ask.spec is not None else {}),
                **({CAPTURE_KEY: place} if capture else {}),
            }
            prompts.append({"prompt_token_ids": tokens})
            params.append(
                SamplingParams(
                    temperature=self._environment.temperature,
                    seed=seeds[ask.pair.neutral] if self._environment.temperature else None,
                    extra_args=extra or None,
                    **sampling,
                )
            )
        return self._llm.generate(prompts, params, use_tqdm=False)
