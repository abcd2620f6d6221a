"""The clock of a run. In a simulation it is a virtual one: how fast each client is, when it is there, what time it is.

There the wall clock decides nothing. A piece of work takes the time of its download, its gradient steps and its upload,
as counted by the run, on a device that is a function of the run's seed and the configuration. Between parties time is
real.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Protocol

from annotated_types import Ge, Gt, Lt

from interfuse.errors import ConfigError, nearest
from interfuse.randomness import numpy_generator

OWN = "devices"
"""The time on the clients' own devices."""
LINKS: Mapping[str, float] = {"1 Mbit/s": 1.0, "10 Mbit/s": 10.0, "100 Mbit/s": 100.0}
"""What time it would be if all links had one rate, while no time has decided anything."""
WALL = "wall"
"""The real time."""


@dataclass(frozen=True)
class Devices:
    """The machines and links of the clients. Part of every run's configuration.

    Attributes:
        step_seconds: Of a gradient step.
        slow: This fraction of the clients, drawn once, takes ``slowdown`` times as long for a step.
        uplink, downlink: Rates in Mbit/s (10^6 bits a second).
        spread: Standard deviation of the natural logarithm of a factor on the seconds of a step, and of one on both
            rates, drawn for each client; 0 makes them all alike.
        away: This fraction of the clients is away at any time, but never all. Who is away is drawn anew after every
            ``away_seconds``. Work rests meanwhile.
    """

    step_seconds: Annotated[float, Ge(0)] = 0.01
    slow: Annotated[float, Ge(0), Lt(1)] = 0.0
    slowdown: Annotated[float, Ge(1)] = 10.0
    uplink: Annotated[float, Gt(0)] = 10.0
    downlink: Annotated[float, Gt(0)] = 10.0
    spread: Annotated[float, Ge(0)] = 0.0
    away: Annotated[float, Ge(0), Lt(1)] = 0.0
    away_seconds: Annotated[float, Gt(0)] = 2.0


UNIFORM = Devices()

NAMED: Mapping[str, Devices] = {"uniform": UNIFORM, "stragglers": Devices(slow=0.5, away=0.2)}
"""Devices by name: all alike; half of them ten times slower and a fifth away at a time."""


def named(name: str) -> Devices:
    """The devices of that name.

    Raises:
        ConfigError: there are none; says which there are.
    """
    if name not in NAMED:
        raise ConfigError(f"no devices {name!r}: {nearest(name, NAMED)}")
    return NAMED[name]


@dataclass(frozen=True)
class Work:
    """What a client had to do in a call: gradient steps, and bytes on the wire in either direction."""

    steps: int
    down: int
    up: int


@dataclass(frozen=True)
class Device:
    """One client's machine: seconds of a step, and rates in Mbit/s."""

    step_seconds: float
    uplink: float
    downlink: float

    def seconds(self, work: Work, link: float | None = None) -> float:
        """How long the work takes without a break, on its own link or on one of this rate in Mbit/s."""
        up, down = (link or rate for rate in (self.uplink, self.downlink))
        return work.steps * self.step_seconds + 8e-6 * (work.down / down + work.up / up)


def devices_of(devices: Devices, seed: int, clients: int) -> list[Device]:
    """Every client's own device: a function of the arguments alone."""
    drawn = numpy_generator(seed, "devices")
    slow = set(drawn.permutation(clients)[: round(devices.slow * clients)].tolist())
    factors = [[math.exp(devices.spread * float(x)) for x in drawn.standard_normal(2)] for _ in range(clients)]
    return [
        Device(
            devices.step_seconds * (devices.slowdown if client in slow else 1.0) * on_steps,
            devices.uplink * on_rates,
            devices.downlink * on_rates,
        )
        for client, (on_steps, on_rates) in enumerate(factors)
    ]


@lru_cache(maxsize=1_000)
def _away(seed: int, clients: int, count: int, period: int) -> frozenset[int]:
    """The clients that are away in a period."""
    return frozenset(numpy_generator(seed, "away", period).permutation(clients)[:count].tolist())


