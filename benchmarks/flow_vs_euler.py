"""How far gradient steps end from the exact flow at equal budget, alpha * num_steps: float64, on the CPU.

    python -m benchmarks.flow_vs_euler --demo tones-out

Two probes: the one `ksteer demo --model shipped` left in DEMO, on the residual streams of replies that the
shipped model samples to test questions, and one fitted here to a Gaussian mixture of a large model's size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from benchmarks import harness
from ksteer_kernels.flow import flow
from ksteer_kernels.reference.mlp import MLPWeights, loss_gradient, probe_logits, steering_loss
from ksteer_vllm import Probe
from ksteer_vllm.probes.fold import fold_mlp

NUM_STEPS = (1, 2, 4, 8, 16, 32, 64)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Case:
    """One probe, the tokens to steer, and the budget that counts as calibrated."""

    probe: MLPWeights
    x: Tensor
    budget: float
    about: dict[str, Any]


def main(
    demo: Annotated[Path, typer.Option(help="folder that `ksteer demo --model shipped` filled")] = Path(
        "tones-out"
    ),
    tokens: Annotated[int, typer.Option(help="tokens per target label")] = 100,
) -> None:
    console = Console()
    results: dict[str, Any] = {}
    for name, build in (("demo", lambda: demo_case(demo, tokens)), ("mixture", lambda: mixture_case(tokens))):
        case = build()
        budgets = {}
        for factor in track(FACTORS, name, console=console):
            budgets[f"{factor:g}"] = compare(case, factor * case.budget)
        results[name] = {**case.about, "tokens": len(case.x), "budget": case.budget, "budgets": budgets}
        for factor, row in budgets.items():
            distance = ", ".join(f"{n}: {row['distance'][str(n)]['p50']:.3f}" for n in NUM_STEPS)
            console.print(f"{name}, {factor} of the budget: kinks {row['kinks']['p50']:.0f}, {distance}")
    path = harness.write_result("flow_vs_euler", {"num_steps": NUM_STEPS, "cases": results})
    console.print("written:", path.name, draw(path).name)


def compare(case: Case, budget: float) -> dict[str, Any]:
    """The flow and its Euler steps for every token towards one label, away from the others, in turn."""
    num_labels = case.probe.w3.shape[0]
    distance: dict[int, list[Tensor]] = {n: [] for n in NUM_STEPS}
    progress: dict[int, list[Tensor]] = {n: [] for n in NUM_STEPS}
    kinks, slid, fell_back, reached = [], [], [], []
    for label in range(num_labels):
        x, c = case.x[label::num_labels], towards(label, num_labels)
        exact = flow(x, case.probe, c, budget=budget)
        way = (exact.x - x).norm(dim=1)
        before, after = (steering_loss(end, case.probe, c) for end in (x, exact.x))
        for n in NUM_STEPS:
            end = euler(x, case.probe, c, budget, n)
            distance[n].append((end - exact.x).norm(dim=1) / way)
            progress[n].append((before - steering_loss(end, case.probe, c)) / (before - after))
        kinks.append(exact.kinks.double())
        slid.append(exact.slid.double())
        fell_back.append(exact.fell_back.double())
        reached.append((probe_logits(exact.x, case.probe)[:, label] > 0).double())
    return {
        "value": budget,
        "kinks": quantiles(kinks),
        "slid": float(torch.cat(slid).mean()),
        "fell_back": float(torch.cat(fell_back).mean()),
        "target_above_half": float(torch.cat(reached).mean()),
        "distance": {str(n): quantiles(values) for n, values in distance.items()},
        "loss_drop": {str(n): quantiles(values) for n, values in progress.items()},
    }


def euler(x: Tensor, probe: MLPWeights, label_weights: Tensor, budget: float, num_steps: int) -> Tensor:
    for _ in range(num_steps):
        x = x - budget / num_steps * loss_gradient(x, probe, label_weights)
    return x


def towards(label: int, num_labels: int) -> Tensor:
    """The label weights of a spec with one target and every other label to avoid."""
    weights = torch.full((num_labels,), 1 / (num_labels - 1), dtype=torch.float64)
    weights[label] = -1.0
    return weights


def quantiles(parts: list[Tensor]) -> dict[str, float]:
    p5, p50, p95 = torch.cat(parts).quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    return {"p5": p5, "p50": p50, "p95": p95}


def demo_case(folder: Path, tokens: int) -> Case:
    """Tokens of unsteered replies, drawn at random among the positions that steering edits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ksteer_vllm.demo.corpus import held_out_questions
    from ksteer_vllm.demo.measure import sample_replies
    from ksteer_vllm.demo.tokenizer import encode_prompt

    probe = Probe.load(folder / "probe")
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    prompts = [encode_prompt(tokenizer, question.text) for question in held_out_questions("test")[:100]]
    streams = []
    with torch.no_grad():
        for prompt, (reply, _) in zip(
            prompts, sample_replies(model, tokenizer, prompts, temperature=1.0), strict=True
        ):
            ids = prompt + tokenizer(reply, add_special_tokens=False)["input_ids"]
            found = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            streams.append(found[probe.metadata.layer + 1][0, len(prompt) - 1 :])
    x = torch.cat(streams)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    alpha, weights = probe.metadata.default_alpha["gradient"], fold_mlp(probe.tensors)
    return Case(
        weights,
        x[order[: tokens * len(probe.labels)]].double(),
        8 * alpha,
        {
            "shape": shape_of(probe.tensors["w1"], len(probe.labels)),
            "layer": probe.metadata.layer,
            "probe_digest": Probe.load_metadata(folder / "probe").digest,
            "calibrated": f"8 steps of the demo's alpha, {alpha:.4f}",
        },
    )


