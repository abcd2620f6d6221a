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
from interfuse.cli.options import AFTER, HOW, CommitEvery, Json, Quiet, RunArgument, argument, option
from interfuse.errors import ConfigError
from interfuse.report.progress import shown

SECURITY = "Keys"
Insecure = Annotated[
    bool, option(SECURITY, None, "Without TLS: everybody on the way reads and changes all.", "--insecure")
]


def _needs_grpc() -> None:
    """Say what to install where the extra is missing, and keep gRPC's own log lines out of ours.

    Raises:
        ConfigError: it is.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for module in ("grpc", "grpc_health", "cryptography", "prometheus_client"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"runs between parties need {module}; in a checkout of interfuse: pip install '.[grpc]'")


def keys(
    folder: Annotated[Path, argument("FOLDER")],
    nodes: Annotated[str, option(None, "NAME,...", "Names of the nodes.", show_default=False)],
    hosts: Annotated[
        str, option(None, "HOST,...", "Under which names nodes reach the coordinator.")
    ] = "localhost,127.0.0.1",
    services: Annotated[
        str | None, option(None, "NAME,...", "Names of services (`interfuse serve`) that these nodes may ask.")
    ] = None,
) -> None:
    """Make keys for a trial in FOLDER: an authority, a coordinator's, one for each node. What is there stays.

    FOLDER/coordinator goes to the coordinator, FOLDER/NAME to the node or the service of that name, ca.key nowhere.
    """
    _needs_grpc()
    from interfuse.engines.grpc import make_keys

    for path in make_keys(folder, listed(nodes) or [], listed(hosts) or [], listed(services) or []):
        typer.echo(f"made {path}")


_DRY = "Play a round here, and write every message that would leave to FOLDER."


def node(
    vendor: Annotated[Path, argument("VENDOR.toml")],
    dry: Annotated[Path | None, option(None, "FOLDER", _DRY, "--dry-run", show_default=False)] = None,
    recipe: Annotated[
        str, option(None, "METHOD|RECIPE", "What --dry-run plays (default: the first allowed method).")
    ] = "",
    patience: Annotated[
        float | None, option(HOW, "SECONDS", "Give up after so long without a coordinator (default: never).")
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
    recipe: Annotated[str, argument("METHOD|RECIPE")],
    nodes: Annotated[int, option(None, "N", "How many nodes begin.", show_default=False)],
    minimum: Annotated[int | None, option(HOW, "N", "Go on while so many remain (default: all).")] = None,
    listen: Annotated[str, option(HOW, "HOST:PORT", "Where nodes reach the coordinator.")] = "127.0.0.1:8443",
    classes: Annotated[int | None, option(HOW, "N", "Classes, where there is no public test set.")] = None,
    back: Annotated[float, option(HOW, "SECONDS", "Wait so long for a lost node.")] = 60.0,
    answer: Annotated[float, option(HOW, "SECONDS", "Wait so long for an answer.")] = 600.0,
    largest: Annotated[int, option(HOW, "BYTES", "Of a message from a node.")] = 1 << 30,
    commit_every: CommitEvery = None,
    key_folder: Annotated[
        Path | None, option(SECURITY, "FOLDER", "The folder `coordinator` of `interfuse keys`.", "--keys")
    ] = None,
    insecure: Insecure = False,
    metrics: Annotated[str | None, option(AFTER, "HOST:PORT", "Answer Prometheus there.")] = None,
    out: Annotated[Path | None, option(AFTER, "PATH", "Run folder; the same command goes on with one.")] = None,
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


def audit(log: Annotated[Path, argument("AUDIT.jsonl")]) -> None:
    """Check the chain of a node's audit log: that no line of it was changed or taken out."""
    from interfuse.engines.parties.logs import verify

    typer.echo(f"{verify(log)} lines, the chain holds")


def _warn() -> None:
    typer.echo(
        "warning: --insecure: no TLS and no keys. Whoever reaches the port can join, read and change all", err=True
    )
