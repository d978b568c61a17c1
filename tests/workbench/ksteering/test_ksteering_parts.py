"""`KSteering` without an engine: specs, data, sampling."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from ksteer_vllm import KSteering, ProbeError, SpecError, SteeringConfig, SteeringSpec, UsageError
from ksteer_vllm.data.rows import LabelledRow, Message
from ksteer_vllm.errors import DataError
from ksteer_vllm.ksteering import data
from ksteer_vllm.ksteering.config import TrainerConfig, sampling_of
from ksteer_vllm.ksteering.specs import LENGTH
from ksteer_vllm.probes.probe import Probe
from testbed.families import random_family_probe

PIP = "pip-0.1.2"
QUESTIONS = [f"Why is number {index} odd?" for index in range(30)]


def loaded(folder: Path, config: SteeringConfig | None = None, **options: Any) -> KSteering:
    changes = options.pop("probe", {})
    random_family_probe("mlp", **changes).save(folder)
    return KSteering.load(folder, "no-model", steering_config=config, **options)


def test_a_spec_without_a_strength_moves_by_a_part_of_the_layers_scale(tmp_path: Path) -> None:
    spec = loaded(tmp_path).spec(["warm"], ["cold"])
    assert (spec["unit"], spec["alpha"]) == ("normalised", LENGTH / 8)
    assert (spec["target"], spec["avoid"], spec["probe"]) == (["warm"], ["cold"], "steering")
    assert loaded(tmp_path).spec(["warm"], num_steps=2)["alpha"] == LENGTH / 2


def test_a_strength_is_given_or_configured_or_the_probes_own(tmp_path: Path) -> None:
    own = loaded(tmp_path, probe={"default_alpha": {"gradient": 7.0}}).spec(["warm"])
    assert "alpha" not in own
    assert "unit" not in own
    configured = loaded(tmp_path, SteeringConfig(steering_strength=3.0))
    assert configured.spec(["warm"])["alpha"] == 3.0
    assert configured.spec(["warm"], steering_strength=0.0)["alpha"] == 0.0
    assert "unit" not in configured.spec(["warm"])


def test_quirk_a_strength_of_zero_is_the_configured_one(tmp_path: Path) -> None:
    pip = loaded(tmp_path, SteeringConfig(steering_strength=3.0), compat=PIP)
    assert pip.spec(["warm"], steering_strength=0.0)["alpha"] == 3.0
    assert "alpha" not in loaded(tmp_path, compat=PIP).spec(["warm"])  # admission fills in 1


def test_layers_and_their_strengths(tmp_path: Path) -> None:
    steering = loaded(tmp_path, SteeringConfig(steer_layers=(1, 3), layer_strengths={3: 5.0}))
    spec = steering.spec(["warm"], steering_strength=2.0, num_steps=1)
    assert [(edit["layers"], edit["alpha"]) for edit in spec["stack"]] == [([1], 2.0), ([3], 5.0)]
    assert all(edit["num_steps"] == 1 for edit in spec["stack"])
    SteeringSpec.parse(spec)
    alone = steering.spec(["warm"], layers=[2], layer_strengths={2: 1.5})
    assert [(edit["layers"], edit["alpha"]) for edit in alone["stack"]] == [([2], 1.5)]
    assert loaded(tmp_path, SteeringConfig(steer_layers=(1, 3))).spec(["warm"])["layers"] == [1, 3]


@pytest.mark.parametrize("configured", [True, False])
def test_strengths_of_layers_that_are_not_steered_are_refused(tmp_path: Path, configured: bool) -> None:
    strengths = {0: 2.0, 1: 3.0, 3: 5.0}
    steering = loaded(tmp_path, SteeringConfig(layer_strengths=strengths) if configured else None)
    asked = {} if configured else {"layer_strengths": strengths}
    with pytest.raises(SpecError, match="layer 0, 3 is not steered; steered: 1") as caught:
        steering.spec(["warm"], **asked)
    assert caught.value.field == "layer_strengths"


def per_layer(width: int = 48, **changes: Any) -> Probe:
    """With tensors of its own at layers 1, 2 and 3."""
    one = random_family_probe("mlp", width=width)
    stacked = {name: torch.stack([tensor] * 3) for name, tensor in one.tensors.items()}
    return Probe(one.metadata.model_copy(update={"layers": (1, 2, 3), **changes}), stacked)


def test_strengths_are_of_the_probes_default_layers(tmp_path: Path) -> None:
    folder = per_layer(default_layers=(1, 3), default_alpha={"gradient": 2.0}).save(tmp_path / "it")
    steering = KSteering.load(folder, "no-model")
    spec = steering.spec(["warm"], layer_strengths={3: 5.0})
    assert [(edit["layers"], edit.get("alpha")) for edit in spec["stack"]] == [([1], None), ([3], 5.0)]
    with pytest.raises(SpecError, match="layer 2 is not steered; steered: 1, 3"):
        steering.spec(["warm"], layer_strengths={2: 5.0})


def test_the_default_strength_is_the_methods(tmp_path: Path) -> None:
    """The probe's strength of that method; else one step of an addition goes the whole length."""
    own = loaded(tmp_path / "own", probe={"default_alpha": {"add": 7.0}})
    assert not {"alpha", "unit"} & set(own.spec(["warm"], method="add"))
    assert own.spec(["warm"])["alpha"] == LENGTH / 8
    other = loaded(tmp_path / "other", probe={"default_alpha": {"gradient": 7.0}})
    added = other.spec(["warm"], method="add")
    assert (added["unit"], added["alpha"]) == ("normalised", LENGTH)
    given = loaded(tmp_path / "given").spec(["warm"], alpha=3.0)
    assert given["alpha"] == 3.0
    assert "unit" not in given


