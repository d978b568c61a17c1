"""What an engine can steer with: the loaded probes, the presets, the open layers and the limits.

One validator for every way a request can arrive. Pure: no vLLM. A registry is immutable; when probes or
presets change, the front end builds another one (`ksteer_vllm.admission.live`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ksteer_vllm.admission.completion import complete, final_alpha
from ksteer_vllm.admission.limits import check_request_layers, check_size, check_stack
from ksteer_vllm.admission.measures import check_measures
from ksteer_vllm.admission.resolve import configured_probes
from ksteer_vllm.admission.runnable import RunnableEdit, RunnableSpec, in_stack
from ksteer_vllm.config import ResolvedConfig
from ksteer_vllm.errors import ConfigError, SpecError, choices, listing
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.spec.clauses import Condition
from ksteer_vllm.spec.edit import Edit
from ksteer_vllm.spec.fingerprint import fingerprint
from ksteer_vllm.spec.presets import expand, preset_named
from ksteer_vllm.spec.spec import SteeringSpec
from ksteer_vllm.spec.stages import assign_stages

__all__ = ["Registry"]

MAX_KNOWN_SPECS = 256
"""How many checked specs are remembered, so as not to be checked again; with more, all are forgotten."""

_PROBABILITY_FAMILIES = ("mlp", "linear")
_CONDITION_FAMILIES = (*_PROBABILITY_FAMILIES, "vectors")


class Registry:
    """The probes and presets by name, and what a request may ask of them.

    Args:
        probes: Name -> metadata of the loaded probes.
        config: The engine's options.
        presets: Name -> spec; by default those of the configuration.

    Raises:
        ConfigError: If a preset cannot be run here, or the default does not exist; names the preset.
    """

    def __init__(
        self,
        probes: Mapping[str, ProbeMetadata],
        config: ResolvedConfig,
        presets: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.probes = dict(probes)
        self.config = config
        self.open_layers = config.layers
        self.presets = dict(config.presets if presets is None else presets)
        self._known: dict[str | bytes, RunnableSpec] = {}
        self.default: RunnableSpec | None = None
        """What requests that do not mention steering get."""
        for name in self.presets:
            try:
                self.admit({"preset": name})
            except SpecError as error:
                raise ConfigError(f"preset {name!r}: {error}") from None
        if config.default:
            if config.default not in self.presets:
                raise ConfigError(
                    f"ksteer option default: no preset named {config.default!r}; "
                    f"available: {choices(config.default, self.presets)}"
                )
            self.default = self.admit({"preset": config.default})

    @classmethod
    def from_config(cls, config: ResolvedConfig) -> Registry:
        """The registry an engine starts with.

        Raises:
            ProbeError: If a probe folder has changed since the configuration was resolved.
            ConfigError: If a preset cannot be run.
        """
        return cls(configured_probes(config), config)

    def admit(self, value: Any) -> RunnableSpec | None:
        """Check what a request asks for.

        The result is remembered: a request passes here when its HTTP handler begins and again when it reaches
        the engine, and many requests ask for the same.

        Args:
            value: A spec (object, mapping or JSON string), or a preset by name.

        Returns:
            What to run; None for an explicit opt-out.

        Raises:
            SpecError: If it cannot be run here.
        """
        text = check_size(value, self.config)
        known = None if text is None else self._known.get(text)
        if known is not None:
            return known
        runnable = self._admit(value)
        if text is not None and runnable is not None:
            if len(self._known) >= MAX_KNOWN_SPECS:
                self._known.clear()
            self._known[text] = runnable
        return runnable

    def _admit(self, value: Any) -> RunnableSpec | None:
        preset, value = preset_named(value), expand(value, self.presets)
        if value is None:
            return None
        spec = SteeringSpec.parse(value)
        check_stack(spec, self.config)
        if spec.report and not self.config.reports:
            raise SpecError("report", "this engine was started without reports", True)
        edits: list[RunnableEdit] = []
        layers = 0
        for index, edit in enumerate(spec.edits()):
            try:
                edits.append(self._admit_edit(edit))
                layers = check_request_layers(edits[-1].canonical["layers"], layers, self.config)
            except SpecError as error:
                raise in_stack(error, index if spec.stack is not None else None) from None
        runnable = RunnableSpec(tuple(edits), spec.report, spec.stack is not None, preset)
        stages = max(assign_stages([edit.canonical for edit in edits])) + 1
        if stages > self.config.max_stages:
            raise SpecError(
                "stack" if spec.stack is not None else "condition",
                f"needs {stages} edits in a row at one layer (a condition counts as one); the engine runs at "
                f"most max_stages={self.config.max_stages}",
                stages,
            )
        return runnable

    def _admit_edit(self, asked: Edit) -> RunnableEdit:
        probe = self._probe("probe", asked.probe)
        edit, use = complete(asked, probe)
        layers, where = edit.layers, edit.where
        assert layers is not None
        assert where is not None
        for side in ("target", "avoid", "values"):
            self._check_labels(side, getattr(edit, side), edit.probe, probe)
        self._check_layers(edit.probe, layers, probe)
        check_measures(edit, layers, probe)
        if edit.num_steps > self.config.max_steps:
            raise SpecError(
                "num_steps",
                f"at most max_steps={self.config.max_steps}, got {edit.num_steps}",
                edit.num_steps,
            )
        if "alpha" in use.takes:
            edit = edit.model_copy(update={"alpha": final_alpha(edit, use, probe), "strength": 1.0})
        canonical = edit.canonical(use.takes)
        condition_digest = ""
        if edit.condition is not None:
            condition_digest = self._check_condition(edit.condition, layers)
        return RunnableEdit(
            where,
            edit.fade,
            canonical,
            fingerprint(canonical, probe.digest, condition_digest),
            probe.digest,
            condition_digest,
            edit.compat,
        )

    def _probe(self, field: str, name: str) -> ProbeMetadata:
        probe = self.probes.get(name)
        if probe is None:
            loaded = choices(name, self.probes)
            raise SpecError(field, f"no probe named {name[:80]!r}; loaded: {loaded}", name)
        return probe

    def _check_labels(self, side: str, labels: Mapping[str, float], name: str, probe: ProbeMetadata) -> None:
        unknown = [label for label in labels if label not in probe.labels]
        if unknown:
            raise SpecError(
                f"{side}.{unknown[0][:80]}" if len(unknown) == 1 else side,
                f"unknown label {listing(repr(label[:80]) for label in unknown)}; probe {name!r} "
                f"has: {choices(unknown[0], probe.labels, 100)}",
                unknown,
            )

    def _check_layers(self, name: str, layers: Sequence[int], probe: ProbeMetadata) -> None:
        closed = [layer for layer in layers if layer not in self.open_layers]
        if closed:
            raise SpecError(
                "layers",
                f"layer {listing(closed)} is not open for steering; open: {listing(self.open_layers, 200)}",
                closed,
            )
        absent = [layer for layer in layers if probe.layers and layer not in probe.layers]
        if absent:
            raise SpecError(
                "layers", f"probe {name!r} has no tensors for layer {listing(absent)}; it has: "
                f"{listing(probe.layers, 200)}", absent,
            )  # fmt: skip

    def _check_condition(self, condition: Condition, layers: Sequence[int]) -> str:
        """The digest of the condition's probe. Raises SpecError."""
        probe = self._probe("condition.probe", condition.probe)
        if probe.family not in _CONDITION_FAMILIES:
            raise SpecError(
                "condition.probe", f"{condition.probe!r} is of family {probe.family!r}; a condition takes "
                f"{listing(_CONDITION_FAMILIES)}", condition.probe,
            )  # fmt: skip
        self._check_labels("condition.label", {condition.label: 1.0}, condition.probe, probe)
        absent = [layer for layer in layers if probe.layers and layer not in probe.layers]
        if absent:
            raise SpecError(
                "condition.probe", f"{condition.probe!r} has no tensors for layer {listing(absent)}", absent
            )
        side = "below" if condition.above is None else "above"
        bound = getattr(condition, side)
        if probe.family in _PROBABILITY_FAMILIES and not 0 < bound < 1:
            raise SpecError(
                f"condition.{side}", f"expected a probability between 0 and 1, got {bound}", bound
            )
        return probe.digest
