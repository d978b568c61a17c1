"""What is published with a folder: a model card, and metadata and write-ups without local paths."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ksteer_vllm.bench.suite import Suite
from ksteer_vllm.errors import UsageError
from ksteer_vllm.probes.probe import Probe

__all__ = ["model_card", "public_results", "published", "suite_text"]

_ON_THE_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def model_card(repo_id: str, probes: Mapping[str, Probe], *, suite: bool) -> str:
    """The text of README.md, with the hub's YAML header.

    Args:
        repo_id: owner/name.
        probes: The probes by folder; '' for the only one.
        suite: Whether they form a suite.
    """
    first = next(iter(probes.values())).metadata
    families = sorted({probe.metadata.family for probe in probes.values()})
    what = "Steering probes of several methods" if suite else f"A steering probe (`{first.family}`)"
    layers = sorted({layer for it in probes.values() for layer in it.metadata.layers or (it.metadata.layer,)})
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
        *(_row(name, probe) for name, probe in probes.items()),
        "",
        "```",
        f"ksteer pull {repo_id} --out steering",
        "```",
        "",
        "```python",
        *_usage(probes, first.labels[0]),
        "```",
        "",
        "No code, no pickle: tensors are safetensors, the rest is JSON, Markdown and figures. A folder's "
        "digest covers its tensors and every setting that changes what they do; `ksteer pull` checks it.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _fitted(training: Mapping[str, Any]) -> list[str]:
    """The lines of one probe's provenance that hold for all."""
    found = []
    if "data_digest" in training:
        found.append(f"- fitted to {training.get('rows', '?')} rows, data digest `{training['data_digest']}`")
    if "positions" in training:
        found.append(f"- positions: {training['positions']}")
    if "source" in training:
        found.append(f"- converted from: {training['source']}")
    return found


def _row(name: str, probe: Probe) -> str:
    metadata = probe.metadata
    alphas = dict(metadata.default_alpha)
    if "alpha" in (edit := metadata.default_edit or {}):
        alphas[next(iter(metadata.methods))] = edit["alpha"]
    alpha = ", ".join(f"{method} {value:.4g}" for method, value in alphas.items())
    mean = metadata.metrics.get("tokens", {}).get("mean", {}) if isinstance(metadata.metrics, dict) else {}
    shown = ", ".join(f"{key} {value:.3f}" for key, value in mean.items() if isinstance(value, float))
    method = metadata.training.get("method", metadata.family)
    layers = ", ".join(map(str, metadata.layers or (metadata.layer,)))
    cells = [name or ".", metadata.family, method, layers, alpha or "–", shown or "–", metadata.digest[:12]]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _usage(probes: Mapping[str, Probe], label: str) -> list[str]:
    name = next(iter(probes))
    model = probes[name].metadata.model.name
    folders = {name or "steering": f"steering/{name}".rstrip("/")}
    spec = {"probe": name or "steering", "target": [label]}
    return [
        "import ksteer_vllm",
        "from vllm import LLM, SamplingParams",
        "",
        f"llm = LLM({json.dumps(model)}, additional_config=ksteer_vllm.enable(probes={json.dumps(folders)}))",
        f"spec = ksteer_vllm.SteeringSpec.parse({json.dumps(spec, ensure_ascii=False)})",
        "params = SamplingParams(extra_args=spec.extra_args())",
    ]


def published(probes: dict[str, Probe], base_model: str | None) -> dict[str, Probe]:
    """The probes with a model name that works on other machines; digests do not cover the name.

    Args:
        probes: By folder.
        base_model: The model's name on the hub; None: keep a hub name, shorten a path to its last part.
    """
    found = {}
    for name, probe in probes.items():
        model = probe.metadata.model
        public = _public_model(model.name, base_model)
        found[name] = probe.with_metadata(
            model=model.model_copy(update={"name": public}),
            training=_public_training(probe.metadata.training, model.name, public),
        )
    return found


def _public_model(name: str, base_model: str | None) -> str:
    """`base_model`, or the name itself if it is one on the hub, or the last part of a local path."""
    if base_model or (_ON_THE_HUB.fullmatch(name) and not Path(name).exists()):
        return base_model or name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or "model"


def _public_training(training: Any, fitted: str, public: str) -> Any:
    """The same with a public name for every "model", those of single layers included."""
    if not isinstance(training, dict):
        return training
    found = {key: _public_training(value, fitted, public) for key, value in training.items()}
    if isinstance(name := training.get("model"), str):
        found["model"] = public if name == fitted else _public_model(name, None)
    return found


def suite_text(suite: Suite, model: str) -> bytes:
    """The text of suite.json, without engine options that may be paths.

    Args:
        suite: The suite.
        model: The model's public name.
    """
    options = {
        name: value
        for name, value in suite.file.engine_options.items()
        if not (isinstance(value, str) and re.search(r"[/\\]", value))
    }
    public = suite.file.model_copy(update={"model": model, "engine_options": options})
    return (public.model_dump_json(indent=2) + "\n").encode()


def public_results(path: Path, base_model: str | None) -> bytes:
    """The text of a write-up, without the command line and the suite's path in its provenance.

    Args:
        path: A results.md or results.json.
        base_model: The model's name on the hub; None: as in `published`.

    Raises:
        UsageError: For a file that cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        results = json.loads(text) if path.suffix == ".json" else None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}; write the results again, or remove the file") from None
    if path.suffix == ".json":
        if isinstance(results, dict) and isinstance(source := results.get("provenance"), dict):
            kept = {key: value for key, value in source.items() if key not in ("command", "suite")}
            if isinstance(name := kept.get("model"), str):
                kept["model"] = _public_model(name, base_model)
            results["provenance"] = kept
        return (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode()
    before, heading, source = text.rpartition("\n## Provenance\n")
    if not heading:
        return text.encode()
    source = re.sub(r"^- (command|suite): .*\n?", "", source, flags=re.MULTILINE)
    source = re.sub(
        r"^- model: (.*)$",
        lambda line: f"- model: {_public_model(line[1], base_model)}",
        source,
        flags=re.MULTILINE,
    )
    return (before + heading + source).encode()