def mixture_case(tokens: int, hidden_size: int = 2048, width: int = 256, num_labels: int = 6) -> Case:
    """x = sum of its labels' centres + noise; a label shows with probability 0.3; centres have length 8."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(num_labels, hidden_size, generator=generator) * 8 / hidden_size**0.5

    def draw(count: int) -> tuple[Tensor, Tensor]:
        shown = (torch.rand(count, num_labels, generator=generator) < 0.3).float()
        return shown @ centres + torch.randn(count, hidden_size, generator=generator), shown

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(hidden_size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, num_labels),
        )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(400):
        batch, shown = draw(512)
        loss = nn.functional.binary_cross_entropy_with_logits(network(batch), shown)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
    x, shown = draw(tokens * num_labels)
    probe = MLPWeights(
        *(tensor.detach().double() for i in (0, 2, 4) for tensor in (network[i].weight, network[i].bias))
    )
    accuracy = ((probe_logits(x.double(), probe) > 0) == shown.bool()).double().mean()
    return Case(
        probe,
        x.double(),
        calibrated_budget(probe, x.double()),
        {
            "shape": shape_of(probe.w1, num_labels),
            "accuracy": float(accuracy),
            "calibrated": "least power of sqrt(2) at which the flow takes 90 % of tokens to P(target) > 0.9",
        },
    )


def calibrated_budget(probe: MLPWeights, x: Tensor) -> float:
    num_labels = probe.w3.shape[0]
    certain = torch.logit(torch.tensor(0.9, dtype=torch.float64))
    for exponent in range(-20, 40):
        budget = 2.0 ** (exponent / 2)
        reached = [
            probe_logits(flow(part, probe, towards(label, num_labels), budget=budget).x, probe)[:, label]
            > certain
            for label in range(num_labels)
            for part in [x[label::num_labels][:20]]
        ]
        if torch.cat(reached).double().mean() >= 0.9:
            return budget
    raise RuntimeError("no budget takes the tokens to their targets")


def shape_of(w1: Tensor, num_labels: int) -> str:
    return f"d = {w1.shape[1]}, H = {w1.shape[0]}, K = {num_labels}"


def draw(result: Path) -> Path:
    """RESULT with the suffix .png: median distance by number of steps, p5 to p95 at the calibrated budget."""
    data = json.loads(result.read_text())
    figure, axes = plt.subplots(1, len(data["cases"]), figsize=(9, 3.6), sharey=True, squeeze=False)
    steps = data["num_steps"]
    for axis, (name, case) in zip(axes[0], data["cases"].items(), strict=True):
        for shade, (factor, row) in enumerate(case["budgets"].items()):
            found = [row["distance"][str(n)] for n in steps]
            colour = plt.get_cmap("viridis")(shade / len(case["budgets"]))
            label = f"{factor} x budget: {row['kinks']['p50']:.0f} kinks"
            axis.plot(steps, [q["p50"] for q in found], marker="o", markersize=3, color=colour, label=label)
            if factor == "1":
                axis.fill_between(
                    steps, [q["p5"] for q in found], [q["p95"] for q in found], color=colour, alpha=0.15
                )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(steps, [str(n) for n in steps])
        axis.set_xlabel("steps at equal budget")
        axis.set_title(f"{name}: {case['shape']}")
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("|x_n - x_flow| / |x_flow - x_0|")
    figure.suptitle(
        "Euler steps against the exact flow: median; band: p5 to p95 at the calibrated budget", fontsize=10
    )
    figure.tight_layout()
    picture = result.with_suffix(".png")
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture


if __name__ == "__main__":
    typer.run(main)
