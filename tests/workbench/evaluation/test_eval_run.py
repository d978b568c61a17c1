"""A whole evaluation of a tiny suite, and what is measured on given texts against transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ksteer_vllm import SteeringSpec
from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.suite import Suite
from ksteer_vllm.bench.variants import Variant, variants_for
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.evaluation.forced import EXACT_UP_TO, ForcedReader
from ksteer_vllm.experiments.evaluation.metrics import UNSTEERED
from ksteer_vllm.experiments.evaluation.outcome import Evaluation
from ksteer_vllm.experiments.evaluation.plan import EvaluationPlan
from ksteer_vllm.experiments.evaluation.projections import worth_a_point
from ksteer_vllm.experiments.evaluation.run import JOURNAL, evaluate_suite
from ksteer_vllm.experiments.evaluation.settings import Setting, unsteered_jobs
from ksteer_vllm.experiments.evaluation.writeup import size_table, write_up
from tests.support.oracle import Oracle

PLAN = EvaluationPlan(sizes=(1, 2), prompts=2, steps=(1, 8), texts=1, max_tokens=8)
ALPHA = {"mlp": 2.0, "caa": 1.0, "ace": 1.0, "actadd": 0.5}


def _settings(suite: Suite) -> list[Setting]:
    return [Setting(v, dict.fromkeys((1, 2), ALPHA[v.probe])) for v in _variants(suite)]


def _variants(suite: Suite) -> list[Variant]:
    return variants_for({name: probe.metadata for name, probe in suite.probes.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def found(suite: Suite, folder: Path) -> Evaluation:
    return evaluate_suite(suite, _settings(suite), PLAN, folder)


def test_displacement_and_kl_are_those_of_transformers(suite: Suite) -> None:
    prompts = suite.file.prompts["evaluation"]
    options = {**suite.file.engine_options, "max_logprobs": EXACT_UP_TO}
    with Bench(suite.file.model, suite.paths, engine_options=options, max_tokens=12) as bench:
        (reply,) = bench.run(unsteered_jobs(prompts[:1]))
        reader = ForcedReader(bench, ["actadd"])
        assert reader.exact
        text = reader.text(reply)
        assert text is not None
        caa = {"probe": "caa", "target": ["warm"], "avoid": ["dry"], "alpha": 1.5}
        specs = [
            caa,
            {"probe": "mlp", "target": ["cold"], "alpha": 3.0, "num_steps": 4},
            {"probe": "actadd", "target": ["cold"], "alpha": 1.0},
            {**caa, "alpha": 0.0},
        ]
        moved = reader.read([text] * len(specs), specs)
        (without,) = reader.read([text], specs[:1], kl=False)
    assert without.shift == moved[0].shift
    assert without.kl != without.kl
    oracle = Oracle(Path(suite.file.model), suite.probes)
    generated = [*text.reply, 0]
    plain, _ = oracle.log_probs(text.prompt, generated, None)
    for spec, measured in zip(specs[:3], moved, strict=False):
        steered, _ = oracle.log_probs(text.prompt, generated, SteeringSpec.parse(spec))
        kl = (steered.exp() * (steered - plain)).sum(-1)[: len(text.reply)].mean().item()
        assert measured.kl == pytest.approx(kl, rel=1e-3, abs=1e-6), spec  # float32 logits
        assert measured.kl > 1e-4
    assert (moved[3].shift, moved[3].kl) == (0.0, pytest.approx(0.0, abs=1e-6))
    x = _stream(suite, [*text.prompt, *text.reply])[len(text.prompt) - 1 :]
    vectors = suite.probes["caa"].tensors["vectors"].double()
    length = (1.5 * (vectors[0] - vectors[2])).norm()
    assert moved[0].shift == pytest.approx((length / x.norm(dim=1)).mean().item(), rel=1e-4)


@torch.no_grad()
def _stream(suite: Suite, tokens: list[int]) -> torch.Tensor:
    """[T, d]: the unsteered stream after layer 1."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(suite.file.model, dtype=torch.float32)
    return model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[2][0].double()


def test_every_variant_and_the_controls_are_in_every_table(found: Evaluation, suite: Suite) -> None:
    names = {UNSTEERED, *(variant.name for variant in _variants(suite))}
    assert {"random direction", "K-Steering, 8 steps", "CAA"} < names
    for frame in (found.own, found.matched):
        for size in (1, 2):
            assert set(frame[frame["size"] == size]["variant"]) == names
            assert set(frame[frame["size"] == size].groupby("variant").size()) == {3 * 2}
    assert len(found.moved) == (len(names) - 1) * 6
    assert found.exact_kl
    assert set(found.propensities.groupby("variant").size()) == {3 * 5 * 2}
    assert found.steps is not None
    assert set(found.steps["variant"]) == {UNSTEERED, "1 step", "8 steps"}


