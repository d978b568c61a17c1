"""`ksteer server`: manage the probes of running servers, alike on every replica of a deployment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ksteer_vllm.cli.from_models import command
from ksteer_vllm.cli.options import wide_console
from ksteer_vllm.errors import UsageError

if TYPE_CHECKING:
    from ksteer_vllm.server.replicas import Keys, Outcome, Replica

__all__ = ["server"]

server = typer.Typer(
    help="Manage the probes of running servers, on every replica.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Urls = Annotated[
    list[str],
    typer.Option("--url", help="The address of a replica, such as http://replica-0:8000; may be repeated."),
]
AllAddresses = Annotated[
    bool,
    typer.Option("--all-addresses", help="Use every address that the host name of each --url resolves to."),
]
ApiKeyFile = Annotated[Path | None, typer.Option(help="A file that holds the servers' --api-key.")]
AdminKeyFile = Annotated[
    Path | None, typer.Option(help="A file that holds the servers' admin key (--ksteer-admin-key-file).")
]
Name = Annotated[str, typer.Argument(help="The probe's name in requests.")]


@server.command("list")
@command
def list_probes(
    url: Urls,
    all_addresses: AllAddresses = False,
    api_key_file: ApiKeyFile = None,
) -> None:
    """Show which probes each replica has.

    The exit status is 1 if the replicas differ or any does not answer.
    """
    from ksteer_vllm.server import replicas

    outcomes = replicas.list_all(_replicas(url, all_addresses), _keys(api_key_file, None))
    rows = []
    for outcome in outcomes:
        probes = ", ".join(f"{name} ({digest[:12]})" for name, digest in sorted(outcome.probes.items()))
        shown = f"{probes or 'no probes'}; presets: {', '.join(outcome.presets) or 'none'}"
        rows.append((outcome, shown if outcome.done else outcome.detail))
    _show(rows)
    alike = len({(tuple(sorted(o.probes.items())), o.presets) for o in outcomes if o.done}) <= 1
    if not alike:
        typer.echo("the replicas differ", err=True)
    if not alike or not all(outcome.done for outcome in outcomes):
        raise typer.Exit(1)


@server.command()
@command
def load(
    name: Name,
    folder: Annotated[str, typer.Argument(help="Name of a folder in the servers' --ksteer-probe-dir.")],
    url: Urls,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the loaded probe of this name.")
    ] = False,
    digest: Annotated[str | None, typer.Option(help="The digest the folder's probe must have.")] = None,
    all_addresses: AllAddresses = False,
    api_key_file: ApiKeyFile = None,
    admin_key_file: AdminKeyFile = None,
) -> None:
    """Load a probe on every replica.

    If any replica fails to load it, the exit status is 1; a table shows the outcome of each.
    """
    from ksteer_vllm.server import replicas

    keys = _keys(api_key_file, admin_key_file)
    _finish(replicas.load(_replicas(url, all_addresses), keys, name, folder, digest=digest, replace=replace))


@server.command()
@command
def retire(
    name: Name,
    url: Urls,
    all_addresses: AllAddresses = False,
    api_key_file: ApiKeyFile = None,
    admin_key_file: AdminKeyFile = None,
) -> None:
    """Retire a probe on every replica.

    If any replica fails to retire it, the exit status is 1; a table shows the outcome of each.
    """
    from ksteer_vllm.server import replicas

    keys = _keys(api_key_file, admin_key_file)
    outcomes = replicas.retire(_replicas(url, all_addresses), keys, name)
    if all(outcome.state == "had none" for outcome in outcomes):
        raise UsageError(f"no replica has a probe named {name!r}")
    _finish(outcomes)


def _replicas(urls: Sequence[str], all_addresses: bool) -> list[Replica]:
    from ksteer_vllm.server.replicas import every_address, replica_of

    named = [replica_of(url) for url in urls]
    found = [one for replica in named for one in every_address(replica)] if all_addresses else named
    return list(dict.fromkeys(found))


def _keys(api: Path | None, admin: Path | None) -> Keys:
    from ksteer_vllm.server.replicas import Keys

    return Keys(*(_key(path) if path is not None else "" for path in (api, admin)))


def _key(path: Path) -> str:
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not key or not (key.isascii() and key.isprintable()):
        raise UsageError(f"{path}: expected one line of printable characters")
    return key


def _finish(outcomes: Sequence[Outcome]) -> None:
    """Show the outcome of each replica, and exit with status 1 unless all succeeded."""
    _show([(outcome, outcome.detail) for outcome in outcomes])
    missing = [outcome for outcome in outcomes if not outcome.done]
    if not missing:
        return
    changed = len(outcomes) - len(missing)
    if changed:
        typer.echo(f"{changed} of {len(outcomes)} replicas changed and stay so; not: ", err=True, nl=False)
        typer.echo(", ".join(outcome.replica.url for outcome in missing), err=True)
        typer.echo("resolve what is said above and run it again (a load with --replace)", err=True)
    else:
        typer.echo("nothing was changed", err=True)
    raise typer.Exit(1)


def _show(rows: Sequence[tuple[Outcome, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("replica", "state", "")
    for outcome, detail in rows:
        table.add_row(*map(Text, (outcome.replica.url, outcome.state, detail)))  # no markup: servers say it
    wide_console().print(table)
