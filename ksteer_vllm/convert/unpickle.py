"""Read a pickle without running anything in it.

A pickle is a program: it may name any importable function and call it. Here each name is looked up in a
fixed table and nowhere else, so nothing is imported. What the table gives are stand-ins: an object of a
known class becomes a `Record` of its class name and state, a tensor is rebuilt from its bytes with its
bounds checked, and every other name ends the reading. Plain pickles and torch.save zip files.
"""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ksteer_vllm.convert.common import first_line
from ksteer_vllm.errors import ProbeError, listing

__all__ = ["Record", "names_in", "read_pickle", "tensor_of"]


class Record:
    """An object of a known class: `kind` ("module.Class") and its attributes, none of its code."""

    kind = ""
    state: dict[str, Any]

    def __new__(cls) -> Record:  # a pickle makes objects without __init__
        self = super().__new__(cls)
        self.state = {}
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state) if isinstance(state, dict) else {}


def read_pickle(path: Path, classes: Collection[str]) -> Any:
    """The object in a pickle or torch.save file; its tensors are read with `tensor_of`.

    Args:
        path: The file.
        classes: The "module.Class" names that become Records.

    Raises:
        ProbeError: For a file that cannot be read, or that names anything else.
    """
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    return _load_archive(path, archive, classes)
            file.seek(0)
            return _Unpickler(file, path, classes).load()
    except ProbeError:
        raise
    except OSError as error:
        raise ProbeError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # a damaged or hostile pickle can fail anywhere inside the loader
        reason = first_line(error)
        raise ProbeError(f"{path}: not a pickle or torch.save file that can be read: {reason}") from None


def names_in(path: Path, name: str) -> bool:
    """Whether a pickle or torch.save file mentions a module name; nothing is unpickled."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return name.encode() in archive.read(_data_entry(archive))
        with path.open("rb") as file:
            return name.encode() in file.read(1 << 20)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False


def tensor_of(path: Path, value: Any, name: str) -> Tensor:
    """The float tensor that a pickle holds somewhere.

    Args:
        path: The file, for messages.
        value: What was read there.
        name: Where, for messages.

    Raises:
        ProbeError: If it is no tensor, or one of another kind of numbers.
    """
    if not isinstance(value, Cell) or not isinstance(value.value, Tensor):
        found = value.kind if isinstance(value, Record) else type(value).__name__
        raise ProbeError(f"{path}: {name}: expected a tensor, found {found}")
    if not value.value.is_floating_point():
        raise ProbeError(f"{path}: {name}: expected a float tensor, found {value.value.dtype}")
    return value.value


class Cell:
    """A rebuilt tensor, storage or storage type: a pickle can neither call it nor set anything on it."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a tensor with attributes of its own")


class _Call(Cell):
    """One of the functions below, as a pickle may call it."""

    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        return self.value(*args)


class _Mapping(dict[Any, Any]):
    """A dict whatever mapping class was pickled; attributes set on it (`_metadata`) are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


def _mapping(items: Any = ()) -> _Mapping:
    return _Mapping(items if isinstance(items, list | dict) else ())


def _storage(data: Any) -> Cell:
    """A storage in a plain pickle: the bytes of a torch.save, read by the weights-only loader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TypedStorage is deprecated, and what torch pickles
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return Cell(torch.empty(0, dtype=storage.dtype).set_(storage.untyped()))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Cell:
    """Arguments of torch._utils._rebuild_tensor_v2; the view must lie inside the storage."""
    flat = storage.value
    if not isinstance(flat, Tensor) or len(size) != len(stride) or len(size) > 8:
        raise pickle.UnpicklingError("a tensor without a storage of its own")
    numel = 1
    for length in size:
        numel *= length
    if min([offset, *size, *stride]) < 0 or numel > flat.numel():
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} on {flat.numel()} stored values")
    return Cell(flat.as_strided(size, stride, offset).clone())  # as_strided checks the last element


def _parameter(data: Any, *_: Any) -> Any:
    if not isinstance(data, Cell):
        raise pickle.UnpicklingError("a parameter without a tensor")
    return data


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: _Mapping(),
    "builtins.dict": _mapping,
    "__builtin__.dict": _mapping,  # as Python 2 called it, in pickles of protocol 2
    "builtins.set": lambda items=(): set(items),
    "__builtin__.set": lambda items=(): set(items),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _storage,
}
_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.BoolStorage": torch.bool,
}


class _Unpickler(pickle._Unpickler):
    """Looks every name up in the table; `entry` reads the archive's storages.

    The unpickler written in Python: in the one written in C a damaged memo index allocates gigabytes.
    """

    def __init__(
        self,
        file: Any,
        path: Path,
        classes: Collection[str],
        entry: Callable[[str], bytes] | None = None,
    ) -> None:
        super().__init__(file)
        self._path, self._classes, self._entry = path, classes, entry

    def find_class(self, module: str, name: str, /) -> Any:
        full = f"{module}.{name}"
        if full in self._classes:
            return type("Record", (Record,), {"kind": full})
        if full in _FUNCTIONS:
            return _Call(_FUNCTIONS[full])
        if full in _STORAGES:
            return Cell(_STORAGES[full])
        known = dict.fromkeys(name.rpartition(".")[2] for name in self._classes)
        raise ProbeError(
            f"{self._path}: the pickle names {full[:120]!r}, which this format does not use: refused, "
            f"nothing was run; allowed: tensors, plain values, {listing(known)}"
        )

    def persistent_load(self, pid: Any, /) -> Any:
        """("storage", type, key, location, numel) of a torch.save file -> its values, one-dimensional."""
        if self._entry is None or not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("refers to data outside the pickle")
        dtype, key, numel = pid[1].value, str(pid[2]), pid[4]
        data = self._entry(key)
        if not isinstance(numel, int) or len(data) != numel * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key[:20]}: {len(data)} bytes for {numel} values")
        return Cell(torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype))


def _load_archive(path: Path, archive: zipfile.ZipFile, classes: Collection[str]) -> Any:
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ProbeError(f"{path}: a compressed archive, which torch.save does not write")
    entry = _data_entry(archive)
    prefix = entry.removesuffix("data.pkl")
    if f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") != b"little":
        raise ProbeError(f"{path}: saved on a big-endian machine; only little-endian files are read")
    data = io.BytesIO(archive.read(entry))
    return _Unpickler(data, path, classes, lambda key: archive.read(f"{prefix}data/{key}")).load()


def _data_entry(archive: zipfile.ZipFile) -> str:
    entries = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(entries) != 1:
        raise ValueError("an archive, but not one that torch.save writes (no data.pkl)")
    return entries[0]
