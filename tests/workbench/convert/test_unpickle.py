"""Pickles that would run something are refused before anything runs."""

from __future__ import annotations

import builtins
import importlib
import io
import os
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ksteer_vllm import ProbeError
from ksteer_vllm.convert import convert
from ksteer_vllm.convert.unpickle import read_pickle
from tests.workbench.convert.sources import (
    ActivationSteeringTrainer,
    MultiLabelSteeringModel,
    at_home,
    options,
)

FORMATS = ("k-steering", "steering-vectors")


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def attacks(marker: Path) -> dict[str, Any]:
    touch, write = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    nested = io.BytesIO()
    torch.save(Calls(os.system, touch), nested, _use_new_zipfile_serialization=False)
    return {
        "os.system": Calls(os.system, touch),
        "eval": Calls(builtins.eval, write),
        "exec": Calls(builtins.exec, write),
        "open": Calls(builtins.open, str(marker), "w"),
        "getattr": Calls(builtins.getattr, Calls(importlib.import_module, "os"), "system"),
        "Popen": Calls(subprocess.Popen, ["touch", str(marker)]),
        "import": Calls(importlib.import_module, "canary"),
        "hub": Calls(torch.hub.load, "owner/repository", "entry"),
        "torch.load": Calls(torch.load, str(marker)),
        "pickle.loads": Calls(pickle.loads, pickle.dumps(Calls(os.system, touch))),
        "a storage's bytes": Calls(torch.storage._load_from_bytes, nested.getvalue()),  # type: ignore[attr-defined]
        "inside a state": {"net.weight": torch.zeros(2), "net.bias": [(Calls(os.system, touch), 1)]},
        "as a key": {Calls(os.system, touch): 1},
    }


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path every attack would create, and a module `canary` that creates it on import."""
    marker = tmp_path / "ran"
    (tmp_path / "canary.py").write_text(f"open({str(marker)!r}, 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    return marker


def refuse(path: Path, marker: Path) -> str:
    messages = []
    for name in FORMATS:
        with pytest.raises(ProbeError) as refusal:
            convert(path, options(labels=("a",), layer=1), name)
        messages.append(str(refusal.value))
    assert not marker.exists(), "something ran"
    assert all(str(path) in message and "\n" not in message for message in messages)
    return messages[0]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", list(attacks(Path("x"))))
def test_a_call_is_refused(name: str, protocol: int, marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(attacks(marker)[name], protocol=protocol))
    message = refuse(path, marker)
    assert "refused, nothing was run" in message or name == "a storage's bytes"


@pytest.mark.parametrize("name", ["os.system", "eval", "import", "inside a state"])
def test_a_call_in_a_torch_file_is_refused(name: str, marker: Path, tmp_path: Path) -> None:
    torch.save(attacks(marker)[name], tmp_path / "evil.pt")
    assert "refused, nothing was run" in refuse(tmp_path / "evil.pt", marker)


def test_these_attacks_do_run_when_they_are_unpickled(marker: Path) -> None:
    """The marker works: without it the tests above could not fail."""
    assert pickle.loads(pickle.dumps(attacks(marker)["os.system"])) == 0
    assert marker.exists()


HAND_WRITTEN = {
    "INST": b"(S'touch %s'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch %s'\no.",
    "a dotted name": b"\x80\x04\x8c\x0bcollections\x8c\x15OrderedDict.__class__\x93)R.",
    "a submodule": b"ctorch\n_utils.os\n.",
    "an unknown module": b"ccanary\nThing\n)R.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a persistent id": b"Pstorage\n.",
}


@pytest.mark.parametrize("name", list(HAND_WRITTEN))
def test_other_ways_to_name_something(name: str, marker: Path, tmp_path: Path) -> None:
    path, code = tmp_path / "evil.pkl", HAND_WRITTEN[name]
    path.write_bytes(code % str(marker).encode() if b"%s" in code else code)
    refuse(path, marker)
    assert "canary" not in sys.modules


SET_ON = {
    "a function": b"ctorch._utils\n_rebuild_parameter\n",
    "a storage type": b"ctorch\nFloatStorage\n",
    "a class": b"cknown.module\nThing\n",
}


@pytest.mark.parametrize("name", list(SET_ON))
def test_attributes_cannot_be_set_on_what_the_table_gives(name: str, tmp_path: Path) -> None:
    """BUILD with (None, {attribute: value}) sets attributes on whatever lies on the stack."""
    (tmp_path / "evil.pkl").write_bytes(SET_ON[name] + b"(N(dS'value'\nI1\nstb.")
    with pytest.raises(ProbeError, match=r"not a pickle or torch\.save file that can be read"):
        read_pickle(tmp_path / "evil.pkl", ("known.module.Thing",))


def tensor_pickle(path: Path, size: tuple[int, ...], stride: tuple[int, ...], offset: int) -> Path:
    """A tensor on the storage of another, in any shape."""

    class Forged:
        def __reduce__(self) -> tuple[Any, ...]:
            storage = torch.zeros(4)._typed_storage()
            return torch._utils._rebuild_tensor_v2, (storage, offset, size, stride, False, {})

    path.write_bytes(pickle.dumps({1: Forged()}))
    return path


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((5,), (1,), 0),
        ((4,), (1,), 1),
        ((2,), (9,), 0),
        ((1,), (1,), 1 << 40),
        ((1 << 40,), (0,), 0),
        ((2,), (-1,), 3),
        ((2, 2), (1,), 0),
        ((-1,), (1,), 0),
    ],
)
def test_a_tensor_beyond_its_storage(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int, tmp_path: Path
) -> None:
    inside = read_pickle(tensor_pickle(tmp_path / "good.pkl", (2,), (2,), 1), ())
    assert inside[1].value.shape == (2,)
    with pytest.raises(ProbeError, match=r"evil\.pkl: not a pickle"):
        read_pickle(tensor_pickle(tmp_path / "evil.pkl", size, stride, offset), ())


@pytest.mark.parametrize("suffix", ["pkl", "pt"])
def test_damaged_files_are_probe_errors(suffix: str, marker: Path, tmp_path: Path) -> None:
    """Cut at 60 places and with 300 random bytes changed: a ProbeError or a probe, nothing else."""
    path = tmp_path / f"good.{suffix}"
    with at_home():
        trainer = ActivationSteeringTrainer(MultiLabelSteeringModel(12, 3))
        if suffix == "pkl":
            path.write_bytes(pickle.dumps(trainer))
        else:
            torch.save(trainer.classifier, path)
    good, chance, refused = path.read_bytes(), random.Random(0), 0
    chosen = options(labels=("a", "b", "c"), layer=1)
    convert(path, chosen, "k-steering")
    damaged = [good[: len(good) * part // 60] for part in range(60)]
    for _ in range(300):
        changed = bytearray(good)
        changed[chance.randrange(len(good))] = chance.randrange(256)
        damaged.append(bytes(changed))
    for data in damaged:
        path.write_bytes(data)
        try:
            convert(path, chosen, "k-steering")
        except ProbeError:
            refused += 1
    assert refused > 100
    assert not marker.exists()


def test_archives_that_torch_does_not_write(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good:
        entries = {name: good.read(name) for name in good.namelist()}

    def written(change: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
        with zipfile.ZipFile(tmp_path / "bad.pt", "w", compression) as bad:
            for name, data in {**entries, **change}.items():
                bad.writestr(name, data)
        return tmp_path / "bad.pt"

    assert read_pickle(written({}), ())["a"].value.tolist() == [0, 0]
    for change, words in (
        ({"good/data/0": b"\0" * 4}, "4 bytes for 2 values"),
        ({"good/byteorder": b"big"}, "big-endian"),
        ({"other/data.pkl": b"."}, "no data.pkl"),
        ({"good/data.pkl": b""}, "not a pickle"),
    ):
        with pytest.raises(ProbeError, match=words):
            read_pickle(written(change), ())
    with pytest.raises(ProbeError, match="compressed"):
        read_pickle(written({}, zipfile.ZIP_DEFLATED), ())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"absent\.pkl: No such file"):
        convert(tmp_path / "absent.pkl", options())
