"""What an engine can steer with: the loaded probes, the presets, the open layers and the limits.

One validator for every way a request can arrive. Pure: no vLLM. A registry is immutable; when probes or
presets change, the front end builds another one (`ksteer_vllm.admission.live`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ksteer_vllm.admission.limits import check_request_layers, check_size, check_stack
from ksteer_vllm.admission.resolve import configured_probes
from ksteer_vllm.admission.runnable import RunnableEdit, RunnableSpec, in_stack
from ksteer_vllm.config import ResolvedConfig
from ksteer_vllm.errors import ConfigError, SpecError, listing
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.spec.clauses import Condition
from ksteer_vllm.spec.edit import Edit
from ksteer_vllm.spec.families import FAMILIES, Use
from ksteer_vllm.spec.fingerprint import fingerprint
from ksteer_vllm.spec.pip_compat import as_ordinary_edit
from ksteer_vllm.spec.presets import expand, preset_named
from ksteer_vllm.spec.spec import SteeringSpec
from ksteer_vllm.spec.stages import assign_stages
from ksteer_vllm.spec.where import GENERATION, Where

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
                    f"available: {listing(self.presets)}"
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

    def _admit_edit(self, edit: Edit) -> RunnableEdit:
        probe = self._probe("probe", edit.probe)
        if edit.compat is not None:
            edit = as_ordinary_edit(edit)
        method, use = self._method(edit, probe)
        for side in ("target", "avoid", "values"):
            self._check_labels(side, getattr(edit, side), edit.probe, probe)
        own_layers = probe.default_layers or probe.layers or (probe.layer,)
        layers = edit.layers if edit.layers is not None else own_layers
        self._check_layers(edit, layers, probe)
        if edit.num_steps > self.config.max_steps:
            raise SpecError(
                "num_steps",
                f"at most max_steps={self.config.max_steps}, got {edit.num_steps}",
                edit.num_steps,
            )
        where = edit.where or (
            GENERATION if probe.default_where is None else Where.model_validate(probe.default_where)
        )
        updates: dict[str, Any] = {"method": method, "layers": tuple(layers), "where": where}
        if "alpha" in use.takes and edit.alpha is None:
            updates["alpha"] = _default_alpha(edit, method, use, probe)
        admitted = edit.model_copy(update=updates)
        canonical = admitted.canonical(use.takes)
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
            raise SpecError(field, f"no probe named {name[:80]!r}; loaded: {listing(self.probes)}", name)
        return probe

    def _method(self, edit: Edit, probe: ProbeMetadata) -> tuple[str, Use]:
        methods = FAMILIES[probe.family].methods
        unavailable = set(probe.settings.get("unavailable", ()))
        available = [name for name in methods if name not in unavailable]
        method = edit.method or next(
            (name for name in available if edit.values and "values" in methods[name].takes),
            next(iter(available), ""),
        )
        if method not in available:
            raise SpecError(
                "method",
                f"probe {edit.probe!r} ({probe.family}) has: {listing(available)}; got {method!r}",
                method,
            )
        edit.check_method(method, methods[method].takes)
        return method, methods[method]

    def _check_labels(self, side: str, labels: Mapping[str, float], name: str, probe: ProbeMetadata) -> None:
        unknown = [label for label in labels if label not in probe.labels]
        if unknown:
            raise SpecError(
                f"{side}.{unknown[0][:80]}" if len(unknown) == 1 else side,
                f"unknown label {listing(repr(label[:80]) for label in unknown)}; probe {name!r} "
                f"has: {listing(probe.labels, 100)}",
                unknown,
            )

    def _check_layers(self, edit: Edit, layers: Sequence[int], probe: ProbeMetadata) -> None:
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
                "layers", f"probe {edit.probe!r} has no tensors for layer {listing(absent)}; it has: "
                f"{listing(probe.layers, 200)}", absent,
            )  # fmt: skip
        if edit.unit == "normalised":
            unknown = [layer for layer in layers if layer not in probe.activation_scale]
            if unknown:
                raise SpecError(
                    "unit", f"probe {edit.probe!r} stores no activation scale for layer {listing(unknown)}; "
                    f"it has: {listing(probe.activation_scale, 200)}", edit.unit,
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


def _default_alpha(edit: Edit, method: str, use: Use, probe: ProbeMetadata) -> float:
    default = probe.default_alpha.get(method, use.default_alpha)
    if edit.unit == "normalised":
        raise SpecError("alpha", "required with unit 'normalised'")
    if default is None:
        raise SpecError("alpha", f"required: probe {edit.probe!r} has no default_alpha for method {method!r}")
    return default
