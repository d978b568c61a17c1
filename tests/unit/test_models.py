"""Finding the decoder stack of a model, by the shapes of module trees."""

from __future__ import annotations

import pytest
from torch import nn

from ksteer_vllm import DecoderNotFoundError, UsageError
from ksteer_vllm.models import KNOWN_PATHS, check_layers, find_decoder_layers


def model_with(**stacks: int) -> nn.Module:
    """A module with ModuleLists at the given paths (`a__b` for a.b) of the given lengths."""
    root = nn.Module()
    for path, length in stacks.items():
        *parents, name = path.split("__")
        owner = root
        for parent in parents:
            if not hasattr(owner, parent):
                owner.add_module(parent, nn.Module())
            owner = getattr(owner, parent)
        owner.add_module(name, nn.ModuleList(nn.Identity() for _ in range(length)))
    return root


@pytest.mark.parametrize("path", KNOWN_PATHS)
def test_well_known_paths(path: str) -> None:
    model = model_with(**{path.replace(".", "__"): 4})
    assert find_decoder_layers(model, 4) is model.get_submodule(path)


@pytest.mark.parametrize(
    ("stacks", "found"),
    [
        ({"model__layers": 4, "visual__blocks": 4}, "model.layers"),
        ({"vision_tower__layers": 4, "language_model__model__layers": 4}, "language_model.model.layers"),
        ({"model__vision__layers": 4, "net__stack": 4}, "net.stack"),
        ({"audio_encoder__layers": 4, "deep__er__blocks": 4}, "deep.er.blocks"),
        ({"model__layers": 2, "body__blocks": 4}, "body.blocks"),
        ({"draft_model__layers": 4, "mtp__layers": 4, "core__layers": 4}, "core.layers"),
        ({"body__blocks": 4, "heads": 3}, "body.blocks"),
    ],
    ids=str,
)
def test_the_language_stack_and_no_other(stacks: dict[str, int], found: str) -> None:
    model = model_with(**stacks)
    assert find_decoder_layers(model, 4) is model.get_submodule(found)


@pytest.mark.parametrize(
    "stacks",
    [{}, {"body__blocks": 3}, {"a__blocks": 4, "b__blocks": 4}, {"visual__blocks": 4}],
    ids=["none", "wrong length", "two candidates", "vision only"],
)
def test_an_unknown_decoder_says_what_was_looked_for_and_how_to_name_it(stacks: dict[str, int]) -> None:
    with pytest.raises(DecoderNotFoundError) as refusal:
        find_decoder_layers(model_with(**stacks), 4)
    message = str(refusal.value)
    assert "4 layers" in message
    assert "model.layers" in message
    assert "--ksteer-decoder" in message
    assert "enable(decoder=" in message
    assert all(path.replace("__", ".") in message for path in stacks)


def test_a_stack_named_by_hand_wins() -> None:
    model = model_with(a__blocks=4, b__blocks=4, model__layers=4)
    assert find_decoder_layers(model, 4, "b.blocks") is model.get_submodule("b.blocks")


@pytest.mark.parametrize(
    ("path", "words"),
    [("c.blocks", "is not a ModuleList"), ("a", "is not a ModuleList"), ("a.blocks", "3 modules long")],
)
def test_a_wrong_name(path: str, words: str) -> None:
    with pytest.raises(DecoderNotFoundError, match=words) as refusal:
        find_decoder_layers(model_with(a__blocks=3, b__blocks=4), 4, path)
    assert "b.blocks" in str(refusal.value)


def test_layers_a_model_does_not_have_are_refused_by_field() -> None:
    check_layers("layers", (0, 3), 4, UsageError)
    with pytest.raises(UsageError, match=r"^layers: the model has no layer 4, -1; its layers are 0 to 3$"):
        check_layers("layers", (4, 0, -1), 4, UsageError)
