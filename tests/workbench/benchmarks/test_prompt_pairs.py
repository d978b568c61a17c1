"""The prompt pairs: what they say, what is measured of them, and a miniature run through the engine."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import typer
from rich.console import Console
from safetensors.torch import save_file

from tests.support.engines import prepare_environment

prepare_environment()

from benchmarks import prompt_pairs, record  # noqa: E402
from benchmarks.pairs import engine, scenes, sources, tones  # noqa: E402
from benchmarks.pairs.dictionary import Dictionary, DictionaryPlan, train_dictionary  # noqa: E402
from benchmarks.pairs.environment import Pair, first_words, word_of  # noqa: E402
from benchmarks.pairs.measures import (  # noqa: E402
    WordVectors,
    behaviour_features,
    off_target,
    similarities,
    target_share,
)
from benchmarks.pairs.strengths import choose  # noqa: E402
from ksteer_vllm.demo.corpus import held_out_questions, train_questions  # noqa: E402
from ksteer_vllm.demo.reader import read  # noqa: E402
from ksteer_vllm.models import ModelIdentity  # noqa: E402
from ksteer_vllm.probes.probe import Probe  # noqa: E402

CONSOLE = Console(quiet=True)


def test_words_several_behaviours_begin_with_are_skipped():
    words, skipped = first_words({"kind": ["I am glad.", "Gladly!"], "shy": ["I know, sorry."]})
    assert words == {"kind": ("Gladly", "am"), "shy": ("know",)}
    assert skipped == {"I"}
    assert word_of(" I am", skipped) == "am"
    assert word_of("... 12!") == ""


@pytest.fixture(scope="module")
def tiny() -> Any:
    """The shipped model's environment, a few pairs of one and two tones."""
    return tones.tones_environment(examples=420, per_set=3, tests=3, sizes=(1, 2))


def test_tone_pairs_differ_in_the_context_alone(tiny: Any):
    asked = {"calibration": held_out_questions("calibration"), "test": held_out_questions("test")}
    for part, questions in asked.items():
        for pair in tiny.pairs[part]:
            assert pair.context.endswith(pair.neutral)
            system = pair.context.removesuffix(pair.neutral)
            assert system.startswith("<|system|>")
            assert all(tone in system for tone in pair.targets)
            assert any(f"<|user|>{question.text}<|end|>" in pair.neutral for question in questions)
    fitted = {question.text for question in train_questions()}
    assert all(any(text in e.pair.neutral for text in fitted) for e in tiny.examples[:50])
    assert {pair.place for pair in tiny.pairs["test"]} == set(tones.PLACES)


def test_replies_of_tone_examples_are_of_the_language_and_begin_with_a_target_word(tiny: Any):
    for example in tiny.examples[:200]:
        pair = example.pair
        begun = pair.neutral.rsplit("<|assistant|>", 1)[1]
        question = pair.neutral.split("<|user|>", 1)[1].split("<|end|>", 1)[0]
        reading = read(question, begun + example.reply)
        assert reading.well_formed, (begun + example.reply, reading.problems)
        assert reading.tones == set(pair.targets)
        assert word_of(example.reply, pair.skipped) in pair.target_words()


def test_scenes_share_no_word_and_parts_share_no_text():
    words = list(itertools.chain.from_iterable(scenes.WORDS.values()))
    assert len(words) == len(set(words))
    environment = scenes.scenes_environment("m", layer=7, examples=200, per_set=5, tests=5)
    bare = [sentence for sentence in (*scenes.NEUTRAL, *itertools.chain(*scenes.CONTEXTS.values()))]
    used: dict[str, set[str]] = {
        part: {
            text
            for text in (*bare, *scenes.TEMPLATES)
            for pair in pairs
            for found in (pair.neutral, pair.context)
            if text.split("{name}")[-1] in found and text.split("{name}")[0] in found
        }
        for part, pairs in environment.pairs.items()
    }
    used["examples"] = {t for t in bare for e in environment.examples if t in e.pair.context + e.pair.neutral}
    assert not used["test"] & (used["calibration"] | used["selection"] | used["examples"])
    assert not used["calibration"] & (used["selection"] | used["examples"])
    assert not any(
        word in text.lower() for scene in scenes.WORDS.values() for text in scenes.NEUTRAL for word in scene
    )
    with pytest.raises(ValueError, match="sizes"):
        scenes.scenes_environment("m", layer=7, sizes=(3,))


