"""Steering reports: proof that steering fired, token by token.

A request with `"report": true` beside its spec gets, when it has finished, one record per edit, layer and
steered token. Offline: `report(output)`. Over HTTP: the `ksteer` object of the response.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays

__all__ = ["REPORT_ATTRIBUTE", "assemble", "report"]

REPORT_ATTRIBUTE = "ksteer_report"
"""Where a finished CompletionOutput carries its report."""

_SHIFT, _STEPS, _LABELS = 0, 1, 2
"""Columns of `ReportStore.take`: |x' - x| / |x|, steps (-1: none), then K probabilities before, K after."""


def report(output: Any) -> dict[str, Any] | None:
    """The steering report of a finished request.

    Args:
        output: A vLLM CompletionOutput, or a RequestOutput that holds one.

    Returns:
        None if the request asked for no report or has not finished; {"error": str} if the engine went away
        before the report could be fetched; otherwise the report, in plain JSON types (below).

    Raises:
        ValueError: If a RequestOutput holds several completions: pass one of its `outputs`.

    The report:

        {"edits": [{"probe": str, "method": str, "layers": [{"layer": int, "labels": [str] | None,
            "tokens": [{"position": int, "part": "prompt" | "generation", "index": int,
                        "steps": int | None, "shift": float | None,
                        "dropped": bool,
                        "before": {label: float} | None, "after": {label: float} | None}]}]}],
         "tokens_steered": int, "mean_shift": float | None}

    edits: in the order of the spec.
    tokens: the tokens selected by the edit's where, by position. Each accepted token appears once; rejected
        drafts do not appear, nor does the last generated token, which never goes through the model.
    part, index: as in where. The last prompt token is generation index 0 if the edit's generation window
        includes that, otherwise the last prompt index.
    steps: the gradient steps used; None for methods without steps and for dropped edits.
    shift: |x' - x| / |x|; 0, with 0 steps, where the edit's condition was not met.
    dropped: the token's activations or its edit were not finite, so it was not edited; its shift is None.
    before, after: the probe's label probabilities at x and x'; None, as are the labels, for methods without
        probabilities.
    tokens_steered: the number of positions that were moved.
    mean_shift: the mean over all records that have a shift.

    A number that is not finite is None.
    """
    completions = getattr(output, "outputs", [output])
    if len(completions) != 1:
        raise ValueError(f"expected one completion, got {len(completions)}: pass one of output.outputs")
    return getattr(completions[0], REPORT_ATTRIBUTE, None)


_Piece = tuple[str, NDArray[np.int64], NDArray[np.float32]]
"""Digest of the probe whose labels the values are of, positions, values."""
_NOTHING: _Piece = ("", np.empty(0, np.int64), np.empty((0, _LABELS), np.float32))


def assemble(
    edits: Sequence[Mapping[str, Any]],
    prompt_length: int,
    pieces: Iterable[bytes],
    labels: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """Build the report of a request from the records of its workers.

    Args:
        edits: The request's canonical edits.
        prompt_length: The number of prompt tokens.
        pieces: What `ReportStore.take` returned, one per worker; tensor-parallel ranks repeat each other,
            pipeline ranks hold different layers.
        labels: Digest -> labels, for the probes the request uses.

    Returns:
        See `report`.
    """
    found: dict[tuple[int, int], _Piece] = {}
    for piece in pieces:
        arrays: dict[str, NDArray[Any]] = load_arrays(piece) if piece else {}
        for name, array in arrays.items():
            index, layer, kind, digest = name.split("/", 3)
            if kind == "values":
                positions = arrays[f"{index}/{layer}/positions/{digest}"]
                found.setdefault((int(index), int(layer)), (digest, positions, array))
    reports = []
    for number, edit in enumerate(edits):
        layers = []
        for layer in edit["layers"]:
            digest, positions, values = found.get((number, layer), _NOTHING)
            names = list(labels[digest]) if values.shape[1] > _LABELS else None
            tokens = _tokens(positions, values, names, _first_generated(edit, prompt_length), prompt_length)
            layers.append({"layer": layer, "labels": names, "tokens": tokens})
        reports.append({"probe": edit["probe"], "method": edit["method"], "layers": layers})
    shifts = [
        (position, shift)
        for _, positions, values in found.values()
        for position, shift in zip(positions.tolist(), values[:, _SHIFT].tolist(), strict=True)
    ]
    finite = [shift for _, shift in shifts if math.isfinite(shift)]
    return {
        "edits": reports,
        "tokens_steered": len(
            {position for position, shift in shifts if shift != 0 and not math.isnan(shift)}
        ),
        "mean_shift": math.fsum(finite) / len(finite) if finite else None,
    }


def _first_generated(edit: Mapping[str, Any], prompt_length: int) -> int:
    """The first position that counts as generation. Position P - 1 is both prompt index P - 1 and generation
    index 0: it is the latter if the edit's where says so."""
    window = (edit.get("where") or {}).get("generation")
    return prompt_length - 1 if window is not None and window[0] == 0 else prompt_length


def _tokens(
    positions: NDArray[np.int64],
    values: NDArray[np.float32],
    labels: list[str] | None,
    first_generated: int,
    prompt_length: int,
) -> list[dict[str, Any]]:
    num_labels = (values.shape[1] - _LABELS) // 2
    tokens = []
    dropped = np.isnan(values[:, _SHIFT]).tolist()
    for position, row, is_dropped in zip(positions.tolist(), _finite(values), dropped, strict=True):
        generated = position >= first_generated
        steps = row[_STEPS]
        before, after = row[_LABELS : _LABELS + num_labels], row[_LABELS + num_labels :]
        tokens.append(
            {
                "position": position,
                "part": "generation" if generated else "prompt",
                "index": position - (prompt_length - 1) if generated else position,
                "steps": int(steps) if steps is not None and steps >= 0 else None,
                "shift": row[_SHIFT],
                "dropped": is_dropped,
                "before": dict(zip(labels, before, strict=True)) if labels else None,
                "after": dict(zip(labels, after, strict=True)) if labels else None,
            }
        )
    return tokens


def _finite(values: NDArray[np.float32]) -> list[list[float | None]]:
    """JSON has no infinities."""
    rows = values.astype(object)
    rows[~np.isfinite(values)] = None
    found: list[list[float | None]] = rows.tolist()
    return found
