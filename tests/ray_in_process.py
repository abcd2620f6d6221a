"""Of Ray what the engine uses, in this process: two nodes, on which actors are dealt in turn. Nothing is pickled."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from interfuse.engines.ray import engine


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ActorDiedError(RayError):
    pass


@dataclass(eq=False)
class Reference:
    """What is there, or why it is not."""

    value: Any = None
    error: RayError | None = None
    handle: Handle | None = None


@dataclass(eq=False)
class Handle:
    """An actor. ``dead``: so it was said to the engine."""

    ray: RayInProcess
    node: str
    actor: Any = None
    dead: str = ""
    stuck: bool = False

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: self.ray.carry_out(self, name, arguments))


@dataclass(eq=False)
class RayInProcess:
    """Attributes:
    strike: Asked before each order, with the number of the order, whether the actor ends instead.
    room: So many actors come up.
    slow: What these actors answer comes after all that others do.
    """

    resources: dict[str, float] = field(default_factory=lambda: {"CPU": 4.0})
    strike: Callable[[int, str], bool] = lambda number, name: False
    room: int = 1000
    slow: set[int] = field(default_factory=set)
    handles: list[Handle] = field(default_factory=list)
    orders: list[tuple[Handle, str]] = field(default_factory=list)
    begins: list[Handle] = field(default_factory=list)

    exceptions = SimpleNamespace(
        RayError=RayError, RayTaskError=RayTaskError, RaySystemError=RayError, ActorDiedError=ActorDiedError
    )
    cloudpickle = SimpleNamespace(list_registry_pickle_by_value=lambda: sys.modules.keys())
    util = SimpleNamespace(register_serializer=lambda *a, **b: None, deregister_serializer=lambda kind: None)

    def put(self, value: Any) -> Reference:
        return Reference(read_only(value))

    def get(self, reference: Reference) -> Any:
        if reference.error is not None:
            raise reference.error
        return reference.value

    def wait(self, references: list[Reference], num_returns: int, timeout: float | None = None) -> Any:
        ready = [one for one in references if one.value is not STUCK]
        ready.sort(key=lambda one: one.handle is not None and self.handles.index(one.handle) in self.slow)
        return ready[:num_returns], [one for one in references if one not in ready[:num_returns]]

    def kill(self, handle: Handle) -> None:
        handle.dead = "The actor is dead because it was killed by `ray.kill`."

    def get_runtime_context(self) -> Any:
        at = self.begins[-1].node if self.begins else "here"
        return SimpleNamespace(get_node_id=lambda: at)

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def available_resources(self) -> dict[str, float]:
        return {}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True}, {"Alive": True}, {"Alive": False}]

    def remote(self, kind: type) -> Any:
        def begin(*arguments: Any) -> Handle:
            self.handles.append(handle := Handle(self, "here" if len(self.handles) % 2 == 0 else "there"))
            if len([one for one in self.handles if not one.dead]) > self.room:
                handle.stuck = True
                return handle
            self.begins.append(handle)
            handle.actor = kind(*arguments)
            self.begins.pop()
            return handle

        return SimpleNamespace(options=lambda **wanted: SimpleNamespace(remote=begin))

    def carry_out(self, handle: Handle, name: str, arguments: Any) -> Reference:
        if handle.stuck:
            return Reference(STUCK)
        self.orders.append((handle, name))
        given = [one.value if isinstance(one, Reference) else read_only(one) for one in arguments]
        for one in arguments:
            if isinstance(one, Reference) and one.error is not None:
                return Reference(error=RayTaskError(one.error))
        if handle.dead or self.strike(len(self.orders), name):
            handle.dead = handle.dead or "The actor is dead because its worker process has died. Some common causes"
            return Reference(error=ActorDiedError(f"The actor died.\n\tclass_name: Worker\n{handle.dead}"))
        try:
            return Reference(read_only(getattr(handle.actor, name)(*given)), handle=handle)
        except Exception as error:
            return Reference(error=RayTaskError(error))


STUCK = object()


def read_only(value: Any) -> Any:
    """As it comes out of the object store: arrays cannot be written to."""
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flags.writeable = False
        return value
    if type(value) in (list, tuple):
        return type(value)(read_only(one) for one in value)
    return value


@contextmanager
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayInProcess]:
    """The block in which engines use this instead of Ray."""
    made = RayInProcess()
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setattr(engine, "joined", lambda joining, workers: made)
    yield made
