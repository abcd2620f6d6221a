"""The ledger of bytes: who sent what to whom, before and after codecs.

A line of ``ledger.jsonl`` is one message between the server and one client. Entries are held until they are drained
to the file; totals are held for the whole run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Annotated, ClassVar, Literal, get_args

from annotated_types import Ge
from pydantic import ConfigDict, TypeAdapter, ValidationError

from interfuse.errors import RunError

Heading = Literal["training", "evaluation", "start", "transport"]
Direction = Literal["up", "down"]
Casting = Literal["broadcast", "unicast"]
Natural = Annotated[int, Ge(0)]


@dataclass(frozen=True, slots=True)
class Entry:
    """One message between the server and one client; ``raw`` and ``wire`` are bytes before and after codecs.

    ``call`` is the number of the call within its round and heading; with those two it tells which copies of a
    broadcast are the same message.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    round: Natural
    heading: Heading
    call: Natural
    handler: str
    client: Natural
    direction: Direction
    kind: str
    casting: Casting
    raw: Natural
    wire: Natural


@dataclass(frozen=True, slots=True)
class Volume:
    """Bytes before and after codecs."""

    raw: int = 0
    wire: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """Bytes under one heading, of all kinds and by kind of message (``by_kind`` of a single kind is empty).

    ``downlink`` counts a message once for each receiver; ``downlink_broadcast`` counts a message that all receivers
    got in the same form once, as over a broadcast channel.
    """

    uplink: Volume
    downlink: Volume
    downlink_broadcast: Volume
    by_kind: Mapping[str, Totals] = field(default_factory=dict)


_HEADINGS: tuple[Heading, ...] = get_args(Heading)
# Calls of a round are made while it runs; a few rounds are enough to recognise copies, and bound the memory.
_ROUNDS_OPEN = 16


class Ledger:
    """Appends entries, keeps totals, and hands entries over to be written.

    A broadcast is counted once as long as its copies come within the 16 latest rounds seen.
    """

    def __init__(self) -> None:
        self._pending: list[Entry] = []
        # Up raw, up wire, down raw, down wire, broadcast raw, broadcast wire.
        self._kinds: dict[Heading, dict[str, list[int]]] = {heading: {} for heading in _HEADINGS}
        self._broadcasts: dict[int, set[tuple[Heading, int]]] = {}

    @classmethod
    def replay(cls, lines: Iterable[str]) -> Ledger:
        """The ledger of a file of lines, with all its totals and nothing to drain.

        A last line that was cut off (it is no entry and has no line end) is dropped. Raises RunError with the number
        of any other line that is no entry.
        """
        ledger, cut = cls(), None
        for number, line in enumerate(lines, 1):
            if cut is not None:
                raise cut
            try:
                ledger._count(from_json(line))
            except RunError as error:
                cut = RunError(f"line {number} of the ledger: {error}")
                if line.endswith("\n"):
                    raise cut from error
        return ledger

    def append(self, entry: Entry) -> None:
        """Count an entry, and hold it until it is drained."""
        self._count(entry)
        self._pending.append(entry)

    def drain(self) -> list[Entry]:
        """Hand over the entries since the last drain, in order, and forget them; totals stay."""
        drained, self._pending = self._pending, []
        return drained

    def totals(self, heading: Heading = "training") -> Totals:
        """The bytes of a heading since the start of the run."""
        kinds = self._kinds[heading]
        sums = [sum(column) for column in zip(*kinds.values(), strict=True)] or [0] * 6
        return _totals(sums, {kind: _totals(counts, {}) for kind, counts in sorted(kinds.items())})

    def _count(self, entry: Entry) -> None:
        raw, wire = entry.raw, entry.wire
        kinds = self._kinds[entry.heading]
        counts = kinds.get(entry.kind)
        if counts is None:
            counts = kinds[entry.kind] = [0] * 6
        if entry.direction == "up":
            counts[0] += raw
            counts[1] += wire
            return
        counts[2] += raw
        counts[3] += wire
        if entry.casting == "unicast" or self._is_first(entry):
            counts[4] += raw
            counts[5] += wire

    def _is_first(self, entry: Entry) -> bool:
        calls = self._broadcasts.get(entry.round)
        if calls is None:
            calls = self._broadcasts[entry.round] = set()
            if len(self._broadcasts) > _ROUNDS_OPEN:
                del self._broadcasts[min(self._broadcasts)]
        call = (entry.heading, entry.call)
        if call in calls:
            return False
        calls.add(call)
        return True


def _totals(counts: list[int], by_kind: Mapping[str, Totals]) -> Totals:
    return Totals(Volume(*counts[0:2]), Volume(*counts[2:4]), Volume(*counts[4:6]), by_kind)


_KEYS = tuple(column.name for column in fields(Entry))
_VALUES = attrgetter(*_KEYS)
_ENTRY = TypeAdapter(Entry)
_OTHER_FIELDS = ("dataclass_type", "missing", "unexpected_keyword_argument")
# ASCII, so that a line cut off anywhere is still text.
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def to_json(entry: Entry) -> str:
    """An entry as one line of JSON, without the line end."""
    return _ENCODER.encode(dict(zip(_KEYS, _VALUES(entry), strict=True)))


def from_json(line: str) -> Entry:
    """The entry of a line that `to_json` wrote. Raises RunError for anything else."""
    try:
        return _ENTRY.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] in _OTHER_FIELDS:
            raise RunError(f"an entry has the fields {', '.join(_KEYS)}") from None
        raise RunError(": ".join((*map(str, first["loc"]), first["msg"]))) from None
