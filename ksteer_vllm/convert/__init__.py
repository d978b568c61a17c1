"""Read what other steering packages save, as probes: one file per source.

| format | what is read | family |
|---|---|---|
| k-steering | the classifier pickle of withmartian/k-steering | mlp or linear |
| steering-vectors | a pickled or torch.saved SteeringVector, or its layer -> tensor mapping | vectors |
| repeng | a GGUF control vector (also llama.cpp's) | vectors |
| pyreft | a folder of LoReFT interventions | loreft |
| saelens | an SAE folder, chosen features of it | sae |

Nothing in a source is ever run: pickles go through `ksteer_vllm.convert.unpickle` or torch's weights-only
loader. Every error is a ProbeError that names
the file, what was found and what is allowed.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ksteer_vllm.convert.options import Options
from ksteer_vllm.errors import ProbeError, choices, listing

if TYPE_CHECKING:
    from ksteer_vllm.probes.probe import Probe

__all__ = ["FORMATS", "Options", "convert", "detect"]

FORMATS: dict[str, str] = {
    "k-steering": "ksteer_vllm.convert.k_steering",
    "steering-vectors": "ksteer_vllm.convert.steering_vectors",
    "repeng": "ksteer_vllm.convert.repeng",
    "pyreft": "ksteer_vllm.convert.pyreft",
    "saelens": "ksteer_vllm.convert.saelens",
}
"""name -> module with `recognises(path) -> bool` and `convert(path, options) -> Probe`."""


def convert(source: str | Path, options: Options, format: str = "auto") -> Probe:
    """Convert a file or folder of another package to a probe.

    Args:
        source: The file or folder.
        options: The model, and what the source does not say.
        format: A name in FORMATS, or "auto" to detect it from the contents.

    Returns:
        The probe; it is not saved yet.

    Raises:
        ProbeError: For a source that cannot be converted.
    """
    path = Path(source)
    if not path.exists():
        raise ProbeError(f"{path}: No such file or directory")
    name = detect(path) if format == "auto" else format
    if name not in FORMATS:
        raise ProbeError(f"format: unknown {name[:80]!r}; known: auto, {choices(name, FORMATS)}")
    if options.features and name != "saelens":
        raise ProbeError(f"features: only saelens has them; {path} is {name}")
    if options.layers and name in ("k-steering", "saelens"):
        raise ProbeError(f"layers: {path} is {name}, which has one layer; say which with --layer")
    probe: Probe = _module(name).convert(path, options)
    return probe


def detect(path: Path) -> str:
    """The format of what another package saved, by its first bytes and file names.

    Args:
        path: A file or folder.

    Returns:
        A name in FORMATS.

    Raises:
        ProbeError: If no format fits.
    """
    for name in FORMATS:
        if _module(name).recognises(path):
            return name
    raise ProbeError(f"{path}: not recognised; say what it is with --format, one of {listing(FORMATS)}")


def _module(name: str) -> ModuleType:
    return import_module(FORMATS[name])
