"""`ksteer push` and `ksteer pull`: probe folders and suites on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ksteer_vllm.cli.options import clean_errors

__all__ = ["pull", "push"]

Repository = Annotated[str, typer.Argument(help="owner/name on the hub.")]


def push(
    folder: Annotated[Path, typer.Argument(help="A probe folder, or a suite.")],
    repository: Repository,
    public: Annotated[bool, typer.Option("--public", help="If the repository is made now.")] = False,
    revision: Annotated[str | None, typer.Option(help="A branch, made if need be; default: main.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    base_model: Annotated[str | None, typer.Option(help="The model's name on the hub.")] = None,
) -> None:
    """Upload a probe folder or a suite to the hub, with a model card; private unless told otherwise."""
    from ksteer_vllm.hub import transfer as hub

    with clean_errors():
        typer.echo(
            hub.push(
                folder,
                repository,
                private=not public,
                revision=revision,
                message=message,
                base_model=base_model,
            )
        )


def pull(
    repository: Repository,
    out: Annotated[Path, typer.Option(help="The folder to write; must be new or empty.")],
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit.")] = None,
    digest: Annotated[str | None, typer.Option(help="The digest the probe must have.")] = None,
) -> None:
    """Download a probe folder or a suite from the hub and check its digests; no other file is fetched."""
    from ksteer_vllm.hub import transfer as hub

    with clean_errors():
        pulled = hub.pull(repository, out, revision=revision, digest=digest)
        typer.echo(f"{pulled.folder}: {repository} at {pulled.revision}")
        for name, found in pulled.digests.items():
            typer.echo(f"  {name or '.'}: digest {found}")
