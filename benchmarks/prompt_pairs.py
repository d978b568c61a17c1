"""Prompt pairs: what steering does to features and to the next word, against asking for it in words.

    python -m benchmarks.prompt_pairs --environment tones     # the shipped model: about 4 minutes on 2 cores
    python -m benchmarks.prompt_pairs --environment scenes    # GPT-2 and a SAELens dictionary, from the hub

A pair is one text without and with a context that asks for some behaviours. Methods are fitted to pairs,
steer the text without the context, and are measured by three things: how far the dictionary features of
those behaviours go the way the context takes them, how much all other features change, and how near the next
word is to a word that shows the behaviours (`pairs/measures.py`). On the shipped model the behaviours are its
six tones and the dictionary is trained here; where a hub is reachable, six scenes on GPT-2 with a published
dictionary.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
import typer
from rich.console import Console

from benchmarks import record
from benchmarks.harness import run_in_process
from benchmarks.pairs.dictionary import DictionaryPlan
from benchmarks.pairs.engine import METHODS, Ask, Bank, fit_methods
from benchmarks.pairs.environment import Environment, Pair
from benchmarks.pairs.figures import draw, heat_map
from benchmarks.pairs.measures import WordVectors
from benchmarks.pairs.scoring import MEASURES, Scorer, summarise
from benchmarks.pairs.sources import dictionary_of, open_environment
from benchmarks.pairs.strengths import RULE, choose, grids, spec_of, variants_for
from ksteer_vllm.bench.variants import Variant
from ksteer_vllm.fit.pipeline import progress_bar


def main(
    environment: Annotated[
        Literal["auto", "tones", "scenes"],
        typer.Option(help="tones: the shipped model; scenes: GPT-2; auto: scenes if a hub is reachable"),
    ] = "auto",
    model: Annotated[str, typer.Option(help="scenes: another model; default: GPT-2 from the hub")] = "",
    dictionary: Annotated[
        Path | None,
        typer.Option(help="scenes: a SAELens folder; the block below the one it reads is steered"),
    ] = None,
    centred: Annotated[
        bool,
        typer.Option(help="scenes: that folder is of a residual stream without its mean (TransformerLens)"),
    ] = False,
    sizes: Annotated[str, typer.Option(help="behaviours at once; default: 1,2,3, of scenes 1,2")] = "",
    examples: Annotated[int | None, typer.Option(help="pairs to fit to")] = None,
    per_set: Annotated[int | None, typer.Option(help="calibration pairs of a set of behaviours")] = None,
    tests: Annotated[int | None, typer.Option(help="test pairs of a set of behaviours")] = None,
    features: Annotated[int, typer.Option(help="dictionary features that belong to a behaviour")] = 8,
    avoid: Annotated[
        Literal["none", "rest"], typer.Option(help="steer away from the other behaviours")
    ] = "none",
    alone: Annotated[
        bool, typer.Option(help="fit every method to examples that show one behaviour only")
    ] = False,
    seed: Annotated[int, typer.Option(help="seed of the pairs and examples")] = 0,
) -> None:
    run_in_process()
    console = record.wide_console()
    asked = {"examples": examples, "per_set": per_set, "tests": tests, "seed": seed}
    chosen: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if sizes:
        chosen["sizes"] = tuple(int(size) for size in sizes.split(","))
    found = open_environment(environment, model, dictionary, centred, chosen, console)
    name = "-".join(["prompt_pairs", found[0].name, *(["alone"] if alone else [])])
    result, tables = run(*found, features=features, avoid_rest=avoid == "rest", alone=alone, console=console)
    console.print(*(table.rich() for table in tables))
    path = record.write_result(name, result)
    pictures = show(path)
    console.print("written:", path.name, *(picture.name for picture in pictures))


def run(
    environment: Environment,
    folder: Path | None = None,
    centred: bool = False,
    *,
    features: int = 8,
    avoid_rest: bool = False,
    alone: bool = False,
    plan: DictionaryPlan | None = None,
    methods: Sequence[str] = METHODS,
    console: Console,
) -> tuple[dict[str, Any], list[record.Table]]:
    """The result and its tables. folder: the dictionary's, None to train one by `plan`."""
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        seconds[name] = round(time.perf_counter() - started - sum(seconds.values()), 1)

    with tempfile.TemporaryDirectory() as scratch, progress_bar(console) as progress:
        probes = fit_methods(environment, Path(scratch), methods, alone=alone, progress=progress)
        lap("fit")
        dictionary, about = dictionary_of(
            environment, folder, centred, plan or DictionaryPlan(), Path(scratch), progress
        )
        lap("dictionary")
        vectors = WordVectors.of_model(environment.model)
        with Bank.start(environment, probes, dictionary.layer, progress) as bank:
            scorer = Scorer(bank, environment, dictionary, vectors, features)
            variants = variants_for(list(probes))
            outcome = calibrate(scorer, bank, environment, variants, avoid_rest)
            lap("calibrate")
            tested = test(scorer, environment, variants, outcome["chosen"], avoid_rest)
            lap("test")
    sizes = sorted({len(pair.targets) for pair in environment.pairs["test"]})
    summary = summarise(tested, ["size", "variant"], seed=0)
    result = {
        "environment": {
            "name": environment.name,
            "model": environment.model if environment.name != "tones" else "the shipped model",
            "layer": environment.layer,
            "behaviours": list(environment.behaviours),
            "temperature": environment.temperature,
            "examples": len(environment.examples),
            "pairs": {part: len(pairs) for part, pairs in environment.pairs.items()},
            "avoid": "rest" if avoid_rest else "none",
            "fitted_to": "examples of one behaviour" if alone else "all examples",
        },
        "dictionary": {**about, "of_a_behaviour": scorer.features},
        "rule": RULE,
        "seconds": seconds,
        **{name: records(frame) for name, frame in outcome.items()},
        "test": records(summary),
        "test_sets": records(summarise(tested, ["size", "targets", "variant"])),
        "test_places": records(summarise(tested, ["size", "place", "variant"])),
        "words": common_words(tested),
    }
    return result, [table_of(summary, size, environment.name) for size in sizes]


