"""Commands of runs between parties."""

from __future__ import annotations

import importlib.util
import os
import shlex
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from interfuse import api
from interfuse.cli.configuration import (
    codecs,
    configure,
    listed,
    one_or_listed,
    reading,
    table_of_options,
    test_rows,
)
from interfuse.cli.listings import show_result, table
from interfuse.cli.options import (
    AFTER,
    HOW,
    Alpha,
    Arrival,
    Balanced,
    ClassesPerClient,
    CodecTexts,
    CommitEvery,
    DataSets,
    Denormals,
    Device,
    DType,
    EvalEvery,
    Initial,
    Json,
    LastBatch,
    Layout,
    ModelNames,
    Normalise,
    NumberOfClients,
    Order,
    PartitionName,
    Patience,
    Public,
    Quiet,
    ReadTexts,
    Replay,
    Rounds,
    RunArgument,
    Seed,
    Settings,
    ShardsPerClient,
    TestRows,
    Width,
    argument,
    option,
)
from interfuse.cli.terminal import exit_code
from interfuse.errors import ConfigError, RunError
from interfuse.opening import content
from interfuse.report.progress import shown

SECURITY = "Keys"
Insecure = Annotated[
    bool, option(SECURITY, None, "Without TLS: everybody on the way reads and changes all.", "--insecure")
]


KeyFolder = Annotated[
    Path | None, option(SECURITY, "FOLDER", "The folder `coordinator` of `interfuse keys`.", "--keys")
]
_MODULES = {
    "grpc": ("grpc", "grpc_health", "cryptography", "prometheus_client"),
    "flower": ("cryptography", "prometheus_client"),
}
"""What extras bring; a node behind Flower needs nothing of Flower."""


