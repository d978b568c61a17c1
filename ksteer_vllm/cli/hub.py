"""`ksteer push` and `ksteer pull`: probe folders and suites on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ksteer_vllm.cli.from_models import command

__all__ = ["pull", "push"]

Repository = Annotated[str, typer.Argument(help="The repository's name on the hub, owner/name.")]


@command
def push(
    folder: Annotated[Path, typer.Argument(help="A probe folder, or a suite.")],
    repository: Repository,
    public: Annotated[bool, typer.Option("--public", help="Make a newly created repository public.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="The branch to push to, created if necessary; default: main.")
    ] = None,
    message: Annotated[
        str | None, typer.Option(help="The commit message; default: the names of the probes.")
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(help="The model's name on the hub, if the probes were fitted on a local folder."),
    ] = None,
) -> None:
    """Upload a probe folder or a suite to the hub.

    A model card is added. A newly created repository is private, unless --public is given.
    """
    from ksteer_vllm.hub import transfer

    address = transfer.push(
        folder,
        repository,
        private=not public,
        revision=revision,
        message=message,
        base_model=base_model,
    )
    typer.echo(address)


@command
def pull(
    repository: Repository,
    out: Annotated[Path, typer.Option(help="The folder to write; it must be new or empty.")],
    revision: Annotated[str | None, typer.Option(help="A branch, a tag or a commit; default: main.")] = None,
    digest: Annotated[str | None, typer.Option(help="The digest the probe must have.")] = None,
) -> None:
    """Download a probe folder or a suite from the hub.

    Digests are checked. Only files that belong to probes and suites are downloaded.
    """
    from ksteer_vllm.hub import transfer

    pulled = transfer.pull(repository, out, revision=revision, digest=digest)
    typer.echo(f"{pulled.folder}: {repository} at {pulled.revision}")
    for name, found in pulled.digests.items():
        typer.echo(f"  {name or '.'}: digest {found}")
