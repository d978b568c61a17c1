"""The project's fits on contrast pairs of the toy environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.toy.environment import Classifier
from benchmarks.toy.pairs import Pairs, labelled
from ksteer_kernels.reference.mlp import MLPWeights
from ksteer_vllm.fit.edit_training import TrainableEdit, train_edit
from ksteer_vllm.fit.methods.linear import LinearPlan, regressions
from ksteer_vllm.fit.methods.loreft import LoReFT, LoReFTPlan
from ksteer_vllm.fit.methods.lorest import LoReST, LoReSTPlan
from ksteer_vllm.fit.plans import EditPlan, FitPlan
from ksteer_vllm.fit.statistics import activation_scale, label_means, standardisation
from ksteer_vllm.fit.train import train_network

__all__ = ["Directions", "Plans", "fit_directions", "fit_linear", "fit_loreft", "fit_lorest", "fit_probe"]

_EDIT: dict[str, Any] = {"epochs": 300, "patience": 300, "batch_size": 64, "learning_rate": 3e-2}


class Plans(BaseModel):
    """How the fitted methods are fitted; everything else is as in `ksteer fit`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    probe: FitPlan = FitPlan()
    linear: LinearPlan = LinearPlan()
    loreft: LoReFTPlan = LoReFTPlan(**_EDIT, steps=300)
    lorest: LoReSTPlan = LoReSTPlan(**_EDIT, steps=200, hard_steps=100)


@dataclass(frozen=True)
class Directions:
    """Per label the mean with it minus the mean without, and the mean without: [K, d] each, float32."""

    difference: Tensor
    negatives_mean: Tensor


def fit_directions(each: Sequence[Pairs]) -> Directions:
    """One label per element, from its own pairs: all that CAA, ACE and the random control need."""
    found = []
    for pairs in each:
        x = torch.cat([pairs.before, pairs.after])
        shown = torch.arange(2).repeat_interleave(len(pairs.before))[:, None]
        found.append(label_means(x, shown))
    positive, negative = (torch.cat(means) for means in zip(*found, strict=True))
    return Directions((positive - negative).float(), negative.float())


def fit_probe(each: Sequence[Pairs], targets: Mapping[int, int], plan: FitPlan) -> MLPWeights:
    """K-Steering's probe over the targets, from all pairs; it reads the stream as it is."""
    train, valid = _parts(each, plan.validation_share)
    x, shown = _joined(train, targets)
    valid_x, valid_shown = _joined(valid, targets)
    mean, std = standardisation(x)
    network = train_network((x - mean) / std, shown, (valid_x - mean) / std, valid_shown, plan).network
    (w1, b1), *others = (
        (module.weight.detach(), module.bias.detach()) for module in network if isinstance(module, nn.Linear)
    )
    w1 = w1 / std
    return MLPWeights(w1, b1 - w1 @ mean, *(tensor for layer in others for tensor in layer))


def fit_linear(each: Sequence[Pairs], targets: Mapping[int, int], plan: LinearPlan) -> Tensor:
    """The linear probe's weights on the stream as it is, [K, d]."""
    x, shown = _joined(each, targets)
    mean, std = standardisation(x)
    weight, _, _ = regressions((x - mean) / std, shown, plan)
    return weight / std


def fit_loreft(classifier: Classifier, pairs: Pairs, plan: LoReFTPlan) -> LoReFT:
    """An edit fitted through the frozen classifier to set all targets of the pairs at once."""
    size, scale, generator = _start(pairs, plan)
    return _trained(classifier, pairs, LoReFT(size, plan.rank, scale, generator), plan)


def fit_lorest(classifier: Classifier, pairs: Pairs, plan: LoReSTPlan) -> LoReST:
    """As `fit_loreft`."""
    size, scale, generator = _start(pairs, plan)
    return _trained(classifier, pairs, LoReST(size, plan, scale, generator), plan)


class _Steered:
    """The classifier as `train_edit` wants it: rows are indices of pairs, [1] int64 each.

    The loss is the cross-entropy of all attributes of the edited stream: the targets on targeted attributes,
    what the input shows on all others.
    """

    def __init__(self, classifier: Classifier, pairs: Pairs) -> None:
        self.classifier, self.pairs = classifier, pairs

    def loss(self, rows: Sequence[Tensor], edit: nn.Module | None, /) -> Tensor:
        chosen = torch.cat(list(rows))
        x = self.pairs.before[chosen]
        logits = self.classifier.logits(x if edit is None else edit(x))
        return cross_entropy(logits.flatten(0, 1), self.pairs.wanted[chosen].flatten())

    @torch.no_grad()
    def mean_loss(self, rows: Sequence[Tensor], edit: nn.Module | None, /) -> float:
        return self.loss(rows, edit).item()


E = TypeVar("E", bound=TrainableEdit)


def _start(pairs: Pairs, plan: EditPlan) -> tuple[int, float, torch.Generator]:
    generator = torch.Generator().manual_seed(plan.seed)
    return pairs.before.shape[1], activation_scale(pairs.before), generator


def _trained(classifier: Classifier, pairs: Pairs, edit: E, plan: EditPlan) -> E:
    rows = list(torch.arange(len(pairs.before)).split(1))
    held_out = _held_out(len(rows), plan.validation_share)
    train_edit(_Steered(classifier, pairs), edit, rows[held_out:], rows[:held_out], plan, lambda loss: None)
    return edit.requires_grad_(False)


def _held_out(count: int, share: float) -> int:
    return max(1, round(share * count))


def _parts(each: Sequence[Pairs], share: float) -> tuple[list[Pairs], list[Pairs]]:
    """All but the first pairs of every element for training, these for validation; never half a pair."""
    train, valid = [], []
    for pairs in each:
        held_out = _held_out(len(pairs.before), share)
        fields = (pairs.before, pairs.after, pairs.values, pairs.wanted)
        train.append(Pairs(*(field[held_out:] for field in fields)))
        valid.append(Pairs(*(field[:held_out] for field in fields)))
    return train, valid


def _joined(each: Sequence[Pairs], targets: Mapping[int, int]) -> tuple[Tensor, Tensor]:
    x, shown = zip(*(labelled(pairs, targets) for pairs in each), strict=True)
    return torch.cat(x), torch.cat(shown)
