"""Tiny random models of every supported family, with a word-level tokenizer, saved as ordinary folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

HIDDEN_SIZE = 64
NUM_LAYERS = 4
VOCAB_SIZE = 128

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 96,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_GEMMA = {"tie_word_embeddings": True, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32}
_WINDOWED = ["sliding_attention", "full_attention"] * (NUM_LAYERS // 2)

# family -> (config class, model class, extra config); class names of transformers
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**_GEMMA, "layer_types": _WINDOWED}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**_GEMMA, "layer_types": _WINDOWED}),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", {}),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", {}),
}

_EXPERTS = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1}

# Of the feature matrix (tests/claims/matrix): not in FAMILIES, whose every case is compared
FEATURE_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {"intermediate_size": 64, "num_local_experts": 4, "sliding_window": None},
    ),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {"head_dim": 32, **_EXPERTS}),
    "qwen3_next": (
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        {
            **_EXPERTS,
            "head_dim": 32,
            "layer_types": ["linear_attention", "full_attention"] * (NUM_LAYERS // 2),
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "windowed_mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 32}),
}


def make_model(family: str, folder: Path, seed: int = 0) -> Path:
    """A tiny random model of `family` in `folder`, float32."""
    import transformers

    config_name, model_name, extra = {**FAMILIES, **FEATURE_FAMILIES}[family]
    if family == "gpt2":
        arguments: dict[str, Any] = {
            "vocab_size": VOCAB_SIZE, "n_embd": HIDDEN_SIZE, "n_layer": NUM_LAYERS, "n_head": 2,
            "n_positions": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        }  # fmt: skip
    else:
        arguments = {**_COMMON, **extra}
    config = getattr(transformers, config_name)(**arguments, dtype="float32")
    torch.manual_seed(seed)
    model = getattr(transformers, model_name)(config).float().eval()
    with torch.no_grad():  # larger weights than the default: distributions that differ from token to token
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.08 if "embed" in name or "wte" in name else 0.12)
    model.save_pretrained(folder)
    _save_tokenizer(folder)
    return folder


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    vocabulary |= {f"w{index}": index for index in range(4, VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    fast.chat_template = "<s> {% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    fast.save_pretrained(folder)
