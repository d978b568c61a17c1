"""vLLM's own parser of `vllm serve`, in this process; imports vLLM when first used."""

from __future__ import annotations

import functools
import importlib
from typing import Any

from ksteer_vllm.demo import MODEL_DIR

_PARSER_MODULES = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")


@functools.cache
def serve_parser() -> Any:
    """The parser of `vllm serve`, with the flags every general plugin has added."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for name in _PARSER_MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        return module.make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    raise ModuleNotFoundError(" or ".join(_PARSER_MODULES))


def serve_flags() -> set[str]:
    """Every option string `vllm serve` knows."""
    return set(serve_parser()._option_string_actions)


def engine_additional_config(*arguments: str) -> Any:
    """`additional_config` of the engine that `vllm serve MODEL ARGUMENTS` would start.

    MODEL is a folder that exists: where the hub is offline, vLLM looks any other name up at once.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    parsed = serve_parser().parse_args([str(MODEL_DIR), *arguments])  # making the parser loads the plugins
    parsed.model = parsed.model_tag  # as the serve command does
    return AsyncEngineArgs.from_cli_args(parsed).additional_config
