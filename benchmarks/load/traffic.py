"""The mix of requests: the kinds, how often each is sent, and which answers it may get."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.load.client import Ask
from benchmarks.load.specs import BAD, GOOD, PRESETS, random_spec, text_of
from testbed.models import VOCAB_SIZE
from testbed.replies import CHAT, COMPLETIONS, Reply, request_body
from testbed.serving import MODEL_NAME

__all__ = ["CHURN", "CHURN_SPEC", "MOVING", "MOVING_SPECS", "Known", "Traffic", "known_requests"]

CHURN = "churn"
CHURN_SPEC = {"probe": CHURN, "target": ["warm"], "alpha": 3.0, "where": "both"}
"""Of the probe that is loaded, replaced and retired while the test runs."""
MOVING = "moving"
MOVING_SPECS = ({**GOOD, "alpha": 4.0}, {"probe": "mlp", "target": ["dry"], "alpha": 4.0, "where": "both"})
"""What the preset that changes while the test runs is in turn."""


@dataclass(frozen=True)
class Known:
    """A request whose answer is known. name: what it is kept under."""

    name: str
    kind: str
    path: str
    body: dict[str, Any]


def known_requests(source: random.Random, count: int) -> list[Known]:
    """Plain requests, `count` steered ones, each preset in both spellings, and those of probe and preset that
    change (once for each of their states). Prompts share beginnings, so that the prefix cache is used."""
    beginnings = [_words(source, 40) for _ in range(3)]
    prompts = [
        source.choice(beginnings)[: source.choice([0, 16, 33, 40])] + _words(source, source.randint(3, 60))
        for _ in range(16)
    ]
    found = []
    for index, words in enumerate(prompts):
        for path in (COMPLETIONS, CHAT):
            found.append(Known(f"plain {path} {index}", "plain", path, _body(path, words)))
    for index in range(count):
        path = source.choice([COMPLETIONS, COMPLETIONS, CHAT])
        body = _body(path, source.choice(prompts), ksteer=random_spec(source))
        found.append(Known(f"steered {index}", "steered", path, body))
    for name in PRESETS:
        body = _body(CHAT, prompts[0], model=f"{MODEL_NAME}:{name}")
        found.append(Known(f"preset {name}", "preset by model name", CHAT, body))
        body = _body(COMPLETIONS, prompts[1], ksteer={"preset": name})
        found.append(Known(f"preset {name} in body", "preset by body", COMPLETIONS, body))
    return found


def changing_requests() -> dict[str, Known]:
    """Of the probe and the preset that change. The prompt is long enough to be in the prefix cache."""
    words = list(range(5, 75))
    chat = _body(CHAT, words, model=f"{MODEL_NAME}:{MOVING}")
    return {
        CHURN: Known(CHURN, "probe that changes", COMPLETIONS, _body(COMPLETIONS, words, ksteer=CHURN_SPEC)),
        MOVING: Known(MOVING, "preset that changes", CHAT, chat),
    }


def _words(source: random.Random, count: int) -> list[int]:
    return [source.randrange(4, VOCAB_SIZE) for _ in range(count)]


def _body(path: str, words: list[int], **fields: Any) -> dict[str, Any]:
    if path == COMPLETIONS:
        return request_body(path, prompt=[1, *words], **fields)
    content = " ".join(f"w{word}" for word in words)
    return request_body(path, messages=[{"role": "user", "content": content}], **fields)


class Traffic:
    """Draws requests. answers: name of a known request -> the replies it may get."""

    def __init__(
        self,
        source: random.Random,
        known: list[Known],
        answers: Mapping[str, tuple[Reply, ...]],
        changing: Mapping[str, Known],
    ) -> None:
        self._source = source
        self._answers = answers
        self._changing = changing
        self._plain = [request for request in known if request.kind == "plain"]
        self._steered = [request for request in known if request.kind != "plain"]
        self._bad = sorted(BAD)
        makers: dict[Callable[[], Ask], float] = {
            self._known_plain: 20, self._known_steered: 24, self._fresh: 16, self._several: 4,
            self._report: 5, self._opt_out: 4, self._refused: 12, self._hang_up: 7, self._disconnect: 8,
        }  # fmt: skip
        if changing:
            makers[self._change] = 8
        self._makers, self._weights = list(makers), list(makers.values())

    def draw(self) -> Ask:
        (make,) = self._source.choices(self._makers, self._weights)
        return make()

    def every_known(self) -> list[Ask]:
        """All known requests, once."""
        return [self._ask(request, streamed=False) for request in (*self._plain, *self._steered)]

    def _known_plain(self) -> Ask:
        return self._ask(self._source.choice(self._plain), self._source.random() < 0.4)

    def _known_steered(self) -> Ask:
        return self._ask(self._source.choice(self._steered), self._source.random() < 0.4)

    def _ask(self, request: Known, streamed: bool) -> Ask:
        body = {**request.body, "stream": True} if streamed else request.body
        return Ask(
            f"{request.kind}{', streamed' if streamed else ''}",
            request.path,
            body,
            expected=self._answers[request.name],
            steered=request.kind != "plain",
        )

    def _fresh(self) -> Ask:
        path = self._source.choice([COMPLETIONS, CHAT])
        body = _body(
            path, _words(self._source, self._source.randint(3, 90)), ksteer=random_spec(self._source)
        )
        return Ask("steered, never seen before", path, body, steered=True)

    def _several(self) -> Ask:
        words = _words(self._source, 8)
        fields: dict[str, Any] = {"n": 2, "temperature": 1.0, "seed": self._source.randrange(1000)}
        steered = self._source.random() < 0.5
        if steered:
            fields["ksteer"] = random_spec(self._source)
        body = _body(COMPLETIONS, words, **fields)
        return Ask("two choices, sampled", COMPLETIONS, body, choices=2, steered=steered)

    def _report(self) -> Ask:
        path = self._source.choice([COMPLETIONS, CHAT])
        spec = {**random_spec(self._source), "report": True}
        body = _body(path, _words(self._source, self._source.randint(3, 50)), ksteer=spec)
        if self._source.random() < 0.4:
            body["stream"] = True
        return Ask("steered, with report", path, body, steered=True, report=True)

    def _opt_out(self) -> Ask:
        request = self._source.choice(self._plain)
        body = {**request.body, "ksteer": self._source.choice([False, {"preset": "none"}])}
        return Ask("opted out", request.path, body, expected=self._answers[request.name])

    def _refused(self) -> Ask:
        name = self._source.choice(self._bad)
        bad = BAD[name]
        base = request_body(CHAT if bad.path == CHAT else COMPLETIONS)
        return Ask(
            f"bad: {name}",
            bad.path,
            {**base, **bad.body},
            content=text_of(bad, {**base, **bad.body}),
            must_answer=False,
            refusals={bad.status: bad.param},
            by_us=bad.by_us,
        )

    def _hang_up(self) -> Ask:
        body = self._long()
        return Ask(
            "client gives up before the first token",
            COMPLETIONS,
            body,
            hang_up=self._source.uniform(0.001, 0.15),
            steered="ksteer" in body,
        )

    def _disconnect(self) -> Ask:
        body = {**self._long(), "stream": True}
        return Ask(
            "client leaves a stream half way",
            COMPLETIONS,
            body,
            chunks=self._source.randint(1, 30),
            steered="ksteer" in body,
        )

    def _long(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"max_tokens": self._source.randint(40, 120)}
        if self._source.random() < 0.6:
            fields["ksteer"] = {**random_spec(self._source), "report": self._source.random() < 0.3}
        return _body(COMPLETIONS, _words(self._source, self._source.randint(3, 90)), **fields)

    def _change(self) -> Ask:
        """Any state the probe or preset has had, whole, or a refusal while there is none."""
        name = self._source.choice(sorted(self._changing))
        request = self._changing[name]
        # A preset may go between the look at the model's name (404) and the admission (400).
        refusals: dict[int, str | None] = (
            {400: "ksteer.probe"} if name == CHURN else {404: None, 400: "ksteer.preset"}
        )
        return Ask(
            request.kind,
            request.path,
            request.body,
            expected=self._answers[name],
            refusals=refusals,
            steered=True,
            by_us=True,
        )