def _needs(extra: str) -> None:
    """Say what to install where an extra is missing, and keep gRPC's own log lines out of ours.

    Raises:
        ConfigError: it is.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for module in _MODULES[extra]:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"runs between parties need {module}; in a checkout of interfuse: pip install '.[{extra}]'"
            )


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
    _needs("grpc")
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
    at_socket: Annotated[
        Path | None,
        option(HOW, "PATH", "Dial nobody: answer at this socket what Flower brings (docs/flower.md).", "--socket"),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Take part in a federation with the data and the model that VENDOR.toml names, and within its limits."""
    _needs("grpc") if at_socket is None else _needs("flower")
    from interfuse.artefacts.signing import Signer
    from interfuse.coordination import dry_run
    from interfuse.engines.parties.logs import Events
    from interfuse.engines.parties.machine import bound_memory
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
    if given.device == "cpu":  # drivers of others reserve addresses without end
        bound_memory(given.limits.memory)
    files = None if insecure else given.key_files()
    with ExitStack() as open_files:
        events = open_files.enter_context(closing(Events(given.state_folder / "node.jsonl", say)))
        signer = None if files is None else Signer(*files.read()[:2])
        taking_part = open_files.enter_context(closing(Node(given, events, signer=signer)))
        if at_socket is None:
            from interfuse.engines.grpc import dial

            end = take_part(taking_part, partial(dial, given, insecure=insecure), patience=patience)
        else:
            from interfuse.engines.flower.residence import reside

            if files is None and not insecure:
                raise ConfigError(
                    "the vendor's file names no [keys]; `interfuse keys` makes some, --insecure goes without"
                )
            end = reside(taking_part, at_socket, keys=files, patience=patience)
        typer.echo(f"{given.name}: {end}", err=True)


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
    key_folder: KeyFolder = None,
    insecure: Insecure = False,
    metrics: Annotated[str | None, option(AFTER, "HOST:PORT", "Answer Prometheus there.")] = None,
    out: Annotated[Path | None, option(AFTER, "PATH", "Run folder; the same command goes on with one.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Wait for N nodes, carry a recipe out with them, and write its folder and report."""
    _needs("grpc")
    from interfuse.coordination import Terms
    from interfuse.coordination import coordinate as carry_out
    from interfuse.engines.grpc import Listener
    from interfuse.engines.parties.remote import Patience

    config = configure(recipe, {"execution": {"commit_rounds": commit_every}})
    _check_keys(key_folder, insecure)
    terms = Terms(Listener(listen, key_folder), nodes, minimum, classes, Patience(back, answer), largest, metrics)
    folder = out or api.new_folder(config)
    try:
        with shown(quiet) as progress:
            result = carry_out(config, folder, terms, progress)
    except KeyboardInterrupt as interruption:
        typer.echo(f"\ninterrupted; to go on: the same command with --out {shlex.quote(str(folder))}", err=True)
        raise typer.Exit(exit_code(interruption)) from None
    show_result(result, as_json=as_json)


def flower_app(
    what: Annotated[str, argument("METHOD|RECIPE")],
    out: Annotated[Path, option(AFTER, "FOLDER", "Where the app is written.", show_default=False)],
    rounds: Rounds = None,
    patience: Patience = None,
    seed: Seed = None,
    assignments: Settings = None,
    data: DataSets = None,
    read: ReadTexts = None,
    public: Public = None,
    clients: NumberOfClients = None,
    partition: PartitionName = None,
    alpha: Alpha = None,
    balanced: Balanced = None,
    classes: ClassesPerClient = None,
    shards: ShardsPerClient = None,
    test: TestRows = None,
    normalise: Normalise = None,
    models: ModelNames = None,
    width: Width = None,
    initial: Initial = None,
    codec: CodecTexts = None,
    device: Device = None,
    order: Order = None,
    last_batch: LastBatch = None,
    arrival: Arrival = None,
    replay: Replay = None,
    layout: Layout = None,
    dtype: DType = None,
    denormals: Denormals = None,
    commit_every: CommitEvery = None,
    eval_every: EvalEvery = None,
    run: Annotated[
        Path | None, option(AFTER, "PATH", "The run's folder, where the app runs (default: FOLDER-run).", "--run")
    ] = None,
    key_folder: KeyFolder = None,
    insecure: Insecure = False,
) -> None:
    """Write a Flower app that carries out a recipe with the nodes beside a federation's SuperNodes.

    There are as many nodes as clients. A partition is for Flower's simulation alone: nodes have rows of their own.
    """
    _needs("flower")
    from interfuse.flower.writing import write_app

    _check_keys(key_folder, insecure)
    config = configure(
        what,
        {
            "rounds": rounds, "seed": seed, "stop": None if patience is None else {"patience": patience},
            "data": one_or_listed(data), "read": reading(read), "public": public, "clients": clients,
            "models": listed(models), "fusion_width": width, "device": device, "eval_every": eval_every,
            "codecs": codecs(codec), "test": test_rows(test), "normalise": normalise, "initial": initial,
            "sampling": table_of_options(order=order, last_batch=last_batch),
            "tasks": table_of_options(arrival=arrival, memory=replay),
            "numerics": {"layout": layout, "dtype": dtype, "denormals": denormals},
            "execution": {"commit_rounds": commit_every},
        },
        partition={
            "name": partition, "alpha": alpha, "balanced": balanced,
            "classes_per_client": classes, "shards_per_client": shards,
        },
        assignments=assignments or (),
    )  # fmt: skip
    place = run or out.with_name(f"{out.name}-run")
    for path in write_app(config, out, place, key_folder):
        typer.echo(path)
    typer.echo(
        f"{config.method}, {config.rounds} rounds, {config.clients} nodes (as the recipe has clients); the folder of "
        f"the run, where the ServerApp runs: {place.resolve()}",
        err=True,
    )


def status(folder: RunArgument, as_json: Json = False) -> None:
    """Show how the run between parties in the folder RUN stands: its nodes, round, and bytes."""
    _needs("grpc")
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
    for node in found.nodes:
        if node.audit:
            typer.echo(f"audit log of {node.name} at its last commit: --mark {node.audit}")
    typer.echo("Bytes are those of all payloads, evaluation included; the report has them apart.")


def audit(
    log: Annotated[Path, argument("AUDIT.jsonl")],
    certificate: Annotated[
        list[Path] | None,
        option(None, "NODE.crt", "Whose signatures are good; may be repeated, after a renewal.", "--certificate"),
    ] = None,
    authority: Annotated[
        Path | None, option(None, "CA.crt", "Or: signatures of whom this authority certified are good.")
    ] = None,
    mark: Annotated[
        str, option(None, "LINES:DIGEST", "What the coordinator has kept of the log; `interfuse status` shows it.")
    ] = "",
) -> None:
    """Check a node's audit log, and say what could not be checked: chain, signatures, the node's own anchor beside the
    log, and what the coordinator has kept of it, and say whose it is. It is only read.
    """
    from interfuse.artefacts.signing import certified, is_signed
    from interfuse.engines.parties.audit import verify

    good = [_pem(path).strip() for path in certificate or ()]
    authorities = [] if authority is None else [_pem(authority)]

    names = set[str]()

    def trusted(pem: bytes) -> None:
        name = certified(pem, authorities) if authorities else None
        if name is not None:
            names.add(name)
        elif pem.strip() not in good:
            raise RunError(f"{log}: lines are signed by a key that is not among the certificates that were named")

    known = importlib.util.find_spec("cryptography") is not None
    found = verify(log, is_signed if known else None, trusted if good or authorities else None, mark)
    if len(nodes := names | ({found.node} if found.node else set())) > 1:
        raise RunError(f"{log}: its anchor and its signatures are of several nodes: {', '.join(sorted(nodes))}")
    whose = "".join(f"log of node {node!r}{'' if names else ', as it says itself'}: " for node in nodes)
    signed = ", signed" if found.certificates and known else ""
    typer.echo(f"{whose}{found.lines} lines{signed}, the chain holds; mark {found.mark}")
    for text in found.unknown:
        typer.echo(f"not checked: {text}", err=True)


def _pem(path: Path) -> bytes:
    try:
        return content(path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _check_keys(folder: Path | None, insecure: bool) -> None:
    if (folder is None) != insecure:
        raise ConfigError("either --keys FOLDER (`interfuse keys` makes one), or --insecure")
    if insecure:
        _warn()


def _warn() -> None:
    typer.echo(
        "warning: --insecure: no TLS and no keys. Whoever reaches the port can join, read and change all", err=True
    )
