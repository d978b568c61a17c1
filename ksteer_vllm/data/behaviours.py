"""Behaviours in words: what a model is asked to do, how one can tell that it does, and the questions to ask.

behaviours:
  pirate:
    instruction: [Talk like a pirate., "You are a pirate. Answer as one."]
    check: pirate
  seasick: Mention the sea in every answer.    # no check: told from plain replies by its words
questions: [What makes a good breakfast?, ...]   # or a text file, one question a line; default: shipped ones
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ksteer_vllm.data.readers import Reader, reader_of
from ksteer_vllm.errors import DataError, choices, first_problem, listing

__all__ = ["Behaviour", "Behaviours", "EndpointCheck", "read_behaviours", "shipped_questions"]

Words = Annotated[str, Field(min_length=1, pattern=r"\S")]

_FOLDER = "folder"
"""In pydantic's context: the folder that a file of questions is relative to."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EndpointCheck(_Part):
    """A model behind an OpenAI-compatible endpoint says whether a reply shows the behaviour.

    Attributes:
        url: Its address, such as http://localhost:8000/v1.
        model: Its name there; None if the endpoint serves only one.
        description: What to look for; None: the behaviour's first instruction.
    """

    url: Words
    model: str | None = None
    description: str | None = None


class Behaviour(_Part):
    """One behaviour.

    Attributes:
        instruction: What asks the model for it, in one phrasing or several, which take turns.
        check: How a reply is found to show it: a reader's description (`ksteer_vllm.data.readers`), or
            `{judge: {url: ..., model: ...}}`. None: replies are compared with plain ones by their words.
        without: Other behaviours that a reply must not show beside this one to be of use.
    """

    instruction: Annotated[tuple[Words, ...], Field(min_length=1)]
    check: str | dict[str, Any] | None = None
    without: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_words(cls, value: Any) -> Any:
        """An instruction alone stands for the behaviour; one phrasing for a list of one."""
        found = {"instruction": value} if isinstance(value, str | list) else value
        if isinstance(found, Mapping) and isinstance(found.get("instruction"), str):
            return {**found, "instruction": (found["instruction"],)}
        return found

    @field_validator("check")
    @classmethod
    def _readable(cls, check: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if isinstance(check, dict) and "judge" in check:
            if len(check) != 1:
                raise ValueError(f"a judge stands alone, got {listing(check)}")
            try:
                EndpointCheck.model_validate(check["judge"])
            except ValidationError as error:
                raise ValueError(f"judge: {first_problem(error)}") from None
        elif check is not None:
            reader_of(check)
        return check

    @cached_property
    def reader(self) -> Reader | None:
        """The reader of its check; None if it has none, or an endpoint's."""
        return None if self.check is None or self.endpoint is not None else reader_of(self.check)

    @property
    def endpoint(self) -> EndpointCheck | None:
        """The endpoint that checks it, if one does."""
        if isinstance(self.check, dict) and "judge" in self.check:
            return EndpointCheck.model_validate(self.check["judge"])
        return None


def shipped_questions() -> tuple[str, ...]:
    """Short questions of everyday life that ask for no manner of answering, written for this package."""
    text = (files("ksteer_vllm") / "data" / "questions.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def _asked(value: Any, info: ValidationInfo) -> Any:
    """Questions from a text file, one a line, if a file is named."""
    if not isinstance(value, str | Path):
        return value
    path = Path((info.context or {}).get(_FOLDER, "")) / value
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return tuple(line.strip() for line in lines if line.strip())


class Behaviours(_Part):
    """The contents of a file of behaviours.

    Attributes:
        behaviours: Name -> behaviour; the names become the probe's labels.
        questions: What the model is asked; the plain questions, without an instruction.
        options: Options of `ksteer fit --behaviours`, by name; those on the command line win.
    """

    behaviours: Annotated[dict[Words, Behaviour], Field(min_length=1)]
    questions: Annotated[tuple[Words, ...], BeforeValidator(_asked), Field(min_length=1)] = Field(
        default_factory=shipped_questions
    )
    options: dict[str, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The labels, in the order of the file."""
        return tuple(self.behaviours)

    @field_validator("questions")
    @classmethod
    def _distinct(cls, questions: tuple[str, ...]) -> tuple[str, ...]:
        seen: set[str] = set()
        for question in questions:
            if question in seen:
                raise ValueError(f"asked twice: {question[:80]!r}")
            seen.add(question)
        return questions

    @model_validator(mode="after")
    def _consistent(self) -> Behaviours:
        for name, behaviour in self.behaviours.items():
            others = [other for other in self.behaviours if other != name]
            if unknown := [other for other in behaviour.without if other not in others]:
                raise ValueError(
                    f"behaviours.{name}.without: unknown {unknown[0][:80]!r}; the others are: "
                    f"{choices(unknown[0], others)}"
                )
        return self


def read_behaviours(path: str | Path) -> Behaviours:
    """Read a YAML (or JSON) file of behaviours.

    Args:
        path: The file; a file of questions that it names is looked for beside it.

    Raises:
        DataError: Naming the file and the field, what it got and what is allowed.
    """
    import yaml

    path = Path(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected `behaviours:` and what each is, got {type(found).__name__}")
    try:
        return Behaviours.model_validate(found, context={_FOLDER: path.parent})
    except ValidationError as error:
        problem = first_problem(error)
        field = problem.field.removesuffix(".[key]")
        if problem.kind == "extra_forbidden":
            kind = Behaviour if problem.path[:1] == ("behaviours",) else Behaviours
            allowed = choices(problem.path[-1], kind.model_fields)
            raise DataError(f"{path}: {field}: unknown field; allowed: {allowed}") from None
        got = "" if problem.kind in ("value_error", "missing") else f" (got {problem.got!r:.80})"
        where = f"{field}: " if field else ""
        raise DataError(f"{path}: {where}{problem.message}{got}") from None
