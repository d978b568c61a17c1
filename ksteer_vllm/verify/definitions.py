"""Every method's edit of some tokens at a layer, from the probe as fitted, in x-space.

Nothing here comes from the programs the engine runs: tensors are unfolded by hand and the formulas are those
of `ksteer_kernels.reference`, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ksteer_kernels.reference import ace, bounds, loreft, lorest, mat, mlp, orbit, sae, vectors
from ksteer_vllm.probes.probe import Probe
from ksteer_vllm.spec.clauses import Hinge
from ksteer_vllm.spec.edit import Edit

__all__ = ["apply_edit"]

Tensors = Mapping[str, Tensor]


def apply_edit(
    probes: Mapping[str, Probe], edit: Edit, x: Tensor, layer: int, generation_index: Tensor
) -> tuple[Tensor, float]:
    """Apply an edit to some tokens, one by one: a fade gives every token its own strength.

    Args:
        probes: Name -> the probes the edit uses, as fitted.
        edit: One edit of a spec, with its method given.
        x: [n, d] float64, the residual stream.
        layer: The decoder block whose tensors of the probe are used.
        generation_index: [n] int64, 0 at the last prompt token, negative before it.

    Returns:
        x' [n, d] float64, and how near any token came to a kink (of a ReLU, or a threshold), where rounding
        decides which side it falls on.
    """
    probe = probes[edit.probe]
    edited, nearest = [], math.inf
    for token, index in zip(x, generation_index.tolist(), strict=True):
        left = 1.0 if edit.fade is None else max(0.0, 1 - max(index, 0) / edit.fade)
        row = token[None]
        is_open, gap = _is_open(probes, edit, row, layer)
        nearest = min(nearest, gap)
        after = row
        if left > 0 and is_open:
            after, gap = _edited(probe, edit, row, layer, left)
            nearest = min(nearest, gap)
            if edit.cap is not None:
                after = bounds.cap(row, after, edit.cap)
            if edit.preserve_norm:
                after = bounds.preserve_norm(row, after)
        edited.append(after)
    return torch.cat(edited), nearest


@dataclass(frozen=True)
class _Asked:
    """One edit of x [n, d] at a layer: the probe's tensors t, c over its labels (+ avoid, - target), the
    strength, the length of a normalised step or None, and what a fade leaves."""

    t: Tensors
    edit: Edit
    x: Tensor
    c: Tensor
    labels: list[str]
    alpha: float
    unit: float | None
    left: float

    def chosen(self) -> list[int]:
        return [int(k) for k in self.c.nonzero().flatten()]


Edited = tuple[Tensor, float]


def _edited(probe: Probe, edit: Edit, x: Tensor, layer: int, left: float) -> Edited:
    metadata = probe.metadata
    labels = list(metadata.labels)
    c = torch.zeros(len(labels), dtype=torch.float64)
    for side, sign in ((edit.avoid, 1.0), (edit.target, -1.0)):
        for label, weight in side.items():
            c[labels.index(label)] = sign * weight
    unit = metadata.scales(edit.metric)[layer] if edit.unit == "normalised" else None
    alpha = edit.alpha if edit.alpha is not None else metadata.default_alpha.get(edit.method or "", 1.0)
    alpha *= edit.strength
    asked = _Asked(probe.at(layer), edit, x, c, labels, alpha, unit, left)
    return _FAMILIES[metadata.family](asked)


def _folded(t: Tensors) -> mlp.MLPWeights:
    """The probe on the raw residual stream, float64."""
    w1 = t["w1"] / t["input_std"]
    return mlp.MLPWeights(w1, t["b1"] - w1 @ t["input_mean"], t["w2"], t["b2"], t["w3"], t["b3"])


def _mlp(a: _Asked) -> Edited:
    edit, x, probe = a.edit, a.x, _folded(a.t)
    if edit.method in ("add", "random"):
        return _add(a, a.t["label_vectors"])
    if edit.method in ("reflect", "project"):
        after = mlp.reflect(x, probe, a.c, factor=2.0 if edit.method == "reflect" else 1.0)
        return x + a.left * (after - x), _kink_distance(x, probe)
    margin = _logit(edit.loss.hinge) if isinstance(edit.loss, Hinge) else None
    until = edit.until
    target = _logit(until.target) if until and until.target is not None else -math.inf
    avoid = _logit(until.avoid) if until and until.avoid is not None else math.inf
    nearest, h = math.inf, len(probe.b1)
    on_hidden = replace(probe, w1=torch.eye(h, dtype=x.dtype), b1=torch.zeros(h, dtype=x.dtype))
    for step in range(edit.num_steps):
        logits = mlp.probe_logits(x, probe)
        gaps = [_kink_distance(x, probe)]
        if until:
            gaps += [float((logits - target).abs().min()), float((logits - avoid).abs().min())]
        if margin is not None:
            gaps.append(float((logits.abs() - margin).abs().min()))
        nearest = min(nearest, *gaps)
        z = x @ probe.w1.T + probe.b1
        moved, _ = mlp.gradient_steps(
            z, on_hidden, a.c, alpha=1.0, num_steps=1,
            loss=edit.loss if isinstance(edit.loss, str) else "hinge", margin=margin or 0.0,
            until_target=target, until_avoid=avoid,
        )  # fmt: skip
        descent = _in_unit(a, (z - moved), probe.w1)
        x = x - a.left * a.alpha * edit.step_decay**step * descent
    return x, nearest


def _in_unit(a: _Asked, g: Tensor, rows: Tensor) -> Tensor:
    """M grad L, where grad L = g W: of the length asked for in the metric, if one is."""
    gradient, step = g @ rows, g @ _times_metric(a, rows)
    if a.unit is None:
        return step
    length = (gradient * step).sum(1, keepdim=True).clamp_min(0).sqrt()
    return torch.where(length > 0, a.unit * step / length, torch.zeros_like(step))


def _times_metric(a: _Asked, rows: Tensor) -> Tensor:
    """W M, from the statistics as they are stored."""
    if a.edit.metric == "covariance":
        return a.t["covariance_up"]
    return rows * a.t["input_std"] ** 2 if a.edit.metric == "variance" else rows


def _add(a: _Asked, rows: Tensor) -> Edited:
    if a.edit.method == "random":
        rows = vectors.matched_random(rows)
    length = float((a.c @ rows).norm())
    size = a.alpha if a.unit is None else a.alpha * a.unit / length
    return vectors.add(a.x, rows, -a.c, alpha=a.left * size), math.inf


def _linear(a: _Asked) -> Edited:
    x, weight = a.x, a.t["weight"] / a.t["input_std"]
    for step in range(a.edit.num_steps):
        x = x - a.left * a.alpha * a.edit.step_decay**step * _in_unit(a, a.c[None], weight)
    return x, math.inf


def _sum(a: _Asked, edited: Callable[[int], Tensor]) -> Edited:
    """The labels' edits by weight; a fade leaves a part of the sum."""
    total = torch.zeros_like(a.x)
    for k in a.chosen():
        total = total + abs(float(a.c[k])) * (edited(k) - a.x)
    return a.x + a.left * total, math.inf


