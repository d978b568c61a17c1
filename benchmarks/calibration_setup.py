"""What `calibration.py` runs on: models with weights that two programs can load, and random probes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.random_probes import LABELS, PROBE_WIDTH, random_tensor
from ksteer_vllm import ModelIdentity, Probe, ProbeMetadata

DEMO = "demo"


def model_of(shape: str, folder: Path, count: int) -> tuple[Path, list[str], dict[str, Any]]:
    """The model's folder, prompts as text, and engine options. Shapes but the demo's have random weights."""
    room: dict[str, Any] = {
        "dtype": "float32",
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "max_model_len": 256,
        "gpu_memory_utilization": 0.3,
        "use_tqdm_on_load": False,
    }
    if shape == DEMO:
        from transformers import AutoTokenizer

        from ksteer_vllm.demo import ENGINE_OPTIONS, MODEL_DIR
        from ksteer_vllm.demo.corpus import held_out_questions, prompt_messages

        tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
        questions = held_out_questions("calibration")[:count]
        chats = [prompt_messages(question.text) for question in questions]
        texts = [
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats
        ]
        return MODEL_DIR, texts, {**room, **ENGINE_OPTIONS}
    from transformers import AutoConfig, AutoModelForCausalLM

    harness.write_model(shape, folder / "model")
    harness.write_tokenizer(shape, folder / "model")
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "model"))
    made.float().save_pretrained(folder / "model")
    words = random.Random(0)
    texts = [" ".join(f"t{words.randrange(10, 2000)}" for _ in range(20)) for _ in range(count)]
    return folder / "model", texts, room


def identity_of(model: Path) -> ModelIdentity:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    return ModelIdentity(
        name=model.name,
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
    )


def random_probe(identity: ModelIdentity, layer: int, seed: int) -> Probe:
    """A probe of width 256 with 6 labels, whose ReLUs are centred on typical residual streams."""
    d, h, k = identity.hidden_size, PROBE_WIDTH, len(LABELS)
    shapes = {
        "w1": [h, d], "b1": [h], "w2": [h, h], "b2": [h], "w3": [k, h], "b3": [k],
        "input_mean": [d], "input_std": [d], "label_vectors": [k, d],
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: random_tensor(name, size, generator) for name, size in shapes.items()}
    return Probe(ProbeMetadata(labels=LABELS, layer=layer, model=identity), tensors)
