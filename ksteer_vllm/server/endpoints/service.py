"""What stands behind the routes of one server: its engine's registry, and the changes it may make."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

from ksteer_vllm.errors import LifecycleError, choices
from ksteer_vllm.models import model_identity
from ksteer_vllm.server.endpoints import schemas
from ksteer_vllm.server.endpoints.errors import not_found
from ksteer_vllm.server.gate import STEERED_ROUTES
from ksteer_vllm.spec.families import FAMILIES
from ksteer_vllm.versions import running_versions

if TYPE_CHECKING:
    from ksteer_vllm.admission.registry import Registry
    from ksteer_vllm.host.lifecycle import ServerLifecycle

__all__ = ["Service"]


class Service:
    """The steering of one server's engine, as the routes see it.

    Args:
        engine_client: The server's AsyncLLM.
        state: The application's; its models are looked up when needed, since they are set later.
        lifecycle: What makes the changes.
        admin_key: The key that changes must send, or None.
    """

    def __init__(
        self, engine_client: Any, state: Any, lifecycle: ServerLifecycle, admin_key: str | None
    ) -> None:
        self._engine = engine_client
        self._state = state
        self.lifecycle = lifecycle
        self._admin_key = admin_key

    @property
    def registry(self) -> Registry:
        """What requests can ask for now."""
        registry: Registry | None = self._engine.input_processor.ksteer_admission.registry
        assert registry is not None  # the routes exist only where steering is enabled
        return registry

    @property
    def base_model(self) -> str:
        """The first name the model is served under."""
        return str(self._state.openai_serving_models.base_model_paths[0].name)

    def check_admin(self, key: str | None) -> None:
        """Raise LifecycleError 403 unless the operator has enabled changes and `key` is right."""
        expected = self._admin_key
        if expected is None and not self.registry.config.probe_dirs:
            raise LifecycleError(
                403,
                "ksteer",
                "changes are not enabled: this server was started without --ksteer-probe-dir and "
                "--ksteer-admin-key-file",
            )
        given = (key or "").encode("latin-1")  # as headers are decoded
        if expected is not None and not hmac.compare_digest(given, expected.encode()):
            raise LifecycleError(403, "X-KSteer-Admin-Key", "the admin key is missing or wrong")

    async def status(self) -> schemas.Status:
        """Everything a client needs to know before it asks for steering."""
        registry, config = self.registry, self.registry.config
        vllm_config = self._engine.vllm_config
        identity = model_identity(vllm_config.model_config)
        return schemas.Status(
            versions=schemas.Versions(**running_versions()),
            model=schemas.Model(
                name=self.base_model,
                root=identity.name,
                hidden_size=identity.hidden_size,
                num_layers=identity.num_layers,
                model_type=identity.model_type,
            ),
            layers=list(registry.open_layers),
            limits={name: value for name, value in config.as_json().items() if name.startswith("max_")},
            reports=config.reports,
            default=config.default or None,
            probes=list(registry.probes),
            presets=list(registry.presets),
            methods={
                name: {method: sorted(use.takes) for method, use in family.methods.items()}
                for name, family in FAMILIES.items()
            },
            lifecycle=schemas.Lifecycle(
                probe_dirs=len(config.probe_dirs),
                admin_key=self._admin_key is not None,
                refused=self.lifecycle.refuses_changes or None,
                resident=await self.lifecycle.residency(),
            ),
            features={
                "routes": list(STEERED_ROUTES),
                "presets_as_models": True,
                "opt_out": True,
                "stacks": config.max_stages > 1,
                "kernels": config.kernels,
                "lora": getattr(vllm_config, "lora_config", None) is not None,
                "speculative_decoding": getattr(vllm_config, "speculative_config", None) is not None,
            },
        )

    def probe(self, name: str) -> schemas.ProbeCard:
        """The card of a probe. Raises LifecycleError 404."""
        probes = self.registry.probes
        if name not in probes:
            raise not_found("probe", name, choices(name, probes))
        return schemas.ProbeCard.of(name, probes[name])

    def probes(self) -> schemas.ProbeList:
        """The cards of all probes."""
        return schemas.ProbeList(
            data=[schemas.ProbeCard.of(name, probe) for name, probe in self.registry.probes.items()]
        )

    def preset(self, name: str) -> schemas.Preset:
        """A preset. Raises LifecycleError 404."""
        presets = self.registry.presets
        if name not in presets:
            raise not_found("preset", name, choices(name, presets))
        return self._preset(name, presets[name])

    def presets(self) -> schemas.PresetList:
        """All presets."""
        return schemas.PresetList(
            data=[self._preset(name, spec) for name, spec in self.registry.presets.items()]
        )

    def _preset(self, name: str, spec: Any) -> schemas.Preset:
        return schemas.Preset(
            name=name,
            spec=dict(spec),
            model=f"{self.base_model}:{name}",
            default=name == self.registry.config.default,
        )
