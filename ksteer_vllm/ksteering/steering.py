"""`KSteering`: fit a classifier, steer with it, save it, by k-steering's names and with its defaults.

By default what the package gets wrong is right here; `compat="pip-0.1.2"` repeats it as it is (see
`docs/coming-from-k-steering.md`).
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ksteer_vllm.bench.bench import room_for
from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.data.rows import Message, Prompt
from ksteer_vllm.errors import ProbeError, UsageError
from ksteer_vllm.ksteering.config import SteeringConfig, TrainerConfig, sampling_of
from ksteer_vllm.ksteering.data import dataset_rows, plain_prompt, plain_row, questions_of, task_rows
from ksteer_vllm.ksteering.engine import PROBE, Engine
from ksteer_vllm.ksteering.fitting import fit_classifier
from ksteer_vllm.ksteering.specs import spec_of
from ksteer_vllm.ksteering.sweep import AlphaSweep, sweep
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.compat import PIP_0_1_2

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["KSteering"]

Labels = Sequence[str] | Sequence[Sequence[str]] | None
"""Of every prompt, or of each."""

SWEPT = 20
"""Prompts of a sweep that is given none."""


class KSteering:
    """One model, one classifier, one engine, which starts when it is first needed. A context manager.

    model_name: a folder or a name of the hub. compat: "pip-0.1.2" or None. chat: texts are what a user says
    and go through the model's chat template; default: if it has one, and not with compat. engine_options:
    further arguments of `vllm.LLM`. seed: of the fit.
    """

    def __init__(
        self,
        model_name: str | Path,
        steering_config: SteeringConfig | None = None,
        trainer_config: TrainerConfig | None = None,
        *,
        compat: str | None = None,
        chat: bool | None = None,
        engine_options: Mapping[str, Any] | None = None,
        seed: int = 0,
        console: Console | None = None,
    ) -> None:
        if compat not in (None, PIP_0_1_2):
            raise UsageError(f"compat: expected {PIP_0_1_2} or None, got {compat[:80]!r}")
        self.model_name = str(model_name)
        self.steering_config = steering_config or SteeringConfig()
        self.trainer_config = trainer_config or TrainerConfig()
        self.compat = compat
        self.engine_options = dict(engine_options or {})
        self.seed = seed
        self.eval_prompts: list[Prompt] = []
        self._chat = chat
        self._console = console
        self._probe: Probe | None = None
        self._engine: Engine | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def fit(
        self,
        task: str | None = None,
        dataset: Any = None,
        eval_prompts: Sequence[str] | None = None,
        *,
        max_samples: int | None = None,
        labels: Sequence[str] = (),
        questions: str | Path | None = None,
        positions: str | None = None,
    ) -> Self:
        """Fit the classifier to a predefined task (`tones`, `debates`, `demo`) or to a data set.

        dataset: a `TaskDataset`, a file, a DataFrame, or rows: `LabelledRow`, {"text" or "prompt", "label"}.
        eval_prompts: for `sweep_alpha`; default: what the data asks. max_samples: so many rows, drawn as the
        package draws them. labels: those to fit; default: all. questions: a local file of the task's
        questions. positions: what is read of a row (reply, reply-mean, prompt-last); default: each token of
        the reply if every row has one, else the prompt's last; with compat the latter. Raises DataError or
        UsageError.
        """
        if (task is None) == (dataset is None):
            raise UsageError("fit: give either a task or a dataset")
        if task is not None:
            rows, chosen = task_rows(task, labels, questions=questions, as_pip=self.compat is not None)
        else:
            rows, chosen = dataset_rows(dataset, labels, chat=self.uses_chat)
        self.eval_prompts = [*(eval_prompts or questions_of(rows))]
        if not self.uses_chat:
            self.eval_prompts = [plain_prompt(prompt) for prompt in self.eval_prompts]
            rows = [plain_row(row) for row in rows]
        if max_samples is not None:
            rows = random.Random(42).sample(rows, min(max_samples, len(rows)))
        self.close()
        probe = fit_classifier(
            self.model_name,
            rows,
            chosen,
            layer=self.steering_config.train_layer,
            trainer=self.trainer_config,
            compat=self.compat,
            positions=positions,
            seed=self.seed,
            engine_options=self.engine_options,
            console=self._console,
        )
        return self._steer_with(probe)

    def get_steered_output(
        self,
        input_prompts: str | Sequence[Any],
        steering_strength: float | None = None,
        layers: Sequence[int] | None = None,
        target_labels: Labels = None,
        avoid_labels: Labels = None,
        layer_strengths: Mapping[int, float] | None = None,
        max_new_tokens: int | None = None,
        return_dict: bool = False,
        *,
        generation_kwargs: Mapping[str, Any] | None = None,
        unsteered: bool = False,
        **edit: Any,
    ) -> Any:
        """Steered replies to all prompts, from one batch: a list of texts, or what `return_dict` says.

        input_prompts: texts, or chats as lists of messages. target_labels, avoid_labels: of every prompt, or
        a list for each. layers, strengths: before those of the configuration. generation_kwargs:
        transformers' names (max_new_tokens, temperature, top_p, do_sample, top_k, ...) and `seed`. unsteered:
        replies without steering, in the same batch, as "unsteered_text". edit: further fields of a spec, such
        as num_steps=1 or loss="softmin". With compat the prompts of one call are one padded batch. Raises
        UsageError, SpecError or, for what the engine refuses, ValueError.
        """
        prompts = self._prompts(input_prompts)
        config = self.steering_config
        options = self._options(
            prompts,
            steering_strength=steering_strength,
            layers=layers,
            layer_strengths=layer_strengths,
            **edit,
        )
        wanted = zip(_each(target_labels, len(prompts)), _each(avoid_labels, len(prompts)), strict=True)
        specs = [self.spec(target, avoid, **options) for target, avoid in wanted]
        jobs = [Job(prompt, spec, i) for i, (prompt, spec) in enumerate(zip(prompts, specs, strict=True))]
        if unsteered:
            jobs += [Job(prompt, None, i) for i, prompt in enumerate(prompts)]
        texts = [
            reply.text for reply in self._running.run(jobs, self._sampling(generation_kwargs, max_new_tokens))
        ]
        if not return_dict:
            return texts[: len(prompts)]
        strength = config.steering_strength if steering_strength is None else steering_strength
        found = {
            "text": texts[: len(prompts)],
            "input_prompt": [input_prompts] if isinstance(input_prompts, str) else list(input_prompts),
            "steering_strength": strength,
            "target_layers": layers or config.steer_layers,
            "layer_strengths": dict(layer_strengths or config.layer_strengths),
            "specs": specs,
        }
        return {**found, "unsteered_text": texts[len(prompts) :]} if unsteered else found

    def get_unsteered_output(
        self,
        input_prompts: str | Sequence[Any],
        max_new_tokens: int | None = None,
        *,
        generation_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Replies of the model itself."""
        jobs = [Job(prompt, None, i) for i, prompt in enumerate(self._prompts(input_prompts))]
        sampling = self._sampling(generation_kwargs, max_new_tokens)
        return [reply.text for reply in self._running.run(jobs, sampling)]

    def sweep_alpha(
        self,
        strengths: Sequence[float],
        input_prompts: Sequence[Any] | None = None,
        *,
        target_labels: Sequence[str],
        avoid_labels: Sequence[str] = (),
        max_new_tokens: int | None = None,
        budget: float = 0.9,
        generation_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> AlphaSweep:
        """Every strength on every prompt, beside unsteered replies, in one batch, and what stays coherent.

        input_prompts: default: 20 of `eval_prompts`. budget: see `ksteer_vllm.bench.coherence`. options: as
        of `get_steered_output`. Coherence is judged by the unsteered model; nothing leaves the machine.
        """
        drawn = random.Random(self.seed).sample(self.eval_prompts, min(SWEPT, len(self.eval_prompts)))
        prompts = self._prompts(drawn if input_prompts is None else input_prompts)
        if not prompts:
            raise UsageError("sweep_alpha: no prompts; give input_prompts, or fit(..., eval_prompts=...)")
        options, sampling = (
            self._options(prompts, **options),
            self._sampling(generation_kwargs, max_new_tokens),
        )
        specs = {
            strength: self.spec(target_labels, avoid_labels, steering_strength=strength, **options)
            for strength in sorted(strengths)
        }
        return sweep(lambda jobs: self._running.run(jobs, sampling, score=True), prompts, specs, budget)

    def spec(
        self, target_labels: Sequence[str], avoid_labels: Sequence[str] = (), **options: Any
    ) -> dict[str, Any]:
        """The spec of one request, for an engine with this probe as "steering": see `specs.spec_of`."""
        return spec_of(
            self.probe.metadata, self.steering_config, self.compat, target_labels, avoid_labels, **options
        )

    @property
    def probe(self) -> Probe:
        """What was fitted or loaded. Raises UsageError before that."""
        if self._probe is None:
            raise UsageError("nothing to steer with yet: call fit() first, or KSteering.load()")
        return self._probe

    @property
    def unique_labels(self) -> list[str]:
        return list(self.probe.labels)

    @cached_property
    def uses_chat(self) -> bool:
        """Whether texts go through a chat template."""
        if self._chat is not None or self.compat is not None:
            return bool(self._chat)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model_name).chat_template is not None

    @property
    def llm(self) -> Any:
        """The vLLM engine, started."""
        return self._running.llm

    def save(self, folder: str | Path) -> Path:
        """Write the probe folder, with the configured strength as its default. Returns it.

        Requests with compat do not use that default: configure the strength again after `load`.
        """
        strength, probe = self.steering_config.steering_strength, self.probe
        if strength is not None:
            defaults = {**probe.metadata.default_alpha, "gradient": strength}
            probe = probe.with_metadata(default_alpha=defaults)
        return probe.save(folder)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model_name: str | Path | None = None,
        *,
        repo_id: str | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> Self:
        """Steer with a probe folder of family mlp or linear; repo_id: what to pull into `folder` first.

        model_name: default: the probe's. options: as of the class. Raises ProbeError or UsageError.
        """
        if repo_id is not None:
            from ksteer_vllm.hub.transfer import pull

            pull(repo_id, folder, revision=revision)
        probe = Probe.load(folder)
        if probe.metadata.family not in ("mlp", "linear"):
            raise ProbeError(f"{folder}: of family {probe.metadata.family!r}; KSteering takes mlp and linear")
        options.setdefault("compat", probe.metadata.settings.get("compat"))
        return cls(model_name or probe.metadata.model.name, **options)._steer_with(probe)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """`save`, then `ksteer_vllm.hub.transfer.push`; options: its own. Returns the commit's address."""
        from ksteer_vllm.hub.transfer import push

        with tempfile.TemporaryDirectory() as folder:
            return push(self.save(folder), repo_id, **options)

    def close(self) -> None:
        """Stop the engine; the next reply starts another."""
        if self._engine is not None:
            self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _steer_with(self, probe: Probe) -> Self:
        self.close()
        self._folder = tempfile.TemporaryDirectory(prefix="ksteer-")
        folder = probe.save(self._folder.name)
        self._probe = Probe.load(folder)
        width = room_for({PROBE: probe})["max_width"]
        self._engine = Engine(self.model_name, folder, width, self.engine_options)
        return self

    @property
    def _running(self) -> Engine:
        _ = self.probe
        assert self._engine is not None
        return self._engine

    def _sampling(self, given: Mapping[str, Any] | None, max_new_tokens: int | None) -> dict[str, Any]:
        return sampling_of(given, max_new_tokens, as_pip=self.compat is not None)

    def _prompts(self, given: str | Sequence[Any]) -> list[Prompt]:
        """Each as a text, or as the messages of a chat."""
        found: list[Prompt] = []
        for prompt in [given] if isinstance(given, str) else given:
            if not isinstance(prompt, str):
                found.append(tuple(Message.model_validate(message) for message in prompt))
            else:
                found.append((Message(role="user", content=prompt),) if self.uses_chat else prompt)
        return found

    def _options(self, prompts: Sequence[Prompt], **options: Any) -> dict[str, Any]:
        """With compat, the length the package would pad these prompts to."""
        if self.compat is None or len(prompts) < 2:
            return options
        return {**options, "padded_length": max(map(self._running.length_of, prompts))}


def _each(labels: Labels, count: int) -> list[Sequence[str]]:
    """A list of labels for each prompt. Raises UsageError if there is not one for each."""
    given = list(labels or ())
    if all(isinstance(label, str) for label in given):
        return [given] * count  # type: ignore[list-item]
    if len(given) != count:
        raise UsageError(f"labels: {len(given)} lists for {count} prompts; give one list, or one for each")
    return [list(own) for own in given]
