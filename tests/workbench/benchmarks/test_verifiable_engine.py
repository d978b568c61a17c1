"""Multiple choice and the KL on neutral text, on the shipped model against what the engine itself says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.engines import prepare_environment

prepare_environment()

from benchmarks.verifiable.choices import option_scores, read_choices  # noqa: E402
from benchmarks.verifiable.neutral import NeutralTexts  # noqa: E402
from ksteer_vllm.bench.engines import generation_params, running_engine  # noqa: E402
from ksteer_vllm.data.positions import encode_prompt, encode_reply  # noqa: E402
from ksteer_vllm.data.rows import Message  # noqa: E402
from ksteer_vllm.demo import MODEL_DIR  # noqa: E402
from testbed.probes import random_probe  # noqa: E402
from tests.support.engines import OPTIONS  # noqa: E402

LAST = 5
SPEC = {"probe": "tones", "target": ["warm"], "alpha": 2.0}
QUESTIONS = ("How do I repair my kettle?", "Where do I buy a drum?")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder: Path = tmp_path_factory.mktemp("verifiable") / "tones"
    random_probe(layer=2, labels=("warm", "dry"), hidden_size=128, num_layers=6).save(folder)
    steering = {"probes": {"tones": folder}, "capture": {"layers": [LAST]}}
    with running_engine(str(MODEL_DIR), {**OPTIONS, "max_logprobs": -1}, steering=steering) as engine:
        yield engine


def every_logprob(llm: Any, prompt: list[int], tokens: list[int], spec: Any) -> np.ndarray:
    """The distributions that generated tokens were chosen from [R, V], as the engine tells them."""
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    sampling = generation_params(temperature=0, max_tokens=len(tokens), spec=spec, logprobs=vocabulary)
    (output,) = llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
    assert list(output.outputs[0].token_ids) == tokens
    return np.asarray(
        [[at[token].logprob for token in range(vocabulary)] for at in output.outputs[0].logprobs]
    )


def test_the_divergence_is_that_of_the_engines_own_distributions(llm: Any) -> None:
    """Float32 throughout; sums over the vocabulary differ in their order: 1e-4 nats."""
    texts = NeutralTexts(llm, QUESTIONS, tokens=1)
    wanted = []
    for text in texts.texts:
        prompt, reply = list(text.prompt), list(text.reply)
        unsteered = every_logprob(llm, prompt, reply, None)
        sampling = generation_params(temperature=0, max_tokens=1, spec=SPEC, logprobs=unsteered.shape[1])
        (output,) = llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        steered = np.asarray(
            [[at[token].logprob for token in range(unsteered.shape[1])] for at in output.outputs[0].logprobs]
        )
        wanted.append((np.exp(steered) * (steered - unsteered)).sum(1).mean())
    found = texts.kl(SPEC)
    assert found == pytest.approx(wanted, abs=1e-4)
    assert found.min() > 0.01


def test_a_strength_of_0_diverges_by_nothing(llm: Any) -> None:
    texts = NeutralTexts(llm, QUESTIONS, tokens=8)
    assert texts.kl({**SPEC, "alpha": 0.0}) == pytest.approx(0.0, abs=1e-9)
    assert all(len(text.reply) == 8 for text in texts.texts)


def test_options_are_scored_as_transformers_scores_them(llm: Any) -> None:
    """Float32 in two implementations: 1e-3 nats."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()
    choices = read_choices()[:2]
    found, tokenizer = option_scores(llm, choices), llm.get_tokenizer()
    for choice, scores in zip(choices, found, strict=True):
        prompt = encode_prompt(tokenizer, (Message(role="user", content=choice.question),))
        for option, score in zip(choice.options, scores, strict=True):
            said = encode_reply(tokenizer, option)
            with torch.no_grad():
                logprobs = model(torch.tensor([[*prompt, *said]])).logits[0].log_softmax(-1)
            own = [float(logprobs[len(prompt) - 1 + at, token]) for at, token in enumerate(said)]
            assert score == pytest.approx(np.mean(own), abs=1e-3)


def test_options_are_steered(llm: Any) -> None:
    choices = read_choices()[:2]
    plain = option_scores(llm, choices)
    assert np.abs(option_scores(llm, choices, SPEC) - plain).min() > 1e-4
    assert option_scores(llm, choices, {**SPEC, "alpha": 0.0}) == pytest.approx(plain, abs=1e-6)
