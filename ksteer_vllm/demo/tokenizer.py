"""The tokenizer of the demo model: byte-level BPE learned from the corpus, with a chat template."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ksteer_vllm.demo.corpus import Example, prompt_messages

SYSTEM: Final = "<|system|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
END: Final = "<|end|>"
PAD: Final = "<|pad|>"

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Learn the merges from the texts; any other text still encodes, byte by byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )


def encode_prompt(tokenizer: Any, question: str, instruction: str | None = None) -> list[int]:
    """Token ids of the chat up to and including the token that opens the reply."""
    text = tokenizer.apply_chat_template(
        prompt_messages(question, instruction), tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_example(tokenizer: Any, example: Example) -> tuple[list[int], list[int]]:
    """Prompt ids and reply ids; the reply ends with the end-of-sequence token."""
    prompt = encode_prompt(tokenizer, example.question.text, example.instruction)
    reply = list(tokenizer(example.reply, add_special_tokens=False)["input_ids"])
    return prompt, [*reply, tokenizer.eos_token_id]
