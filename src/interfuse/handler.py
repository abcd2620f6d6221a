"""``@on_client``: the work of a method that is done where the data is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar, cast, get_type_hints, overload

from interfuse.client import Client
from interfuse.errors import DeclarationError
from interfuse.messages import Message

C = TypeVar("C", bound=Client[Any])
M = TypeVar("M", bound=Message | None)
R = TypeVar("R", bound=Message | None)


class Program:
    """A set of handlers: a method, or the evaluation that interfuse brings."""

    @classmethod
    def idle(cls) -> Collection[str]:
        """Handlers that a program inherits and has no use for: no party answers to them."""
        return ()


@dataclass(frozen=True)
class Handler(Generic[M, R]):
    """A handler of one program: what ``clients.call`` takes. Calling it runs it on a client, without an engine."""

    program: Program
    declaration: on_client[M, R]

    @property
    def name(self) -> str:
        return self.declaration.name

    def __call__(self, client: Client[Any], message: M | None = None) -> R:
        arguments = () if self.declaration.message_type is None else (message,)
        return self.declaration.function(self.program, client, *arguments)


class on_client(Generic[M, R]):  # noqa: N801 (reads as a keyword)
    """Mark a method as work of one client: it takes the client and at most one message, and returns one or None.

    What the client does not keep is blank when it begins. A handler marked ``@on_client.continuing`` goes on with what
    earlier ones of the same round left there, and in ``client.scratch``.
    """

    name: str
    owner: type
    continues = False

    @overload
    def __init__(self: on_client[None, R], function: Callable[[Any, C], R]) -> None: ...
    @overload
    def __init__(self: on_client[M, R], function: Callable[[Any, C, M], R]) -> None: ...
    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = cast(Callable[..., R], function)
        self.__doc__ = function.__doc__

    @overload
    @classmethod
    def continuing(cls, function: Callable[[Any, C], R]) -> on_client[None, R]: ...
    @overload
    @classmethod
    def continuing(cls, function: Callable[[Any, C, M], R]) -> on_client[M, R]: ...
    @classmethod
    def continuing(cls, function: Callable[..., Any]) -> on_client[Any, Any]:
        """As :class:`on_client`, for a handler that goes on with what earlier ones of the round left."""
        made: on_client[Any, Any] = cls(function)
        made.continues = True
        return made

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner, self.name = owner, name

    @overload
    def __get__(self, program: None, owner: type) -> on_client[M, R]: ...
    @overload
    def __get__(self, program: Program, owner: type) -> Handler[M, R]: ...
    def __get__(self, program: Program | None, owner: type) -> on_client[M, R] | Handler[M, R]:
        return self if program is None else Handler(program, self)

    @cached_property
    def _signature(self) -> tuple[type[Message] | None, type[Message] | None]:
        parameters = list(inspect.signature(self.function).parameters)
        hints = get_type_hints(self.function)
        place = f"{self.owner.__name__}.{self.name}"
        if len(parameters) not in (2, 3) or "return" not in hints:
            raise DeclarationError(
                f"{place}: a handler takes a client and at most one message, and says what it returns"
            )
        found: list[type[Message] | None] = []
        for kind in (hints.get(parameters[2]) if len(parameters) == 3 else type(None), hints["return"]):
            if not (isinstance(kind, type) and issubclass(kind, Message | type(None))):
                raise DeclarationError(
                    f"{place}: {kind!r} is not a message; annotate with a subclass of interfuse.Message"
                )
            found.append(kind if issubclass(kind, Message) else None)
        return found[0], found[1]

    @property
    def message_type(self) -> type[Message] | None:
        """What the handler receives, read off its annotations."""
        return self._signature[0]

    @property
    def reply_type(self) -> type[Message] | None:
        """What the handler returns, read off its annotations."""
        return self._signature[1]


def handlers(program: type[Program]) -> dict[str, on_client[Any, Any]]:
    """The handlers of a program's class by name, inherited ones included, without those that are idle."""
    found = {name: value for kind in reversed(program.__mro__) for name, value in vars(kind).items()}
    idle = program.idle()
    return {name: value for name, value in found.items() if isinstance(value, on_client) and name not in idle}


def check_handler(found: object) -> None:
    """Check that what a call is given is a handler.

    Raises:
        DeclarationError: it is another function; says what to write.
    """
    if not isinstance(found, Handler):
        name = getattr(found, "__qualname__", repr(found))
        raise DeclarationError(f"{name} is no work of a client: write @on_client above it, and call it as self.NAME")


def programs(root: Program, path: str) -> dict[str, Program]:
    """A program and those it wraps in its attributes, by path: how an engine finds the other end of a call."""
    wrapped = {f"{path}.{name}": value for name, value in vars(root).items() if isinstance(value, Program)}
    return {path: root} | {
        inner: p for name, program in wrapped.items() for inner, p in programs(program, name).items()
    }
