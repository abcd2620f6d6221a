"""Which worker carries which client, so that all workers end a round at about the same time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from interfuse.client import ClientId, Profile

WORTHWHILE = 0.05
"""A move must shorten the longest worker's time by this fraction."""
LEAST_SECONDS = 0.001
"""And by at least this much: moving a client's state has a price too."""
NOISE = 0.25
"""Clients of one architecture whose seconds differ by less than this fraction are taken to cost the same."""


@dataclass(frozen=True)
class Move:
    """A client that goes from one worker to another, with all that it owns."""

    client: ClientId
    source: int
    target: int


class Placement:
    """Homes of clients. At first they are dealt in turn; measured seconds then move them, and results do not change.

    A client stays where it is from its first call in a round to the end of it, since its scratch lies there.
    """

    def __init__(self, profiles: Mapping[ClientId, Profile], workers: int) -> None:
        self.home = {client: position % workers for position, client in enumerate(profiles)}
        self._architecture = {client: profile.architecture for client, profile in profiles.items()}
        self._workers = workers
        self._seconds: dict[ClientId, float] = {}
        self._of_round: dict[ClientId, float] = {}

    def clients_of(self, worker: int) -> tuple[ClientId, ...]:
        """The clients that a worker carries now."""
        return tuple(client for client, home in self.home.items() if home == worker)

    def note(self, client: ClientId, seconds: float) -> None:
        """A client's work in a call took so long."""
        self._of_round[client] = self._of_round.get(client, 0.0) + seconds

    def end_round(self) -> None:
        """What was noted since the last end is what these clients cost in a round."""
        self._seconds |= self._of_round
        self._of_round.clear()

    def arrange(self, clients: Iterable[ClientId]) -> list[Move]:
        """Moves, already entered in :attr:`home`, before a call of these clients: from the busiest to the idlest."""
        called = list(clients)
        expected = self._expected(called)
        load = [0.0] * self._workers
        movable: dict[int, list[ClientId]] = defaultdict(list)
        for client in called:
            load[self.home[client]] += expected[client]
            if client not in self._of_round:
                movable[self.home[client]].append(client)
        moves: list[Move] = []
        while True:
            busiest, idlest = load.index(max(load)), load.index(min(load))
            gap = load[busiest] - load[idlest]
            # moving c seconds leaves the longer of the two min(c, gap - c) shorter than the busiest was
            gain, client = max(((min(expected[c], gap - expected[c]), c) for c in movable[busiest]), default=(0.0, -1))
            if gain < max(WORTHWHILE * load[busiest], LEAST_SECONDS):
                return moves
            movable[busiest].remove(client)
            load[busiest], load[idlest] = load[busiest] - expected[client], load[idlest] + expected[client]
            self.home[client] = idlest
            moves.append(Move(client, busiest, idlest))

    def _expected(self, clients: Iterable[ClientId]) -> dict[ClientId, float]:
        """Seconds of a round by client: the median of its architecture, unless its own last round took much else."""
        alike: dict[str, list[float]] = defaultdict(list)
        for client, seconds in self._seconds.items():
            alike[self._architecture[client]].append(seconds)
        everybody = median(self._seconds.values()) if self._seconds else 0.0
        usual = {name: median(values) for name, values in alike.items()}
        found = {}
        for client in clients:
            expected = usual.get(self._architecture[client], everybody)
            own = self._seconds.get(client, expected)
            found[client] = expected if abs(own - expected) <= NOISE * expected else own
        return found