class Clock(Protocol):
    """What time it is in a run, and what that means for its calls.

    Attributes:
        times: Seconds since the run began, by name of the clock: what a commit saves and gives back.
    """

    times: dict[str, float]

    @property
    def now(self) -> float:
        """The time."""

    def done(self, client: int, work: Work, begin: float) -> float:
        """When a client is done with work that it is given at a moment."""

    def wait_for_all(self, begins: Mapping[int, float], work: Mapping[int, Work]) -> None:
        """Go on to when the last of these clients is done.

        Args:
            begins: When a client can begin at the earliest, where that is later than now.
        """

    def go_to(self, moment: float) -> None:
        """Go on to a moment that depends on who is how fast."""

    def reachable(self, clients: Collection[int], deadline: float, minimum: int) -> list[int]:
        """Those of the clients to which a call with a deadline goes."""

    def close(self, done: Mapping[int, float], deadline: float, minimum: int, *, complete: bool) -> list[int]:
        """End a call at its deadline, when ``minimum`` are done if that is later, or as soon as all are.

        Args:
            done: When the clients that replied are done.
            complete: Nobody else is waited for.

        Returns:
            Those of them that are late.
        """


class WallClock:
    """The real time. It goes on by itself, and the engine knows who is late: a reply that is there came in time.

    After a resume it goes on where the commit left it.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def times(self) -> dict[str, float]:
        return {WALL: self.now}

    @times.setter
    def times(self, times: Mapping[str, float]) -> None:
        self._began = time.monotonic() - times[WALL]

    @property
    def now(self) -> float:
        return time.monotonic() - self._began

    def done(self, client: int, work: Work, begin: float) -> float:
        return self.now

    def wait_for_all(self, begins: Mapping[int, float], work: Mapping[int, Work]) -> None: ...

    def go_to(self, moment: float) -> None: ...

    def reachable(self, clients: Collection[int], deadline: float, minimum: int) -> list[int]:
        return sorted(clients)

    def close(self, done: Mapping[int, float], deadline: float, minimum: int, *, complete: bool) -> list[int]:
        return []


class VirtualClock:
    """What time it is in a simulation, in seconds since the run began. See :class:`Clock`.

    Attributes:
        times: By :data:`OWN` the time, and by the names of :data:`LINKS` what it would be with such links; those are
            gone once the time has decided anything.
    """

    def __init__(self, devices: Devices, seed: int, clients: int) -> None:
        self.devices = devices_of(devices, seed, clients)
        self._seed, self._period = seed, devices.away_seconds
        self._absent = min(round(devices.away * clients), clients - 1)
        self.times: dict[str, float] = dict.fromkeys((OWN, *LINKS), 0.0)

    @property
    def now(self) -> float:
        """The time."""
        return self.times[OWN]

    def is_away(self, client: int, period: int) -> bool:
        """Whether a client is away in a period, from 0."""
        return client in _away(self._seed, len(self.devices), self._absent, period)

    def back(self, client: int, moment: float) -> float:
        """The first moment, from a given one on, at which a client is there."""
        period = int(moment // self._period)
        while self._absent and self.is_away(client, period):
            period += 1
            moment = period * self._period
        return moment

    def done(self, client: int, work: Work, begin: float, link: float | None = None) -> float:
        """When a client is done with work that it is given at a moment; it rests while it is away.

        Args:
            link: As if its link had this rate in Mbit/s.
        """
        left = self.devices[client].seconds(work, link)
        if not self._absent:
            return begin + left
        period, moment = int(begin // self._period), begin
        while True:
            end = (period + 1) * self._period
            if not self.is_away(client, period):
                if moment + left <= end:
                    return moment + left
                left -= end - moment
            period, moment = period + 1, end

    def wait_for_all(self, begins: Mapping[int, float], work: Mapping[int, Work]) -> None:
        for name, now in self.times.items():
            ends = (self.done(c, w, max(now, begins.get(c, now)), LINKS.get(name)) for c, w in work.items())
            self.times[name] = max([now, *ends])

    def go_to(self, moment: float) -> None:
        """Go on to a moment that depends on who is how fast: what it would be with other links is unknown from here."""
        self.times = {OWN: max(self.now, moment)}

    def reachable(self, clients: Collection[int], deadline: float, minimum: int) -> list[int]:
        """Those of the clients that are there before ``deadline`` seconds have gone by, or the first ``minimum``."""
        back = sorted((self.back(client, self.now), client) for client in clients)
        return sorted(client for place, (m, client) in enumerate(back) if m < self.now + deadline or place < minimum)

    def close(self, done: Mapping[int, float], deadline: float, minimum: int, *, complete: bool) -> list[int]:
        ends = sorted(done.values())
        closing = max([self.now + deadline, *ends[:minimum]])
        late = [client for client, moment in done.items() if moment > closing]
        self.go_to(max(ends, default=self.now) if complete and not late else closing)
        return late
