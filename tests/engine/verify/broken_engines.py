"""Engines broken on purpose, verified one after another in this process.

    python -m tests.engine.verify.broken_engines MODEL PROBE OUT.json

One tiny engine; each fault is patched into the plugin's own modules while `verify` runs, and taken out again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tests.support.engines import OPTIONS, prepare_environment

NOT_ATTACHED = 2
NUM_TOKENS = 4
"""Of `token_rows_`, after its first two arguments."""


@contextmanager
def replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


def nothing() -> Any:
    """A sound engine."""
    return nullcontext()


def op_removed() -> Any:
    """The custom op is called and does nothing."""
    from ksteer_vllm.device.state import SteeringState

    return replaced(SteeringState, "at_layer", lambda self, hidden, residual, layer: None)


def one_layer_not_attached() -> Any:
    from ksteer_vllm.device.state import SteeringState

    original = SteeringState.at_layer

    def at_layer(self: Any, hidden: Any, residual: Any, layer: int) -> None:
        if layer != NOT_ATTACHED:
            original(self, hidden, residual, layer)

    return replaced(SteeringState, "at_layer", at_layer)


def wrong_layer() -> Any:
    """As if layer index were attached at block index + 1: block i does what was asked for at layer i - 1."""
    from ksteer_vllm.device.state import SteeringState

    original = SteeringState.at_layer
    return replaced(
        SteeringState,
        "at_layer",
        lambda self, hidden, residual, layer: original(self, hidden, residual, layer - 1),
    )


def two_layers_swapped() -> Any:
    """Layers 0 and 1 do each other's edits; the rest are right."""
    from ksteer_vllm.device.state import SteeringState

    original = SteeringState.at_layer
    return replaced(
        SteeringState,
        "at_layer",
        lambda self, hidden, residual, layer: original(
            self, hidden, residual, {0: 1, 1: 0}.get(layer, layer)
        ),
    )


def cache_unsalted() -> Any:
    from ksteer_vllm.host import prefix_cache

    return replaced(prefix_cache, "block_key", lambda edits, start, end: None)


def cache_keyed_by_spec_alone() -> Any:
    """Keys without windows, which generation steering needs: its reply is prompt to the next turn."""
    from ksteer_vllm.host import prefix_cache

    def block_key(edits: Any, start: int, end: int) -> Any:
        return ("ksteer", ";".join(edit["fingerprint"] for edit in edits))

    return replaced(prefix_cache, "block_key", block_key)


def plain_touched() -> Any:
    """Tokens without a row get the first steered row of the step."""
    from ksteer_vllm.device import state as batch

    original = batch.token_rows_

    def token_rows_(token_row: Any, gain: Any, *rest: Any) -> None:
        original(token_row, gain, *rest)
        num_tokens = rest[NUM_TOKENS]
        for rows, gains in zip(token_row[:, :num_tokens], gain[:, :num_tokens], strict=True):
            steered = rows >= 0
            if steered.any():
                gains[~steered] = 1.0
                rows[~steered] = rows[steered][0].clone()

    return replaced(batch, "token_rows_", token_rows_)


FAULTS: dict[str, Callable[[], Any]] = {
    "sound": nothing,
    "op removed": op_removed,
    "one layer not attached": one_layer_not_attached,
    "wrong layer": wrong_layer,
    "two layers swapped": two_layers_swapped,
    "cache unsalted": cache_unsalted,
    "cache keyed by spec alone": cache_keyed_by_spec_alone,
    "plain touched": plain_touched,
}

WITHOUT_WEIGHTS = ("sound", "wrong layer", "two layers swapped")
"""Verified once more as a server is whose weights are elsewhere: by the order of layers."""


def main(model: Path, probe: Path, out: Path) -> None:
    from rich.console import Console

    from ksteer_vllm.verify import verify
    from ksteer_vllm.verify.offline import start_offline

    subject = start_offline(str(model), {"tones": probe}, "all", **OPTIONS)
    found = {}
    cases = [(name, subject) for name in FAULTS]
    cases += [(name, _Weightless(subject)) for name in WITHOUT_WEIGHTS]
    try:
        for seed, (name, verified) in enumerate(cases):  # a seed of its own: prompts the cache has not seen
            shown = name if verified is subject else f"{name}, no weights"
            with FAULTS[name]():
                found[shown] = verify(verified, seed=seed)
            print(f"--- {shown}")
            found[shown].show(Console(width=160))
    finally:
        subject.close()
    out.write_text(json.dumps({name: report.as_json() for name, report in found.items()}, default=str))


class _Weightless:
    """The same engine, but neither its weights nor its probes' folders are at hand."""

    def __init__(self, subject: Any) -> None:
        self._subject = subject

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subject, name)

    def facts(self) -> Any:
        from dataclasses import replace

        facts = self._subject.facts()
        return replace(facts, cards=tuple(replace(card, probe=None) for card in facts.cards), weights="")


if __name__ == "__main__":
    prepare_environment()
    main(*map(Path, sys.argv[1:]))