def test_features_and_shares_on_known_numbers():
    rise = [torch.tensor([[4.0, 1.0, 0.0, -1.0]] * 3), torch.tensor([[0.0, 1.0, 2.0, -3.0]] * 3)]
    assert [found.tolist() for found in behaviour_features(rise, 2)] == [[0], [2]]  # 1 rises under both alike
    with pytest.raises(ValueError, match="no feature"):
        behaviour_features([rise[0], rise[0]], 2)
    neutral, context = torch.tensor([[1.0, 5.0, 0.0]]), torch.tensor([[3.0, 5.0, 9.0]])
    mask = torch.tensor([[1.0, 0.0, 0.0]])
    risen, wanted = target_share(torch.tensor([[2.0, 4.0, 1.0]]), neutral, context, mask)
    assert (risen / wanted).tolist() == [0.5]
    changed, others = off_target(torch.tensor([[2.0, 4.0, 1.0]]), neutral, mask)
    assert (changed / others).tolist() == [pytest.approx(2 / 5)]


class Letters:
    """A tokenizer of two tokens; each word is one."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [{"up": 0, "over": 1, "down": 2, "under": 3}[text.strip()]]


def test_similarity_is_to_the_nearest_word_of_each_behaviour():
    common = torch.tensor(
        [100.0, 0.0, 0.0]
    )  # what all share is taken off: the mean, and the largest component
    table = torch.tensor([[0, 1.0, 0.1], [0, 1.0, -0.1], [0, -1.0, 0.1], [0, -1.0, -0.1]])
    vectors = WordVectors(table + common, Letters())
    high, low = ("up", "over"), ("down",)
    pair = Pair(("high", "low"), "n", "c", {"high": high, "low": low})
    one = replace(pair, targets=("high",))
    found = similarities(vectors, [one, one, pair, one], ["up", "over", "up", ""])
    cosine = vectors.vector(" up") @ vectors.vector(" down")
    assert found.tolist() == pytest.approx([1, 1, (1 + float(cosine)) / 2, 0])


def test_a_trained_dictionary_finds_the_features_and_loads_as_a_saelens_folder(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    true = torch.nn.functional.normalize(torch.randn(24, 32, generator=generator), dim=1)
    on = (torch.rand(6000, 24, generator=generator) < 0.1).float()
    x = 3 + (on * (1 + torch.rand(6000, 24, generator=generator))) @ true
    plan = DictionaryPlan(features=48, active=3, steps=800, batch_size=256)
    about = train_dictionary(x, 2, "m", tmp_path, plan)
    assert about["explained"] > 0.9
    identity = ModelIdentity(name="m", model_type="m", hidden_size=32, num_layers=4)
    dictionary = Dictionary.load(tmp_path, identity)
    assert dictionary.layer == 2
    f = dictionary.encode(x)
    assert f.count_nonzero() / len(f) == pytest.approx(about["active"], rel=0.1)
    cosines = torch.nn.functional.normalize(dictionary.w_dec, dim=1) @ true.T
    assert (cosines.max(0).values > 0.9).float().mean() > 0.8
    shifted = Dictionary.load(tmp_path, identity, centred=True).encode(x + 7.0)
    assert torch.allclose(shifted, dictionary.encode(x - x.mean(1, keepdim=True)), atol=1e-3)


def test_the_rule_takes_the_nearest_words_within_the_budget():
    points = pd.DataFrame(
        [
            {"variant": "a", "size": 1, "alpha": 1.0, "off_target": 0.5, "similarity": 0.6},
            {"variant": "a", "size": 1, "alpha": 2.0, "off_target": 0.9, "similarity": 0.7},
            {"variant": "a", "size": 1, "alpha": 3.0, "off_target": 1.0, "similarity": 0.7},
            {"variant": "a", "size": 1, "alpha": 4.0, "off_target": 1.1, "similarity": 0.9},
            {"variant": "b", "size": 1, "alpha": 1.0, "off_target": 3.0, "similarity": 0.9},
            {"variant": "b", "size": 1, "alpha": 2.0, "off_target": 2.0, "similarity": 0.1},
        ]
    )
    chosen = choose(points, {1: 1.0})
    assert chosen[["variant", "alpha"]].values.tolist() == [["a", 2.0], ["b", 2.0]]


@pytest.mark.slow
def test_a_miniature_run(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Steering produces target words and target features; a random direction of CAA's length does not."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    plan = DictionaryPlan(features=256, active=16, steps=200, batch_size=512)
    result, _ = prompt_pairs.run(tiny, plan=plan, methods=("mlp", "caa"), console=CONSOLE)
    path = record.write_result("prompt_pairs-tiny", result)
    assert all(picture.stat().st_size > 10_000 for picture in prompt_pairs.show(path))
    found = {(row["size"], row["variant"]): row for row in json.loads(path.read_text())["test"]}
    for size in (1, 2):
        unsteered, context = found[size, "unsteered"], found[size, "context"]
        assert (unsteered["target"], unsteered["off_target"]) == (0, 0)
        assert (context["target"], context["weakest"]) == (1, 1)
        assert context["hit"] > 0.8
        for variant in ("K-Steering, 8 steps", "CAA"):
            assert found[size, variant]["target"] > 0.3
            assert found[size, variant]["hit"] > unsteered["hit"] + 0.3
        random_direction = found[size, "random direction"]
        assert abs(random_direction["target"]) < 0.15
        assert random_direction["hit"] < unsteered["hit"] + 0.2
    assert {row["variant"] for row in result["chosen"]} == {name for _, name in found} - {
        "unsteered",
        "context",
    }


def test_what_is_recorded_is_the_steered_stream(tiny: Any, tmp_path: Path):
    """The engine's stream in the block above the edit, against transformers with a hook, float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = engine.fit_methods(tiny, tmp_path, ("caa",))["caa"]
    vectors = Probe.load(path).tensors["vectors"]
    pair = tiny.pairs_of("test", 2)[0]
    tokenizer, model = (kind.from_pretrained(tiny.model) for kind in (AutoTokenizer, AutoModelForCausalLM))
    index = [tiny.behaviours.index(target) for target in pair.targets]
    step = 0.7 * vectors[index].mean(0)

    def hook(_module: Any, _inputs: Any, hidden: torch.Tensor) -> torch.Tensor:
        return torch.cat([hidden[:, :-1], hidden[:, -1:] + step], 1)

    handle = model.model.layers[tiny.layer].register_forward_hook(hook)
    with torch.no_grad():
        states = model(
            torch.tensor([tokenizer.encode(pair.neutral)]), output_hidden_states=True
        ).hidden_states
    handle.remove()
    spec = {"probe": "caa", "method": "add", "target": list(pair.targets), "alpha": 0.7}
    with engine.Bank.start(tiny, {"caa": path}, tiny.layer + 1) as bank:
        words, x = bank.observe([engine.Ask(pair, spec), engine.Ask(pair), engine.Ask(pair, None, True)])
        assert bank.shift([engine.Ask(pair, spec)]) == [
            pytest.approx(_shift(states, tiny.layer, step), rel=1e-3)
        ]
    assert len(words) == 3
    torch.testing.assert_close(x[0], states[tiny.layer + 2][0, -1], atol=2e-4, rtol=1e-4)
    assert (x[1] - x[0]).norm() > 0.1 * x[0].norm()
    assert (x[2] - x[0]).norm() > 0.1 * x[0].norm()


