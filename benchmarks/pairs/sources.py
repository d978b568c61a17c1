"""Which model and dictionary: the hub's where it can be reached, else the shipped one and our own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress

from benchmarks.pairs.dictionary import Dictionary, DictionaryPlan, train_dictionary
from benchmarks.pairs.environment import Environment
from benchmarks.pairs.scenes import scenes_environment
from benchmarks.pairs.tones import tones_environment
from ksteer_vllm.bench.engines import model_of
from ksteer_vllm.convert import Options, convert
from ksteer_vllm.fit.activations import collect_activations
from ksteer_vllm.fit.stream import Stream

__all__ = ["dictionary_of", "open_environment"]

HUB_MODEL = "openai-community/gpt2"
HUB_DICTIONARY = ("jbloom/GPT2-Small-SAEs-Reformatted", "blocks.9.hook_resid_pre")
"""Repository and folder; it reads the output of block 8. Trained with TransformerLens on a centred residual
stream, on texts that begin with <|endoftext|>."""

START = "<|endoftext|>"


def open_environment(
    name: str,
    model: str,
    dictionary: Path | None,
    centred: bool,
    sizes: Mapping[str, Any],
    console: Console,
) -> tuple[Environment, Path | None, bool]:
    """The environment, the folder of its dictionary (None: to be trained), and whether that is a centred one.

    name: tones, scenes, or auto: scenes if the hub's GPT-2 and dictionary can be had. model, dictionary: of
    scenes; "" and None: the hub's, which is centred. sizes: further arguments of the environment. Raises
    typer.BadParameter for scenes without a dictionary.
    """
    if name == "tones":
        return tones_environment(**sizes), None, False
    if dictionary is None:
        try:
            dictionary, centred = _download(), True
        except Exception as error:  # a network can fail in any way
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            if name == "scenes":
                message = f"{HUB_DICTIONARY[0]}: {reason}; give --model and --dictionary"
                raise typer.BadParameter(message) from None
            console.print(
                f"no hub ({reason}): the shipped model, and a dictionary trained here", markup=False
            )
            return tones_environment(**sizes), None, False
    source = model or HUB_MODEL
    read = convert(dictionary, Options(model=model_of(source), features=(0,)), "saelens").metadata.layer
    return scenes_environment(source, layer=read - 1, start=START, **sizes), dictionary, centred


def _download() -> Path:
    """The hub's dictionary, and the model's configuration to know that it can be had, too."""
    from huggingface_hub import HfApi, hf_hub_download

    HfApi().model_info(HUB_MODEL, timeout=10)
    repository, folder = HUB_DICTIONARY
    files = [
        hf_hub_download(repository, f"{folder}/{name}") for name in ("cfg.json", "sae_weights.safetensors")
    ]
    return Path(files[0]).parent


def dictionary_of(
    environment: Environment,
    folder: Path | None,
    centred: bool,
    plan: DictionaryPlan,
    scratch: Path,
    progress: Progress,
) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary that reads the block above the steered one, and what is known of it.

    Trained on every reply position of the examples, with contexts and without, if there is none yet.
    """
    identity = model_of(environment.model, environment.engine_options)
    layer = environment.layer + 1
    about: dict[str, Any] = {"layer": layer}
    if folder is None:
        folder = scratch / "dictionary"
        rows = environment.rows(context=True) + environment.rows(context=False)
        found = collect_activations(
            environment.model, rows, [layer], engine_options=environment.engine_options, progress=progress
        )
        x = Stream.of(found.streams[layer]).tensor()
        about["training"] = train_dictionary(x, layer, identity.name, folder, plan, progress)
    else:
        about |= {"folder": folder.name, "centred": centred}
    dictionary = Dictionary.load(folder, identity, centred=centred)
    return dictionary, {**about, "features": len(dictionary.w_enc)}
