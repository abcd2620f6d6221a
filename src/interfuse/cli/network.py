"""Commands of runs between parties."""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from interfuse import api
from interfuse.cli.configuration import configure, listed
from interfuse.cli.listings import show_result, table
from interfuse.cli.options import AFTER, HOW, Json, Quiet, RunArgument
from interfuse.errors import ConfigError
from interfuse.report.progress import shown

SECURITY = "Keys"
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure", help="Without TLS: everybody on the way reads and changes all.", rich_help_panel=SECURITY
    ),
]


def _needs_grpc() -> None:
    """Say what to install where the extra is missing, and keep gRPC's own log lines out of ours.

    Raises:
        ConfigError: it is.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for module in ("grpc", "grpc_health", "cryptography", "prometheus_client"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"runs between parties need {module}: pip install 'interfuse[grpc]'")


def keys(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False)],
    nodes: Annotated[str, typer.Option(metavar="NAME,...", help="Names of the nodes.", show_default=False)],
    hosts: Annotated[
        str, typer.Option("--hosts", metavar="HOST,...", help="Under which names nodes reach the coordinator.")
    ] = "localhost,127.0.0.1",
) -> None:
    """Make keys for a trial in FOLDER: an authority, a coordinator's, one for each node. What is there stays.

    FOLDER/coordinator goes to the coordinator, FOLDER/NAME to the node of that name, ca.key nowhere.
    """
    _needs_grpc()
    from interfuse.engines.grpc import make_keys

    for path in make_keys(folder, listed(nodes) or [], listed(hosts) or []):
        typer.echo(f"made {path}")


def node(
    vendor: Annotated[Path, typer.Argument(metavar="VENDOR.toml", show_default=False)],
    dry: Annotated[
        Path | None,
        typer.Option(
            "--dry-run",
            metavar="FOLDER",
            help="Play a round here, and write every message that would leave to FOLDER.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="METHOD|RECIPE", help="What --dry-run plays (default: the first allowed method).")
    ] = "",
    patience: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Give up after so long without a coordinator (default: never).", rich_help_panel=HOW
        ),
    ] = None,
    insecure: Insecure = False,
    quiet: Quiet = False,
) -> None:
    """Take part in a federation with the data and the model that VENDOR.toml names, and within its limits."""
    _needs_grpc()
    from interfuse.coordination import dry_run
    from interfuse.engines.grpc import dial
    from interfuse.engines.parties.logs import Events
    from interfuse.engines.parties.node import Node
    from interfuse.engines.parties.participation import take_part
    from interfuse.engines.parties.vendor import read_vendor

    given = read_vendor(vendor)
    say = (lambda text: None) if quiet else (lambda text: typer.echo(text, err=True))
    if dry is not None:
        config = configure(recipe or given.allow.methods[0], {})
        for file in dry_run(given, config, dry, say):
            typer.echo(file)
        return
    if insecure:
        _warn()
    events = Events(given.state_folder / "node.jsonl", say)
    taking_part = Node(given, events)
    try:
        end = take_part(taking_part, partial(dial, given, insecure=insecure), patience=patience)
        typer.echo(f"{given.name}: {end}", err=True)
    finally:
        taking_part.close()
        events.close()


def coordinate(
    recipe: Annotated[str, typer.Argument(metavar="METHOD|RECIPE", show_default=False)],
    nodes: Annotated[int, typer.Option(metavar="N", help="How many nodes begin.", show_default=False)],
    minimum: Annotated[
        int | None,
        typer.Option(metavar="N", help="Go on while so many remain (default: all).", rich_help_panel=HOW),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where nodes reach the coordinator.", rich_help_panel=HOW)
    ] = "127.0.0.1:8443",
    classes: Annotated[
        int | None,
        typer.Option(metavar="N", help="Classes, where there is no public test set.", rich_help_panel=HOW),
    ] = None,
    back: Annotated[
        float, typer.Option("--back", metavar="SECONDS", help="Wait so long for a lost node.", rich_help_panel=HOW)
    ] = 60.0,
    answer: Annotated[
        float, typer.Option("--answer", metavar="SECONDS", help="Wait so long for an answer.", rich_help_panel=HOW)
    ] = 600.0,
    largest: Annotated[
        int, typer.Option("--largest", metavar="BYTES", help="Of a message from a node.", rich_help_panel=HOW)
    ] = 1 << 30,
    commit_every: Annotated[
        int | None,
        typer.Option(metavar="K", help="Commit every K rounds (default: every 30 seconds).", rich_help_panel=HOW),
    ] = None,
    key_folder: Annotated[
        Path | None,
        typer.Option(
            "--keys", metavar="FOLDER", help="The folder `coordinator` of `interfuse keys`.", rich_help_panel=SECURITY
        ),
    ] = None,
    insecure: Insecure = False,
    metrics: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Answer Prometheus there.", rich_help_panel=AFTER)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Run folder; the same command goes on with one.", rich_help_panel=AFTER),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Wait for N nodes, carry a recipe out with them, and write its folder and report."""
    _needs_grpc()
    from interfuse.coordination import Terms
    from interfuse.coordination import coordinate as carry_out
    from interfuse.engines.grpc import Listener
    from interfuse.engines.parties.remote import Patience

    config = configure(recipe, {"execution": {"commit_rounds": commit_every}})
    if (key_folder is None) != insecure:
        raise ConfigError("either --keys FOLDER (`interfuse keys` makes one), or --insecure")
    if insecure:
        _warn()
    terms = Terms(Listener(listen, key_folder), nodes, minimum, classes, Patience(back, answer), largest, metrics)
    with shown(quiet) as progress:
        result = carry_out(config, out or api.new_folder(config), terms, progress)
    show_result(result, as_json=as_json)


def status(folder: RunArgument, as_json: Json = False) -> None:
    """Show how the run between parties in the folder RUN stands: its nodes, round, and bytes."""
    _needs_grpc()
    from interfuse.coordination import read_status

    found = read_status(folder)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    typer.echo(f"{found.state}, round {found.round}/{found.rounds}, attempt {found.attempt}, as of {found.time}")
    rows = [
        (
            node.name, "" if node.client is None else str(node.client),
            f"gone: {node.gone}" if node.gone else "there" if node.connected else "away",
            str(node.payload_up), str(node.payload_down), f"{node.waited:.1f}",
        )
        for node in found.nodes
    ]  # fmt: skip
    heads = ("node", "client", "state", "bytes up", "bytes down", "waited, s")
    Console(markup=False, emoji=False, highlight=False).print(table(heads, rows))
    typer.echo("Bytes are those of all payloads, evaluation included; the report has them apart.")


def audit(log: Annotated[Path, typer.Argument(metavar="AUDIT.jsonl", show_default=False)]) -> None:
    """Check the chain of a node's audit log: that no line of it was changed or taken out."""
    from interfuse.engines.parties.logs import verify

    typer.echo(f"{verify(log)} lines, the chain holds")


def _warn() -> None:
    typer.echo(
        "warning: --insecure: no TLS and no keys. Whoever reaches the port can join, read and change all", err=True
    )
