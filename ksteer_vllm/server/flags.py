"""`--plugin ksteer` and the `--ksteer-*` flags of `vllm serve` (and of vLLM's other commands)."""

from __future__ import annotations

import argparse
import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from ksteer_vllm.config import CONFIG_KEY, EngineConfig
from ksteer_vllm.errors import ConfigError, listing
from ksteer_vllm.server.command import end_in_one_line
from ksteer_vllm.spec.presets import read_presets

__all__ = ["add_flags", "merge_flags", "read_admin_key"]

_LIMITS = (
    "max_probes", "max_width", "max_steps", "max_stages", "max_stack", "max_request_layers", "max_spec_bytes",
    "max_presets", "max_slots", "max_labels",
)  # fmt: skip
_OPTIONS = {
    "ksteer_layers": "layers",
    **{f"ksteer_{name}": name for name in _LIMITS},
    "ksteer_default": "default",
    "ksteer_reports": "reports",
    "ksteer_sample_reports": "sample_reports",
    "ksteer_decoder": "decoder",
    "ksteer_kernels": "kernels",
}
_ALSO_NEED_THE_PLUGIN = ("ksteer_presets", "ksteer_probe_dir", "ksteer_admin_key_file", "ksteer_page")
_NEGATED = {"ksteer-reports": "no-ksteer-reports", "ksteer-page": "no-ksteer-page"}


def add_flags(parser: Any) -> Any:
    """Add our arguments to vLLM's parser; each has its own dest, so vLLM's own arguments are untouched."""
    if any(action.dest == "ksteer_plugin" for action in parser._actions):
        return parser
    defaults = EngineConfig()
    group = parser.add_argument_group("ksteer", "Gradient-based activation steering, per request.")
    group.add_argument(
        "--plugin", dest="ksteer_plugin", action="append", metavar="NAME", choices=["ksteer"],
        help="Turn a plugin on: `ksteer` enables per-request steering.",
    )  # fmt: skip
    group.add_argument(
        "--ksteer-probe", dest="ksteer_probe", action="append", type=_named_folder, metavar="NAME=FOLDER",
        help="A probe folder that requests can name. Repeatable; implies --plugin ksteer.",
    )  # fmt: skip
    group.add_argument(
        "--ksteer-layers", dest="ksteer_layers", type=_option("layers"), metavar="LAYERS",
        help=f"{_meaning('layers')[:-1]} such as 3,5. Default: {defaults.layers}.",
    )  # fmt: skip
    group.add_argument(
        "--ksteer-presets", dest="ksteer_presets", type=_presets_file, metavar="FILE",
        help="A YAML file of presets, name: spec. Requests name one as the model BASE:NAME or in the body.",
    )  # fmt: skip
    group.add_argument(
        "--ksteer-default", dest="ksteer_default", metavar="NAME",
        help="The preset applied to requests that do not mention steering. Default: none.",
    )  # fmt: skip
    group.add_argument(
        "--ksteer-probe-dir", dest="ksteer_probe_dir", action="append", type=_directory, metavar="DIR",
        help="A directory whose folders may be loaded as probes while serving. Repeatable. Without one, and "
        "without an admin key, nothing can be changed over HTTP.",
    )  # fmt: skip
    group.add_argument(
        "--ksteer-admin-key-file", dest="ksteer_admin_key_file", type=_key_file, metavar="FILE",
        help="A file with the key that requests to change probes or presets must send as X-KSteer-Admin-Key.",
    )  # fmt: skip
    for name in _LIMITS:
        group.add_argument(
            f"--ksteer-{name.replace('_', '-')}", dest=f"ksteer_{name}", type=_option(name), metavar="N",
            help=f"{_meaning(name)} Default: {getattr(defaults, name)}.",
        )  # fmt: skip
    group.add_argument(
        "--no-ksteer-reports", dest="ksteer_reports", action="store_const", const=False,
        help="Refuse requests that ask for a report, and reserve no memory for reports.",
    )  # fmt: skip
    group.add_argument(
        "--ksteer-sample-reports", dest="ksteer_sample_reports", type=_option("sample_reports"),
        metavar="SHARE",
        help=f"{_meaning('sample_reports')} Default: {defaults.sample_reports:g}.",
    )  # fmt: skip
    group.add_argument(
        "--no-ksteer-page", dest="ksteer_page", action="store_const", const=False,
        help="Do not serve the page at /ksteer/.",
    )  # fmt: skip
    group.add_argument(
        "--ksteer-decoder", dest="ksteer_decoder", metavar="PATH",
        help=_meaning("decoder"),
    )  # fmt: skip
    group.add_argument(
        "--ksteer-kernels", dest="ksteer_kernels", choices=["auto", "torch", "triton"],
        help=f"{_meaning('kernels')} Default: {defaults.kernels}.",
    )  # fmt: skip
    _merge_after_parsing(parser)
    return parser


