"""A slider per label, and the spec that a setting of all of them means. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ksteer_vllm.errors import UsageError, listing

__all__ = ["HIGHEST", "OF_THE_SLIDERS", "Sliders"]

HIGHEST = 10.0
"""No slider goes beyond ± this: ten times the strength the probe was calibrated to is noise already."""

OF_THE_SLIDERS = ("probe", "target", "avoid", "strength", "stack", "report")
"""Fields of a spec that an edit beside the sliders may not set."""


class Sliders:
    """How far each label is turned up (above 0) or down (below 0).

    Args:
        labels: The probe's labels, in its order.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._values = dict.fromkeys(labels, 0.0)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._values)

    @property
    def strength(self) -> float:
        """The largest slider, whichever way it is turned; 0: not steered."""
        return max(map(abs, self._values.values()), default=0.0)

    def turned(self) -> dict[str, float]:
        """The sliders that are not at 0."""
        return {label: value for label, value in self._values.items() if value}

    def turn(self, label: str, value: float) -> None:
        """Set one slider. Raises UsageError for a value beyond HIGHEST, or one that is not a number."""
        if not abs(value) <= HIGHEST:
            raise UsageError(f"{label}: expected a number from -{HIGHEST:g} to {HIGHEST:g}, got {value:g}")
        self._values[label] = value + 0.0

    def off(self) -> None:
        """All to 0."""
        self._values = dict.fromkeys(self._values, 0.0)

    def scale_to(self, strength: float) -> None:
        """Turn all sliders so that the largest is `strength`; their ratios stay.

        Raises:
            UsageError: If all are at 0, or for a strength below 0 or beyond HIGHEST.
        """
        if not 0 <= strength <= HIGHEST:
            raise UsageError(f"strength: expected a number from 0 to {HIGHEST:g}, got {strength:g}")
        if not self.strength:
            raise UsageError(f"strength: all sliders are at 0; turn one up first: {listing(self._values)}")
        factor = strength / self.strength
        self._values = {label: value * factor for label, value in self._values.items()}

    def spec(self, probe: str, edit: Mapping[str, Any]) -> dict[str, Any] | None:
        """What a request with these sliders says.

        The spec's weights are ratios within their side, so the largest slider becomes `strength`, which
        multiplies the probe's calibrated alpha, and each weight is its slider over the largest.

        Args:
            probe: The name of the loaded probe.
            edit: Further fields of the spec, none of OF_THE_SLIDERS.

        Returns:
            The spec as JSON; None if all sliders are at 0.
        """
        strength = self.strength
        if not strength:
            return None
        sides = {"target": 1.0, "avoid": -1.0}
        weights = {
            side: {
                label: sign * value / strength for label, value in self._values.items() if sign * value > 0
            }
            for side, sign in sides.items()
        }
        named = {side: labels for side, labels in weights.items() if labels}
        return {"probe": probe, **edit, **named, "strength": strength}

    def __str__(self) -> str:
        """`warm 0.5, dry -1`; `all at 0`."""
        turned = ", ".join(f"{label} {value:g}" for label, value in self.turned().items())
        return turned or "all at 0"

    def bars(self, width: int = 10) -> str:
        """One line per label: its value, and a bar that fills `width` characters at the largest slider or
        1."""
        full = max(1.0, self.strength)
        longest = max(map(len, self._values), default=0)
        return "\n".join(
            f"{label:<{longest}}  {value:>6.4g}  {_bar(value, full, width)}".rstrip()
            for label, value in self._values.items()
        )


def _bar(value: float, full: float, width: int) -> str:
    """`+++` or `---`; at least one sign for a slider that is not at 0."""
    return ("+" if value > 0 else "-") * (max(1, round(width * abs(value) / full)) if value else 0)
