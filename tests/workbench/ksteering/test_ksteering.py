"""`KSteering` on the shipped model: fit, steer, sweep, save, in the package's setting and in ours."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.engines import prepare_environment

prepare_environment()

from ksteer_vllm import KSteering, SteeringConfig  # noqa: E402
from ksteer_vllm.data.positions import PROMPT_LAST  # noqa: E402
from ksteer_vllm.data.rows import LabelledRow  # noqa: E402
from ksteer_vllm.demo import ENGINE_OPTIONS, MODEL_DIR  # noqa: E402
from ksteer_vllm.demo.corpus import (  # noqa: E402
    Question,
    held_out_questions,
    instruction_for,
    prompt_messages,
    train_questions,
)
from ksteer_vllm.demo.lexicon import TONES  # noqa: E402
from ksteer_vllm.demo.reader import read  # noqa: E402
from ksteer_vllm.fit.task import FitTask  # noqa: E402

LAYER = 2
PIP = "pip-0.1.2"
GREEDY = {"do_sample": False, "max_new_tokens": 64}
SMALL = {**ENGINE_OPTIONS, "kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 32}
ASKED: list[Question] = held_out_questions("test")[:10]
PROMPTS = [question.text for question in ASKED]


def rows(count: int) -> list[LabelledRow]:
    """Every question under an instruction for each tone, without a reply."""
    rng = random.Random(0)
    return [
        LabelledRow.model_validate(
            {
                "prompt": prompt_messages(question.text, instruction_for(frozenset({tone}), rng)),
                "labels": [tone],
            }
        )
        for question in train_questions()[:count]
        for tone in TONES
    ]


@pytest.fixture(scope="module")
def steering() -> Iterator[KSteering]:
    """Tuned to steer hard: half of the layer's scale."""
    with KSteering(MODEL_DIR, SteeringConfig(train_layer=LAYER), engine_options=SMALL) as found:
        yield found.fit(dataset=rows(40))


def shown(text: str, question: Question) -> frozenset[str]:
    return frozenset(read(question.text, text).tones)


def test_three_lines_steer(steering: KSteering) -> None:
    """Every prompt towards its own tone, in one batch, beside unsteered replies."""
    targets = [[("casual", "expert")[index % 2]] for index in range(len(PROMPTS))]
    found = steering.get_steered_output(
        PROMPTS, target_labels=targets, generation_kwargs=GREEDY, return_dict=True, unsteered=True
    )
    hits = [set(t) <= shown(text, q) for t, text, q in zip(targets, found["text"], ASKED, strict=True)]
    plain = [
        set(t) <= shown(text, q) for t, text, q in zip(targets, found["unsteered_text"], ASKED, strict=True)
    ]
    print(f"steered {sum(hits)}, unsteered {sum(plain)} of {len(PROMPTS)} show their tone")
    assert sum(hits) >= 8
    assert sum(plain) <= 5
    assert found["unsteered_text"] == steering.get_unsteered_output(PROMPTS, generation_kwargs=GREEDY)
    assert found["input_prompt"] == PROMPTS
    (alone,) = steering.get_steered_output(PROMPTS[0], target_labels=targets[0], generation_kwargs=GREEDY)
    assert alone == found["text"][0]


def test_a_sweep_is_one_batch_and_finds_what_stays_coherent(steering: KSteering) -> None:
    strengths = [0.01, 0.05, 1.0]
    found = steering.sweep_alpha(
        strengths,
        PROMPTS[:6],
        target_labels=["casual"],
        avoid_labels=["expert"],
        unit="normalised",
        generation_kwargs={**GREEDY, "max_new_tokens": 96},
    )
    assert list(found.by_strength["alpha"]) == [0.0, *strengths]
    assert len(found.replies) == 4 * 6
    print(found.by_strength)
    assert found.largest_coherent == 0.05
    assert not found.replies[found.replies["alpha"] == 1.0]["coherent"].any()
    assert found.replies[found.replies["alpha"] == 0.0]["coherent"].mean() >= 0.5


def test_what_is_saved_steers_alike(steering: KSteering, tmp_path: Path) -> None:
    asked = {"target_labels": ["concise"], "generation_kwargs": GREEDY}
    before = steering.get_steered_output(PROMPTS[:4], **asked)
    assert before != steering.get_unsteered_output(PROMPTS[:4], generation_kwargs=GREEDY)
    with KSteering.load(steering.save(tmp_path / "saved"), MODEL_DIR, engine_options=SMALL) as loaded:
        assert loaded.unique_labels == steering.unique_labels
        assert loaded.get_steered_output(PROMPTS[:4], **asked) == before


@pytest.fixture(scope="module")
def pip() -> Iterator[KSteering]:
    """chat: the shipped model knows no plain prompts."""
    config = SteeringConfig(train_layer=LAYER)
    with KSteering(MODEL_DIR, config, compat=PIP, chat=True, engine_options=SMALL) as found:
        yield found.fit(dataset=rows(40))


def test_quirk_the_classifier_is_the_packages(pip: KSteering) -> None:
    metadata, tensors = pip.probe.metadata, pip.probe.tensors
    assert (metadata.layer, metadata.settings["compat"]) == (LAYER, PIP)
    assert tuple(tensors["w1"].shape) == (128, 128)
    assert tuple(tensors["w2"].shape) == (128, 128)
    assert not tensors["input_mean"].any()
    assert (tensors["input_std"] == 1).all()
    training = metadata.training
    wanted = {"epochs": 1, "batch_size": 64, "learning_rate": 1e-3, "weight_decay": 0.0, "loss": "bce"}
    assert training.items() >= wanted.items()
    assert training["epochs_run"] == 1


def test_quirk_it_reads_the_blocks_input(pip: KSteering) -> None:
    """hidden_states[train_layer] at the prompt's last token, as transformers has it: the output of the block
    before the one that is steered."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    few = rows(2)
    task = FitTask.of(
        str(MODEL_DIR), few, "mlp", layer=LAYER, compat=PIP, window=PROMPT_LAST, engine_options=SMALL
    )
    found = task.activations()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
    expected = []
    for row in few:
        messages = [message.model_dump() for message in row.prompt]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            expected.append(model(tokens, output_hidden_states=True).hidden_states[LAYER][0, -1])
    torch.testing.assert_close(found.x, torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert task.layer == LAYER


def test_quirk_prompts_of_one_call_are_one_padded_batch(pip: KSteering) -> None:
    lengths = [pip._running.length_of(prompt) for prompt in pip._prompts(PROMPTS)]
    assert min(lengths) < max(lengths)
    options = {"target_labels": ["casual"], "steering_strength": 4.0, "generation_kwargs": GREEDY}
    together = pip.get_steered_output(PROMPTS, return_dict=True, **options)
    assert {spec["compat"]["padded_length"] for spec in together["specs"]} == {max(lengths)}
    alone = pip.get_steered_output(PROMPTS[0], return_dict=True, **options)
    assert alone["specs"][0]["compat"]["padded_length"] is None
