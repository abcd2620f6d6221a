"""Which worker carries which client, so that all workers end a round at about the same time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from interfuse.client import ClientId, Profile

WORTHWHILE = 0.03
"""Moves must shorten the longest worker's time by this fraction, all of them together."""
LEAST_SECONDS = 0.001
"""And by at least this much: moving a client's state has a price too."""
NOISE = 0.25
"""Clients of one architecture whose seconds differ by less than this fraction are taken to cost the same."""
LATEST = 0.3
"""Weight of a client's last round in what it is expected to cost: one round is noisy."""
FINENESS = 0.01
"""The end that all workers can reach is looked for in steps of this fraction."""

Unit = Sequence[ClientId]
"""Clients that must work side by side in one worker; mostly a single one."""


@dataclass(frozen=True)
class Move:
    """A client that goes from one worker to another, with all that it owns."""

    client: ClientId
    source: int
    target: int


@dataclass(frozen=True)
class _Plan:
    """The worker of each unit, and when the last worker would be done."""

    targets: Mapping[int, int]
    seconds: float


class Placement:
    """Homes of clients. At first those of each architecture are dealt in turn; measured seconds then move them, and
    results do not change.

    A client stays where it is from its first call in a round to the end of it, since its scratch lies there.
    """

    def __init__(self, profiles: Mapping[ClientId, Profile], workers: int) -> None:
        self._architecture = {client: profile.architecture for client, profile in profiles.items()}
        self._workers = workers
        self._seconds: dict[ClientId, float] = {}
        self._usual: dict[str, float] = {}
        self._of_round: dict[ClientId, float] = {}
        self.home = dict.fromkeys(profiles, 0)
        self._deal([[client] for client in profiles])

    def clients_of(self, worker: int) -> tuple[ClientId, ...]:
        """The clients that a worker carries now."""
        return tuple(client for client, home in self.home.items() if home == worker)

    def note(self, client: ClientId, seconds: float) -> None:
        """A client's work in a call took so long."""
        self._of_round[client] = self._of_round.get(client, 0.0) + seconds

    def end_round(self) -> None:
        """What was noted since the last end is what these clients cost in a round."""
        for client, seconds in self._of_round.items():
            before = self._seconds.get(client, seconds)
            self._seconds[client] = before + LATEST * (seconds - before)
        self._of_round.clear()
        alike: dict[str, list[float]] = defaultdict(list)
        for client, seconds in self._seconds.items():
            alike[self._architecture[client]].append(seconds)
        self._usual = {name: median(values) for name, values in alike.items()}

    def arrange(self, units: Iterable[Unit]) -> list[Move]:
        """Moves, already entered in :attr:`home`, before a call of these clients."""
        called = list(units)
        before = {client: self.home[client] for unit in called for client in unit}
        if not before.keys() - self._of_round.keys():
            return []
        if self._seconds or self._of_round:
            self._rearrange(called)
        else:  # nobody has anything to carry yet
            self._deal(called)
        return [Move(client, home, self.home[client]) for client, home in before.items() if self.home[client] != home]

    def _deal(self, units: Sequence[Unit]) -> None:
        """In turn, one architecture after the other: nothing is known of what they cost."""
        for position, unit in enumerate(sorted(units, key=lambda unit: self._architecture[unit[0]])):
            self.home.update(dict.fromkeys(unit, position % self._workers))

    def _rearrange(self, units: Sequence[Unit]) -> None:
        """Move units where all moves together are worth their while."""
        costs = [sum(map(self._expected, unit)) for unit in units]
        homes = [self.home[self._first_pinned(unit)] for unit in units]
        free = [not any(client in self._of_round for client in unit) for unit in units]
        stay = self._plan(costs, homes, free, float("inf"))
        plan = self._shorter(costs, homes, free)
        if stay.seconds - plan.seconds < max(WORTHWHILE * stay.seconds, LEAST_SECONDS):
            plan = stay
        for number, unit in enumerate(units):
            self.home.update(dict.fromkeys(unit, plan.targets[number]))

    def _first_pinned(self, unit: Unit) -> ClientId:
        return next((client for client in unit if client in self._of_round), unit[0])

    def _shorter(self, costs: Sequence[float], homes: Sequence[int], free: Sequence[bool]) -> _Plan:
        """The earliest end by which all find room, most of them at home: at the latest that of a plan without homes."""
        scratch = self._plan(costs, homes, free, 0.0)
        end = max(sum(costs) / self._workers, max(costs))
        while True:
            end *= 1 + FINENESS
            plan = self._plan(costs, homes, free, end)
            if plan.seconds <= end:
                return plan
            if end >= scratch.seconds:
                return scratch

    def _plan(self, costs: Sequence[float], homes: Sequence[int], free: Sequence[bool], end: float) -> _Plan:
        """Deal free units, the longest first: home, if its worker is done by ``end`` all the same, else to the fullest
        such worker; where there is none, to the idlest."""
        load = [0.0] * self._workers
        targets: dict[int, int] = {}
        for number in sorted(range(len(costs)), key=lambda number: (free[number], -costs[number])):
            cost, home = costs[number], homes[number]
            target = home
            if free[number] and load[home] + cost > end:
                fitting = [worker for worker, taken in enumerate(load) if taken + cost <= end]
                idlest = home if load[home] == min(load) else load.index(min(load))
                target = max(fitting, key=load.__getitem__, default=idlest)
            targets[number] = target
            load[target] += cost
        return _Plan(targets, max(load))

    def _expected(self, client: ClientId) -> float:
        """Seconds of a round: the median of its architecture, unless it usually takes much else."""
        everybody = max(self._usual.values(), default=0.0)
        usual = self._usual.get(self._architecture[client], everybody)
        own = self._seconds.get(client, usual)
        return usual if abs(own - usual) <= NOISE * usual else own
