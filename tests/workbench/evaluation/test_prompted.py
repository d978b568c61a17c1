"""The labels asked for in the prompt: what is asked, and under what the reply is read."""

from __future__ import annotations

from ksteer_vllm.bench.variants import STANDARD
from ksteer_vllm.data.rows import Message
from ksteer_vllm.experiments.evaluation.prompted import prompted_and_steered, prompted_jobs, with_instruction
from ksteer_vllm.experiments.evaluation.settings import Setting

ASKED = {"warm": ("Be warm.", "Sound warm."), "dry": ("Be dry.",)}
CHAT = (Message(role="user", content="Why?"),)
PROMPTS = (CHAT, "Why so?")
LABELS = ("warm", "dry", "wild")


def test_a_chat_gets_a_system_message_and_a_text_the_request_in_front() -> None:
    assert with_instruction("Why?", ["warm"], ASKED, 0) == "Be warm.\n\nWhy?"
    first, second = with_instruction(CHAT, ["warm", "dry"], ASKED, 1)
    assert first == Message(role="system", content="Sound warm. Be dry.")
    assert second == CHAT[0]
    own = (Message(role="system", content="You are a cook."), *CHAT)
    assert [m.content for m in with_instruction(own, ["dry"], ASKED, 0)] == [
        "Be dry.\n\nYou are a cook.",
        "Why?",
    ]


def test_replies_are_read_without_the_request_on_the_same_questions_and_seeds() -> None:
    targets = [("warm",), ("wild",), ("warm", "dry")]
    asked = prompted_jobs(targets, PROMPTS, ASKED)
    assert [(job.tags["target"], job.seed) for job in asked] == [
        (["warm"], 0), (["warm"], 1), (["warm", "dry"], 0), (["warm", "dry"], 1),
    ]  # fmt: skip
    assert [job.read_under for job in asked] == [*PROMPTS, *PROMPTS]
    assert {(job.tags["variant"], job.spec) for job in asked} == {("prompted", None)}
    caa = next(variant for variant in STANDARD if variant.name == "CAA")
    steered = prompted_and_steered(Setting(caa, {1: 2.0}), targets, PROMPTS, ASKED, LABELS, "rest")
    assert [job.prompt for job in steered] == [job.prompt for job in asked[:2]]
    assert {job.tags["variant"] for job in steered} == {"prompted + CAA"}
    assert [job.spec and job.spec["alpha"] for job in steered] == [2.0, 2.0]
    keys = {job.key for job in [*asked, *steered]}
    assert len(keys) == 6
    assert prompted_jobs(targets, PROMPTS, {}) == []