@pytest.mark.parametrize(
    "config", [None, SteeringConfig(steering_strength=3.0), SteeringConfig(layer_strengths={1: 3.0})]
)
def test_a_method_without_a_strength_gets_none(tmp_path: Path, config: SteeringConfig | None) -> None:
    steering = loaded(tmp_path, config)
    assert steering.spec([], ["cold"], method="reflect") == {
        "probe": "steering", "target": [], "avoid": ["cold"], "method": "reflect"
    }  # fmt: skip
    with pytest.raises(SpecError, match="not used by method 'reflect'"):
        steering.spec([], ["cold"], method="reflect", steering_strength=2.0)


def test_layers_without_a_scale_take_that_of_the_probes_layer(tmp_path: Path) -> None:
    steering = loaded(tmp_path, SteeringConfig(steer_layers=(0, 1)), probe={"activation_scale": {1: 8.0}})
    spec = steering.spec(["warm"])
    assert [(edit["layers"], edit["unit"], edit["alpha"]) for edit in spec["stack"]] == [
        ([0], "raw", LENGTH),
        ([1], "normalised", LENGTH / 8),
    ]
    alone = steering.spec(["warm"], layers=[0, 2])
    assert (alone["layers"], alone["unit"], alone["alpha"]) == ([0, 2], "raw", LENGTH)
    unknown = loaded(tmp_path / "none", probe={"activation_scale": {}})
    assert unknown.spec(["warm"])["unit"] == "normalised"  # refused by the engine, which names the scale
    assert "alpha" not in unknown.spec(["warm"], unit="raw")


def test_the_engine_has_room_for_tensors_of_every_layer(tmp_path: Path) -> None:
    """Their first dimension is the layer's."""
    steering = KSteering.load(per_layer(width=700).save(tmp_path), "no-model")
    assert steering._running.width == 700


def test_compat_is_in_the_spec_and_comes_from_the_probe(tmp_path: Path) -> None:
    pip = loaded(tmp_path, probe={"settings": {"compat": PIP}})
    assert pip.compat == PIP
    spec = pip.spec(["warm"], padded_length=31)
    assert spec["compat"] == {"version": PIP, "padded_length": 31}
    assert "unit" not in spec
    assert loaded(tmp_path, probe={"settings": {"compat": PIP}}, compat=None).compat is None


