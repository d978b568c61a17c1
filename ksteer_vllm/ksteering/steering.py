"""`KSteering`: fit a classifier, steer with it, save it, by k-steering's names and with its defaults.

By default the package's mistakes are corrected; `compat="pip-0.1.2"` repeats them (see
`docs/coming-from-k-steering.md`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ksteer_vllm.bench.jobs import Job
from ksteer_vllm.data.rows import Prompt
from ksteer_vllm.errors import UsageError
from ksteer_vllm.ksteering.config import SteeringConfig, TrainerConfig, sampling_of
from ksteer_vllm.ksteering.data import (
    dataset_rows,
    given_prompts,
    plain_prompt,
    plain_row,
    questions_of,
    sampled,
    task_rows,
)
from ksteer_vllm.ksteering.engine import Engine, has_chat_template
from ksteer_vllm.ksteering.fitting import check_classifier, fit_classifier, load_classifier
from ksteer_vllm.ksteering.specs import Labels, labels_of_each, spec_of
from ksteer_vllm.ksteering.sweep import AlphaSweep, drawn, sweep
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.compat import PIP_0_1_2

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["KSteering"]


class KSteering:
    """One model, one classifier, one engine, which starts when it is first needed. A context manager.

    Args:
        model_name: A folder, or a name on the hub.
        steering_config: Where the classifier is trained and where it steers.
        trainer_config: How the classifier is trained.
        compat: "pip-0.1.2" repeats that version of the package, its mistakes included; None does not.
        chat: Whether texts are user messages, to go through the model's chat template; default: if it has
            one, and not with compat.
        engine_options: Further arguments of `vllm.LLM`.
        seed: Seed of the fit.
        console: Where the fit shows its progress.

    Raises:
        UsageError: For an unknown compat version.
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
        self._engine: Engine | None = None

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

        Args:
            task: The task's name; give this or a dataset.
            dataset: A `TaskDataset`, a file, a DataFrame, or rows: `LabelledRow`, {"text" or "prompt",
                "label"}.
            eval_prompts: For `sweep_alpha`; default: the data's questions.
            max_samples: Most rows to use, drawn as the package draws them.
            labels: The labels to fit; default: all.
            questions: A local file of the task's questions.
            positions: What is read of a row (reply, reply-mean, prompt-last); default: each token of the
                reply if every row has one, else the prompt's last; with compat the latter.

        Returns:
            Itself, ready to steer.

        Raises:
            DataError: For rows that cannot be read, or for too few of them.
            UsageError: For arguments that do not go together.
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
        rows = sampled(rows, max_samples)
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
        """Steered replies to all prompts, from one batch. With compat they are one padded batch.

        Args:
            input_prompts: Texts, or chats as lists of messages.
            steering_strength, layers, layer_strengths: Before those of the configuration.
            target_labels, avoid_labels: Of every prompt, or a list for each.
            max_new_tokens: Most tokens of a reply, before `generation_kwargs`.
            return_dict: Return the replies as "text", beside what they were steered with.
            generation_kwargs: By transformers' names (max_new_tokens, temperature, top_p, do_sample, top_k,
                ...), and `seed`.
            unsteered: Add replies without steering, from the same batch, as "unsteered_text".
            edit: Further fields of a spec, such as num_steps=1 or loss="softmin".

        Returns:
            A text for each prompt; with `return_dict` a dictionary.

        Raises:
            SpecError, UsageError: For mistakes that are found before the engine sees the request.
            ValueError: For what the engine refuses.
        """
        prompts = self._prompts(input_prompts)
        config = self.steering_config
        strengths = {"steering_strength": steering_strength, "layer_strengths": layer_strengths}
        options = self._options(prompts, layers=layers, **strengths, **edit)
        targets, avoided = (labels_of_each(side, len(prompts)) for side in (target_labels, avoid_labels))
        specs = [self.spec(*sides, **options) for sides in zip(targets, avoided, strict=True)]
        jobs = [Job(prompt, spec, i) for i, (prompt, spec) in enumerate(zip(prompts, specs, strict=True))]
        if unsteered:
            jobs += [Job(prompt, None, i) for i, prompt in enumerate(prompts)]
        replies = self._running.run(jobs, self._sampling(generation_kwargs, max_new_tokens))
        texts = [reply.text for reply in replies]
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
        """Replies of the model itself; arguments as of `get_steered_output`."""
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
        allow_chance_classifier: bool = False,
        **options: Any,
    ) -> AlphaSweep:
        """Every strength on every prompt, beside unsteered replies, in one batch, and what stays coherent.

        Coherence is judged by the unsteered model; nothing leaves the machine.

        Args:
            strengths: The strengths to try, on `input_prompts`; default: 20 of `eval_prompts`.
            budget: The coherence budget, see `ksteer_vllm.bench.coherence`.
            allow_chance_classifier: Sweep even if the classifier is no better than chance at these labels.
            options: As of `get_steered_output`, and so are the other arguments.

        Raises:
            SpecError, UsageError: As `get_steered_output`; without any prompt; for a classifier at chance.
        """
        if not allow_chance_classifier:
            check_classifier(self.probe, [*target_labels, *avoid_labels])
        given = drawn(self.eval_prompts, self.seed) if input_prompts is None else input_prompts
        prompts = self._prompts(given)
        if not prompts:
            raise UsageError("sweep_alpha: no prompts; give input_prompts, or fit(..., eval_prompts=...)")
        options = self._options(prompts, **options)
        sampling = self._sampling(generation_kwargs, max_new_tokens)
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
        return self._running.probe

    @property
    def unique_labels(self) -> list[str]:
        return list(self.probe.labels)

    @cached_property
    def uses_chat(self) -> bool:
        """Whether texts go through a chat template."""
        if self._chat is not None or self.compat is not None:
            return bool(self._chat)
        return has_chat_template(self.model_name)

    @property
    def llm(self) -> Any:
        """The vLLM engine, started."""
        return self._running.llm

    def save(self, folder: str | Path) -> Path:
        """Write the probe folder, with the configured strength as its default, and return it.

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
        """Steer with a probe folder of family mlp or linear.

        Args:
            folder: The probe's.
            model_name: Default: the model the probe was fitted on.
            repo_id, revision: What to pull from the hub into `folder` first.
            options: As of the class.

        Raises:
            ProbeError, UsageError: For a folder that holds no such probe, and for unusable options.
        """
        if repo_id is not None:
            from ksteer_vllm.hub.transfer import pull

            pull(repo_id, folder, revision=revision)
        probe = load_classifier(folder)
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def _steer_with(self, probe: Probe) -> Self:
        self.close()
        self._engine = Engine(self.model_name, probe, self.engine_options)
        return self

    @property
    def _running(self) -> Engine:
        if self._engine is None:
            raise UsageError("nothing to steer with yet: call fit() first, or KSteering.load()")
        return self._engine

    def _sampling(self, given: Mapping[str, Any] | None, max_new_tokens: int | None) -> dict[str, Any]:
        return sampling_of(given, max_new_tokens, as_pip=self.compat is not None)

    def _prompts(self, given: str | Sequence[Any]) -> list[Prompt]:
        return given_prompts(given, chat=self.uses_chat)

    def _options(self, prompts: Sequence[Prompt], **options: Any) -> dict[str, Any]:
        """With compat, the length the package would pad these prompts to."""
        if self.compat is None or len(prompts) < 2:
            return options
        return {**options, "padded_length": max(map(self._running.length_of, prompts))}
