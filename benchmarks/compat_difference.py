"""How far k-steering 0.1.2's behaviour (`compat: "pip-0.1.2"`) is from the default, on the shipped model.

    python -m benchmarks.compat_difference

The package's setting: every question under an instruction that asks for a tone, read at the prompt's last
token. Its probe (128 units, one epoch, trained on the block's input) and the default probe are fitted to the
same rows; then both steer the same block's output, on questions that neither saw, judged by the exact reader.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.record import Table, write_result
from ksteer_vllm import KSteering, Probe
from ksteer_vllm.data.positions import PROMPT_LAST, encode_prompt
from ksteer_vllm.data.rows import LabelledRow, Message
from ksteer_vllm.demo import ENGINE_OPTIONS, MODEL_DIR
from ksteer_vllm.demo.corpus import (
    Question,
    held_out_questions,
    instruction_for,
    prompt_messages,
    train_questions,
)
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.demo.reader import read
from ksteer_vllm.fit.activations import collect_activations
from ksteer_vllm.fit.pipeline import fit_to_rows
from ksteer_vllm.fit.presets import preset_of
from ksteer_vllm.fit.stream import Stream
from ksteer_vllm.spec.compat import PIP_0_1_2

LAYER = 2
LENGTHS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5)
"""How far all steps together move a decoded token, in units of the layer's mean |x - mean(x)|."""


def main(
    questions: Annotated[
        int, typer.Option(help="to fit to, each under every tone; ToneBank has 1184")
    ] = 1184,
    prompts: Annotated[int, typer.Option(help="held-out questions for each tone and strength")] = 50,
) -> None:
    console = Console()
    rows = labelled(train_questions()[:questions])
    held_out = labelled(held_out_questions("calibration")[:50])
    asked = held_out_questions("test")[:prompts]
    preset = preset_of(PIP_0_1_2).options
    probes = {
        "the package's": fitted(rows, preset, PIP_0_1_2),
        "the package's fit, of the block's output": fitted(rows, preset),
        "default": fitted(rows, {}),
    }
    recorded = collect_activations(
        str(MODEL_DIR), held_out, [LAYER - 1, LAYER], window=PROMPT_LAST, engine_options=ENGINE_OPTIONS
    )
    x = {layer: Stream.of(found).tensor() for layer, found in recorded.streams.items()}
    pip = probes["the package's"]
    reading = {name: right(probe, x[LAYER], held_out) for name, probe in probes.items()}
    reading["the package's, at the block's input"] = right(pip, x[LAYER - 1], held_out)
    moves = {name: displacement(pip, probe, x[LAYER]) for name, probe in probes.items() if probe is not pip}
    console.print(
        "right at the block's output", reading, "steps beside the package's (cosine, length)", moves
    )
    outcomes, at_one = {}, 0.0
    for name, (source, compat, settings) in {
        "pip-0.1.2": ("the package's", PIP_0_1_2, {}),
        "its probe, every generated token whole": ("the package's", None, {"num_steps": 1}),
        "the same, probe of the block's output": (
            "the package's fit, of the block's output", None, {"num_steps": 1},
        ),
        "default probe, 1 step": ("default", None, {"num_steps": 1}),
        "default probe, 8 steps": ("default", None, {"num_steps": 8}),
    }.items():  # fmt: skip
        unit = typical_alpha(probes[source], x[LAYER])
        with (
            TemporaryDirectory() as folder,
            KSteering.load(
                probes[source].save(folder),
                MODEL_DIR,
                compat=compat,
                chat=True,
                engine_options=ENGINE_OPTIONS,
            ) as steering,
        ):
            outcomes[name] = curve(steering, asked, settings, unit)
            if compat is not None:
                at_one = on_target(steering, asked, {"steering_strength": 1.0})
                lengths = prompt_lengths(steering, asked)
        console.print(name, {k: f"{v:.2f}" for k, v in outcomes[name].items()})
    console.print(
        f"prompts of {lengths:.1f} tokens; pip-0.1.2 at its default strength: {at_one:.2f} on target"
    )
    table = Table(
        "replies on target (six single tones), by how far a decoded token is moved",
        ["", *(f"{length:g}" for length in LENGTHS)],
        [[name, *(f"{share:.2f}" for share in found.values())] for name, found in outcomes.items()],
    )
    console.print(table.rich())
    result = {
        "layer": LAYER,
        "top_label_right_at_the_output": reading,
        "steps_beside_the_packages": {
            name: {"cosine": cosine, "length_ratio": ratio} for name, (cosine, ratio) in moves.items()
        },
        "prompt_tokens": lengths,
        "on_target": outcomes,
        "pip_at_its_default_strength": at_one,
    }
    console.print(write_result("compat_difference", result, [table]))