def test_what_cannot_be_steered_is_refused_at_once(tmp_path: Path) -> None:
    steering = loaded(tmp_path)
    with pytest.raises(SpecError, match=r"ksteer.target: unknown label hot; known: warm, cold, dry"):
        steering.spec(["hot"])
    with pytest.raises(SpecError, match="target and avoid are both empty"):
        steering.spec([])
    with pytest.raises(SpecError, match=r"ksteer.lengths: unknown field"):
        steering.spec(["warm"], lengths=3)
    with pytest.raises(UsageError, match=r"compat: expected pip-0.1.2 or None, got 'pip-1'"):
        KSteering("m", compat="pip-1")
    with pytest.raises(UsageError, match="nothing to steer with yet"):
        KSteering("m").spec(["warm"])
    with pytest.raises(UsageError, match="either a task or a dataset"):
        KSteering("m").fit()
    random_family_probe("ace").save(tmp_path / "ace")
    with pytest.raises(ProbeError, match="family 'ace'; KSteering takes mlp and linear"):
        KSteering.load(tmp_path / "ace")


def test_saving_keeps_the_configured_strength(tmp_path: Path) -> None:
    steering = loaded(tmp_path / "one", SteeringConfig(steering_strength=3.0))
    saved = Probe.load(steering.save(tmp_path / "two")).metadata
    assert saved.default_alpha == {"gradient": 3.0}
    assert saved.digest == steering.probe.metadata.digest
    others = {"default_alpha": {"gradient": 1.0, "add": 7.0}}
    steering = loaded(tmp_path / "three", SteeringConfig(steering_strength=3.0), probe=others)
    saved = Probe.load(steering.save(tmp_path / "four")).metadata
    assert saved.default_alpha == {"gradient": 3.0, "add": 7.0}


def test_what_is_pushed_is_what_would_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, Any] = {}

    def push(folder: Path, repo_id: str, **options: Any) -> str:
        pushed.update(probe=Probe.load(folder), repo_id=repo_id, options=options)
        return "the commit's address"

    monkeypatch.setattr("ksteer_vllm.hub.transfer.push", push)
    steering = loaded(tmp_path, SteeringConfig(steering_strength=3.0))
    assert steering.push_to_hub("owner/tones", private=False) == "the commit's address"
    assert (pushed["repo_id"], pushed["options"]) == ("owner/tones", {"private": False})
    assert pushed["probe"].metadata.default_alpha["gradient"] == 3.0
    assert pushed["probe"].labels == steering.probe.labels


def test_rows_as_the_package_takes_them() -> None:
    rows, labels = data.dataset_rows(
        [{"text": "be kind\nwhy?", "label": "kind"}, {"prompt": "be dry\nwhy?", "label": "dry"}],
        (),
        chat=False,
    )
    assert labels == ("dry", "kind")
    assert rows[0] == LabelledRow(prompt="be kind\nwhy?", labels=("kind",))
    rows, _ = data.dataset_rows(
        [{"text": "why?", "label": "a"}, {"text": "how?", "label": "b"}], (), chat=True
    )
    assert rows[0].prompt == (Message(role="user", content="why?"),)
    given = [LabelledRow(prompt="p", reply="r", labels=("a",)), {"prompt": "p", "labels": []}]
    rows, _ = data.dataset_rows(given, (), chat=False)
    assert [row.labels for row in rows] == [("a",), ()]


def test_rows_of_tables_and_files(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["why?", "how?"], "label": ["a", "b"]})
    rows, labels = data.dataset_rows(frame, (), chat=False)
    assert (labels, rows[1].prompt) == (("a", "b"), "how?")
    frame.to_csv(tmp_path / "rows.csv", index=False)
    assert data.dataset_rows(str(tmp_path / "rows.csv"), (), chat=False) == (rows, labels)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "why?", "label": "a"}, {"text": "how?"}], "row 2: label: empty or missing; it has: text"),
        ([{"label": "a"}], "row 1: prompt or text: empty or missing"),
        ([{"text": " ", "label": "a"}], "row 1: prompt or text: empty"),
        ([3], "row 1: expected a LabelledRow or a mapping, got int"),
        ([{"prompt": "p", "labels": "a"}], "row 1: labels: "),
        ([{"text": "why?", "label": "a"}], "every row of dataset shows 'a'"),
    ],
    ids=str,
)
def test_bad_rows_are_named(rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        data.dataset_rows(rows, (), chat=False)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"text": question}) + "\n" for question in QUESTIONS))
    return path


