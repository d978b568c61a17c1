"""Where does the plugin's host time go while requests, each with a spec of its own, arrive and leave all the
time: per request, per step, in microseconds and as a share of the time in which they ran?

    python -m benchmarks.host_profile --in-flight 32 --requests 128 --rounds 3

Steered and unsteered traffic of the same lengths take turns on one engine with prefix caching on. Timers are
put around the plugin's functions; a last steered pass runs under cProfile, which slows it, for the shares
of single functions.
"""

from __future__ import annotations

import cProfile
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track

import ksteer_vllm
from benchmarks import harness
from benchmarks.host_sections import HOST, Section, profile_table, sections
from benchmarks.random_probes import LABELS, write_probe
from benchmarks.record import Table, paired_ratios, spread, summary, wide_console
from ksteer_vllm import SteeringSpec


@dataclass(frozen=True)
class Traffic:
    """Requests that keep `in_flight` running until `requests` have run; lengths depend on the seed alone."""

    in_flight: int
    requests: int
    prompt_tokens: int
    tokens: tuple[int, int]

    def run(
        self, llm: Any, seed: int, segment: str, specs: bool, profile: cProfile.Profile | None = None
    ) -> tuple[float, int]:
        """(seconds, steps). Prompts differ between segments, so none is found in the prefix cache."""
        lengths, words = random.Random(seed), random.Random(f"{seed} {segment}")
        pending = [self.request(index, lengths, words, specs) for index in range(self.requests)]
        engine, steps = llm.llm_engine, 0
        if profile is not None:
            profile.enable()
        started = time.perf_counter()
        while pending or engine.has_unfinished_requests():
            while pending and engine.get_num_unfinished_requests() < self.in_flight:
                prompt, params = pending.pop()
                engine.add_request(f"{segment}-{seed}-{len(pending)}", prompt, params)
            engine.step()
            steps += 1
        return time.perf_counter() - started, steps

    def request(
        self, index: int, lengths: random.Random, words: random.Random, spec: bool
    ) -> tuple[Any, Any]:
        from vllm import SamplingParams

        prompt = {"prompt_token_ids": [words.randrange(3, 1000) for _ in range(self.prompt_tokens)]}
        params = SamplingParams(
            temperature=0, max_tokens=lengths.randint(*self.tokens), ignore_eos=True, detokenize=False,
            extra_args=own_spec(index) if spec else None,
        )  # fmt: skip
        return prompt, params


def own_spec(index: int) -> dict[str, Any]:
    """A spec that no other request has."""
    target = {LABELS[index % 5]: 1.0, LABELS[index % 5 + 1]: 1.0 + index}
    alpha = 0.01 + 1e-4 * index
    spec = {"probe": "bench", "target": target, "alpha": alpha, "num_steps": 8, "where": "both"}
    return SteeringSpec.parse(spec).extra_args()


