"""What experiments compare: a probe of a suite, and how a request uses it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from ksteer_vllm.spec.families import FAMILIES

__all__ = ["STANDARD", "Variant", "variants_of"]


class Variant(BaseModel):
    """A way to steer. probe: its name in the suite. settings: further fields of the edit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    probe: str
    family: str
    method: str
    settings: dict[str, Any] = {}

    def spec(
        self,
        target: Sequence[str],
        avoid: Sequence[str],
        alpha: float,
        *,
        layer: int | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """The spec of a request; `avoid` is dropped where the method does not take it."""
        takes = FAMILIES[self.family].methods[self.method].takes
        spec: dict[str, Any] = {"probe": self.probe, "method": self.method, "target": list(target)}
        if "avoid" in takes and avoid:
            spec["avoid"] = list(avoid)
        if layer is not None:
            spec["layers"] = [layer]
        return {**spec, "alpha": alpha, **self.settings, **more}


def _variant(name: str, probe: str, family: str, method: str, **settings: Any) -> Variant:
    return Variant(name=name, probe=probe, family=family, method=method, settings=settings)


STANDARD: tuple[Variant, ...] = (
    _variant("K-Steering, 1 step", "mlp", "mlp", "gradient", num_steps=1),
    _variant("K-Steering, 8 steps", "mlp", "mlp", "gradient"),
    _variant("K-Steering, 8 steps, softmin", "mlp", "mlp", "gradient", loss="softmin"),
    _variant("linear probe", "linear", "linear", "gradient", num_steps=1),
    _variant("CAA", "caa", "vectors", "add"),
    _variant("ActAdd", "actadd", "vectors", "add"),
    _variant("ACE", "ace", "ace", "ace"),
    _variant("LoReFT", "loreft", "loreft", "loreft"),
    _variant("LoReST", "lorest", "lorest", "lorest"),
    _variant("ORBIT", "orbit", "orbit", "orbit"),
    _variant("MAT-Steer", "mat_steer", "mat", "mat_steer"),
    _variant("random direction", "caa", "vectors", "random"),
)
"""Everything a whole suite can be asked for, K-Steering first, the matched-norm random control last."""


def variants_of(probes: Collection[str]) -> list[Variant]:
    """The standard variants whose probe exists. probes: names of those that do."""
    return [variant for variant in STANDARD if variant.probe in probes]
