"""A text file as text: UTF-8, what a byte order mark says, or an encoding that was named."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Final

from ksteer_vllm.errors import DataError

__all__ = ["read_text"]

_MARKS: Final = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(path: Path, encoding: str | None = None) -> str:
    """The text of a file, its line ends as they are.

    Args:
        path: The file.
        encoding: As Python names them; None: UTF-8, or UTF-16 where the file begins with its mark.

    Raises:
        DataError: For a file that cannot be read or decoded, naming the line; an encoding is never guessed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    marked = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    chosen = encoding or marked
    try:
        return data.decode(chosen).removeprefix("\ufeff")
    except LookupError:
        raise DataError(
            f"encoding: unknown {chosen[:40]!r}; such as utf-8, cp1252, latin-1, utf-16"
        ) from None
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start : error.start + 1].hex()
        raise DataError(
            f"{path}: line {line}: byte 0x{byte} cannot be decoded as {chosen}; save the file as UTF-8, "
            "or say how it is written (--encoding cp1252 for most files of Windows and Excel)"
        ) from None