def _shift(states: Any, layer: int, step: torch.Tensor) -> float:
    """|x' - x| / |x| where states has x' = x + step."""
    steered = states[layer + 1][0, -1]
    return float(step.norm() / (steered - step).norm())


def test_without_a_hub_the_shipped_model_is_taken(monkeypatch: pytest.MonkeyPatch):
    def offline() -> Path:
        raise OSError("no route to the hub\nmore")

    monkeypatch.setattr(sources, "_download", offline)
    sizes = {"examples": 60, "per_set": 1, "tests": 1, "sizes": (1,)}
    environment, folder, centred = sources.open_environment("auto", "", None, False, sizes, CONSOLE)
    assert (environment.name, folder, centred) == ("tones", None, False)
    with pytest.raises(typer.BadParameter, match="no route to the hub; give --model and --dictionary"):
        sources.open_environment("scenes", "", None, False, sizes, CONSOLE)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPT-2 whose byte-level tokenizer knows the scenes' words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=[sources.START], initial_alphabet=alphabet)
    words = [f" {word}" for found in scenes.WORDS.values() for word in found]
    tokenizer.train_from_iterator([*itertools.chain(*scenes.CONTEXTS.values()), *4 * words], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=sources.START, bos_token=sources.START
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_embd=64, n_layer=4, n_head=2, n_positions=256,
        initializer_range=0.2, bos_token_id=0, eos_token_id=0, dtype="float32",
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_scenes_run_with_a_saelens_folder(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a random model, with a random dictionary in the form the hub's has; the block below is steered."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # no share of what the machine has free just now
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(96, 64, generator=generator), dim=1)
    tensors = {
        "W_enc": decoder.T.contiguous(),
        "W_dec": decoder,
        "b_enc": torch.zeros(96),
        "b_dec": torch.zeros(64),
    }
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    config = {"d_in": 64, "d_sae": 96, "hook_point": "blocks.3.hook_resid_pre", "hook_point_layer": 3}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    sizes = {"examples": 240, "per_set": 2, "tests": 2}
    found = sources.open_environment("scenes", str(gpt2), tmp_path, True, sizes, CONSOLE)
    assert (found[0].name, found[0].layer, found[1:]) == ("scenes", 1, (tmp_path, True))
    result, _ = prompt_pairs.run(*found, methods=("caa", "loreft"), console=CONSOLE)
    assert result["dictionary"]["layer"] == 2
    rows = {(row["size"], row["variant"]): row for row in result["test"]}
    assert {variant for _, variant in rows} == {"unsteered", "context", "CAA", "LoReFT", "random direction"}
    assert rows[1, "context"]["target"] == rows[2, "context"]["target"] == 1
    assert rows[1, "CAA"]["target"] > rows[1, "random direction"]["target"]
