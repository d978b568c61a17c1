"""Language models: what identifies one, and where its decoder stack is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ksteer_vllm.errors import DecoderNotFoundError, listing

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ModelIdentity", "check_layers", "find_decoder_layers", "is_missing_folder", "model_identity"]

# Looked for in this order; the path is relative to the model vLLM loaded.
KNOWN_PATHS = (
    "model.layers",
    "model.decoder.layers",
    "language_model.model.layers",
    "language_model.layers",
    "model.language_model.layers",
    "model.language_model.model.layers",
    "transformer.h",
    "transformer.blocks",
    "transformer.layers",
    "gpt_neox.layers",
    "backbone.layers",
)
_NOT_LANGUAGE = ("vision", "visual", "image", "audio", "speech", "encoder", "tower", "draft", "mtp")


class ModelIdentity(BaseModel):
    """The language model a probe was fitted on; all fields but `name` must match the engine's model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    model_type: str
    hidden_size: Annotated[int, Field(gt=0)]
    num_layers: Annotated[int, Field(gt=0)]


def is_missing_folder(model: str) -> bool:
    """Whether a model's name can only be that of a folder, and there is none.

    A name on the hub has one slash at most.
    """
    return (model.count("/") > 1 or model.startswith((".", "/", "~"))) and not Path(model).is_dir()


def model_identity(model_config: Any) -> ModelIdentity:
    """What identifies the model that probes must have been fitted on.

    Args:
        model_config: vLLM's ModelConfig.

    Returns:
        The identity of the model, or of the language model inside a multimodal one.
    """
    text = model_config.hf_text_config
    return ModelIdentity(
        name=str(model_config.model),
        model_type=str(text.model_type),
        hidden_size=int(model_config.get_hidden_size()),
        num_layers=int(text.num_hidden_layers),
    )


def check_layers(field: str, layers: Iterable[int], num_layers: int, error: type[Exception]) -> None:
    """Refuse layers a model does not have.

    Args:
        field: What names the layers, for the message.
        layers: 0-based decoder blocks.
        num_layers: How many the model has.
        error: The class of error to raise.

    Raises:
        Exception: `error`, naming the field, the layers that do not exist and those that do.
    """
    absent = [layer for layer in layers if not 0 <= layer < num_layers]
    if absent:
        raise error(
            f"{field}: the model has no layer {listing(absent)}; its layers are 0 to {num_layers - 1}"
        )


def find_decoder_layers(model: nn.Module, num_layers: int, path: str = "") -> nn.ModuleList:
    """The ModuleList of decoder blocks.

    It is the one at `path`, else at a well-known path, else the only other one of the right length outside
    vision and audio towers.

    Args:
        model: The loaded model.
        num_layers: How many decoder blocks it has.
        path: The dotted path of the ModuleList, if it is known.

    Returns:
        The decoder blocks, in order.

    Raises:
        DecoderNotFoundError: If there is no such ModuleList, or more than one that could be meant.
    """
    if path:
        layers = _at(model, path)
        if layers is None or len(layers) != num_layers:
            raise DecoderNotFoundError(
                f"ksteer option decoder: {path!r} of {type(model).__name__} is "
                + (
                    "not a ModuleList"
                    if layers is None
                    else f"{len(layers)} modules long, expected {num_layers}"
                )
                + f"; stacks found: {listing(_stacks(model))}"
            )
        return layers
    for known in KNOWN_PATHS:
        layers = _at(model, known)
        if layers is not None and len(layers) == num_layers:
            return layers
    stacks = {
        name: module
        for name, module in _stacks(model).items()
        if len(module) == num_layers and not any(word in name.lower() for word in _NOT_LANGUAGE)
    }
    if len(stacks) == 1:
        return next(iter(stacks.values()))
    raise DecoderNotFoundError(
        f"no decoder stack found in {type(model).__name__}: looked for a ModuleList of {num_layers} layers "
        f"at {listing(KNOWN_PATHS)}, then for a single other one outside vision and audio towers; "
        f"candidates: {listing(stacks)}; all stacks: {listing(_stacks(model))}. "
        "Name it with --ksteer-decoder PATH (offline: enable(decoder=PATH))."
    )


def _at(model: nn.Module, path: str) -> nn.ModuleList | None:
    from torch import nn

    try:
        module = model.get_submodule(path)
    except AttributeError:
        return None
    return module if isinstance(module, nn.ModuleList) else None


def _stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    from torch import nn

    return {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0}
