"""How long does a calibration take as one engine call, and how long as single calls on transformers?

    python -m benchmarks.calibration                 # the shipped model, the whole loop once
    python -m benchmarks.calibration --shape 135m --calls 40

8 strengths x 4 layers x 50 prompts, greedy, the same number of tokens for all, the same K-Steering edits (8
gradient steps) on the same float32 weights; once only generated, once also scored (log-likelihood and probe
logits of the reply under the unsteered model). The loop is cut into as many random parts as there are
rounds, one of them run in each: together they are the whole loop, unless --calls limits a part. A round's
ratio is the time of its part, scaled to all calls, over the time of the engine's call in the same round.
"""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track

from benchmarks import harness
from benchmarks.calibration_setup import DEMO, identity_of, model_of, random_probe
from benchmarks.random_probes import LABELS
from benchmarks.record import Table, spread, summary, wide_console
from ksteer_vllm import Probe

STEPS = 8


@dataclass(frozen=True)
class Work:
    """What is measured. calls: (prompt index, layer, strength), in order."""

    prompts: list[str]
    layers: tuple[int, ...]
    strengths: tuple[float, ...]
    tokens: int

    @property
    def calls(self) -> list[tuple[int, int, float]]:
        return [
            (index, layer, alpha)
            for layer in self.layers
            for alpha in self.strengths
            for index in range(len(self.prompts))
        ]


def main(
    shape: Annotated[
        str, typer.Option(help=f"{DEMO} (the shipped model), {', '.join(harness.SHAPES)}")
    ] = DEMO,
    strengths: Annotated[int, typer.Option(help="how many")] = 8,
    layers: Annotated[int, typer.Option(help="how many")] = 4,
    prompts: Annotated[int, typer.Option(help="how many")] = 50,
    tokens: Annotated[int, typer.Option(help="generated tokens of every call")] = 32,
    rounds: Annotated[
        int, typer.Option(help="rounds; each times the engine's call and a part of the loop")
    ] = 4,
    calls: Annotated[int, typer.Option(help="single calls per round; 0: an equal share of all calls")] = 0,
    threads: Annotated[int, typer.Option(help="torch threads, for both programs")] = 1,
) -> None:
    harness.run_in_process()
    torch.set_num_threads(threads)  # vLLM lets nobody change it later
    console = wide_console()
    with tempfile.TemporaryDirectory() as folder:
        model, words, options = model_of(shape, Path(folder), prompts)
        identity = identity_of(model)
        at = tuple(round((k + 1) * identity.num_layers / (layers + 1)) for k in range(layers))
        probe, reader = (random_probe(identity, at[-1], seed) for seed in (0, 1))
        grid = tuple(0.02 * 2.0**k for k in range(strengths))
        work = Work(words, at, grid, tokens)
        engine = Engine(model, probe, reader, Path(folder), options)
        loop = Loop(model, probe, reader, engine.tokenizer)
        seconds, agreement = measure(engine, loop, work, rounds, calls, console)
    report(shape, work, seconds, agreement, console)


class Engine:
    """All calls as one continuous batch."""

    def __init__(
        self, model: Path, probe: Probe, reader: Probe, folder: Path, options: dict[str, Any]
    ) -> None:
        from ksteer_vllm.bench.engines import start_engine
        from ksteer_vllm.bench.scoring import Scorer

        steering = {
            "probes": {"probe": probe.save(folder / "probe")},
            "layers": "all",
            "capture": {"layers": [reader.metadata.layer]},
        }
        self._llm = start_engine(str(model), {**options, "enforce_eager": True}, steering=steering)
        self._scorer = Scorer(self._llm, reader)
        self.tokenizer = self._llm.get_tokenizer()

    def run(self, work: Work, *, scored: bool) -> list[str]:
        """The replies, in the order of the calls."""
        from ksteer_vllm.bench.batch import run_batch
        from ksteer_vllm.bench.engines import generation_params
        from ksteer_vllm.bench.jobs import Job

        def sampling(job: Job) -> Any:
            return generation_params(temperature=0.0, max_tokens=work.tokens, spec=job.spec, ignore_eos=True)

        jobs = {}
        for number, (index, layer, alpha) in enumerate(work.calls):
            spec = {"probe": "probe", "target": [LABELS[0]], "avoid": list(LABELS[1:]), "num_steps": STEPS}
            jobs[str(number)] = Job(work.prompts[index], {**spec, "layers": [layer], "alpha": alpha})
        found = dict(run_batch(self._llm, jobs, sampling, work.tokens, self._scorer if scored else None))
        return [found[key]["text"] for key in jobs]


