"""Shell blocks as commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell block: no comments, split at newlines, `;`, `|` and `&&`."""
    joined = re.sub(r"(^|\s)#\s.*$", "", text.replace("\\\n", " "), flags=re.MULTILINE)
    lexer = shlex.shlex(joined, posix=True, punctuation_chars=";|&\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
    command: list[str] = []
    for token in lexer:
        if not token.strip(";|&\n"):
            if command:
                yield command
            command = []
        else:
            command.append(token)
    if command:
        yield command


def option(command: list[str], name: str) -> str | None:
    """The value after an option; None if the command does not have it."""
    return command[command.index(name) + 1] if name in command else None
