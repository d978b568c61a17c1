"""A tiny random chat model whose tokenizer can spell anything: every byte is a token, and so is each tag."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from testbed.models import HIDDEN_SIZE, NUM_LAYERS

TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
TEMPLATE = (
    "<s>{% for m in messages %}{{ m['role'] }}: {{ m['content'] or '' }}"
    "{% for call in m['tool_calls'] or [] %}<tool_call>{{ call['function']['name'] }}</tool_call>{% endfor %}"
    "\n{% endfor %}{% if tools %}tools:{% for tool in tools %} {{ tool['function']['name'] }}{% endfor %}\n"
    "{% endif %}{% if add_generation_prompt %}assistant: <think>"
    "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}{% endif %}"
)
"""Opens the model's reasoning, and with `enable_thinking: false` closes it too."""

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def make_chat_model(folder: Path, seed: int = 0) -> Path:
    """A tiny random llama in `folder`, float32, its tokenizer byte-level, its chat template with tools."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN_SIZE, intermediate_size=96,
        num_hidden_layers=NUM_LAYERS, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=False, dtype="float32",
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.08 if "embed" in name else 0.12)
    model.save_pretrained(folder)
    return folder


def make_tokenizer() -> Any:
    """Byte-level, without merges; the chat template included."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    fast.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    fast.chat_template = TEMPLATE
    return fast


@functools.cache
def encode(text: str) -> tuple[int, ...]:
    """The token ids of a text: one a byte, one a tag."""
    return tuple(make_tokenizer()(text, add_special_tokens=False)["input_ids"])


def unlikely(text: str, bias: float = -100.0) -> dict[str, float]:
    """A `logit_bias` against every token of a text: they come only where nothing else may."""
    return {str(token): bias for token in encode(text)}
