"""A spec an engine can run, before it is known for which request."""

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
    """An edit this engine can run, every default filled in. canonical: plain JSON types.

    digest, condition_digest: of the probes it needs, by which workers know them ("": no condition).
    """

    where: Where
    fade: int | None
    canonical: dict[str, Any]
    fingerprint: str
    digest: str
    condition_digest: str = ""
    compat: Compat | None = None

    def for_request(self, num_prompt_tokens: int, max_tokens: int | None) -> AdmittedEdit:
        """The edit at the positions of one request. Raises SpecError if a window starts beyond it."""
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
    """A spec this engine can run. is_stack: it was written as one, for the paths of refusals; preset: the
    name of the one it came from, or ""."""

    edits: tuple[RunnableEdit, ...]
    report: bool
    is_stack: bool = False
    preset: str = ""

    def for_request(self, num_prompt_tokens: int, max_tokens: int | None) -> AdmittedRequest:
        """What travels with one request.

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
    """The error of the edit at an index of a stack, under its path; None: there is no stack."""
    if index is None:
        return error
    return SpecError(f"stack.{index}.{error.field}", str(error).partition(": ")[2], error.got)
