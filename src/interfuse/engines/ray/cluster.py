"""Ray itself: started on this machine, or joined where it runs."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from interfuse.engines.processes import available_cores
from interfuse.errors import ConfigError

ADDRESS = "RAY_ADDRESS"
"""The variable of the environment in which Ray itself looks for a cluster."""
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With 0, Ray has its processes listen on 127.0.0.1, as it does on macOS; otherwise they listen on every interface."""
AUTHORISING = "RAY_AUTH_MODE"
"""With ``token``, Ray's processes answer nobody who does not know RAY_AUTH_TOKEN. Read where Ray is imported."""
DIALLING = 10.0
"""Seconds for an address to answer."""


@dataclass(frozen=True)
class Joining:
    """Which Ray carries a run, and what of it.

    Attributes:
        address: ``HOST:PORT`` of a cluster, ``auto`` for the one that this machine is part of, ``local`` for a new one
            on this machine alone; None: what RAY_ADDRESS says, else ``local``.
        gpus: Of a GPU for each worker, where the device is a GPU: 0.25 puts four on one. None: all GPUs are divided.
        seconds: For the workers to come up.
        say: Told what is waited for.
    """

    address: str | None = None
    gpus: float | None = None
    seconds: float = 120.0
    say: Callable[[str], None] = lambda text: None


WHATEVER = Joining()
"""Where nothing is said."""


def joined(joining: Joining, workers: int | None) -> Any:
    """The module of Ray, connected. Where this process already is, that connection is used.

    Raises:
        ConfigError: Ray is not installed, there is nothing at the address, or it is another Ray's or Python's.
    """
    if find_spec("ray") is None:
        how = "pip install -c constraints.txt '.[ray]'"
        raise ConfigError(f"engine = 'ray' needs Ray; in a checkout of interfuse: {how}")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    wanted = joining.address or os.environ.get(ADDRESS) or "local"
    if "ray" not in sys.modules:
        if wanted == "local":
            os.environ[LOOPBACK] = "0"
            # others who have an account on this machine reach 127.0.0.1 too: a token that this process and Ray's know
            if os.environ.get(AUTHORISING) != "token":
                os.environ |= {AUTHORISING: "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        else:
            os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # of half a minute; 20 by default
        # what its processes have to say would come out on the standard output, among results
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leaves CUDA_VISIBLE_DEVICES alone
    import ray

    if ray.is_initialized():
        _check_same(ray, joining.address)
        return ray
    if wanted == "local" and os.environ.get(AUTHORISING) != "token":
        raise ConfigError(
            "Ray was imported before interfuse could have it ask for a token, so whoever has an account here could run "
            f"code as you: set {LOOPBACK}=0, {AUTHORISING}=token and RAY_AUTH_TOKEN (64 hexadecimal digits) "
            "before it is imported, or call ray.init yourself"
        )
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if wanted == "local":
        options |= {"num_cpus": max(available_cores(), workers or 1), "include_dashboard": False}
    else:
        _check_address(wanted)
    joining.say("starting Ray on this machine" if wanted == "local" else f"joining Ray at {wanted}")
    try:
        with _own_signals(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            ray.init(address=wanted, **options)
    except Exception as error:  # Ray raises what it likes, a bare Exception where a node is too slow to start
        ray.shutdown()
        raise ConfigError(f"cannot use Ray at {wanted!r}: {_first_line(error)}. {_ADVICE}") from error
    if wanted == "local" and not _is_loopback(found := ray.util.get_node_ip_address()):
        ray.shutdown()
        raise ConfigError(
            f"Ray would listen at {found}, since it was imported before interfuse could keep it to this machine: set "
            f"{LOOPBACK}=0 before it is imported, or call ray.init yourself"
        )
    return ray


_ADVICE = (
    "The address is HOST:PORT of the head as `ray start --head` prints it, or auto on a machine of the cluster; all "
    "machines need the same versions of Ray and Python; where it wants a token, RAY_AUTH_MODE and RAY_AUTH_TOKEN"
)


def _check_same(ray: Any, address: str | None) -> None:
    """Check that an address that was asked for is where this process is connected to."""
    here = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", "local", here) and _cluster_at(ray, address) != _cluster_at(ray, here):
        raise ConfigError(
            f"this process is connected to Ray at {here}, not at {address}: call ray.shutdown() before, or leave out "
            "the address"
        )


def _cluster_at(ray: Any, address: str) -> str | None:
    """By what a cluster is known, whichever of its head's names and addresses it is reached by."""
    _check_address(address)
    try:
        return str(ray._raylet.GcsClient(address=address).cluster_id)
    except ray.exceptions.RayError:  # something else listens there, or a Ray that wants another token
        return None


def _check_address(address: str) -> None:
    """Check that something listens at HOST:PORT: Ray itself would try for a long time, and say so again and again."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        raise ConfigError(f"ray_address = {address!r} is none. {_ADVICE}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), DIALLING).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"nothing of Ray answers at {address}: {error}. {_ADVICE}") from None


@contextmanager
def _own_signals() -> Iterator[None]:
    """The block in which Ray's handlers of signals are put back: this process has its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_loopback(address: str) -> bool:
    return address == "localhost" or address.startswith("127.") or address == "::1"


def _first_line(error: BaseException) -> str:
    """What Ray says, without its traceback."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def resources(ray: Any) -> str:
    """What the cluster has, and has free, in words."""
    there, free = ray.cluster_resources(), ray.available_resources()
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    kinds = [f"{there.get(kind, 0):g} {kind} ({free.get(kind, 0):g} free)" for kind in ("CPU", "GPU")]
    return f"{nodes} node{'' if nodes == 1 else 's'} with {' and '.join(kinds)}"
