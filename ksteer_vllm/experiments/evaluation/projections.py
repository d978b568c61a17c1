"""Replies as points: the mean residual stream of each, as the unsteered model reads it, on two axes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ksteer_vllm.bench.bench import Bench
from ksteer_vllm.bench.engines import reading_params, take_captures
from ksteer_vllm.bench.jobs import Reply
from ksteer_vllm.data.positions import encode_prompt, encode_reply
from ksteer_vllm.experiments.evaluation.metrics import UNSTEERED
from ksteer_vllm.spec.capture import capture_window

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

__all__ = ["mean_streams", "projected", "worth_a_point"]

_PROMPTS = 10


def worth_a_point(replies: Sequence[Reply], variants: Collection[str]) -> list[Reply]:
    """The replies to draw: non-empty ones to the first prompts, unsteered and steered towards single
    labels."""
    return [
        reply
        for reply in replies
        if reply.text.strip()
        and reply.job.tags["prompt"] < _PROMPTS
        and (
            reply.job.tags["variant"] == UNSTEERED
            or (reply.job.tags["variant"] in variants and len(reply.job.tags["target"]) == 1)
        )
    ]


def mean_streams(bench: Bench, replies: Sequence[Reply], layer: int) -> Tensor:
    """[N, d] float32: the mean over a reply's positions of the residual stream after the layer, unsteered.

    The bench must capture at the layer.
    """
    import torch

    tokenizer = bench.llm.get_tokenizer()
    prompts, sampling = [], []
    for index, reply in enumerate(replies):
        prompt, tokens = encode_prompt(tokenizer, reply.job.prompt), encode_reply(tokenizer, reply.text)
        window = capture_window(f"mean-{index}", len(prompt) - 1, len(prompt) + len(tokens))
        prompts.append({"prompt_token_ids": prompt + tokens})
        sampling.append(reading_params(capture=window))
    bench.llm.generate(prompts, sampling, use_tqdm=False)
    streams = take_captures(bench.llm)
    return torch.stack([streams[f"{layer}/mean-{index}"].mean(0) for index in range(len(replies))])


def projected(streams: Tensor, replies: Sequence[Reply]) -> pd.DataFrame:
    """Rows of variant, target, x, y: the first two principal components over all replies, and in the columns'
    `attrs["explained"]` the share of variance of each."""
    import pandas as pd
    from sklearn.decomposition import PCA

    from ksteer_vllm.bench.combinations import name_of

    axes = PCA(n_components=2, svd_solver="full").fit(streams.double().numpy())
    points = axes.transform(streams.double().numpy())
    frame = pd.DataFrame(
        {
            "variant": [reply.job.tags["variant"] for reply in replies],
            "target": [name_of(reply.job.tags.get("target", ())) for reply in replies],
            "x": points[:, 0],
            "y": points[:, 1],
        }
    )
    frame.attrs["explained"] = axes.explained_variance_ratio_.tolist()
    return frame
