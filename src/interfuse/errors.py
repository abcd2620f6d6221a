"""Every error that interfuse raises on purpose. The command line prints these without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """What works but hardly does what was meant, to be said before a run and in its report; and what to try."""

    text: str
    remedy: str


class InterfuseError(Exception):
    """Base of all errors a user can act on: the text says what was wrong and what to do."""


class ConfigError(InterfuseError):
    """A setting is unknown or impossible."""


class DataError(InterfuseError):
    """A data set is missing, corrupt, or cannot be divided as asked."""


class ModelError(InterfuseError):
    """A model cannot be built, split, or does not fit the federation."""


class ArtefactError(InterfuseError):
    """An artefact is damaged, not what it says, or does not fit; the text says in what."""


class RunError(InterfuseError):
    """A run folder cannot be written, read or resumed."""


class InterruptedRoundError(RunError):
    """Clients are not where the round left them: everybody goes back to the last commit."""


class CallbackError(InterfuseError):
    """A callback of the user failed; the text names it and says how the run stands."""


class DeclarationError(InterfuseError, TypeError):
    """A method, handler or message is not declared completely; the text says what to write."""


class ClientError(InterfuseError):
    """A client failed inside a handler; the text names the client, the handler and the round.

    Attributes:
        client: Its number, where its reply was found to be impossible by who asked for it.
    """

    def __init__(self, text: str, client: int | None = None) -> None:
        super().__init__(text)
        self.client = client


class MessageError(InterfuseError):
    """A message does not match its declaration.

    The four facts are attributes, so that a log or a test need not parse the text.
    """

    def __init__(self, message: str, field: str, expected: str, found: str) -> None:
        super().__init__(f"message {message}, field {field}: expected {expected}, found {found}")
        self.message, self.field, self.expected, self.found = message, field, expected, found

    def __reduce__(self) -> tuple[type[MessageError], tuple[str, str, str, str]]:
        return type(self), (self.message, self.field, self.expected, self.found)


SHOWN = 24
"""Valid names that are all listed beside a near one."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error text about an unknown name: the nearest valid one, then all of them.

    Of more than 24, some that are near stand for all.

    >>> nearest("tua", ["tau", "rounds"])
    "did you mean 'tau'? valid: rounds, tau"
    """
    names = sorted(valid)
    folded = {known.casefold(): known for known in names}
    close = [folded[near] for near in difflib.get_close_matches(name.casefold(), folded, n=6, cutoff=0.5)]
    listed = ", ".join(names)
    if close and len(names) > SHOWN:
        near = sorted(close[1:])
        return f"did you mean {close[0]!r}?" + (f" near it: {', '.join(near)}" if near else "")
    return (f"did you mean {close[0]!r}? " if close else "") + f"valid: {listed}"


def numbers(clients: Sequence[int], most: int = 8) -> str:
    """Clients by number, the first of many: ``client 3``, ``clients 3 and 5``."""
    if len(clients) == 1:
        return f"client {clients[0]}"
    shown = [str(client) for client in (clients if len(clients) <= most else clients[: most - 1])]
    if len(clients) > most:
        shown.append(f"{len(clients) - len(shown):,} more")
    return f"clients {', '.join(shown[:-1])} and {shown[-1]}"
