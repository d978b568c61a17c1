"""`--plugin ksteer` and the `--ksteer-*` flags of `vllm serve` (and of vLLM's other commands)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from ksteer_vllm.config import CONFIG_KEY, EngineConfig
from ksteer_vllm.errors import ConfigError, listing

__all__ = ["add_flags", "merge_flags"]

_OPTIONS = {
    "ksteer_layers": "layers",
    "ksteer_max_probes": "max_probes",
    "ksteer_max_width": "max_width",
    "ksteer_max_steps": "max_steps",
    "ksteer_max_stages": "max_stages",
    "ksteer_reports": "reports",
    "ksteer_decoder": "decoder",
    "ksteer_kernels": "kernels",
}
_NEGATED = {"ksteer-reports": "no-ksteer-reports"}


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
        help="A probe folder requests can name; repeatable. Implies --plugin ksteer.",
    )  # fmt: skip
    group.add_argument(
        "--ksteer-layers", dest="ksteer_layers", type=_option("layers"), metavar="LAYERS",
        help="Layers requests may steer: probe (those of the named probes), all, or a list such as 3,5. "
        f"Default: {defaults.layers}.",
    )  # fmt: skip
    for flag, text in (
        ("max-probes", "Most artifacts"),
        ("max-width", "Most rows of an artifact's basis, such as a probe's width"),
        ("max-steps", "Largest num_steps of a request"),
        ("max-stages", "Edits in a row at one layer of one request, conditions included"),
    ):
        name = flag.replace("-", "_")
        group.add_argument(
            f"--ksteer-{flag}", dest=f"ksteer_{name}", type=_option(name), metavar="N",
            help=f"{text}. Default: {getattr(defaults, name)}.",
        )  # fmt: skip
    group.add_argument(
        "--no-ksteer-reports", dest="ksteer_reports", action="store_const", const=False,
        help="Refuse requests that ask for a report, and keep no memory for them.",
    )  # fmt: skip
    group.add_argument(
        "--ksteer-decoder", dest="ksteer_decoder", metavar="PATH",
        help="Dotted path of the decoder stack, for a model family in which it cannot be found.",
    )  # fmt: skip
    group.add_argument(
        "--ksteer-kernels", dest="ksteer_kernels", choices=["auto", "torch", "triton"],
        help=f"Kernel path. Default: {defaults.kernels} (Triton on a GPU; on a CPU torch, and a native "
        "kernel where it can be built).",
    )  # fmt: skip
    _merge_after_parsing(parser)
    return parser


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
        return namespace, rest

    parser.parse_known_args = parse_known_args


def merge_flags(args: argparse.Namespace, additional_config: Any) -> Any:
    """`additional_config` with our flags merged in; flags win over the same key there.

    Raises ConfigError, naming the flag. Returns the value unchanged when steering is not asked for; merging
    twice changes nothing.
    """
    options = {
        key: value for dest, key in _OPTIONS.items() if (value := getattr(args, dest, None)) is not None
    }
    named = getattr(args, "ksteer_probe", None) or []
    if isinstance(additional_config, str):
        additional_config = json.loads(additional_config)
    additional = dict(additional_config or {})
    if not (getattr(args, "ksteer_plugin", None) or named or CONFIG_KEY in additional):
        if options:
            flag = next(dest for dest, key in _OPTIONS.items() if key in options).replace("_", "-")
            raise ConfigError(f"--{_NEGATED.get(flag, flag)} needs --plugin ksteer")
        return additional_config
    repeated = sorted({name for name, _ in named if [other for other, _ in named].count(name) > 1})
    if repeated:
        raise ConfigError(f"--ksteer-probe: {listing(repeated)} is given twice")
    ours = dict(additional.get(CONFIG_KEY) or {})
    ours["probes"] = {**(ours.get("probes") or {}), **dict(named)}
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


def _option(key: str) -> Callable[[str], Any]:
    """An argparse type: the flag's text as the value of an `EngineConfig` key, checked by its model."""

    def parse(text: str) -> Any:
        try:
            return getattr(EngineConfig.parse({key: text}), key)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error).partition(": ")[2]) from None

    return parse
