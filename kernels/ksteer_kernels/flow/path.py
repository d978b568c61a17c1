"""The flow of one token in the hidden space of a two-hidden-layer ReLU probe, from kink to kink.

With G = W1 W1^T and u = W3^T c the flow dx/dt = -grad L reads

    ds/dt = g1 = m1 * W2^T (m2 * u)    dz1/dt = -G g1    dz2/dt = W2 (m1 * dz1/dt)    x(t) = x - W1^T s(t)

where the masks m1 = 1[z1 > 0], m2 = 1[z2 > 0] change at kinks only, so that z1, z2 and s are linear in t in
between. The next kink is the smallest t = -z / (dz/dt) over the units that move towards 0.

At a kink the path crosses, or, when both sides push it back (a valley of L), slides along it. While it
slides along a set S of kinks (S1 of z1, S2 of z2), these z stay 0 and the units pass on a part of what they
pass on when they are on (Filippov's solution; fine Euler steps hop between the sides and have the same
limit). The parts y follow from dz/dt = 0 on S: with m1 without S1, m2 without S2 in g1, and with
A = [rows S1 of I; rows S2 of W2 times m1],

    ds/dt = g1 + A^T y      A G A^T y = -A G g1      the gradient, projected on the tangent of the kinks

A kink's jump is what its unit passes on when it is on: (W2^T g2)_i, g2 with its parts included, or u_j. With
the other kinks held, dz/dt of unit k is a positive multiple of y_k - jump_k where it is on, and of y_k where
it is off. So the path stays on the kink while 0 <= y <= jump, leaves to where the unit is on if y > jump and
y > 0, and to where it is off if y < jump and y < 0. With jump < y < 0 (a ridge) either side would do; nothing
says which, and the exact path ends there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# A part this close to an end of its range counts as inside it, so that rounding releases nothing.
_SLACK = 1e-9
# Residual of the equations for y, relative to what they balance, above which they have no solution.
_UNSOLVED = 1e-6
# So many kinks in a row without moving: the path goes in circles on a corner.
_PATIENCE = 100


class OpenWayError(ArithmeticError):
    """A corner from which the path cannot be continued, or in more than one way."""


@dataclass(frozen=True)
class HiddenField:
    """gram [h1, h1] = W1 W1^T, w2 [h2, h1], b2 [h2], readout u [h2]; float64."""

    gram: Array
    w2: Array
    b2: Array
    readout: Array


class Path:
    """The state of one token; `follow` moves it. Units of both layers are numbered through: z = [z1, z2]."""

    def __init__(self, field: HiddenField, z1: Array) -> None:
        self.field = field
        self.width = z1.shape[0]
        self.z: Array = np.concatenate([z1, field.w2 @ np.maximum(z1, 0.0) + field.b2])
        self.on: Mask = self.z > 0
        self.sliding: Mask = np.zeros(self.z.shape, dtype=np.bool_)
        self.s: Array = np.zeros(self.width)
        self.kinks = 0
        self.sliding_time = 0.0
        self.fell_back = False

    def follow(self, budget: float, max_kinks: int, fallback_steps: int) -> None:
        """Move on by the time `budget`."""
        left = budget
        try:
            left = self._follow_exactly(left, max_kinks)
        except OpenWayError as stop:
            left = stop.args[0]
        if left > 0:
            self.fell_back = True
            self._step(left, fallback_steps)

    def _follow_exactly(self, left: float, max_kinks: int) -> float:
        """The time that is left when max_kinks are used up. Raises OpenWayError with the time left."""
        standing = 0
        while left > 0:
            try:
                velocity, rates = self._rates()
            except (OpenWayError, np.linalg.LinAlgError):
                raise OpenWayError(left) from None
            unit, time = self._next_kink(rates)
            if time >= left:
                self._advance(left, velocity, rates)
                return 0.0
            if self.kinks >= max_kinks or standing > _PATIENCE:
                return left
            self._advance(time, velocity, rates)
            left -= time
            standing = 0 if time > 0 else standing + 1
            self.kinks += 1
            self.z[unit] = 0.0
            self.sliding[unit] = True  # _rates decides whether it stays so
        return 0.0

    def _advance(self, time: float, velocity: Array, rates: Array) -> None:
        self.s += time * velocity
        self.z += time * rates
        if self.sliding.any():
            self.sliding_time += time

    def _next_kink(self, rates: Array) -> tuple[int, float]:
        """The unit that reaches 0 first and when; infinity if none does."""
        approaching = ~self.sliding & np.where(self.on, rates < 0, rates > 0)
        times = np.full(self.z.shape, np.inf)
        times[approaching] = np.maximum(-self.z[approaching] / rates[approaching], 0.0)
        unit = int(times.argmin())
        return unit, float(times[unit])

    def _rates(self) -> tuple[Array, Array]:
        """ds/dt [h1] and dz/dt [h1 + h2]; first lets go of the kinks the path does not slide along."""
        field, width = self.field, self.width
        while True:
            moving = self.on & ~self.sliding
            upper = np.where(moving[width:], field.readout, 0.0)
            velocity = np.where(moving[:width], upper @ field.w2, 0.0)
            if not self.sliding.any():
                break
            units = np.flatnonzero(self.sliding)
            first, second = units[units < width], units[units >= width] - width
            tangent = np.zeros((units.size, width))
            tangent[np.arange(first.size), first] = 1.0
            tangent[first.size :] = np.where(moving[:width], field.w2[second], 0.0)
            parts = _parts(tangent @ field.gram, tangent, velocity)
            upper[second] = parts[first.size :]
            jumps = np.concatenate([upper @ field.w2[:, first], field.readout[second]])
            if not self._let_go(units, parts, jumps):
                velocity = velocity + parts @ tangent
                break
        motion = -(field.gram @ velocity)
        motion[self.sliding[:width]] = 0.0
        upward = field.w2 @ np.where(moving[:width], motion, 0.0)
        upward[self.sliding[width:]] = 0.0
        return velocity, np.concatenate([motion, upward])

    def _let_go(self, units: NDArray[np.intp], parts: Array, jumps: Array) -> bool:
        """Release the kink whose part is farthest out of its range. Raises OpenWayError if it has no side."""
        scale = np.maximum(np.abs(jumps), np.abs(parts)) + np.finfo(np.float64).tiny
        outside = np.maximum(-parts, parts - jumps) / scale
        worst = int(outside.argmax())
        if outside[worst] <= _SLACK:
            return False
        part, jump = parts[worst], jumps[worst]
        if jump < part < 0:
            raise OpenWayError
        self.sliding[units[worst]] = False
        self.on[units[worst]] = part > 0
        return True

    def _step(self, time: float, count: int) -> None:
        """Euler steps by the signs of z, `time` in all."""
        field, width = self.field, self.width
        z1, size = self.z[:width].copy(), time / count
        for _ in range(count):
            z2 = field.w2 @ np.maximum(z1, 0.0) + field.b2
            step = size * np.where(z1 > 0, np.where(z2 > 0, field.readout, 0.0) @ field.w2, 0.0)
            self.s += step
            z1 -= field.gram @ step


def _parts(tangent_gram: Array, tangent: Array, velocity: Array) -> Array:
    """y with A G A^T y = -A G g1. Raises OpenWayError or LinAlgError if there is no unique one."""
    matrix, pushed = tangent_gram @ tangent.T, tangent_gram @ velocity
    parts = np.linalg.solve(matrix, -pushed)
    if not np.abs(matrix @ parts + pushed).max() <= _UNSOLVED * np.abs(pushed).max():
        raise OpenWayError
    return np.asarray(parts, dtype=np.float64)
