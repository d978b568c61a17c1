"""The model card of a pushed folder, from its metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ksteer_vllm.artifact import Artifact

__all__ = ["model_card"]


def model_card(repo_id: str, artifacts: Mapping[str, Artifact], *, suite: bool) -> str:
    """README.md with the hub's YAML header. artifacts: by folder, '' for the only one."""
    first = next(iter(artifacts.values())).metadata
    families = sorted({artifact.metadata.family for artifact in artifacts.values()})
    what = "Steering artifacts of several methods" if suite else f"A steering artifact (`{first.family}`)"
    layers = sorted(
        {layer for it in artifacts.values() for layer in it.metadata.layers or (it.metadata.layer,)}
    )
    header = [
        "library_name: ksteer-vllm",
        "tags:",
        *(f"- {tag}" for tag in ("ksteer", "steering", *families)),
    ]
    if re.fullmatch(r"[\w.-]+/[\w.-]+", first.model.name):
        header.append(f"base_model: {json.dumps(first.model.name)}")
    lines = [
        "---", *header, "---", "",
        f"# {repo_id}",
        "",
        f"{what} for {first.model.name} ({first.model.model_type}, hidden size {first.model.hidden_size}, "
        f"{first.model.num_layers} layers), to be used with ksteer-vllm, per request, in a vLLM engine.",
        "",
        f"- labels: {', '.join(first.labels)}",
        f"- decoder blocks (counted from 0): {', '.join(map(str, layers))}",
        *_fitted(first.training),
        "",
        "| folder | family | method of the fit | layer | default strength | held out | digest |",
        "|---|---|---|---|---|---|---|",
        *(_row(name, artifact) for name, artifact in artifacts.items()),
        "",
        "```",
        f"ksteer pull {repo_id} --out steering",
        "```",
        "",
        "```python",
        *_usage(artifacts, first.labels[0]),
        "```",
        "",
        "No code, no pickle: tensors are safetensors, the rest is JSON, Markdown and figures. A folder's "
        "digest covers its tensors and every setting that changes what they do; `ksteer pull` checks it.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _fitted(training: Mapping[str, Any]) -> list[str]:
    """Of one artifact's provenance what holds for all."""
    found = []
    if "data_digest" in training:
        found.append(f"- fitted to {training.get('rows', '?')} rows, data digest `{training['data_digest']}`")
    if "positions" in training:
        found.append(f"- positions: {training['positions']}")
    if "source" in training:
        found.append(f"- converted from: {training['source']}")
    return found


def _row(name: str, artifact: Artifact) -> str:
    metadata = artifact.metadata
    alpha = ", ".join(f"{method} {value:.4g}" for method, value in metadata.default_alpha.items())
    mean = metadata.metrics.get("tokens", {}).get("mean", {}) if isinstance(metadata.metrics, dict) else {}
    shown = ", ".join(f"{key} {value:.3f}" for key, value in mean.items() if isinstance(value, float))
    method = metadata.training.get("method", metadata.family)
    layers = ", ".join(map(str, metadata.layers or (metadata.layer,)))
    cells = [name or ".", metadata.family, method, layers, alpha or "–", shown or "–", metadata.digest[:12]]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _usage(artifacts: Mapping[str, Artifact], label: str) -> list[str]:
    name = next(iter(artifacts))
    model = artifacts[name].metadata.model.name
    probes = {name or "steering": f"steering/{name}".rstrip("/")}
    spec = {"probe": name or "steering", "target": [label]}
    return [
        "import ksteer_vllm",
        "from vllm import LLM, SamplingParams",
        "",
        f"llm = LLM({json.dumps(model)}, additional_config=ksteer_vllm.enable(probes={json.dumps(probes)}))",
        f"spec = ksteer_vllm.SteeringSpec.parse({json.dumps(spec, ensure_ascii=False)})",
        "params = SamplingParams(extra_args=spec.extra_args())",
    ]