def test_quirk_the_packages_five_tones_sorted(questions: Path) -> None:
    """Its wheel has no "helpful", and sorts."""
    rows, labels = data.task_rows("tones", (), questions=questions, as_pip=True)
    assert labels == ("casual", "cautious", "concise", "empathetic", "expert")
    assert len(rows) == 5 * len(QUESTIONS)
    rows, labels = data.task_rows("tones", (), questions=questions)
    assert set(labels) == {*data.PIP_TONES, "helpful"}
    assert len(rows) == 6 * len(QUESTIONS)
    _, labels = data.task_rows("debates", (), questions=questions, as_pip=True)
    assert labels == tuple(sorted(labels))
    assert len(labels) == 10


def test_quirk_a_row_is_plain_text_instruction_over_question(questions: Path) -> None:
    rows, _ = data.task_rows("tones", (), questions=questions, as_pip=True)
    plain = data.plain_row(rows[0])
    assert isinstance(plain.prompt, str)
    system, user = rows[0].prompt
    assert plain.prompt == f"{system.content}\n{user.content}"
    assert data.plain_row(plain) == plain
    assert [prompt[0].content for prompt in data.questions_of(rows)] == QUESTIONS


def test_quirk_fewer_samples_are_drawn_from_seed_42(questions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Any] = []
    monkeypatch.setattr(
        "ksteer_vllm.ksteering.steering.fit_classifier",
        lambda model, rows, labels, **options: (
            fitted.append((rows, labels, options)) or random_family_probe("mlp")
        ),
    )
    config = SteeringConfig(train_layer=2)
    pip = KSteering("m", config, TrainerConfig(hidden_dim=64), compat=PIP)
    pip.fit(task="tones", questions=questions, max_samples=12)
    rows, labels, options = fitted[0]
    everything = [
        data.plain_row(row) for row in data.task_rows("tones", (), questions=questions, as_pip=True)[0]
    ]
    random.seed(42)
    assert rows == random.sample(everything, 12)
    assert labels == data.PIP_TONES
    assert (options["layer"], options["compat"], options["trainer"].hidden_dim) == (2, PIP, 64)
    assert pip.eval_prompts == QUESTIONS
    assert pip._prompts(pip.eval_prompts) == QUESTIONS
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "why?"}]
    pip.fit(task="tones", questions=questions, eval_prompts=["how?", chat])
    assert pip.eval_prompts == ["how?", "be kind\nwhy?"]


def test_sampling_by_transformers_names() -> None:
    assert sampling_of(None, None, as_pip=False) == {"temperature": 1.0, "top_p": 0.9, "max_tokens": 100}
    assert sampling_of({"max_new_tokens": 7}, None, as_pip=False)["max_tokens"] == 7
    assert sampling_of({"max_new_tokens": 7}, 9, as_pip=False)["max_tokens"] == 9
    assert sampling_of({"do_sample": False}, None, as_pip=False)["temperature"] == 0.0
    assert (
        sampling_of({"seed": 3, "stop": ["x"]}, None, as_pip=False).items()
        >= {"seed": 3, "stop": ["x"]}.items()
    )
    with pytest.raises(UsageError, match=r"generation_kwargs: no num_beams here; known: max_new_tokens, "):
        sampling_of({"num_beams": 4}, None, as_pip=False)


def test_quirk_transformers_own_top_k() -> None:
    assert sampling_of(None, None, as_pip=True)["top_k"] == 50
    assert sampling_of({"top_k": 0}, None, as_pip=True)["top_k"] == 0
