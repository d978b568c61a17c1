"""Multimodal models: only the language stack is steered, on the real module trees (no weights: meta device).

Vision towers are as deep as the language model here, so that length alone cannot tell them apart.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from ksteer_vllm.device.layer import attach, is_attached
from ksteer_vllm.models import find_decoder_layers

DEPTH = 3
TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": DEPTH,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": DEPTH, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


def llava() -> Any:
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=transformers.CLIPVisionConfig(**VISION)
    )
    return transformers.LlavaForConditionalGeneration, config


def gemma3() -> Any:
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**TEXT, head_dim=16),
        vision_config=transformers.SiglipVisionConfig(**VISION),
    )
    return transformers.Gemma3ForConditionalGeneration, config


def qwen2_vl() -> Any:
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
        vision_config={"depth": DEPTH, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "patch_size": 14},
    )
    return transformers.Qwen2VLForConditionalGeneration, config


@pytest.mark.parametrize("family", [llava, gemma3, qwen2_vl], ids=lambda family: family.__name__)
def test_the_vision_tower_is_never_attached(family: Any) -> None:
    model_class, config = family()
    with torch.device("meta"):
        model = model_class(config)
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == DEPTH
    ]
    assert len(stacks) == 2, "the tower should be as deep as the language model"
    layers = find_decoder_layers(model, DEPTH)
    for index, layer in enumerate(layers):
        attach(layer, index)
    attached = [name for name, module in model.named_modules() if is_attached(module)]
    assert len(attached) == DEPTH
    assert all("language_model.layers" in name for name in attached)
