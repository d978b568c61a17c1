"""The engine in this process, token by token."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ksteer_vllm.bench.bench import room_for
from ksteer_vllm.bench.chat.speaker import ChatPlan
from ksteer_vllm.bench.engines import generation_params, on_cpu, start_engine, stop_engine, streamed
from ksteer_vllm.data.positions import encode_prompt
from ksteer_vllm.data.rows import Message
from ksteer_vllm.errors import UsageError
from ksteer_vllm.probes.probe import Probe

__all__ = ["EngineSpeaker"]

PROBE = "probe"
"""What the engine calls the probe."""

LEAST_ROOM = 16
"""Tokens a reply must have room for."""

_ids = itertools.count()


class EngineSpeaker:
    """A `Speaker` on an engine of this process.

    Args:
        llm: The engine; `close` stops it.
        probe: The name of a probe it has loaded.
        labels: The probe's labels.
        plan: How to sample.
        about: What a saved conversation says of model and probe.
        template_arguments: Arguments of the chat template.
    """

    def __init__(
        self,
        llm: Any,
        probe: str,
        labels: Sequence[str],
        plan: ChatPlan,
        about: Mapping[str, Any],
        template_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.probe, self.labels, self.about = probe, tuple(labels), dict(about)
        self._llm, self._plan, self._template_arguments = llm, plan, dict(template_arguments or {})

    @classmethod
    def start(
        cls,
        folder: str | Path,
        model: str,
        plan: ChatPlan,
        options: Mapping[str, Any],
        template_arguments: Mapping[str, Any] | None = None,
    ) -> Self:
        """Start an engine that steers with one probe folder.

        Args:
            folder: The probe folder.
            model: A folder, or a name on the hub; empty: the one the probe was fitted on, if it is a folder.
            plan: How to sample.
            options: Further arguments of `vllm.LLM`.
            template_arguments: Arguments of the chat template, before those that the probe was made with.

        Raises:
            ProbeError: For a folder that is not a probe's, or a probe of another model.
            UsageError: If no model is given and the probe's is not a folder here.
        """
        probe = Probe.load(folder)
        model = model or model_of_probe(probe)
        small = {"max_num_seqs": 2, **({"enforce_eager": True} if on_cpu() else {})}  # starts sooner
        steering = {"probes": {PROBE: str(folder)}, "layers": "all", **room_for({PROBE: probe})}
        llm = start_engine(model, {**small, **options}, steering=steering)
        about = {"model": model, "digest": probe.metadata.digest}
        arguments = {**probe.metadata.chat_template_kwargs, **(template_arguments or {})}
        return cls(llm, PROBE, probe.labels, plan, about, arguments)

    def reply(
        self, messages: tuple[Message, ...], spec: Mapping[str, Any] | None, seed: int | None
    ) -> Generator[str]:
        engine, name = self._llm.llm_engine, f"chat-{next(_ids)}"
        prompt = encode_prompt(self._llm.get_tokenizer(), messages, self._template_arguments)
        room = engine.model_config.max_model_len - len(prompt)
        if room < LEAST_ROOM:
            raise UsageError(
                f"the conversation has {len(prompt)} tokens, and the engine holds "
                f"{engine.model_config.max_model_len}: start again with /reset, or with --max-model-len"
            )
        parameters = generation_params(
            temperature=self._plan.temperature,
            max_tokens=min(self._plan.max_tokens, room),
            seed=seed,
            spec=spec or False,
        )
        engine.add_request(name, {"prompt_token_ids": prompt}, streamed(parameters))
        try:
            while engine.has_unfinished_requests():
                yield from filter(None, (output.outputs[0].text for output in engine.step()))
        finally:
            if engine.has_unfinished_requests():
                engine.abort_request([name])
                while engine.has_unfinished_requests():
                    engine.step()

    def close(self) -> None:
        stop_engine(self._llm)


def model_of_probe(probe: Probe) -> str:
    """The folder of the model a probe was fitted on. Raises UsageError if it is not here."""
    name = probe.metadata.model.name
    if not Path(name).is_dir():
        raise UsageError(
            f"--model: required: the probe was fitted on {name!r}, which is not a folder here; give the "
            "model's folder, or its name on the hub"
        )
    return name
