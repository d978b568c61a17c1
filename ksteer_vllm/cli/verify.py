"""`ksteer verify`: does an engine steer where it is asked to, and nowhere else?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field

from ksteer_vllm.cli.from_models import From, command
from ksteer_vllm.cli.options import Engine, json_object, one_process, quiet_vllm, wide_console
from ksteer_vllm.errors import UsageError

__all__ = ["verify"]

RANDOM = "random"
"""Name of the random probe that an offline engine steers with if no probe is given."""


class Scope(BaseModel):
    """How much is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(description="Layers to check; default: all that the engine may steer."),
    ] = ()
    oracle: Annotated[bool, Field(description="Compare edits with transformers, where possible.")] = True


@command
def verify(
    scope: Annotated[Scope, From(Scope)],
    started: Engine,
    model: Annotated[
        str,
        typer.Argument(
            help="The model to start an engine with, a folder or a name; default: the demo model."
        ),
    ] = "demo",
    url: Annotated[
        str, typer.Option(help="A running server to verify instead, such as http://localhost:8000.")
    ] = "",
    api_key: Annotated[
        str, typer.Option(envvar="KSTEER_API_KEY", help="The server's API key, if it requires one.")
    ] = "",
    probe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="A probe to steer with; may be repeated; default: a random one. With --url: NAME alone "
            "checks this probe only, and NAME=FOLDER also gives the comparison a copy of it.",
        ),
    ] = None,
    model_folder: Annotated[
        str, typer.Option(help="With --url: the model's folder, to compare edits with transformers.")
    ] = "",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all findings to this file, as JSON.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="JSON", help="Further options of vllm.LLM, such as '{\"tensor_parallel_size\": 2}'."
        ),
    ] = "",
) -> None:
    """Check that steering fires where asked, and nowhere else.

    Unsteered requests must be untouched, and the prefix cache must keep steered text apart. The exit status
    is 0 if all checks pass, 1 if any fails, and 2 if they could not be run.
    """
    quiet_vllm()
    one_process()
    from ksteer_vllm.verify import Verification
    from ksteer_vllm.verify import verify as run
    from ksteer_vllm.verify.subject import Subject

    console = wide_console()
    with tempfile.TemporaryDirectory(prefix="ksteer-verify-") as scratch:
        folders = {name: Path(folder) for name, folder in map(_named, probe or []) if folder}
        wanted = scope.layers or None
        options: dict[str, Any] = {
            **started.arguments(),
            **json_object("engine", engine, "options of vllm.LLM"),
        }
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
                    with_oracle=scope.oracle,
                    source=source,
                    tell=lambda text: status.update(f"verifying: {text}"),
                )
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
