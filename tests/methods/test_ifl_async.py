"""Asynchronous IFL: who learns from which pairs, and when."""

from __future__ import annotations

import math
from typing import Any

import torch
from worlds import Recorder, federation

from interfuse.clock import Devices
from interfuse.families.fusion import FusionOutputs, FusionPairs
from interfuse.federation import Federation
from interfuse.methods.ifl_async import IFLAsync

FAST: dict[str, Any] = {"local_steps": 3, "batch_size": 4, "base_lr": 0.1, "modular_lr": 0.1}
DEVICES = Devices(step_seconds=1.0, slow=0.5, slowdown=2.5, spread=0.1, uplink=math.inf, downlink=math.inf)


def run(rounds: int, **settings: Any) -> tuple[Federation, Recorder]:
    f = federation(IFLAsync(**FAST, **settings), clients=4, rounds=rounds, devices=DEVICES, wrap=Recorder)
    assert isinstance(f.engine, Recorder)
    return f, f.engine


def test_everybody_gets_the_latest_pair_of_each_at_the_time() -> None:
    f, recorder = run(6, replies=3)
    sent = [m for _, _, m in recorder.up if isinstance(m, FusionOutputs)]
    order = [client for _, client, _ in recorder.up]
    ends = {client: 0.0 for client in range(4)}
    begun: list[tuple[float, float]] = []  # of each piece of work, in the order in which it was given out
    for place, client in enumerate(order):
        known = recorder.down[place][2]
        assert isinstance(known, FusionPairs)
        steps = 3 + len(known.pairs)
        begin = ends[client]
        ends[client] = begin + steps * f.exchange.clock.devices[client].step_seconds
        begun.append((begin, ends[client]))
        there = [
            max((p for p in range(place) if order[p] == other and begun[p][1] <= begin), default=None)
            for other in range(4)
        ]
        wanted = [sent[p] for p in there if p is not None]
        assert len(known.pairs) == len(wanted)
        for pair, other in zip(known.pairs, wanted, strict=True):
            assert torch.equal(pair.z, other.z)
            assert torch.equal(pair.y, other.y)
    assert len(order) == 4 + 6 * 3 - 1
    assert f.exchange.steps.total() == sum(3 + len(m.pairs) for _, _, m in recorder.down)  # type: ignore[attr-defined]


def test_slow_clients_hold_nobody_up() -> None:
    f, recorder = run(10)
    seconds = [device.step_seconds for device in f.exchange.clock.devices]
    times = [sum(client == c for _, c, _ in recorder.up) for client in range(4)]
    assert min(times[c] for c in range(4) if seconds[c] < 2) > 1.5 * max(times[c] for c in range(4) if seconds[c] > 2)
    synchronous = federation("ifl", clients=4, rounds=10, devices=DEVICES)
    assert f.exchange.clock.now < 0.6 * synchronous.exchange.clock.now
