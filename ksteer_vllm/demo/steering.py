"""What the demo steers towards, and with which methods: its calibration and the rows of its last table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ksteer_vllm.bench.combinations import avoided
from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.data.rows import Message
from ksteer_vllm.demo.corpus import held_out_questions
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.demo.task import demo_task
from ksteer_vllm.errors import UsageError
from ksteer_vllm.experiments.calibration.record import Calibration
from ksteer_vllm.experiments.calibration.subject import CalibrationSubject

__all__ = ["COMBINATIONS", "METHODS", "final_jobs", "strengths_of", "subject_of"]

METHODS = ("gradient", "add")
"""K-Steering, and CAA with the same probe's averaged vectors."""

COMBINATIONS: tuple[tuple[str, ...], ...] = (
    *((tone,) for tone in TONES),
    ("expert", "empathetic"),
    ("casual", "cautious"),
    ("helpful", "cautious", "empathetic"),
)


def subject_of(probe: Path, model: Path) -> CalibrationSubject:
    """Both methods of the probe folder, on held-out questions, read by the exact reader."""
    return CalibrationSubject.of_probe(probe, demo_task(), model=str(model)).only(METHODS)


def strengths_of(calibration: Calibration) -> dict[str, float]:
    """Method -> its strength for single tones. Raises UsageError if none kept the replies coherent."""
    found = {}
    for variant in calibration.variants:
        alpha = calibration.alpha(variant.name, 1)
        if alpha is None:
            raise UsageError(
                f"{variant.name}: no strength tried keeps the replies coherent; fit the probe to more rows, "
                "or for more epochs"
            )
        found[variant.method] = alpha
    return found


def final_jobs(
    subject: CalibrationSubject, strengths: Mapping[str, float], *, questions: int, seed: int
) -> list[Job]:
    """Unsteered replies, then every combination with every method, on the same test questions.

    Requests on one question share a sampling seed; those that steer move away from all other tones.
    """
    asked = held_out_questions("test")[:questions]
    prompts = [(Message(role="user", content=question.text),) for question in asked]
    jobs = [Job(prompt, None, seed + k, {"target": [], "method": None}) for k, prompt in enumerate(prompts)]
    for target in COMBINATIONS:
        for variant in subject.variants:
            spec = variant.spec(target, avoided(TONES, target), strengths[variant.method])
            tags = {"target": list(target), "method": variant.method}
            jobs += [Job(prompt, spec, seed + k, tags) for k, prompt in enumerate(prompts)]
    return jobs
