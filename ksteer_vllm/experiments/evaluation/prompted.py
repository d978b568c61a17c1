"""The baseline everyone has: the labels asked for in the prompt, alone and together with steering.

Replies are scored without the request: under the plain prompt, as those of every other variant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ksteer_vllm.bench.combinations import Avoid
from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.data.rows import Message, Prompt
from ksteer_vllm.experiments.evaluation.settings import Setting

__all__ = ["PROMPTED", "prompted_and_steered", "prompted_jobs", "with_instruction"]

PROMPTED = "prompted"

Instructions = Mapping[str, Sequence[str]]


def with_instruction(prompt: Prompt, target: Sequence[str], instructions: Instructions, index: int) -> Prompt:
    """The prompt with a request for every label of the target.

    A chat gets a system message, before its own if it has one; a text gets the request in front.

    Args:
        prompt: The plain prompt.
        target: The labels, each with an instruction.
        instructions: Label -> its wordings, which take turns on the prompts.
        index: Number of the prompt.
    """
    request = " ".join(instructions[label][index % len(instructions[label])] for label in target)
    if isinstance(prompt, str):
        return f"{request}\n\n{prompt}"
    first, *rest = prompt
    if first.role == "system":
        return (Message(role="system", content=f"{request}\n\n{first.content}"), *rest)
    return (Message(role="system", content=request), *prompt)


def prompted_jobs(
    targets: Sequence[Sequence[str]], prompts: Sequence[Prompt], instructions: Instructions
) -> list[Job]:
    """Every target that has instructions, asked for on every prompt, not steered."""
    return [
        _job(PROMPTED, None, target, prompt, index, instructions)
        for target in targets
        if instructions.keys() >= set(target)
        for index, prompt in enumerate(prompts)
    ]


def prompted_and_steered(
    setting: Setting,
    targets: Sequence[Sequence[str]],
    prompts: Sequence[Prompt],
    instructions: Instructions,
    labels: Sequence[str],
    avoid: Avoid,
) -> list[Job]:
    """The same requests, steered by a setting as well: the variant `prompted + NAME`."""
    return [
        _job(
            f"{PROMPTED} + {setting.name}",
            setting.spec(target, labels, avoid),
            target,
            prompt,
            index,
            instructions,
        )
        for target in targets
        if len(target) in setting.alpha and instructions.keys() >= set(target)
        for index, prompt in enumerate(prompts)
    ]


def _job(
    variant: str,
    spec: Mapping[str, object] | None,
    target: Sequence[str],
    prompt: Prompt,
    index: int,
    instructions: Instructions,
) -> Job:
    return Job(
        with_instruction(prompt, target, instructions, index),
        spec,
        seed=index,
        tags={"variant": variant, "target": list(target), "prompt": index},
        read_under=prompt,
    )