def calibrate(
    scorer: Scorer, bank: Bank, environment: Environment, variants: Sequence[Variant], avoid_rest: bool
) -> dict[str, pd.DataFrame]:
    """`references`, all `strengths` and the `chosen` ones, on the calibration pairs."""
    pairs = environment.pairs["calibration"]
    some = [pair for pair in pairs if len(pair.targets) == min(len(other.targets) for other in pairs)][:48]
    alphas = grids(bank, variants, some, environment.behaviours, avoid_rest)
    references = summarise(scorer.refer(pairs), ["variant", "size"])
    tried = [(variant, alpha) for variant in variants for alpha in alphas[variant.name]]
    rows = steer(scorer, pairs, environment, tried, avoid_rest, "every strength")
    points = summarise(rows, ["variant", "alpha", "size"])
    context = references[references["variant"] == "context"].set_index("size")["off_target"]
    budgets = {int(size): float(change) for size, change in context.items()}
    return {"references": references, "strengths": points, "chosen": choose(points, budgets)}


def test(
    scorer: Scorer,
    environment: Environment,
    variants: Sequence[Variant],
    chosen: pd.DataFrame,
    avoid_rest: bool,
) -> pd.DataFrame:
    """One row per test pair and variant, each at its chosen strength; unsteered and context first."""
    pairs = environment.pairs["test"]
    frames = [scorer.refer(pairs)]
    alphas = {(row.variant, row.size): row.alpha for row in chosen.itertuples(index=False)}
    for size in sorted({len(pair.targets) for pair in pairs}):
        own = environment.pairs_of("test", size)
        tried = [(variant, alphas[variant.name, size]) for variant in variants]
        frames.append(steer(scorer, own, environment, tried, avoid_rest, f"test pairs, {size} at once"))
    return pd.concat(frames, ignore_index=True)


def steer(
    scorer: Scorer,
    pairs: Sequence[Pair],
    environment: Environment,
    tried: Sequence[tuple[Variant, float]],
    avoid_rest: bool,
    description: str,
) -> pd.DataFrame:
    """All pairs under every (variant, alpha), in one batch."""
    asks = [
        Ask(pair, spec_of(variant, pair, environment.behaviours, alpha, avoid_rest))
        for variant, alpha in tried
        for pair in pairs
    ]
    return scorer.score(asks, description).assign(
        variant=[variant.name for variant, _ in tried for _ in pairs],
        alpha=[alpha for _, alpha in tried for _ in pairs],
    )


def table_of(summary: pd.DataFrame, size: int, name: str) -> record.Table:
    """The test pairs of a size: every measure, most with their 95 % bootstrap intervals."""
    what = "one behaviour" if size == 1 else f"{size} behaviours at once"
    names = ("target features", "off-target change", "similarity", "word is a target's")
    columns = ("", *names, "weakest behaviour", "pairs")
    table = record.Table(f"{name}, {what}", columns)
    for row in summary[summary["size"] == size].to_dict("records"):
        cells = [
            f"{row[measure]:.2f} ({row[f'{measure}_low']:.2f} to {row[f'{measure}_high']:.2f})"
            for measure in MEASURES
        ]
        table.rows.append((row["variant"], *cells, f"{row['weakest']:.2f}", str(row["pairs"])))
    return table


def common_words(rows: pd.DataFrame, count: int = 3) -> dict[str, dict[str, list[str]]]:
    """variant -> behaviour -> the words most often produced for it alone."""
    found: dict[str, dict[str, list[str]]] = {}
    for (variant, targets), own in rows[rows["size"] == 1].groupby(["variant", "targets"], sort=False):
        found.setdefault(variant, {})[targets] = own["word"].value_counts().index[:count].tolist()
    return found


def records(frame: pd.DataFrame, digits: int = 4) -> list[dict[str, Any]]:
    """Plain JSON rows, rounded."""
    return json.loads(frame.to_json(orient="records", double_precision=digits))


def show(result: Path) -> list[Path]:
    """RESULT with the suffix .png: gains by off-target change; RESULT-sets.png: every set of behaviours."""
    data = json.loads(result.read_text())
    sets = result.with_name(f"{result.stem}-sets.png")
    return [draw(data, result.with_suffix(".png")), heat_map(data["test_sets"], sets)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    typer.run(main)