class Loop:
    """One call after the other."""

    def __init__(self, model: Path, probe: Probe, reader: Probe, tokenizer: Any) -> None:
        from benchmarks.transformers_loop import HookedModel

        self._model = HookedModel(model, probe, reader)
        self._tokenizer = tokenizer
        self._label_weights = torch.full((len(LABELS),), 1 / (len(LABELS) - 1))
        self._label_weights[0] = -1.0

    def run(self, work: Work, chosen: list[int], *, scored: bool) -> list[str]:
        """The replies to the chosen calls."""
        replies = []
        for number in chosen:
            index, layer, alpha = work.calls[number]
            prompt = self._tokenizer.encode(work.prompts[index])
            reply = self._model.reply(
                prompt,
                work.tokens,
                layer=layer,
                label_weights=self._label_weights,
                alpha=alpha,
                num_steps=STEPS,
            )
            if scored:
                self._model.score(prompt, reply)
            replies.append(self._tokenizer.decode(reply, skip_special_tokens=True))
        return replies


def measure(
    engine: Engine, loop: Loop, work: Work, rounds: int, calls: int, console: Any
) -> tuple[dict[str, dict[str, list[float]]], dict[str, Any]]:
    """Seconds of all calls by kind (generated, scored) and by who ran them; and how many texts are alike."""
    order = random.Random(0).sample(range(len(work.calls)), len(work.calls))
    engine.run(work, scored=True)
    loop.run(work, order[:3], scored=True)
    seconds: dict[str, dict[str, list[float]]] = {
        kind: {"engine": [], "loop": []} for kind in ("generated", "scored")
    }
    same = compared = 0
    for number in track(range(rounds), "rounds", console=console):
        part = order[number::rounds][: calls or None]
        for kind, found in seconds.items():
            started = time.perf_counter()
            replies = engine.run(work, scored=kind == "scored")
            found["engine"].append(time.perf_counter() - started)
            started = time.perf_counter()
            single = loop.run(work, part, scored=kind == "scored")
            found["loop"].append((time.perf_counter() - started) * len(work.calls) / len(part))
            compared += len(part)
            same += sum(replies[call] == text for call, text in zip(part, single, strict=True))
    return seconds, {"compared": compared, "same_text": same, "calls_in_a_round": len(part)}


def report(
    shape: str,
    work: Work,
    seconds: dict[str, dict[str, list[float]]],
    agreement: dict[str, Any],
    console: Any,
) -> None:
    count = len(work.calls)
    table = Table(
        f"{shape}: {len(work.strengths)} strengths x {len(work.layers)} layers x {len(work.prompts)} "
        f"prompts, {work.tokens} tokens each",
        ("replies", "one engine call, s", "loop of single calls, s", "loop / engine"),
    )
    ratios = {}
    for kind, found in seconds.items():
        ratios[kind] = [one / all_ for one, all_ in zip(found["loop"], found["engine"], strict=True)]
        table.rows.append(
            (
                kind,
                spread(summary(found["engine"]), 1),
                spread(summary(found["loop"]), 1),
                spread(summary(ratios[kind]), 1),
            )
        )
    console.print(table.rich())
    console.print(f"same text: {agreement['same_text']} of {agreement['compared']} single calls")
    result = {
        "shape": shape,
        "calls": count,
        "layers": work.layers,
        "strengths": work.strengths,
        "prompts": len(work.prompts),
        "tokens": work.tokens,
        "num_steps": STEPS,
        "seconds": seconds,
        "ratios": {kind: {**summary(values), "rounds": values} for kind, values in ratios.items()},
        **agreement,
    }
    console.print("written:", harness.write_result(f"calibration-{shape}", result, [table]).name)


if __name__ == "__main__":
    typer.run(main)