def main(
    shape: Annotated[str, typer.Option(help=f"model shape: {', '.join(harness.SHAPES)}")] = "135m",
    in_flight: Annotated[int, typer.Option(help="requests that run at once")] = 32,
    requests: Annotated[int, typer.Option(help="requests of a round")] = 128,
    rounds: Annotated[int, typer.Option(help="rounds; each runs steered and unsteered traffic")] = 3,
    prompt_tokens: Annotated[int, typer.Option(help="prompt tokens of a request")] = 64,
    tokens: Annotated[str, typer.Option(help="fewest and most generated tokens")] = "8,40",
    eager: Annotated[bool, typer.Option(help="no torch.compile, no CUDA graphs")] = False,
) -> None:
    harness.run_in_process()
    import vllm  # noqa: F401  the plugin's host modules import parts of it

    console = wide_console()
    fewest, most = (int(number) for number in tokens.split(","))
    timers = sections()
    absent = [section.target for section in timers if not section.install()]
    traffic = Traffic(in_flight, requests, prompt_tokens, (fewest, most))
    small_blocks = {} if torch.cuda.is_available() else {"block_size": 32}  # a CPU's are 128 tokens: few keys
    with tempfile.TemporaryDirectory() as folder:
        model = harness.write_model(shape, Path(folder) / "model")
        probe = write_probe("mlp", shape, Path(folder) / "probe")
        steering = ksteer_vllm.enable({"bench": probe})
        llm = harness.engine(
            model, max_num_seqs=in_flight, eager=eager, additional_config=steering,
            max_model_len=prompt_tokens + most + 8, prefix_caching=True, **small_blocks,
        )  # fmt: skip
        for specs in (True, False):
            Traffic(in_flight, in_flight, prompt_tokens, (2, 4)).run(llm, -1, f"warm {specs}", specs)
        for section in timers:
            section.nanoseconds.clear()
        before = llm.collective_rpc("ksteer_counters")[0]
        seconds: dict[bool, list[float]] = {True: [], False: []}
        steps = 0
        for index in track(range(rounds), "rounds", console=console):
            for specs in (True, False) if index % 2 else (False, True):
                # Checks of requests without a spec are no part of the steered traffic.
                kept = {section.target: len(section.nanoseconds) for section in timers}
                spent, count = traffic.run(llm, index, f"specs {specs}", specs)
                seconds[specs].append(spent)
                if specs:
                    steps += count
                else:
                    for section in timers:
                        del section.nanoseconds[kept[section.target] :]
        after = llm.collective_rpc("ksteer_counters")[0]
        for section in timers:
            section.undo()
        profile = cProfile.Profile()
        traffic.run(llm, rounds, "profiled", True, profile)
        profile.disable()
    counters = {name: after[name] - before[name] for name in after}
    total = sum(seconds[True])
    served = requests * rounds
    tables = [
        work_table(f"{shape}, {in_flight} distinct specs in flight", timers, served, steps, total),
        total_table(timers, served, steps, total, seconds),
        profile_table(profile),
    ]
    for table in tables:
        console.print(table.rich())
    if absent:
        console.print("no such function, so not timed:", ", ".join(absent))
    result = {
        "shape": shape, "in_flight": in_flight, "requests": served, "steps": steps, "eager": eager,
        "seconds": {"steered": seconds[True], "unsteered": seconds[False]}, "counters": counters,
        "absent": absent,
        "sections": {
            section.target: {"calls": len(section.nanoseconds), "nanoseconds": sum(section.nanoseconds)}
            for section in timers
        },
    }  # fmt: skip
    name = f"host_profile-{shape}-{in_flight}{'-eager' if eager else ''}"
    console.print("written:", harness.write_result(name, result, tables).name)


def work_table(title: str, timers: list[Section], served: int, steps: int, total: float) -> Table:
    columns = (
        "work",
        "calls",
        "us per call (p20 to p80)",
        "us per request",
        "us per step",
        "share of time",
    )
    table = Table(title, columns)
    for section in timers:
        calls = section.nanoseconds
        if not calls:
            continue
        spent = sum(calls) / 1e3
        table.rows.append(
            (
                f"of which {section.label}" if section.inside else section.label,
                f"{len(calls) / (served if section.per == 'request' else steps):.1f} a {section.per}",
                spread({name: value / 1e3 for name, value in summary(calls).items()}, 1),
                f"{spent / served:.1f}",
                f"{spent / steps:.1f}",
                f"{100 * spent / 1e6 / total:.3f} %",
            )
        )
    return table


def total_table(
    timers: list[Section], served: int, steps: int, total: float, seconds: dict[bool, list[float]]
) -> Table:
    host = sum(sum(s.nanoseconds) for s in timers if s.target.partition(":")[2] in HOST) / 1e3
    table = Table(
        "host work, all sections but the edit",
        ("us per request", "us per step", "share of time", "step, ms", "throughput vs unsteered traffic"),
    )
    table.rows.append(
        (
            f"{host / served:.1f}",
            f"{host / steps:.1f}",
            f"{100 * host / 1e6 / total:.3f} %",
            f"{1e3 * total / steps:.2f}",
            spread(paired_ratios(seconds[True], seconds[False], inverse=True)),
        )
    )
    return table


if __name__ == "__main__":
    typer.run(main)
