"""A suite on the shipped model in moments: probes with random tensors of ordinary scale."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ksteer_vllm.bench.suite import EVALUATION, Suite, SuiteFile
from ksteer_vllm.data.rows import Message
from ksteer_vllm.demo import MODEL_DIR
from ksteer_vllm.demo.corpus import held_out_questions
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.models import ModelIdentity
from ksteer_vllm.probes.metadata import ProbeMetadata
from ksteer_vllm.probes.probe import Probe
from testbed.probes import random_probe

LABELS = TONES[:3]
LAYER = 2
HIDDEN = 128
IDENTITY = ModelIdentity(name=str(MODEL_DIR), model_type="llama", hidden_size=HIDDEN, num_layers=6)
ENGINE_OPTIONS = {
    "dtype": "float32",
    "gpu_memory_utilization": 0.1,
    "kv_cache_memory_bytes": 64 << 20,
    "max_model_len": 160,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 2048,
    "enable_chunked_prefill": False,
}


def prompts(count: int) -> tuple[tuple[Message, ...], ...]:
    questions = held_out_questions("calibration")[:count]
    return tuple((Message(role="user", content=question.text),) for question in questions)


def probe(seed: int, width: int = 24) -> Probe:
    return random_probe(
        layer=LAYER,
        labels=LABELS,
        hidden_size=HIDDEN,
        num_layers=6,
        seed=seed,
        width=width,
    )


def vectors(layers: tuple[int, ...] = ()) -> Probe:
    """Orthogonal directions of length 40; with layers, other ones at each."""
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(max(1, len(layers)), HIDDEN, len(LABELS), generator=generator)
    tensors = 40 * torch.linalg.qr(drawn)[0].mT
    metadata = ProbeMetadata(family="vectors", labels=LABELS, layer=LAYER, layers=layers, model=IDENTITY)
    return Probe(metadata, {"vectors": tensors if layers else tensors[0]})


def write_suite(folder: Path, *, judge: str = "probe", layers: tuple[int, ...] = ()) -> Suite:
    """mlp, caa and the evaluation probe, with six calibration prompts."""
    probe(0).save(folder / "mlp")
    vectors(layers).save(folder / "caa")
    probe(1, width=16).save(folder / EVALUATION)
    suite = Suite(
        folder,
        SuiteFile(
            model=str(MODEL_DIR),
            task="demo",
            data_digest="0" * 64,
            labels=LABELS,
            layers=layers or (LAYER,),
            judge=judge,
            engine_options=ENGINE_OPTIONS,
            prompts={"calibration": prompts(6), "evaluation": prompts(6)},
        ),
    )
    suite.write()
    return suite


if __name__ == "__main__":
    write_suite(Path(sys.argv[1]))
