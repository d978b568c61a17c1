"""Every generation of an experiment: one engine, one continuous batch, every reply scored as it comes in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Literal, Self

from rich.progress import Progress

from ksteer_vllm.bench.engines import generation_params, start_engine, stop_engine
from ksteer_vllm.bench.jobs import MAX_TOKENS, SAMPLED, Job, Reply
from ksteer_vllm.bench.journal import Journal
from ksteer_vllm.config import EngineConfig
from ksteer_vllm.errors import UsageError
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.families import FAMILIES, load
from ksteer_vllm.spec.spec import SteeringSpec

__all__ = ["Bench", "room_for", "without_default_edits"]


class Bench:
    """One vLLM engine that steers with all probes and scores replies. A context manager.

    Args:
        model: A folder, or a name on the hub.
        probes: Name in specs -> folder.
        reader: The evaluation probe (family mlp), which gives `Reply.propensity`.
        layers: The layers that requests may steer.
        engine_options: Further arguments of `vllm.LLM`.
        temperature: Sampling temperature of the replies; 0 is greedy.
        top_p: Share of the next token's probability that is sampled from, the likeliest tokens first.
        max_tokens: Most tokens of a reply.
        scored: False for an engine that only generates.
        steering: Further keys of `ksteer_vllm.enable`.

    Raises:
        ProbeError, UsageError: For a probe that cannot be used, or a reader without a digest.
        Exception: Whatever vLLM raises for a model or options it cannot start with.
    """

    def __init__(
        self,
        model: str,
        probes: Mapping[str, Path],
        *,
        reader: Probe | None = None,
        layers: Literal["all"] | Sequence[int] = "all",
        engine_options: Mapping[str, Any] | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = MAX_TOKENS,
        scored: bool = True,
        steering: Mapping[str, Any] | None = None,
    ) -> None:
        from ksteer_vllm.bench.scoring import Scorer

        self._copies = TemporaryDirectory(prefix="ksteer-")
        probes = without_default_edits(probes, Path(self._copies.name))
        loaded = {name: Probe.load(folder) for name, folder in probes.items()}
        capture = {"capture": {"layers": [reader.metadata.layer]}} if scored and reader is not None else {}
        options = {**(engine_options or {}), "enforce_eager": True}
        wanted = {"probes": probes, "layers": layers, **room_for(loaded), **(steering or {}), **capture}
        self.temperature = temperature
        self._narrowed = {} if top_p == 1.0 else {"top_p": top_p}
        self.max_tokens = max_tokens
        self._digests = {name: Probe.load_metadata(folder).digest for name, folder in probes.items()}
        self.identity: dict[str, Any] = {
            "model": model,
            "reader": _digest_of(reader) if scored and reader is not None else None,
            "temperature": temperature,
            **self._narrowed,
            "max_tokens": max_tokens,
            "dtype": options.get("dtype", "auto"),
        }
        self.llm = start_engine(model, options, steering=wanted)
        self._scorer = Scorer(self.llm, reader, temperature=temperature or SAMPLED) if scored else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine and release what it holds."""
        stop_engine(self.llm)
        self._copies.cleanup()

    def run(
        self,
        jobs: Sequence[Job],
        *,
        journal: Journal | None = None,
        progress: Progress | None = None,
        description: str = "generating",
        score: bool = True,
    ) -> list[Reply]:
        """The reply to every job, in their order; equal jobs are run once.

        All enter one continuous batch, and so does each reply's scoring.

        Args:
            jobs: Any number.
            journal: Gets every reply as soon as it is finished; those already there are not run again.
            progress, description: Where to show how many are done, and under which name.
            score: False to leave out nll and propensity.

        Raises:
            ValueError: For a spec the engine refuses.
            UsageError: For a prompt that is too long for the engine.
        """
        from ksteer_vllm.bench.batch import run_batch

        scorer = self._scorer if score else None
        keys = [self.key(job, scored=scorer is not None) for job in jobs]
        values: dict[str, Any] = {}
        pending: dict[str, Job] = {}
        for key, job in zip(keys, jobs, strict=True):
            if journal is not None and key in journal:
                values[key] = journal[key]
            else:
                pending.setdefault(key, job)
        task = None
        if progress is not None:
            together = min(self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs, len(pending))
            total = len(values) + len(pending)
            task = progress.add_task(description, total=total, completed=len(values), together=together)
        for key, value in run_batch(self.llm, pending, self._sampling, self.max_tokens, scorer):
            values[key] = value
            if journal is not None:
                journal.add(key, value)
            if progress is not None and task is not None:
                progress.advance(task)
        return [Reply(job=job, **values[key]) for key, job in zip(keys, jobs, strict=True)]

    def key(self, job: Job, *, scored: bool = True) -> str:
        """What the job is filed under in a journal: itself, the digests of its probes, if it is scored."""
        digests = {} if job.spec is None else _named(job.spec, self._digests)
        text = json.dumps([job.key, digests, scored], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _sampling(self, job: Job) -> Any:
        temperature = self.temperature if job.temperature is None else job.temperature
        return generation_params(
            temperature=temperature,
            max_tokens=self.max_tokens,
            seed=job.seed,
            spec=job.spec,
            **self._narrowed,
        )


def room_for(probes: Mapping[str, Probe]) -> dict[str, int]:
    """max_probes and max_width that hold all probes, at least the engine's defaults."""
    widths = [
        slot.width
        for probe in probes.values()
        for slot in load(FAMILIES[probe.metadata.family].program)(probe).slots().values()
    ]
    fields = EngineConfig.model_fields
    return {
        "max_probes": max(fields["max_probes"].default, len(probes)),
        "max_width": max([fields["max_width"].default, *widths]),
    }


def without_default_edits(probes: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """The probes as experiments use them: what a spec leaves out is the same for every probe.

    Args:
        probes: Name -> folder.
        folder: Where copies of probes with a default edit are written.
    """
    found = {}
    for name, path in probes.items():
        found[name] = path
        if Probe.load_metadata(path).default_edit is not None:
            found[name] = (
                Probe.load(path).with_metadata(default_edit=None, label_alpha={}).save(folder / name)
            )
    return found


def _named(spec: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, str]:
    """The digests of the probes a spec names, in its edits and their conditions."""
    named: set[str] = set()
    for edit in SteeringSpec.parse(spec).edits():
        named.add(edit.probe)
        if edit.condition is not None:
            named.add(edit.condition.probe)
    return {name: digests.get(name, "") for name in sorted(named)}


def _digest_of(reader: Probe) -> str:
    if not reader.metadata.digest:
        raise UsageError("reader: a probe without a digest; save it, then load it")
    return reader.metadata.digest
