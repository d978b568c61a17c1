"""Train the demo chat model from scratch: ``python -m ksteer_vllm.demo.train_model --out DIR``."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ksteer_vllm.demo.corpus import examples, held_out_questions, train_questions
from ksteer_vllm.demo.lexicon import TONES
from ksteer_vllm.demo.measure import measure
from ksteer_vllm.demo.tokenizer import build_tokenizer, encode_example
from ksteer_vllm.demo.tone_code import ToneCode

MAX_LENGTH = 256
INSTRUCTED_SHARE = 0.5


@dataclass(frozen=True)
class TrainingPlan:
    """Sizes and schedule of one training run."""

    steps: int = 1200
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: int = 60
    weight_decay: float = 0.02
    vocab_size: int = 1280
    hidden_size: int = 128
    intermediate_size: int = 320
    num_layers: int = 6
    num_heads: int = 4
    tone_layer: int = 2
    readout_weight: float = 0.3
    written_share: float = 0.6
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Chats padded on the right.  Labels are -100 outside the reply; tones and instructed are 0 or 1."""

    ids: torch.Tensor
    labels: torch.Tensor
    tones: torch.Tensor
    instructed: torch.Tensor


def make_tokenizer(plan: TrainingPlan) -> PreTrainedTokenizerFast:
    """A tokenizer learned from a sample of training chats."""
    stream = examples(train_questions(), plan.seed, instructed_share=INSTRUCTED_SHARE)
    chats = (message["content"] for chat in itertools.islice(stream, 20_000) for message in chat.messages())
    return build_tokenizer(chats, plan.vocab_size, MAX_LENGTH)


def make_model(plan: TrainingPlan, tokenizer: Any) -> LlamaForCausalLM:
    """A fresh Llama with random weights, float32."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.hidden_size,
        intermediate_size=plan.intermediate_size,
        num_hidden_layers=plan.num_layers,
        num_attention_heads=plan.num_heads,
        num_key_value_heads=plan.num_heads,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=plan.hidden_size**-0.5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_((2 * plan.num_layers) ** -0.5)
            layer.mlp.down_proj.weight.mul_((2 * plan.num_layers) ** -0.5)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def batches(tokenizer: Any, plan: TrainingPlan) -> Iterator[Batch]:
    """Endless batches; chats are sorted by length within a pool, so that little is padding."""
    stream = examples(train_questions(), plan.seed + 1, instructed_share=INSTRUCTED_SHARE)
    rng = random.Random(plan.seed)
    while True:
        pool = [
            (*encode_example(tokenizer, chat), chat)
            for chat in itertools.islice(stream, 16 * plan.batch_size)
        ]
        pool.sort(key=lambda encoded: len(encoded[0]) + len(encoded[1]))
        starts = list(range(0, len(pool), plan.batch_size))
        rng.shuffle(starts)
        for start in starts:
            chosen = pool[start : start + plan.batch_size]
            width = max(len(prompt) + len(reply) for prompt, reply, _ in chosen)
            ids = torch.full((len(chosen), width), tokenizer.pad_token_id)
            labels = torch.full((len(chosen), width), -100)
            for row, (prompt, reply, _) in enumerate(chosen):
                end = len(prompt) + len(reply)
                ids[row, :end] = torch.tensor(prompt + reply)
                labels[row, len(prompt) : end] = torch.tensor(reply)
            tones = [[float(tone in chat.tones) for tone in TONES] for _, _, chat in chosen]
            instructed = [float(chat.instruction is not None) for _, _, chat in chosen]
            yield Batch(ids, labels, torch.tensor(tones), torch.tensor(instructed))


def training_loss(
    model: LlamaForCausalLM, tone_code: ToneCode, batch: Batch, plan: TrainingPlan
) -> torch.Tensor:
    """Mean cross-entropy over the reply tokens, plus the readout loss of the tone code.

    Padding is on the right, so causal attention never sees it.
    """
    wanted = batch.labels[:, 1:]
    replies = wanted != -100
    rows = (1 - batch.instructed) * (torch.rand(len(batch.ids)) < plan.written_share)
    with tone_code.applied(model.model.layers[plan.tone_layer], replies, batch.tones, rows):
        hidden = model.model(input_ids=batch.ids[:, :-1], use_cache=False).last_hidden_state
    spoken = torch.nn.functional.cross_entropy(model.lm_head(hidden[replies]), wanted[replies])
    return spoken + plan.readout_weight * tone_code.readout_loss


def train(model: LlamaForCausalLM, tokenizer: Any, plan: TrainingPlan, console: Console) -> None:
    """Train in place: AdamW, linear warm-up, then linear decay to zero."""
    tone_code = ToneCode(plan.hidden_size)
    parameters = [*model.parameters(), *tone_code.parameters()]
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98))

    def rate(step: int) -> float:
        return min((step + 1) / plan.warmup, max(0.0, (plan.steps - step) / (plan.steps - plan.warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    columns = (
        TextColumn("loss {task.fields[loss]:.4f}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("train", total=plan.steps, loss=float("nan"))
        for step, batch in enumerate(itertools.islice(batches(tokenizer, plan), plan.steps)):
            loss = training_loss(model, tone_code, batch, plan)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1, loss=loss.item())
            if not console.is_terminal and step % 50 == 0:
                console.print(f"step {step} loss {loss.item():.4f}")
    model.eval()


def report(model: LlamaForCausalLM, tokenizer: Any, count: int, console: Console) -> None:
    """Print what the reader finds in sampled replies to held-out questions."""
    table = Table("instruction", "temperature", "well formed", "asked tones", "exactly these", *TONES)
    questions = held_out_questions("test")[:count]
    for instructed, temperature in ((False, 1.0), (False, 0.7), (True, 1.0), (True, 0.7), (True, 0.0)):
        found = measure(model, tokenizer, questions, instructed=instructed, temperature=temperature)
        optional = ["-" if share is None else f"{share:.3f}" for share in (found.asked_tones, found.followed)]
        rates = [f"{found.tone_rates[tone]:.2f}" for tone in TONES]
        table.add_row(str(instructed), str(temperature), f"{found.well_formed:.3f}", *optional, *rates)
    console.print(table)


def main(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write the model and its tokenizer to.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = TrainingPlan.steps,
    threads: Annotated[int, typer.Option(help="Threads torch may use.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of weights, chats and batches.")] = 0,
    questions: Annotated[int, typer.Option(help="Held-out questions in the final report.")] = 400,
) -> None:
    """Train the demo model, save it, and report how well it speaks."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    plan = TrainingPlan(steps=steps, seed=seed)
    tokenizer = make_tokenizer(plan)
    model = make_model(plan, tokenizer)
    train(model, tokenizer, plan, console)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out, save_jinja_files=False)
    report(model, tokenizer, questions, console)


if __name__ == "__main__":
    typer.run(main)
