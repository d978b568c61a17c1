"""Where an edit happens: windows over prompt and generation indices."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictInt, field_validator, model_validator

from ksteer_vllm.errors import SpecError, listing
from ksteer_vllm.spec.model import SpecModel

__all__ = ["GENERATION", "Where", "WhereClause", "Window"]

Window = tuple[int, int | None]
"""Half-open range [start, end) of indices; an end of None means no end."""

NO_END = 2**62
"""An absolute position beyond every sequence: the end of an open generation window."""


class Where(SpecModel):
    """Which token positions are steered, as windows over prompt and generation indices.

    With P prompt tokens, prompt index i is position i (0 <= i < P); generation index j is position
    P - 1 + j, the forward pass that produces generated token j. Windows are half-open, positions absolute.
    """

    prompt: Annotated[
        tuple[StrictInt, StrictInt | None] | None,
        Field(
            description="The window [start, end) of prompt indices; an end of null is the end of the prompt. "
            "Default: no prompt token."
        ),
    ] = None
    generation: Annotated[
        tuple[StrictInt, StrictInt | None] | None,
        Field(
            description="The window [start, end) of generation indices; an end of null leaves it open. "
            "Default: no generated token."
        ),
    ] = None

    @field_validator("prompt", "generation", mode="before")
    @classmethod
    def _window(cls, value: Any) -> Any:
        if value is True or value == "all":
            return (0, None)
        if value is False:
            return None
        if value is not None and not (isinstance(value, (list, tuple)) and len(value) == 2):
            raise ValueError("expected true or a window [start, end], where an end of null leaves it open")
        return value

    @field_validator("prompt", "generation")
    @classmethod
    def _not_empty(cls, window: Window | None) -> Window | None:
        if window is not None:
            start, end = window
            if start < 0:
                raise ValueError(f"a window starts at 0 or later, got start {start}")
            if end is not None:
                if end <= start:
                    raise ValueError(f"the window [{start}, {end}) is empty")
                return (start, min(end, NO_END))  # a larger number would not fit the engine's messages
        return window

    @model_validator(mode="after")
    def _some(self) -> Where:
        if self.prompt is None and self.generation is None:
            raise ValueError("selects nothing: give a prompt window, a generation window or both")
        return self

    def canonical(self) -> dict[str, list[int | None]]:
        """Plain JSON types, unused windows left out."""
        named = (("generation", self.generation), ("prompt", self.prompt))
        return {name: list(window) for name, window in named if window is not None}

    def positions(self, num_prompt_tokens: int, max_tokens: int | None) -> tuple[int, int, int, int]:
        """Where the windows of one request lie.

        Args:
            num_prompt_tokens: Length of its prompt.
            max_tokens: The most tokens it may generate, or None if that is open.

        Returns:
            Absolute half-open windows: prompt start, end, generation start, end. An unused one is (0, 0).

        Raises:
            SpecError: If a window starts beyond the request.
        """
        prompt = generation = (0, 0)
        if self.prompt is not None:
            start, end = self.prompt
            if start >= num_prompt_tokens:
                raise SpecError(
                    "where.prompt",
                    f"the window [{start}, {'end' if end is None else end}) selects nothing: "
                    f"the prompt has {num_prompt_tokens} tokens",
                    start,
                )
            prompt = (start, num_prompt_tokens if end is None else min(end, num_prompt_tokens))
        if self.generation is not None:
            start, end = self.generation
            if max_tokens is not None and start >= max_tokens:
                raise SpecError(
                    "where.generation",
                    f"the window [{start}, {'end' if end is None else end}) selects nothing: "
                    f"max_tokens is {max_tokens}",
                    start,
                )
            first = num_prompt_tokens - 1
            generation = (first + start, NO_END if end is None else min(first + end, NO_END))
        return (*prompt, *generation)


GENERATION = Where(generation=(0, None))
"""Every generated token: used where neither the edit nor its probe has a where-clause."""

_WORDS: dict[str, dict[str, Window]] = {
    "prompt": {"prompt": (0, None)},
    "generation": {"generation": (0, None)},
    "both": {"prompt": (0, None), "generation": (0, None)},
}


def _from_word(value: Any) -> Any:
    if isinstance(value, str):
        if value not in _WORDS:
            raise ValueError(f"expected {listing(_WORDS)} or an object of windows, got {value[:80]!r}")
        return _WORDS[value]
    return value


WhereClause = Annotated[Where, BeforeValidator(_from_word)]