def labelled(questions: Sequence[Question]) -> list[LabelledRow]:
    """Every question under an instruction for each tone, without replies: what the package is trained on."""
    rng = random.Random(0)
    return [
        LabelledRow(
            prompt=tuple(
                Message.model_validate(message)
                for message in prompt_messages(question.text, instruction_for(frozenset({tone}), rng))
            ),
            labels=(tone,),
        )
        for question in questions
        for tone in TONES
    ]


def fitted(rows: Sequence[LabelledRow], options: Mapping[str, Any], compat: str | None = None) -> Probe:
    """A probe of the prompt's last token."""
    probe = fit_to_rows(
        str(MODEL_DIR), rows, layer=LAYER, options=options, window=PROMPT_LAST, compat=compat,
        engine_options=ENGINE_OPTIONS,
    )  # fmt: skip
    return probe


def right(probe: Probe, x: Tensor, rows: Sequence[LabelledRow]) -> float:
    """Share of rows whose tone has the largest logit."""
    best = probe.logits(x.double()).argmax(1).tolist()
    return sum(probe.labels[k] in row.labels for k, row in zip(best, rows, strict=True)) / len(rows)


def gradients(probe: Probe, x: Tensor) -> Tensor:
    """[6, N, d]: of the loss towards each tone and away from the rest, in the order of TONES."""
    found = []
    for tone in TONES:
        leaf = x.double().requires_grad_()
        c = torch.full((len(TONES),), 1 / (len(TONES) - 1), dtype=torch.float64)
        c[probe.labels.index(tone)] = -1.0
        found.append(torch.autograd.grad((probe.logits(leaf) @ c).sum(), leaf)[0])
    return torch.stack(found)


def displacement(pip: Probe, other: Probe, x: Tensor) -> tuple[float, float]:
    """(mean cosine, ratio of mean lengths) of a step with the package's probe and another, at one alpha."""
    a, b = gradients(pip, x), gradients(other, x)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1).mean()
    return float(cosine), float(a.norm(dim=-1).mean() / b.norm(dim=-1).mean())


def prompt_lengths(steering: KSteering, asked: Sequence[Question]) -> float:
    tokenizer = steering.llm.get_tokenizer()
    lengths = [len(encode_prompt(tokenizer, (Message(role="user", content=q.text),))) for q in asked]
    return sum(lengths) / len(lengths)


def typical_alpha(probe: Probe, x: Tensor) -> float:
    """What moves a held-out token by the layer's mean |x - mean(x)| in one step."""
    return float((x - x.mean(0)).norm(dim=1).mean() / gradients(probe, x).norm(dim=-1).mean())


def curve(
    steering: KSteering, asked: Sequence[Question], settings: dict[str, Any], unit: float
) -> dict[str, float]:
    """Length -> share on target."""
    steps = settings.get("num_steps", 1)
    return {
        f"{length:g}": on_target(steering, asked, {**settings, "steering_strength": length * unit / steps})
        for length in LENGTHS
    }


def on_target(steering: KSteering, asked: Sequence[Question], settings: dict[str, Any]) -> float:
    """Share of replies that show the tone and are well formed; every tone against the others, one batch."""
    targets = [[tone] for tone in TONES for _ in asked]
    avoids = [[other for other in TONES if other not in target] for target in targets]
    found = steering.get_steered_output(
        [question.text for question in asked] * len(TONES),
        target_labels=targets,
        avoid_labels=avoids,
        generation_kwargs={"seed": 0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 96},
        **settings,
    )
    readings = [
        read(question.text, text) for question, text in zip(list(asked) * len(TONES), found, strict=True)
    ]
    hits = [
        set(t) <= reading.tones and reading.well_formed for t, reading in zip(targets, readings, strict=True)
    ]
    return sum(hits) / len(hits)


if __name__ == "__main__":
    typer.run(main)