def _meaning(key: str) -> str:
    """The description of an `EngineConfig` key: whole sentences."""
    return str(EngineConfig.model_fields[key].description)


def _merge_after_parsing(parser: Any) -> None:
    """Have the parser leave the merged configuration in the arguments themselves: `vllm serve` hands them to
    further API servers, in processes that read them before any plugin is loaded there."""
    parse = parser.parse_known_args

    def parse_known_args(*args: Any, **kwargs: Any) -> Any:
        namespace, rest = parse(*args, **kwargs)
        given = getattr(namespace, "additional_config", None)
        try:
            merged = merge_flags(namespace, given)
        except ConfigError as error:
            parser.error(str(error))
        if merged is not given:
            namespace.additional_config = merged
        if CONFIG_KEY in (merged or {}):
            namespace.ksteer_shared_folder = _shared_folder()
            end_in_one_line(namespace)
        return namespace, rest

    parser.parse_known_args = parse_known_args


@cache
def _shared_folder() -> str:
    """Where the API servers of this `vllm serve` keep what they share; the first that needs it creates it."""
    folder = Path(tempfile.gettempdir(), f"ksteer-{uuid4().hex}")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(folder)


def merge_flags(args: argparse.Namespace, additional_config: Any) -> Any:
    """Merge our flags into `additional_config`. Merging twice changes nothing.

    Args:
        args: The parsed command line.
        additional_config: vLLM's, a mapping or JSON text; a flag wins over the same key there.

    Returns:
        The merged mapping, or `additional_config` unchanged if steering is not asked for.

    Raises:
        ConfigError: If a flag cannot be used; names it.
    """
    options = {
        key: value for dest, key in _OPTIONS.items() if (value := getattr(args, dest, None)) is not None
    }
    named = getattr(args, "ksteer_probe", None) or []
    if isinstance(additional_config, str):
        additional_config = json.loads(additional_config)
    additional = dict(additional_config or {})
    if not (getattr(args, "ksteer_plugin", None) or named or CONFIG_KEY in additional):
        given = [dest for dest, key in _OPTIONS.items() if key in options]
        given += [dest for dest in _ALSO_NEED_THE_PLUGIN if getattr(args, dest, None) is not None]
        if given:
            flag = given[0].replace("_", "-")
            raise ConfigError(f"--{_NEGATED.get(flag, flag)} needs --plugin ksteer")
        return additional_config
    repeated = sorted({name for name, _ in named if [other for other, _ in named].count(name) > 1})
    if repeated:
        raise ConfigError(f"--ksteer-probe: {listing(repeated)} is given twice")
    ours = dict(additional.get(CONFIG_KEY) or {})
    ours["probes"] = {**(ours.get("probes") or {}), **dict(named)}
    if (presets := getattr(args, "ksteer_presets", None)) is not None:
        ours["presets"] = {**(ours.get("presets") or {}), **presets}
    if directories := getattr(args, "ksteer_probe_dir", None):
        ours["probe_dirs"] = list(dict.fromkeys([*(ours.get("probe_dirs") or ()), *directories]))
    try:
        additional[CONFIG_KEY] = EngineConfig.parse({**ours, **options}).as_json()
    except ConfigError as error:
        raise ConfigError(f"{error} (see the --ksteer-* flags and --additional-config)") from None
    return additional


def _named_folder(value: str) -> tuple[str, str]:
    name, _, folder = value.partition("=")
    if not (name and folder):
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, got {value!r}")
    return name, folder


def _presets_file(value: str) -> dict[str, dict[str, Any]]:
    try:
        return read_presets(value)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from None


def _directory(value: str) -> str:
    """The real path of a directory that exists."""
    folder = Path(value)
    if not folder.is_dir():
        raise argparse.ArgumentTypeError(f"not a directory: {value!r}")
    return str(folder.resolve())


def _key_file(value: str) -> str:
    """The path of a file with a key in it; the key itself stays out of the arguments, which are logged."""
    try:
        read_admin_key(value)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return str(Path(value).resolve())


def read_admin_key(file: str) -> str:
    """Read the admin key.

    Args:
        file: A UTF-8 text file.

    Returns:
        Its contents, without surrounding white space.

    Raises:
        ConfigError: If the file cannot be read or is empty.
    """
    try:
        key = Path(file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from None
    if not key:
        raise ConfigError(f"{file} is empty")
    return key


def _option(key: str) -> Callable[[str], Any]:
    """An argparse type: the flag's text as the value of an `EngineConfig` key, checked by its model."""

    def parse(text: str) -> Any:
        try:
            return getattr(EngineConfig.parse({key: text}), key)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from None

    return parse
