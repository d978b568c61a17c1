"""`ksteer verify`: does an engine steer where it is asked to, and nowhere else?"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from ksteer_vllm.cli.options import (
    Dtype,
    GpuMemory,
    MaxModelLen,
    clean_errors,
    given,
    numbers_of,
    one_process,
    quiet_vllm,
    wide_console,
)
from ksteer_vllm.errors import UsageError

__all__ = ["verify"]

RANDOM = "random"
"""Name of the probe an offline engine gets where none is given."""


def verify(
    model: Annotated[
        str,
        typer.Argument(help="A model folder or name, to start an engine with; default: the shipped model."),
    ] = "demo",
    url: Annotated[str, typer.Option(help="A running server instead, such as http://localhost:8000.")] = "",
    api_key: Annotated[
        str, typer.Option(envvar="KSTEER_API_KEY", help="Of the server, if it wants one.")
    ] = "",
    probe: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FOLDER, repeatable; default: a random probe. With --url: NAME to look at this one "
            "only, NAME=FOLDER to give the oracle a copy of it."
        ),
    ] = None,
    layers: Annotated[
        str, typer.Option(help="To look at, a,b,c; default: all that are open (offline: of the model).")
    ] = "",
    model_folder: Annotated[str, typer.Option(help="With --url: the server's weights, for the oracle.")] = "",
    oracle: Annotated[
        bool, typer.Option("--oracle/--no-oracle", help="Hold edits against transformers, if it can be done.")
    ] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything found here.")] = None,
    dtype: Dtype = "auto",
    max_model_len: MaxModelLen = None,
    gpu_memory_utilization: GpuMemory = None,
    engine: Annotated[
        str,
        typer.Option(help="Further options of vllm.LLM, as JSON, such as '{\"tensor_parallel_size\": 2}'."),
    ] = "",
) -> None:
    """Prove that steering fires where it is asked to, that plain requests are untouched, that the prefix
    cache is right. Exit status: 0 all passed, 1 a check failed, 2 it could not be run."""
    quiet_vllm()
    one_process()
    from ksteer_vllm.verify import Verification
    from ksteer_vllm.verify import verify as run
    from ksteer_vllm.verify.subject import RefusedError, Subject, UnreachableError

    console = wide_console()
    with clean_errors(), tempfile.TemporaryDirectory(prefix="ksteer-verify-") as scratch:
        folders = {name: Path(folder) for name, folder in map(_named, probe or []) if folder}
        wanted = numbers_of("layers", layers) or None
        options: dict[str, Any] = given(
            dtype=None if dtype == "auto" else dtype,
            max_model_len=max_model_len,
            gpu_memory_utilization=gpu_memory_utilization,
            **_engine_options(engine),
        )
        source: dict[str, Any] = {
            key: options[key] for key in ("revision", "trust_remote_code") if key in options
        }
        names = [_named(text)[0] for text in probe or []] or None
        subject: Subject | None = None
        found: Verification
        try:
            with console.status("verifying") as status:
                if url:
                    subject = _server(url, api_key, folders, options)
                else:
                    subject, names = _offline(model, folders, names, wanted, options, Path(scratch), source)
                found = run(
                    subject,
                    layers=wanted,
                    probes=names,
                    model_folder=model_folder or None,
                    with_oracle=oracle,
                    source=source,
                    tell=lambda text: status.update(f"verifying: {text}"),
                )
        except (UnreachableError, RefusedError) as error:
            typer.echo(f"ksteer: {error}", err=True)
            raise typer.Exit(2) from None
        finally:
            if subject is not None:
                subject.close()
        found.show(console)
        if json_file is not None:
            found.write(json_file)
    if not found.ok:
        raise typer.Exit(1)


def _named(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    return name, folder


def _engine_options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text or "{}")
    except ValueError as error:
        raise UsageError(f"engine: not valid JSON: {error}") from None
    if not isinstance(options, dict):
        raise UsageError("engine: expected a JSON object of options of vllm.LLM")
    return options


def _server(url: str, api_key: str, folders: dict[str, Path], options: dict[str, Any]) -> Any:
    from ksteer_vllm.verify.http import HTTPSubject

    if options:
        raise UsageError(f"url: a running server has its own {', '.join(options)}")
    return HTTPSubject(url, api_key or None, folders)


def _offline(
    model: str,
    folders: dict[str, Path],
    names: list[str] | None,
    layers: tuple[int, ...] | None,
    options: dict[str, Any],
    scratch: Path,
    source: dict[str, Any],
) -> tuple[Any, list[str]]:
    """(the engine, the probes it has)."""
    from ksteer_vllm.demo import ENGINE_OPTIONS, MODEL_DIR
    from ksteer_vllm.verify.offline import random_probe, start_offline

    if model == "demo":
        model, options = str(MODEL_DIR), {**ENGINE_OPTIONS, **options}
    if bare := [name for name in names or [] if name not in folders]:
        raise UsageError(f"probe: expected NAME=FOLDER, got {', '.join(bare)}")
    if not folders:
        try:
            folders = {RANDOM: random_probe(model, **source).save(scratch / RANDOM)}
        except OSError as error:
            raise UsageError(f"model: {' '.join(str(error).split())[:300]}") from None
    return start_offline(model, folders, layers or "all", **options), list(folders)
