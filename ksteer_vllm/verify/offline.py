"""An engine in this process as the subject."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ksteer_vllm.bench.engines import generation_params, start_engine, stop_engine
from ksteer_vllm.host.inspection import engine_facts
from ksteer_vllm.methods.program import FamilyProgram
from ksteer_vllm.models import ModelIdentity
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.report import report
from ksteer_vllm.spec.families import FAMILIES, load
from ksteer_vllm.verify.subject import Answer, Card, CheckRequest, Facts, RefusedError

__all__ = ["LOGPROBS", "OfflineSubject", "card_of", "random_probe", "start_offline"]

LOGPROBS = 5
RANDOM_WIDTH = 32


class OfflineSubject:
    """A `vllm.LLM` with steering enabled.

    Args:
        llm: The engine; `close` stops it.
        probes: Name -> the probes it was started with.
    """

    def __init__(self, llm: Any, probes: Mapping[str, Probe]) -> None:
        self._llm = llm
        self._probes = dict(probes)

    def facts(self) -> Facts:
        found = engine_facts(self._llm)
        registry = found.registry
        config = registry.config.as_json()
        limits = {name: value for name, value in config.items() if name.startswith("max_")}
        return Facts(
            name=found.model,
            weights=found.model,
            num_layers=found.num_layers,
            open_layers=tuple(registry.open_layers),
            cards=tuple(card_of(name, probe) for name, probe in self._probes.items()),
            tokens=tuple(range(min(10, found.vocabulary // 2), min(found.vocabulary, 4000))),
            max_model_len=found.max_model_len,
            reports=registry.config.reports,
            limits=limits,
            needs_opt_out=registry.default is not None,
            versions=found.versions,
        )

    def alone(self, request: CheckRequest) -> Answer:
        return self.together([request])[0]

    def together(self, requests: Sequence[CheckRequest]) -> list[Answer]:
        prompts, params = [], []
        for request in requests:
            prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt)}
            if request.salt is not None:
                prompt["cache_salt"] = request.salt
            prompts.append(prompt)
            params.append(
                generation_params(
                    temperature=0.0,
                    max_tokens=request.max_tokens,
                    spec=request.spec,
                    logprobs=LOGPROBS,
                    ignore_eos=True,
                    detokenize=False,
                )
            )
        began = time.monotonic()
        try:
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        except ValueError as error:
            raise RefusedError(str(error)) from None
        ended = time.monotonic()
        return [_answer(output, began, ended) for output in outputs]

    def close(self) -> None:
        stop_engine(self._llm)


def _answer(output: Any, began: float, ended: float) -> Answer:
    completion = output.outputs[0]
    return Answer(
        tokens=tuple(completion.token_ids),
        steps=tuple({token: entry.logprob for token, entry in step.items()} for step in completion.logprobs),
        report=report(output),
        cached=output.num_cached_tokens,
        began=began,
        ended=ended,
    )


def card_of(name: str, probe: Probe) -> Card:
    """What `GET /v1/ksteer/probes/NAME` of a server would say, from the probe itself."""
    metadata = probe.metadata
    return Card(
        name=name,
        digest=metadata.digest,
        family=metadata.family,
        labels=metadata.labels,
        layers=metadata.layers,
        own_layer=metadata.layer,
        methods=tuple(metadata.methods),
        default_alpha=metadata.default_alpha,
        default_edit=metadata.default_edit or {},
        metrics=metadata.metric_layers,
        probe=probe,
    )


def start_offline(
    model: str,
    probes: Mapping[str, Path],
    layers: str | Sequence[int] = "all",
    **engine_options: Any,
) -> OfflineSubject:
    """Start an engine in this process that steers with these probes.

    Args:
        model: A folder, or a name on the hub.
        probes: Name -> folder.
        layers: The layers open for steering.
        engine_options: Further arguments of `vllm.LLM`.

    Raises:
        ProbeError: If a probe's folder cannot be read or used with this model.
        ConfigError: If steering cannot be set up as described.
        Exception: Whatever vLLM raises for a model or options it cannot start with.
    """
    loaded = {name: Probe.load(folder) for name, folder in probes.items()}
    steering = {
        "probes": probes,
        "layers": layers,
        "max_probes": max(8, len(loaded)),
        "max_width": max([256, *map(_width, loaded.values())]),
    }
    return OfflineSubject(start_engine(model, engine_options, steering=steering, seeded=False), loaded)


def _width(probe: Probe) -> int:
    program: FamilyProgram = load(FAMILIES[probe.metadata.family].program)(probe)
    return max(weights.width for weights in program.slots().values())


def random_probe(model: str, **source: Any) -> Probe:
    """A probe of the model's shape with random weights: enough to see whether and where edits act.

    Args:
        model: A folder, or a name on the hub.
        source: Options of transformers' `from_pretrained`, such as revision and trust_remote_code.

    Raises:
        OSError: If there is no such model.
    """
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(model, **source).get_text_config()
    generator = torch.Generator().manual_seed(0)
    d, h, labels = text.hidden_size, RANDOM_WIDTH, ("a", "b", "c")

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    metadata = ProbeMetadata(
        labels=labels,
        layer=text.num_hidden_layers // 2,
        model=ModelIdentity(
            name=model, model_type=text.model_type, hidden_size=d, num_layers=text.num_hidden_layers
        ),
    )
    tensors = {
        "w1": normal(h, d, scale=d**-0.5),
        "b1": normal(h, scale=0.3),
        "w2": normal(h, h, scale=h**-0.5),
        "b2": normal(h, scale=0.3),
        "w3": normal(len(labels), h, scale=h**-0.5),
        "b3": normal(len(labels), scale=0.3),
        "input_mean": torch.zeros(d),
        "input_std": 0.4 + 0.3 * normal(d).abs(),  # so that the variance is a metric of its own
        "label_vectors": normal(len(labels), d),
    }
    return Probe(metadata, tensors)
