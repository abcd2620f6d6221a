"""The virtual clock against brute force: who is away, when work is done, who is late, what bytes cost."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import entries, federation, shares_of, wide

from interfuse.clock import LINKS, NAMED, OWN, UNIFORM, Device, Devices, VirtualClock, Work, devices_of, named
from interfuse.errors import ConfigError
from interfuse.federation import Federation
from interfuse.methods.ifl import IFL
from interfuse.wire import Entry


def test_work_takes_the_time_of_its_steps_and_of_its_bits() -> None:
    device = Device(step_seconds=0.25, uplink=4.0, downlink=8.0)
    assert device.seconds(Work(steps=3, down=1_000_000, up=500_000)) == 0.75 + 1.0 + 1.0
    assert device.seconds(Work(steps=3, down=1_000_000, up=500_000), link=1.0) == 0.75 + 8.0 + 4.0
    assert device.seconds(Work(0, 0, 0)) == 0.0


@pytest.mark.parametrize(("slow", "clients", "count"), [(0.5, 10, 5), (0.5, 4, 2), (0.0, 4, 0), (0.99, 3, 3)])
def test_so_many_clients_are_slower(slow: float, clients: int, count: int) -> None:
    found = devices_of(Devices(step_seconds=0.5, slow=slow, slowdown=4.0), 1, clients)
    assert sorted(device.step_seconds for device in found) == [0.5] * (clients - count) + [2.0] * count
    assert {(device.uplink, device.downlink) for device in found} == {(10.0, 10.0)}


def test_devices_are_a_function_of_the_seed() -> None:
    spread = Devices(slow=0.5, spread=0.3)
    assert devices_of(spread, 3, 20) == devices_of(spread, 3, 20)
    assert devices_of(spread, 3, 20) != devices_of(spread, 4, 20)
    assert len({device.step_seconds for device in devices_of(spread, 3, 20)}) == 20
    logs = [math.log(device.uplink / 10) for device in devices_of(Devices(spread=0.3), 3, 4000)]
    assert math.isclose(math.sqrt(sum(x * x for x in logs) / len(logs)), 0.3, rel_tol=0.05)


@given(st.integers(0, 2**32), st.integers(1, 12), st.floats(0, 0.999), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_so_many_are_away_in_every_period_but_never_all(seed: int, clients: int, away: float, period: int) -> None:
    clock = VirtualClock(Devices(away=away), seed, clients)
    absent = sum(clock.is_away(client, period) for client in range(clients))
    assert absent == min(round(away * clients), clients - 1)


def test_everybody_is_away_at_times() -> None:
    clock = VirtualClock(NAMED["stragglers"], 0, 10)
    assert all(0 < sum(clock.is_away(client, period) for period in range(100)) < 50 for client in range(10))


@given(
    seed=st.integers(0, 1000), begin=st.floats(0, 40).map(lambda at: round(at, 6)),
    seconds=st.floats(0, 30), away=st.sampled_from([0.0, 0.3, 0.7]),
    period=st.sampled_from([0.5, 2.0, 3.0]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_work_rests_while_its_client_is_away(
    seed: int, begin: float, seconds: float, away: float, period: float
) -> None:
    clock = VirtualClock(Devices(step_seconds=seconds, away=away, away_seconds=period), seed, 4)
    end = clock.done(2, Work(1, 0, 0), begin)
    # by hand: how long the client was there between the two moments
    there, edge = 0.0, begin
    while edge < end:
        number = int(edge / period + 1e-9)
        until = min(end, (number + 1) * period)
        there += 0.0 if clock.is_away(2, number) else until - edge
        edge = until
    assert there == pytest.approx(seconds, abs=1e-6)
    back = clock.back(2, begin)
    assert begin <= back
    assert not clock.is_away(2, int(back / period + 1e-9))
    assert seconds == 0 or end > back - 1e-9


def test_waiting_for_all_is_waiting_for_the_last_on_every_kind_of_link() -> None:
    clock = VirtualClock(Devices(step_seconds=1.0, uplink=2.0, downlink=2.0), 0, 3)
    assert clock.times == dict.fromkeys((OWN, *LINKS), 0.0)
    clock.wait_for_all({}, {0: Work(3, 0, 0), 1: Work(1, 250_000, 500_000), 2: Work(0, 0, 0)})
    assert clock.times == {OWN: 4.0, "1 Mbit/s": 7.0, "10 Mbit/s": 3.0, "100 Mbit/s": 3.0}
    clock.wait_for_all({0: 9.0}, {0: Work(1, 0, 0)})
    assert clock.now == 10.0
    clock.wait_for_all({}, {})
    assert clock.now == 10.0


def test_once_time_has_decided_other_links_are_unknown() -> None:
    clock = VirtualClock(UNIFORM, 0, 3)
    clock.go_to(2.0)
    clock.go_to(1.0)  # never back
    clock.wait_for_all({}, {0: Work(100, 0, 0)})
    assert clock.times == {OWN: 3.0}


@given(
    done=st.lists(st.integers(1, 30), min_size=1, max_size=6), deadline=st.integers(1, 20), minimum=st.integers(1, 6),
    complete=st.booleans(),
)  # fmt: skip
@settings(deadline=None)
def test_a_call_ends_at_its_deadline_or_with_the_minimum(
    done: list[int], deadline: int, minimum: int, complete: bool
) -> None:
    clock = VirtualClock(UNIFORM, 0, 6)
    clock.go_to(100.0)
    moments = {client: 100.0 + seconds for client, seconds in enumerate(done)}
    late = set(clock.close(moments, deadline, minimum, complete=complete))
    in_time = [seconds for client, seconds in enumerate(done) if client not in late]
    assert len(in_time) >= min(minimum, len(done))
    # as many as have to, and no other, were waited for beyond the deadline
    assert sum(seconds < max(in_time) for seconds in done) < minimum or max(in_time) <= deadline
    assert all(seconds > max(deadline, *in_time) for client, seconds in enumerate(done) if client in late)
    waited = clock.now - 100.0
    assert waited == (max(done) if complete and not late else max([deadline, *in_time]))


@given(st.integers(0, 200), st.integers(0, 6), st.floats(0.1, 9))
@settings(max_examples=60, deadline=None)
def test_who_is_away_until_the_deadline_is_not_reached(seed: int, minimum: int, deadline: float) -> None:
    clock = VirtualClock(Devices(away=0.6, away_seconds=2.0), seed, 6)
    clock.go_to(3.0)
    found = clock.reachable(range(6), deadline, minimum)
    there = [client for client in range(6) if clock.back(client, 3.0) < 3.0 + deadline]
    assert set(there) <= set(found)
    assert len(found) == max(len(there), minimum)
    assert all(clock.back(c, 3.0) <= clock.back(d, 3.0) for c in found for d in range(6) if d not in found)


def test_unknown_devices_are_refused_by_name() -> None:
    assert named("stragglers") == Devices(slow=0.5, slowdown=10.0, away=0.2)
    with pytest.raises(ConfigError, match="no devices 'straglers': did you mean 'stragglers'"):
        named("straglers")


def linked(rounds: int = 0) -> Federation:
    """Three clients with links and batches of their own, for whom steps cost nothing: time is bytes alone."""
    return federation(
        IFL(local_steps=2, batch_size=16), models=[wide], codecs={"default": "int4"}, rounds=rounds,
        shares=shares_of(range(0, 9), range(9, 26), range(26, 60)),
        devices=Devices(step_seconds=0.0, uplink=4.0, downlink=9.0, spread=0.5),
    )  # fmt: skip


def transfer(f: Federation, counted: list[Entry], rate: float | None) -> float:
    """Seconds of what one client was sent and sent, on its own link or on one of this rate in Mbit/s."""
    (client,) = {entry.client for entry in counted}
    device = f.exchange.clock.devices[client]
    rates = {"down": rate or device.downlink, "up": rate or device.uplink}
    return sum(entry.wire * 8 / (1e6 * rates[entry.direction]) for entry in counted)


def slowest(f: Federation, counted: list[Entry], rate: float | None) -> float:
    """Seconds of one call."""
    return max(transfer(f, [e for e in counted if e.client == c], rate) for c in {e.client for e in counted})


def test_a_round_takes_as_long_as_its_bytes_on_the_wire() -> None:
    f = linked(rounds=1)
    counted = entries(f)
    calls = [[e for e in counted if e.call == call] for call in sorted({e.call for e in counted})]
    assert [{e.direction for e in call} for call in calls] == [{"up"}, {"down"}]
    assert len({e.wire for e in calls[0]}) > 1
    assert sum(e.wire for e in counted) < 0.8 * sum(e.raw for e in counted)
    assert f.exchange.clock.times == {
        name: pytest.approx(sum(slowest(f, call, rate) for call in calls), rel=1e-9)
        for name, rate in {OWN: None, **LINKS}.items()
    }
    assert f.exchange.clock.now > 0


def test_bytes_take_time_in_streams_and_within_deadlines() -> None:
    f, other = linked(), linked()
    method: Any = f.method
    arrived = {a.client: a.seconds for a in islice(f.clients.stream(method.train_base), 3)}
    first = {client: [e for e in entries(f) if e.client == client][:1] for client in f.clients}
    wanted = {client: transfer(f, sent, None) for client, sent in first.items()}
    assert arrived == pytest.approx(wanted, rel=1e-9)
    method = other.method
    between = sorted(wanted.values())[1]
    replies = other.clients.call(method.train_base, deadline=between * 1.0001)
    assert set(replies) == {client for client, seconds in wanted.items() if seconds <= between}
    assert len(replies) == 2