def test_matched_strengths_give_the_same_displacement(found: Evaluation) -> None:
    reached = [match for match in found.strengths if match.reached]
    assert len(reached) >= 0.7 * len(found.strengths), found.strengths
    for size in (1, 2):
        shifts = [match.shift for match in reached if match.size == size]
        assert max(shifts) <= 1.07 * min(shifts)


def test_report(found: Evaluation, tmp_path: Path) -> None:
    path = write_up(found, tmp_path)
    text = path.read_text()
    for heading in ("Who wins where", "Side effects", "At equal displacement", "Steerability"):
        assert f"\n## {heading}\n" in text
    assert "Highest: " in text
    for name in ("ranking", "composition", "steps", "steerability", "projections"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["by_size"]) == len(size_table(found)) == 2 * 8
    assert results["provenance"]["digests"].keys() == {"mlp", "caa", "ace", "actadd"}
    assert len(results["by_target"]) == 6 * 8


def test_numbers_of_steps_that_did_not_reach_the_displacement_are_marked(
    found: Evaluation, tmp_path: Path
) -> None:
    assert {(m.variant, m.size) for m in found.step_strengths} == {
        (name, size) for name in ("1 step", "8 steps") for size in (1, 2)
    }
    strengths = [
        replace(m, shift=m.wanted * (0.5 if (m.variant, m.size) == ("1 step", 2) else 1))
        for m in found.step_strengths
    ]
    text = write_up(replace(found, step_strengths=strengths), tmp_path).read_text()
    assert "Not reached, and left out of the figure: 1 step at 2 labels." in text
    rows = json.loads((tmp_path / "results.json").read_text())["steps"]
    assert {(row["variant"], row["size"]) for row in rows if not row["reached"]} == {("1 step", 2)}
    strengths = [replace(m, shift=0.0) for m in strengths]
    write_up(replace(found, step_strengths=strengths), tmp_path / "none")
    assert not (tmp_path / "none" / "steps.png").exists()


def test_the_share_of_coherent_unsteered_replies_is_the_evaluations_own(
    found: Evaluation, tmp_path: Path
) -> None:
    own = found.own.copy()
    own["coherent"] = [
        float(variant != UNSTEERED or prompt == 0)
        for variant, prompt in zip(own["variant"], own["prompt"], strict=True)
    ]
    text = write_up(replace(found, own=own), tmp_path).read_text()
    assert "0.50 of the unsteered replies are coherent" in text


def test_a_reply_of_white_space_is_no_point() -> None:
    def reply(text: str, variant: str, target: list[str], prompt: int = 0) -> Reply:
        tags = {"variant": variant, "target": target, "prompt": prompt}
        return Reply(Job("Why?", tags=tags), text, tokens=3, finished=True)

    kept = [reply("So.", UNSTEERED, []), reply("So.", "CAA", ["warm"], prompt=9)]
    others = [
        reply(" \n ", UNSTEERED, []),
        reply("So.", "CAA", ["warm", "dry"]),
        reply("So.", "ACE", ["warm"]),
        reply("So.", "CAA", ["warm"], prompt=10),
    ]
    assert worth_a_point([*kept, *others], ["CAA"]) == kept


def test_goes_on_where_it_was_stopped(found: Evaluation, suite: Suite, folder: Path) -> None:
    """From a journal cut off in the middle the same figures come out, and what was there is not run again."""
    lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    kept = len(lines) // 2
    (folder / JOURNAL).write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
    again = evaluate_suite(suite, _settings(suite), PLAN, folder)
    assert (folder / JOURNAL).read_bytes().splitlines(keepends=True)[:kept] == lines[:kept]
    assert len((folder / JOURNAL).read_bytes().splitlines()) == len(lines)
    columns = ["variant", "target", "prompt", "text", "on_target"]
    assert again.own[columns].equals(found.own[columns])
    assert again.matched[columns].equals(found.matched[columns])


def test_a_plan_that_does_not_fit_is_refused(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sizes: 4 of 3 labels"):
        evaluate_suite(suite, _settings(suite), PLAN.model_copy(update={"sizes": (4,)}), tmp_path)
    with pytest.raises(UsageError, match="none has a calibrated strength; run `ksteer calibrate`"):
        evaluate_suite(suite, [], PLAN, tmp_path)
