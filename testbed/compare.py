"""Comparing what two runs generated, in the sense that every tolerance of the suite is stated in.

Log-probabilities within 1e-3 in float32: two batch shapes sum in different orders, which moves a tiny model's
log-probabilities by about 1e-6; steering that is lost, doubled or one position off moves them by more than
the 1e-2 that `assert_differ` asks for. A greedy token may differ only where the two best candidates are
closer than the tolerance, and nothing is compared after it.
"""

from __future__ import annotations

from typing import Any

TOLERANCE = 1e-3
VISIBLE = 1e-2


def sampled_log_probs(output: Any, index: int = 0) -> list[float]:
    """The log-probability of every generated token of one completion."""
    completion = output.outputs[index]
    return [
        step[token].logprob for step, token in zip(completion.logprobs, completion.token_ids, strict=True)
    ]


def largest_difference(left: Any, right: Any, index: int = 0) -> tuple[float, bool]:
    """(largest difference of log-probabilities both runs report, whether a near-tie ended the comparison).

    Infinite where the tokens differ without a near-tie.
    """
    a, b = left.outputs[index], right.outputs[index]
    largest = 0.0
    for token_a, token_b, step_a, step_b in zip(
        a.token_ids, b.token_ids, a.logprobs, b.logprobs, strict=False
    ):
        common = [token for token in step_a if token in step_b]
        largest = max([largest, *(abs(step_a[t].logprob - step_b[t].logprob) for t in common)])
        if token_a != token_b:
            best, second = sorted((entry.logprob for entry in step_a.values()), reverse=True)[:2]
            return (largest, True) if best - second < TOLERANCE else (float("inf"), False)
    if len(a.token_ids) != len(b.token_ids):
        return float("inf"), False
    return largest, False


def assert_same(left: Any, right: Any, message: str = "") -> int:
    """Equal within TOLERANCE. Returns the number of near-ties (0 or 1 per completion)."""
    ties = 0
    for index in range(len(left.outputs)):
        difference, tie = largest_difference(left, right, index)
        assert difference < TOLERANCE, (
            f"{message} log-probabilities differ by {difference}: "
            f"{left.outputs[index].token_ids} and {right.outputs[index].token_ids}"
        )
        ties += tie
    return ties


def assert_all_same(left: list[Any], right: list[Any], message: str = "") -> None:
    """Pairwise `assert_same`; prints how many greedy tokens differed at a near-tie."""
    assert len(left) == len(right)
    ties = sum(
        assert_same(a, b, f"{message} [{i}]") for i, (a, b) in enumerate(zip(left, right, strict=True))
    )
    print(f"{message or 'comparison'}: {len(left)} requests, {ties} with a differing token at a near-tie")


def assert_differ(left: Any, right: Any, message: str = "") -> None:
    """Visibly different: the first generated log-probabilities that differ, differ by more than VISIBLE."""
    difference, _ = largest_difference(left, right)
    assert difference > VISIBLE, f"{message} expected a visible difference, got {difference}"


def exact(output: Any) -> list[Any]:
    """Everything reported about the completions, for comparison bit by bit."""
    return [
        (tuple(c.token_ids), [{token: entry.logprob for token, entry in step.items()} for step in c.logprobs])
        for c in output.outputs
    ]
