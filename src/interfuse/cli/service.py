"""Commands for blocks as a service."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from interfuse.artefacts.registry import Registry
from interfuse.cli.options import HOW, argument, option
from interfuse.errors import ConfigError

SECURITY = "Who may ask"


def _needs_serve(*more: str) -> None:
    """Say what to install where the extra is missing.

    Raises:
        ConfigError: it is.
    """
    for module in ("fastapi", "uvicorn", "prometheus_client", *more):
        if importlib.util.find_spec(module) is None:
            extra = "grpc" if module in more else "serve"
            raise ConfigError(f"a service needs {module}; in a checkout of interfuse: pip install '.[{extra}]'")


def serve(
    what: Annotated[list[str], argument("ARTEFACT...")],
    registry: Annotated[
        str | None, option(None, "ADDRESS", "ARTEFACTs are NAME or NAME/VERSION of this registry, not folders.")
    ] = None,
    authority: Annotated[
        Path | None, option(None, "CA.crt", "Serve artefacts only that somebody signed whom this authority certified.")
    ] = None,
    listen: Annotated[str, option(HOW, "HOST:PORT", "Where.")] = "127.0.0.1:8080",
    rows: Annotated[int | None, option(HOW, "N", "Samples in a request at most (default 512).", min=1)] = None,
    body: Annotated[
        int | None, option(HOW, "BYTES", "Of a request at most (default 8388608; of JSON a quarter).", min=1)
    ] = None,
    connections: Annotated[int | None, option(HOW, "N", "At a time at most (default 256).", min=1)] = None,
    api_keys: Annotated[
        Path | None, option(SECURITY, "FILE", "Who asks has one of these keys (`interfuse api-key` makes them).")
    ] = None,
    keys: Annotated[
        Path | None,
        option(
            SECURITY,
            "FOLDER",
            "TLS; without --api-keys who asks shows a certificate. `interfuse keys --services` makes one.",
        ),
    ] = None,
    rate: Annotated[
        float | None, option(SECURITY, "N", "Requests a second of one caller, where no key says it.")
    ] = None,
    origin: Annotated[
        list[str] | None, option(SECURITY, "URL", "Of pages in browsers that may ask; may be repeated.", "--origin")
    ] = None,
    demo: Annotated[
        bool, option(None, None, "Also a page to draw on; it hands the ONNX of base blocks to browsers.", "--demo")
    ] = False,
    runtime: Annotated[
        Path | None, option(None, "FOLDER", "Where onnxruntime-web is, if not in the installation.", "--runtime")
    ] = None,
    get_runtime: Annotated[
        bool, option(None, None, "Get onnxruntime-web from npm first, if it is not there (14 MB).", "--get-runtime")
    ] = False,
) -> None:
    """Answer over HTTP with blocks: features of samples with a base block, scores of features with a modular block.

    ARTEFACT: the folder of an artefact, or with --registry a name. Whatever is revoked or expires answers no more, and
    says so; the rest goes on. SIGTERM ends the service when all requests under way are answered.
    """
    _needs_serve(*(() if keys is None else ("grpc", "cryptography")))
    from interfuse.serve import (
        LOCAL,
        Access,
        Service,
        ServiceLimits,
        admission,
        from_folders,
        from_registry,
        is_loopback,
        listening,
        run,
        tls,
    )
    from interfuse.serve import runtime as onnxruntime_web

    if not is_loopback(listen) and keys is None and api_keys is None:
        raise ConfigError(
            f"{listen} is reached by other machines: name --api-keys FILE, --keys FOLDER, or both; or use 127.0.0.1"
        )
    page = runtime or onnxruntime_web.RUNTIME
    if get_runtime:
        onnxruntime_web.get_runtime(page)
    trusted = None if authority is None else _read(authority)
    if registry is None:
        blocks = from_folders([Path(one) for one in what], trusted, onnx=demo)
    else:
        blocks = from_registry(Registry(registry), what, trusted, onnx=demo)
    limits = ServiceLimits()
    limits = replace(
        limits,
        rows=rows or limits.rows,
        body=body or limits.body,
        json_body=limits.json_body if body is None else max(1, body // 4),
        connections=connections or limits.connections,
    )
    mutual = keys is not None and api_keys is None
    hosts = LOCAL | {listen.rpartition(":")[0].strip("[]")} if is_loopback(listen) else None
    access = Access(api_keys, admission(keys) if keys is not None and mutual else None, rate, hosts)
    service = Service(blocks, access, limits, origin or (), page if demo else None)
    context = None if keys is None else tls(keys, certificates=mutual)
    with listening(listen) as at:
        host, port = at.getsockname()[:2]
        place = f"{'http' if context is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"
        for block in blocks:
            typer.echo(f"{place}/v1/blocks/{block.address}" + (f": {block.withdrawn}" if block.withdrawn else ""))
        if service.demo is not None:
            typer.echo(f"{place}/")
            if not service.demo.has_runtime:
                typer.echo("without onnxruntime-web pictures leave browsers; --get-runtime gets it", err=True)
        if context is None and not is_loopback(listen):
            typer.echo("warning: without TLS keys and features are read by everybody on the way", err=True)
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
        logging.getLogger("uvicorn").setLevel(logging.ERROR)  # a line for each bad request would fill a disk
        run(service, at, context)


def api_key(
    file: Annotated[Path, argument("FILE")],
    name: Annotated[str, argument("NAME")],
    rate: Annotated[float, option(None, "N", "Requests a second.")] = 50.0,
) -> None:
    """Make an API key for NAME, print it, and add its digest to FILE; the key itself is kept nowhere.

    To take it back, take its lines out of FILE: services notice within seconds.
    """
    _needs_serve()
    from interfuse.serve import add_key

    typer.echo(add_key(file, name, rate))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
