"""The parts of `ksteer verify` that need no engine."""

from __future__ import annotations

import ast
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from ksteer_vllm.cli import app
from ksteer_vllm.errors import UsageError
from ksteer_vllm.spec.families import FAMILIES
from ksteer_vllm.verify import Finding, Verification
from ksteer_vllm.verify.compare import apart, grid
from ksteer_vllm.verify.definitions import apply_edit
from ksteer_vllm.verify.edits import plan_edit
from ksteer_vllm.verify.http import HTTPSubject
from ksteer_vllm.verify.offline import card_of
from ksteer_vllm.verify.run import verify
from ksteer_vllm.verify.subject import Answer, CheckRequest, Facts, UnreachableError
from ksteer_vllm.verify.verification import EFFECT
from testbed.families import random_family_probe, with_metrics
from testbed.models import HIDDEN_SIZE, NUM_LAYERS

MAX_STEPS = 64


@pytest.mark.parametrize("family", FAMILIES)
def test_the_edit_planned_of_a_family_moves_a_token(family: str) -> None:
    """By its definition in x-space, against which tests/engine/methods hold the engine's programs."""
    probe = random_family_probe(family, seed=3)
    plan = plan_edit(card_of("a", probe), 1, MAX_STEPS)
    assert plan is not None
    x = torch.randn(5, HIDDEN_SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved, _ = apply_edit({"a": probe}, plan.scaled(0.3).edit(), x, 1, torch.arange(5))
    assert (moved - x).abs().max() > 1e-3


ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", ["definitions", "edits", "oracle"])
def test_the_oracle_runs_nothing_that_the_engine_runs(name: str) -> None:
    """Of the kernels the references, of the plugin what says which edit is asked for and which probe."""
    allowed = {"ksteer_kernels.reference", "errors", "models", "probes", "spec", "verify", "host.inspection"}
    tree = ast.parse((ROOT / "ksteer_vllm" / "verify" / f"{name}.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    ours = {module.removeprefix("ksteer_vllm.") for module in modules if module.startswith("ksteer_")}
    assert {module for module in ours if not module.startswith(tuple(allowed))} == set()


@pytest.mark.parametrize("family", ["mlp", "linear"])
@pytest.mark.parametrize("metric", ["variance", "covariance"])
def test_an_edit_in_a_metric_is_planned_and_defined(family: str, metric: str) -> None:
    """It moves a token, and not as the raw one of the same strength does."""
    probe = with_metrics(random_family_probe(family, seed=3))
    x = torch.randn(5, HIDDEN_SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved = []
    for name in ("raw", metric):
        plan = plan_edit(card_of("a", probe), 1, MAX_STEPS, name)
        assert plan is not None
        moved.append(apply_edit({"a": probe}, plan.edit(), x, 1, torch.arange(5))[0] - x)
    raw, in_metric = moved
    assert torch.cosine_similarity(raw, in_metric).max() < 0.95
    assert in_metric.abs().max() > 1e-3
    assert plan_edit(card_of("a", random_family_probe("vectors")), 1, MAX_STEPS, metric) is None


def test_a_calibrated_edit_is_asked_for_in_full() -> None:
    """Whatever a request leaves out comes from the default edit, of which the oracle knows nothing."""
    default = {
        "metric": "variance",
        "unit": "normalised",
        "loss": "softmin",
        "alpha": 0.1,
        "fade": 9,
        "cap": 0.5,
    }
    probe = random_family_probe("mlp", default_edit=default, default_alpha={"gradient": 2.0})
    plan = plan_edit(card_of("a", probe), 1, MAX_STEPS)
    assert plan is not None
    assert plan.name == "layer 1 (a, variance)"
    assert set(plan.spec("both")) >= set(default)
    edit = plan.edit()
    assert (edit.metric, edit.unit, edit.loss, edit.alpha) == ("variance", "raw", "softmin", 2.0)
    assert (edit.fade, edit.cap) == (None, None)


def test_an_edit_that_cannot_be_asked_for() -> None:
    card = card_of("a", random_family_probe("mlp"))
    assert plan_edit(replace(card, methods=("reflect", "project")), 1, MAX_STEPS) is None
    steps = plan_edit(card, 1, 2)
    assert steps is not None
    assert steps.num_steps == 2  # no more than the engine allows


def answer(*steps: dict[int, float], tokens: tuple[int, ...] | None = None) -> Answer:
    return Answer(tokens or tuple(max(step, key=lambda t: step[t]) for step in steps), steps)


def test_distance_of_answers() -> None:
    one = answer({1: -0.5, 2: -1.0}, {3: -0.1, 4: -2.0})
    assert apart(one, one) == 0
    assert apart(one, answer({1: -0.5, 2: -1.0}, {3: -0.1, 4: -2.5})) == pytest.approx(0.5)
    assert apart(one, answer({1: -0.5, 2: -1.0}, {3: -0.1, 9: -2.3})) == pytest.approx(0.3)  # at least
    other = answer({2: -0.6, 1: -0.7}, {7: -0.1, 8: -2.0})
    assert apart(one, other) == pytest.approx(0.4)  # nothing after the first token that differs
    assert apart(one, answer({1: -0.4, 2: -1.0}, {3: -3.0, 4: -0.1}), 1) == pytest.approx(0.1)


def test_rounded_logits_are_known_by_their_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 6 + 2 * torch.rand(8, 5, generator=generator)

    def answers(logits: torch.Tensor) -> list[Answer]:
        rows = logits.float().log_softmax(-1)
        return [answer({k: float(value) for k, value in enumerate(row)}) for row in rows]

    assert grid(answers(logits)) is None
    assert grid(answers(logits.bfloat16())) == 2**-5  # between 4 and 8
    assert grid(answers(logits[:1])) is None  # too few to tell


def facts(**changes: Any) -> Facts:
    card = card_of("tones", random_family_probe("mlp"))
    return replace(
        Facts("e", "", NUM_LAYERS, (1, 2), (card,), tuple(range(9)), 256, True, {"max_steps": 8}), **changes
    )


class Still:
    """A subject that can only say what it is."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def facts(self) -> Facts:
        return self._facts

    def alone(self, request: CheckRequest) -> Answer:
        raise UnreachableError("gone")

    def together(self, requests: Any) -> list[Answer]:
        raise UnreachableError("gone")

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("changes", "asked", "says"),
    [
        ({"cards": ()}, {}, "no probe is loaded"),
        ({}, {"probes": ["moods"]}, r"no moods; loaded: tones"),
        ({}, {"layers": [0]}, r"0 not open for steering; open: 1, 2"),
        ({"max_model_len": 64}, {}, "needs 96 tokens"),
    ],
    ids=["no probe", "unknown probe", "closed layer", "short"],
)
def test_nothing_to_look_at(changes: dict[str, Any], asked: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        verify(Still(facts(**changes)), **asked)


def test_an_engine_that_goes_away_is_no_failed_check() -> None:
    with pytest.raises(UnreachableError, match="gone"):
        verify(Still(facts()))


def verification(*findings: Finding) -> Verification:
    return Verification("e", {"vllm": "1"}, [1], ["tones"], 1e-3, 0.0, 9, 90, 9, 1.0, findings, ["the rest"])


def test_a_verification_says_what_failed_and_what_was_not_checked(tmp_path: Path) -> None:
    bad = verification(
        Finding("a", "passed", "0 of 3"),
        Finding("b", "failed", "2 of 3", "the cause", {"x": 1.0}),
        Finding("c", "skipped", "no weights"),
    )
    console = Console(record=True, width=100)
    bad.show(console)
    text = console.export_text()
    for words in (
        "2 of 3",
        "cause: the cause",
        "not checked: the rest",
        "FAILED: 1 passed, 1 failed, 1 skipped",
    ):
        assert words in text
    bad.write(tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["verdict"] == "failed"
    assert found["findings"][1] == {
        "name": "b", "status": "failed", "says": "2 of 3", "cause": "the cause", "figures": {"x": 1.0},
    }  # fmt: skip
    assert verification(Finding(EFFECT, "passed", "")).ok
    assert not verification(Finding(EFFECT, "passed", ""), Finding("b", "failed", "")).ok
    assert not verification(
        Finding("noise floor", "passed", ""), Finding("c", "skipped", "")
    ).ok  # nothing was shown


def about(path: str) -> Any:
    return {
        "/v1/ksteer": {
            "versions": {}, "model": {"name": "m", "root": "r", "num_layers": 4}, "layers": [1],
            "limits": {"max_steps": 8}, "reports": False, "default": "warm",
        },
        "/v1/ksteer/probes": {"data": [{
            "name": "tones", "digest": "d", "family": "mlp", "labels": ["a"], "layers": [],
            "default_layers": [1], "methods": ["gradient"], "default_alpha": {"gradient": 2.0},
        }]},
        "/v1/models": {"data": [{"id": "m", "max_model_len": 300}]},
    }[path]  # fmt: skip


def served(subject: HTTPSubject, handler: Any) -> HTTPSubject:
    subject._client = httpx.Client(base_url="http://s", transport=httpx.MockTransport(handler))
    return subject


def test_what_a_server_says_of_itself() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":  # the text is too long for this one: small ids are used
            return httpx.Response(400, json={"error": {"message": "too long"}})
        return httpx.Response(200, json=about(request.url.path))

    found = served(HTTPSubject("http://s/v1"), handler).facts()
    assert (found.num_layers, found.open_layers, found.max_model_len) == (4, (1,), 300)
    assert found.limits == {"max_steps": 8}
    assert found.weights == ""
    assert found.needs_opt_out
    assert not found.reports
    assert found.cards[0].own_layer == 1
    assert len(found.tokens) >= 24


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [(404, {}, "--plugin ksteer"), (401, {}, "--api-key"), (200, "<html>", "not JSON")],
)
def test_a_server_that_is_no_subject(status: int, body: Any, says: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, text=body if isinstance(body, str) else json.dumps(body))

    with pytest.raises(UnreachableError, match=says):
        served(HTTPSubject("http://s"), handler).facts()


def completion(request: httpx.Request) -> httpx.Response:
    logprobs = {"tokens": ["token_id:3"], "token_logprobs": [-0.5], "top_logprobs": [{"token_id:3": -0.5}]}
    return httpx.Response(200, json={"choices": [{"logprobs": logprobs}]})


def test_a_busy_server_is_asked_again() -> None:
    sent: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        busy = httpx.Response(503, headers={"Retry-After": "0"}, json={"error": {"message": "busy"}})
        return busy if len(sent) < 3 else completion(request)

    began = time.monotonic()
    found = served(HTTPSubject("http://s"), handler).alone(CheckRequest((1, 2)))
    assert (len(sent), found.tokens) == (3, (3,))
    assert found.began - began > 0.1  # of the request that was answered


def test_a_server_that_stays_busy_cannot_be_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksteer_vllm.verify.http.TIMEOUT", 0.3)

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, headers={"Retry-After": "0"}, json={"error": {"message": "all held"}})

    with pytest.raises(UnreachableError, match="busy: 503: all held"):
        served(HTTPSubject("http://s"), handler).alone(CheckRequest((1, 2)))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--url", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["--layers", "x"], "layers: expected numbers"),
        (["--url", "http://127.0.0.1:9", "--dtype", "float32"], "a running server has its own dtype"),
        (["--engine", "[1]"], "a JSON object"),
        (["--probe", "tones"], "expected NAME=FOLDER"),
        (["--probe", "tones=/nowhere"], "/nowhere"),
        (["/nowhere"], "/nowhere"),
    ],
    ids=["no server", "layers", "url and options", "engine", "probe", "probe folder", "model"],
)
def test_what_cannot_be_run_exits_with_2(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["verify", *arguments])
    assert result.exit_code == 2, result.output
    assert says in result.output


@pytest.mark.parametrize(("status", "code"), [("passed", 0), ("failed", 1)])
def test_the_exit_status_says_what_was_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: Any, code: int
) -> None:
    monkeypatch.setattr(
        "ksteer_vllm.verify.verify", lambda *_, **__: verification(Finding(EFFECT, status, "seen", "why"))
    )
    result = CliRunner().invoke(app, ["verify", "--url", "http://s", "--json", str(tmp_path / "r.json")])
    assert result.exit_code == code, result.output
    assert json.loads((tmp_path / "r.json").read_text())["verdict"] == status
