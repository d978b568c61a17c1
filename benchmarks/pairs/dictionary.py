"""A dictionary of features of the residual stream: read from a SAELens folder, or trained and saved as one.

Trained as a batch top-k sparse autoencoder (Bussmann et al. 2024, arXiv:2412.06410; dead features as in
Gao et al. 2024, arXiv:2406.04093), with s = sqrt(d) / mean |x - mean(x)|:

    f = top((s (x - b_dec)) W_enc + b_enc),   x' = f W_dec / s + b_dec

where top keeps the `active` largest positive values per vector, on average over a batch. It is saved with the
threshold such values had on average: a jumprelu.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor

from ksteer_vllm.convert import Options, convert
from ksteer_vllm.models import ModelIdentity

__all__ = ["Dictionary", "DictionaryPlan", "train_dictionary"]


@dataclass(frozen=True)
class Dictionary:
    """w_enc, w_dec [n, d], b_enc, threshold [n]; layer: 0-based block whose output it reads."""

    w_enc: Tensor
    b_enc: Tensor
    threshold: Tensor
    w_dec: Tensor
    layer: int

    @classmethod
    def load(cls, folder: Path, model: ModelIdentity, *, centred: bool = False) -> Dictionary:
        """All features of a SAELens folder. Raises ProbeError.

        centred: the dictionary was trained on a residual stream without its mean over coordinates, as
        TransformerLens gives it (`center_writing_weights`); its encoder rows then lose their mean.
        """
        size = json.loads((folder / "cfg.json").read_text())["d_sae"]
        probe = convert(folder, Options(model=model, features=tuple(range(size))), "saelens")
        tensors = dict(probe.tensors)
        if centred:
            tensors["w_enc"] = tensors["w_enc"] - tensors["w_enc"].mean(1, keepdim=True)
        return cls(**tensors, layer=probe.metadata.layer)

    def encode(self, x: Tensor) -> Tensor:
        """Features [N, n] of x [N, d], float32."""
        pre = x.float() @ self.w_enc.T + self.b_enc
        return torch.where(pre > self.threshold, pre, torch.zeros_like(pre))


class DictionaryPlan(BaseModel):
    """Sizes and schedule. active: features per vector; idle: steps after which a silent feature is dead."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: int = 1024
    active: int = 16
    steps: int = 2000
    batch_size: int = 1024
    learning_rate: float = 2e-3
    idle: int = 100
    dead_weight: float = 1 / 32
    held_out: float = 0.05
    seed: int = 0


def train_dictionary(
    x: Tensor,
    layer: int,
    model_name: str,
    folder: Path,
    plan: DictionaryPlan,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on x [N, d] and write a SAELens folder. Returns what it does on the vectors held out.

    explained: 1 - |x - x'|^2 / |x - mean(x)|^2; active: features per vector; silent: share that never fire.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    x = x[torch.randperm(len(x), generator=generator)].float()
    held_out = x[: max(1, round(plan.held_out * len(x)))]
    x = x[len(held_out) :]
    d, centre = x.shape[1], x.mean(0)
    scale = d**0.5 / (x - centre).norm(dim=1).mean()
    w_dec = torch.nn.functional.normalize(torch.randn(plan.features, d, generator=generator), dim=1)
    parameters = {
        "w_enc": w_dec.T.clone(),
        "b_enc": torch.zeros(plan.features),
        "w_dec": w_dec,
        "b_dec": centre * scale,
    }
    for parameter in parameters.values():
        parameter.requires_grad_()
    w_enc, b_enc, w_dec, b_dec = parameters.values()
    optimizer = torch.optim.Adam(parameters.values(), plan.learning_rate, betas=(0.9, 0.999))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50, (plan.steps - step) / (0.3 * plan.steps))
    )
    last_fired = torch.zeros(plan.features, dtype=torch.int64)
    threshold = torch.zeros(())
    bar = progress.add_task("training the dictionary", total=plan.steps) if progress else None
    for step in range(plan.steps):
        chosen = torch.randint(len(x), (plan.batch_size,), generator=generator)
        batch = x[chosen] * scale
        pre = ((batch - b_dec) @ w_enc + b_enc).relu()
        kept = min(plan.active * len(batch), pre.numel())
        bound = pre.detach().flatten().kthvalue(pre.numel() - kept + 1).values.clamp_min(1e-6)
        features = pre * (pre >= bound)
        error = batch - (features @ w_dec + b_dec)
        loss = error.pow(2).sum(1).mean() + plan.dead_weight * _dead_loss(
            pre, error, w_dec, step - last_fired > plan.idle
        )
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            w_dec /= w_dec.norm(dim=1, keepdim=True)
            last_fired[(features > 0).any(0)] = step
            threshold = bound if step == 0 else torch.lerp(threshold, bound, 0.01)
        if progress is not None and bar is not None:
            progress.update(bar, advance=1, description=f"training the dictionary (loss {loss.item():.2f})")
    tensors = {
        "W_enc": w_enc.detach() * scale,
        "b_enc": b_enc.detach(),
        "W_dec": w_dec.detach() / scale,
        "b_dec": b_dec.detach() / scale,
        "threshold": threshold.expand(plan.features),
    }
    _save(folder, tensors, layer, model_name)
    return {"plan": plan.model_dump(), "vectors": len(x), **_quality(tensors, held_out)}


def _dead_loss(pre: Tensor, error: Tensor, w_dec: Tensor, dead: Tensor) -> Tensor:
    """How badly the silent features, at most d / 2 of a vector's, rebuild what the others leave."""
    if not dead.any():
        return error.new_zeros(())
    count = min(int(dead.sum()), w_dec.shape[1] // 2)
    best = pre[:, dead].topk(count, dim=1)
    rebuilt = torch.zeros_like(pre[:, dead]).scatter(1, best.indices, best.values) @ w_dec[dead]
    return (error.detach() - rebuilt).pow(2).sum(1).mean()


@torch.no_grad()
def _quality(tensors: dict[str, Tensor], x: Tensor) -> dict[str, float]:
    pre = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    features = torch.where(pre > tensors["threshold"], pre, torch.zeros_like(pre))
    error = x - features @ tensors["W_dec"] - tensors["b_dec"]
    return {
        "explained": 1 - float(error.pow(2).sum() / (x - x.mean(0)).pow(2).sum()),
        "active": float((features > 0).float().sum(1).mean()),
        "silent": float((features > 0).any(0).logical_not().float().mean()),
    }


def _save(folder: Path, tensors: dict[str, Tensor], layer: int, model_name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    features, d = tensors["W_dec"].shape
    config = {
        "architecture": "jumprelu",
        "d_in": d,
        "d_sae": features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post", "model_name": model_name},
    }
    (folder / "cfg.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors"
    )
