"""Plain torch: the programs that run in the hidden space of a probe, any float dtype.

One group of rows that share a probe; p = W1 x without the bias, [n, h1]. The result s [n, h1] is what expand
turns into the edit: x' = x - W1^T s. Derivations: README.md, "Gram form" and "Reflection".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ksteer_kernels.groups import active_groups
from ksteer_kernels.tables import ProbeTables, Program, RowTables
from ksteer_kernels.workspace import Workspace


def hidden_gradient(z1: Tensor, readout: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """g1 [n, h1] = 1[z1 > 0] * W2^T (1[z2 > 0] * u), the gradient of the loss with respect to z1 = W1 x + b1.

    z1 [n, h1], readout u [n, h2] or [h2], w2 [h2, h1], b2 [h2].
    """
    z2 = torch.relu(z1) @ w2.T + b2
    upper = torch.where(z2 > 0, readout, torch.zeros_like(z2))
    return torch.where(z1 > 0, upper @ w2, torch.zeros_like(z1))


def step_sizes(strength: Tensor, decay: Tensor, num_steps: Tensor) -> Tensor:
    """a_t [max(num_steps), n]: strength * decay**t while t < num_steps, 0 afterwards, each row for itself.

    strength, decay [n] float; num_steps [n] int.
    """
    count = int(num_steps.max()) if num_steps.numel() else 0
    step = torch.arange(count, device=strength.device)[:, None]
    return torch.where(step < num_steps, strength * decay ** step.to(strength.dtype), 0.0)


def gradient_program(
    p: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    gram: Tensor,
    readout: Tensor,
    sizes: Tensor | Sequence[float],
) -> Tensor:
    """All gradient steps at once: z1 <- z1 - a_t G g1(z1), s <- s + a_t g1.

    p, b1, w2, b2, readout as above; gram [h1, h1] = W1 W1^T; sizes [num_steps, n] or one number per step.
    Returns s [n, h1] with x_{num_steps} = x - W1^T s.
    """
    z1 = p + b1
    s = torch.zeros_like(p)
    for size in sizes:
        column = size[:, None] if isinstance(size, Tensor) and size.ndim else size
        step = column * hidden_gradient(z1, readout, w2, b2)
        s = s + step
        z1 = z1 - step @ gram
    return s


def reflect_program(
    p: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    gram: Tensor,
    readout: Tensor,
    factor: Tensor | float,
) -> Tensor:
    """s [n, h1] = factor (x.v)/(v.v) g1 with x.v = p.g1 and v.v = g1^T G g1; 0 where v.v is not positive.

    p is W1 x without b1: using z1 = W1 x + b1 in x.v would be wrong. factor: a number or [n].
    """
    g1 = hidden_gradient(p + b1, readout, w2, b2)
    square = ((g1 @ gram) * g1).sum(-1, keepdim=True)
    dot = (p * g1).sum(-1, keepdim=True)
    column = factor[:, None] if isinstance(factor, Tensor) and factor.ndim else factor
    scale = torch.where(square > 0, column * dot / square, torch.zeros_like(square))
    return torch.where(square > 0, scale * g1, torch.zeros_like(g1))


def hidden_(
    workspace: Workspace,
    partial: Tensor,
    token_row: Tensor,
    probes: ProbeTables,
    rows: RowTables,
    layer: int,
) -> None:
    """Run every active token's program and write its s into workspace.coefficients.

    partial: [S, T, W] float32, partial sums of shrink, added in order.
    Written are the first H entries of an active token, for ADD the first K: the label weights times
    -strength, so that expand subtracts in every case.
    """
    width, labels = probes.max_width, probes.max_labels
    for group in active_groups(token_row, rows, layer, partial.shape[1]):
        row, slot = group.rows, group.slot
        readout, strength = rows.readout[layer, row], rows.strength[layer, row]
        if group.program == Program.ADD:
            workspace.coefficients[group.tokens, :labels] = -strength[:, None] * readout[:, :labels]
            continue
        p = partial[0, group.tokens, :width]
        for part in partial[1:]:
            p = p + part[group.tokens, :width]
        weights = (probes.b1[slot], probes.w2[slot], probes.b2[slot], probes.gram[slot], readout[:, :width])
        if group.program == Program.GRADIENT:
            s = gradient_program(
                p, *weights, step_sizes(strength, rows.decay[layer, row], rows.num_steps[layer, row])
            )
        else:
            s = reflect_program(p, *weights, strength)
        s = torch.where(torch.isfinite(s).all(1, keepdim=True), s, 0.0)  # such a token's edit is dropped
        workspace.coefficients[group.tokens, :width] = s
