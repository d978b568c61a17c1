"""Options of a conversion. Imports no torch, so that the command line does not either."""

from __future__ import annotations

from dataclasses import dataclass

from ksteer_vllm.models import ModelIdentity

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """What a source does not say, or the caller decides.

    Attributes:
        model: the model the probe is for.
        labels: names, in the source's order; empty: as the source names them.
        layer: the decoder block (0-based) of a source that does not say, else the one of its layers that a
            request steers by default.
        layers: keep these of the source's layers only; empty: all.
        features: of an SAE.
    """

    model: ModelIdentity
    labels: tuple[str, ...] = ()
    layer: int | None = None
    layers: tuple[int, ...] = ()
    features: tuple[int, ...] = ()