def _ace(a: _Asked) -> Edited:
    def edited(k: int) -> Tensor:
        r, a0 = a.t["directions"][k], a.t["negatives_mean"][k]
        if a.edit.method == "ablate":
            return ace.ablate(a.x, r, alpha=a.alpha)
        return ace.ace(a.x, r, a0, alpha=a.alpha if a.c[k] < 0 else 0.0)

    return _sum(a, edited)


def _loreft(a: _Asked) -> Edited:
    t = a.t
    return _sum(
        a, lambda k: loreft.loreft(a.x, t["rotation"][k], t["weight"][k], t["bias"][k], alpha=a.alpha)
    )


def _lorest(a: _Asked) -> Edited:
    t = a.t
    return _sum(a, lambda k: lorest.lorest(a.x, t["basis"][k], t["removed"][k], t["bias"][k], alpha=a.alpha))


def _sae(a: _Asked) -> Edited:
    t, values = a.t, a.edit.values
    if a.edit.method != "clamp":
        return _add(a, t["w_dec"])
    chosen = torch.tensor([label in values for label in a.labels])
    wanted = torch.tensor([values.get(label, 0.0) for label in a.labels], dtype=torch.float64)
    after = sae.clamp(a.x, t["w_enc"], t["b_enc"], t["threshold"], t["w_dec"], chosen, wanted)
    gap = float((a.x @ t["w_enc"].T + t["b_enc"] - t["threshold"]).abs().min())
    return a.x + a.left * (after - a.x), gap


def _orbit(a: _Asked) -> Edited:
    t = a.t

    def edited(k: int) -> Tensor:
        return orbit.orbit(
            a.x, t["plane"][k], t["angle"][k], t["gate_weight"][k], t["gate_bias"][k], alpha=a.alpha
        )

    return _sum(a, edited)


def _mat(a: _Asked) -> Edited:
    t = a.t

    def edited(k: int) -> Tensor:
        return mat.mat_steer(a.x, t["vectors"][k], t["gate_weight"][k], t["gate_bias"][k], alpha=a.alpha)

    return _sum(a, edited)


_FAMILIES: dict[str, Callable[[_Asked], Edited]] = {
    "mlp": _mlp,
    "linear": _linear,
    "vectors": lambda a: _add(a, a.t["vectors"]),
    "ace": _ace,
    "loreft": _loreft,
    "lorest": _lorest,
    "sae": _sae,
    "mat": _mat,
    "orbit": _orbit,
}


def _is_open(probes: Mapping[str, Probe], edit: Edit, x: Tensor, layer: int) -> tuple[bool, float]:
    """(whether the condition lets the token x [1, d] be edited, distance to the threshold)."""
    if edit.condition is None:
        return True, math.inf
    probe = probes[edit.condition.probe]
    k, t = probe.labels.index(edit.condition.label), probe.at(layer)
    if probe.metadata.family == "mlp":
        value = float(torch.sigmoid(mlp.probe_logits(x, _folded(t))[0, k]))
    elif probe.metadata.family == "linear":
        standard = (x - t["input_mean"]) / t["input_std"]
        value = float(torch.sigmoid(standard @ t["weight"][k] + t["bias"][k]))
    else:
        value = float(torch.cosine_similarity(x, t["vectors"][k][None])[0])
    bound = edit.condition.above if edit.condition.above is not None else edit.condition.below
    assert bound is not None
    return (value > bound if edit.condition.above is not None else value < bound), abs(value - bound)


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _kink_distance(x: Tensor, probe: mlp.MLPWeights) -> float:
    z1 = x @ probe.w1.T + probe.b1
    z2 = torch.relu(z1) @ probe.w2.T + probe.b2
    return min(float(z1.abs().min()), float(z2.abs().min()))
