"""The comparison of the demo on SmolLM2, on an engine that is made up here."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest

from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.data.behaviours import read_behaviours
from ksteer_vllm.demo.smollm2.compare import WAYS, Comparison, compare
from ksteer_vllm.demo.smollm2.plan import PAIRS, PLAN
from ksteer_vllm.experiments.knob.checks import checks_of
from ksteer_vllm.experiments.knob.prompts import PromptForm, TemplateChoice
from ksteer_vllm.experiments.knob.tryout import ReadingLimit, Tryout
from ksteer_vllm.fit.progress import progress_bar

PLAIN = "Open the window first, then look for the cat in the garden behind the house."
FRENCH = "Je pense que le chat est dans la maison et que vous avez une bonne idée pour nous."
PIRATE = "Ahoy matey, arr, ye be a fine captain, aye, and me hearties be ready to sail."
QUESTIONS = ("Where is the cat?", "What is for dinner?")
STRENGTHS = {"french": 0.2, "excited": 0.35, "pirate": 0.25, "first person": 0.2}


class FakeBench:
    """Vectors speak French at 0.25 at least, gradients talk like pirates, prompts do nothing."""

    def __init__(self) -> None:
        self.asked: list[Job] = []

    def run(self, jobs: Sequence[Job], **_: Any) -> list[Reply]:
        self.asked += jobs
        return [Reply(job, self._text(job), tokens=12, finished=True, nll=1.0) for job in jobs]

    def _text(self, job: Job) -> str:
        if job.spec is None:
            return PLAIN
        if job.spec["method"] == "add":
            return FRENCH if "french" in job.spec["target"] and job.spec["alpha"] >= 0.25 else PLAIN
        return PIRATE if "pirate" in job.spec["target"] else PLAIN


@pytest.fixture(scope="module")
def bench() -> FakeBench:
    return FakeBench()


@pytest.fixture(scope="module")
def found(bench: FakeBench, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    with as_file(files("ksteer_vllm") / "demo" / "smollm2" / "behaviours.yaml") as file:
        asked = read_behaviours(file).behaviours
    folder = tmp_path_factory.mktemp("demo")
    chosen = {name: asked[name] for name in STRENGTHS}
    with Journal(folder / "journal.jsonl", {}) as journal, progress_bar() as progress:
        tryout = Tryout(
            bench,
            PromptForm(None, TemplateChoice(raw=True)),
            {name: behaviour.instruction for name, behaviour in chosen.items()},
            checks_of(chosen, Path(folder)),
            PLAN,
            journal,
            progress,
            ReadingLimit(10.0),
        )
        return compare(tryout, STRENGTHS, QUESTIONS, QUESTIONS)


def test_every_way_answers_every_question_for_every_behaviour_and_pair(found: Comparison) -> None:
    assert set(found.cells) == set(WAYS)
    columns = {*STRENGTHS, *(" + ".join(pair) for pair in PAIRS)}
    for row in found.cells.values():
        assert set(row) == columns
        assert {cell.asked for cell in row.values()} == {len(QUESTIONS)}


def test_vectors_are_calibrated_like_the_knob(found: Comparison) -> None:
    assert found.strengths["CAA"]["french"] == 0.25
    assert str(found.cells["CAA"]["french"]) == "2/2"


def test_replies_count_where_they_show_it(found: Comparison) -> None:
    assert str(found.cells["K-Steering"]["pirate"]) == "2/2"
    assert str(found.cells["K-Steering"]["french"]) == "0/2"
    assert str(found.cells["unsteered"]["pirate"]) == "0/2"
    assert str(found.cells["K-Steering"]["pirate + first person"]) == "0/2", "only one of the two shows"


def test_pairs_are_steered_and_prompted_with_both(found: Comparison, bench: FakeBench) -> None:
    own = [job for job in bench.asked if job.tags.get("pair") == ["french", "excited"]]
    by_way = {job.tags["part"]: job for job in own}
    assert set(by_way) == set(WAYS[1:])
    spec = by_way["K-Steering"].spec
    assert spec is not None
    assert spec["target"] == ["french", "excited"]
    assert spec["alpha"] * spec["num_steps"] == pytest.approx((0.2 + 0.35) / 2)
    assert "Answer in French. Hooray!" in by_way["prompted"].question
    assert by_way["prompted"].spec is None
