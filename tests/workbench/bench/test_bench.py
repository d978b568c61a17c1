"""Bench: scores against transformers, journals, order, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.jobs import Job, Reply
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.bench.ordinary import perplexities
from ksteer_vllm.bench.suite import Suite
from ksteer_vllm.data.positions import encode_prompt
from ksteer_vllm.data.rows import LabelledRow
from ksteer_vllm.demo import MODEL_DIR
from ksteer_vllm.errors import UsageError
from tests.workbench.bench.small_suite import LABELS, LAYER, prompts

TOLERANCE = 1e-3
"""Nats per token, and logits: float32 in two implementations."""


def spec(alpha: float, label: str = LABELS[0], **more: Any) -> dict[str, Any]:
    return {"probe": "caa", "method": "add", "target": [label], "alpha": alpha, **more}


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    """Unsteered, gently steered and garbled ones, of which some run into max_tokens."""
    strengths = (None, 0.3, 3.0)
    return [
        Job(prompt, None if alpha is None else spec(alpha), seed, {"alpha": alpha})
        for alpha in strengths
        for seed, prompt in enumerate(prompts(4))
    ]


@pytest.fixture(scope="module")
def replies(bench: Bench, jobs: list[Job]) -> list[Reply]:
    return bench.run(jobs)


def test_replies_are_in_the_order_of_the_jobs_and_steered_by_their_specs(
    replies: list[Reply], jobs: list[Job]
) -> None:
    assert [reply.job for reply in replies] == jobs
    assert {reply.finished for reply in replies} == {True, False}
    texts = [[r.text for r in replies if r.job.tags["alpha"] == alpha] for alpha in (None, 0.3, 3.0)]
    assert texts[0] != texts[2]
    assert len(set(texts[0])) > 1, "different prompts"


def test_scores_are_those_of_transformers(replies: list[Reply], suite: Suite, bench: Bench) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    tokenizer = bench.llm.get_tokenizer()
    assert suite.evaluation is not None
    reader = suite.evaluation
    for reply in replies:
        chat = [message.model_dump() for message in reply.job.prompt]  # type: ignore[union-attr]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer.encode(text, add_special_tokens=False)
        said = tokenizer.encode(reply.text, add_special_tokens=False)
        if len(said) != reply.tokens:
            continue  # the text of a garbled reply need not be cut into the tokens that were drawn
        end = [tokenizer.eos_token_id] if reply.finished else []
        tokens = prompt + said + end
        with torch.no_grad():
            out = model(torch.tensor([tokens]), output_hidden_states=True)
        logprobs = out.logits[0].double().log_softmax(-1)
        own = [float(logprobs[i - 1, tokens[i]]) for i in range(len(prompt), len(tokens))]
        assert reply.nll == pytest.approx(-sum(own) / len(own), abs=TOLERANCE)
        stream = out.hidden_states[LAYER + 1][0, len(prompt) - 1 : len(prompt) + len(said)]
        wanted = reader.logits(stream.double()).mean(0).tolist()
        assert reply.propensity == pytest.approx(dict(zip(LABELS, wanted, strict=True)), abs=TOLERANCE)


def test_most_replies_can_be_compared_with_transformers(replies: list[Reply], bench: Bench) -> None:
    tokenizer = bench.llm.get_tokenizer()
    same = [len(tokenizer.encode(r.text, add_special_tokens=False)) == r.tokens for r in replies]
    assert sum(same) >= 8


def test_the_same_ask_gives_the_same_reply_alone_and_without_score(
    bench: Bench, replies: list[Reply], jobs: list[Job]
) -> None:
    (alone,) = bench.run(jobs[5:6], score=False)
    assert alone.text == replies[5].text
    assert alone.nll is None
    assert alone.propensity is None


def test_equal_jobs_are_run_once(bench: Bench, jobs: list[Job], folder: Path) -> None:
    with Journal(folder / "journal.jsonl", bench.identity) as journal:
        found = bench.run([jobs[0], jobs[1], jobs[0]], journal=journal)
        assert len(journal) == 2
    assert found[0] == found[2]


def test_what_is_in_the_journal_is_not_run_again(bench: Bench, jobs: list[Job], folder: Path) -> None:
    path = folder / "journal.jsonl"
    with Journal(path, bench.identity) as journal:
        bench.run(jobs[:3], journal=journal)
        key = bench.key(jobs[1])
        journal.add(key, {**journal[key], "text": "kept"})
    with Journal(path, bench.identity) as journal:
        found = bench.run(jobs[:4], journal=journal)
        assert len(journal) == 4
    assert found[1].text == "kept"


def test_a_probe_fitted_anew_has_other_keys(bench: Bench, jobs: list[Job]) -> None:
    steered, plain = jobs[-1], jobs[0]
    before = bench.key(steered), bench.key(plain)
    digests = dict(bench._digests)
    bench._digests["caa"] = "another"
    try:
        assert bench.key(steered) != before[0]
        assert bench.key(plain) == before[1]
    finally:
        bench._digests.update(digests)


def test_a_report_gives_the_shift(bench: Bench, jobs: list[Job]) -> None:
    weak, strong = (Job(jobs[0].prompt, spec(alpha, report=True)) for alpha in (0.01, 0.1))
    found = bench.run([weak, strong, jobs[0]], score=False)
    assert found[0].shift is not None
    assert found[1].shift == pytest.approx(10 * found[0].shift, rel=0.3)
    assert found[2].shift is None


def test_a_refused_spec_leaves_nothing_under_way(bench: Bench, jobs: list[Job]) -> None:
    unknown = replace(jobs[-1], spec=spec(1.0, "nobody"))
    with pytest.raises(ValueError, match="nobody"):
        bench.run([*jobs[:2], unknown])
    assert not bench.llm.llm_engine.has_unfinished_requests()
    assert bench.run(jobs[:1])[0].text


def test_a_prompt_without_room_for_its_reply_is_named(bench: Bench) -> None:
    with pytest.raises(UsageError, match=r"has \d+ tokens, its reply needs 41; .*max_model_len"):
        bench.run([Job("word " * 200)])


def test_a_reply_may_be_read_under_another_prompt_than_its_own(bench: Bench) -> None:
    """Its text is the same, its score that of the text under the other prompt; so is that of `perplexities`,
    which leaves out the reply's end."""
    asked, plain = prompts(2)
    own, other = bench.run([Job(asked, seed=1), Job(asked, seed=1, read_under=plain)])
    assert own.text == other.text
    assert own.prompt_tokens == other.prompt_tokens == len(encode_prompt(bench.llm.get_tokenizer(), asked))
    assert own.nll is not None
    assert other.nll is not None
    rows = [LabelledRow(prompt=prompt, reply=own.text, labels=()) for prompt in (asked, plain)]
    for reply, perplexity in zip((own, other), perplexities(bench, rows), strict=True):
        whole = reply.nll * (reply.tokens + reply.finished) if reply.nll else 0.0
        end = whole - math.log(perplexity) * reply.tokens
        assert -TOLERANCE * reply.tokens < end < 10 * reply.finished + TOLERANCE * reply.tokens
    assert other.nll > own.nll + 0.05, "an answer to another question"


def test_a_job_has_a_temperature_of_its_own(bench: Bench) -> None:
    (prompt,) = prompts(1)
    greedy = bench.run([Job(prompt, seed=seed, temperature=0.0) for seed in (1, 2)])
    assert greedy[0].text == greedy[1].text
    assert len({job.key for job in (Job(prompt), Job(prompt, temperature=0.0))}) == 2
