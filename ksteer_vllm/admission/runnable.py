"""A spec that an engine can run, not yet bound to a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ksteer_vllm.errors import SpecError
from ksteer_vllm.spec.admitted import AdmittedEdit, AdmittedRequest
from ksteer_vllm.spec.compat import Compat
from ksteer_vllm.spec.pip_compat import divisor_and_windows
from ksteer_vllm.spec.where import Where

__all__ = ["RunnableEdit", "RunnableSpec", "in_stack"]


@dataclass(frozen=True)
class RunnableEdit:
    """An edit this engine can run, with every default filled in.

    Args:
        where: Which tokens it edits.
        fade: Generated tokens over which the strength falls to 0; None for no fade.
        canonical: The edit as plain JSON types.
        fingerprint: A hash of what the edit does to a token.
        digest: The probe's, which is what workers know it by.
        condition_digest: The digest of the condition's probe; empty without a condition.
        compat: Which package's behaviour it reproduces, if any.
    """

    where: Where
    fade: int | None
    canonical: dict[str, Any]
    fingerprint: str
    digest: str
    condition_digest: str = ""
    compat: Compat | None = None

    def for_request(self, num_prompt_tokens: int, max_tokens: int | None) -> AdmittedEdit:
        """The edit at the positions of one request.

        Args:
            num_prompt_tokens: Length of its prompt.
            max_tokens: Most tokens of its reply; None: not known.

        Raises:
            SpecError: If a window starts beyond the request.
        """
        divisor = None
        if self.compat is not None:
            divisor, windows = divisor_and_windows(self.compat, num_prompt_tokens)
        else:
            windows = self.where.positions(num_prompt_tokens, max_tokens)
        return AdmittedEdit(
            self.canonical,
            self.fingerprint,
            self.digest,
            windows,
            self.condition_digest,
            None if self.fade is None else (num_prompt_tokens - 1, self.fade),
            divisor,
        )


@dataclass(frozen=True)
class RunnableSpec:
    """A spec this engine can run.

    Args:
        edits: In the order they are applied.
        report: Whether a report was asked for.
        is_stack: Whether it was written as a stack, for the paths in error messages.
        preset: The name of the preset it came from, or "".
    """

    edits: tuple[RunnableEdit, ...]
    report: bool
    is_stack: bool = False
    preset: str = ""

    def for_request(self, num_prompt_tokens: int, max_tokens: int | None) -> AdmittedRequest:
        """The record that travels with one request.

        Args:
            num_prompt_tokens: Length of its prompt.
            max_tokens: The most tokens it may generate, or None if that is open.

        Raises:
            SpecError: If a window starts beyond the request.
        """
        edits = []
        for index, edit in enumerate(self.edits):
            try:
                edits.append(edit.for_request(num_prompt_tokens, max_tokens))
            except SpecError as error:
                raise in_stack(error, index if self.is_stack else None) from None
        return AdmittedRequest(tuple(edits), self.report)


def in_stack(error: SpecError, index: int | None) -> SpecError:
    """The error with the path of the edit within its stack.

    Args:
        error: What was said of the edit.
        index: Its place in the stack; None: there is none, and the error stays as it is.
    """
    if index is None:
        return error
    return SpecError(f"stack.{index}.{error.field}", str(error).partition(": ")[2], error.got)
