"""Data sets of the Hugging Face hub as records, column -> cell."""

from __future__ import annotations

from typing import Any

from ksteer_vllm.errors import DataError, UsageError

__all__ = ["HubError", "hub_records", "load_split"]


class HubError(DataError):
    """A data set that cannot be loaded. reason: why, without the remedy."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}; {remedy}")


def hub_records(name: str, split: str = "train") -> list[dict[str, Any]]:
    """The rows of one split of owner/name, or of a local folder that `datasets` can load.

    Class indices become class names.

    Args:
        name: owner/name, or the folder.
        split: Name of the split.

    Raises:
        HubError: For a data set that does not exist, or a hub that cannot be reached.
        DataError: For an unknown split.
        UsageError: Without the package `datasets`.
    """
    found = load_split(name, split)
    names = {column: f.names for column, f in found.features.items() if getattr(f, "names", None)}
    return [
        {column: _class_name(names.get(column), cell) for column, cell in row.items()}
        for row in found.to_list()
    ]


def load_split(name: str, split: str) -> Any:
    """The split as a `datasets.Dataset`. Raises as `hub_records`."""
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError
    except ImportError:
        raise UsageError(
            "data of the hub needs the package datasets: pip install 'ksteer-vllm[workbench]'"
        ) from None
    try:
        return load_dataset(name, split=split)
    except (FileNotFoundError, DatasetNotFoundError) as error:
        raise HubError(
            f"hub: no data set {name[:120]!r} ({_first_line(error)})",
            "names are owner/name, and a private one needs a token (HF_TOKEN)",
        ) from None
    except OSError as error:
        raise HubError(
            f"hub: {name[:120]!r} cannot be loaded ({_first_line(error)})",
            "without the hub, give a local file (.jsonl, .json, .csv)",
        ) from None
    except ValueError as error:
        remedy = "; name one it has (--split)" if "split" in _first_line(error) else ""
        raise DataError(f"hub: {name[:120]!r}, split {split[:40]!r}: {_first_line(error)}{remedy}") from None


def _class_name(names: list[str] | None, cell: Any) -> Any:
    return names[cell] if names is not None and isinstance(cell, int) and 0 <= cell < len(names) else cell


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
