"""Placement: no worker is left with much more than the others, and clients in the middle of a round stay."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interfuse.client import Profile
from interfuse.engines.placement import LEAST_SECONDS, WORTHWHILE, Move, Placement


def placement(architectures: list[str], workers: int = 2) -> Placement:
    profiles = {i: Profile(i, name, {}, 10, None) for i, name in enumerate(architectures)}
    return Placement(profiles, workers)


def measured(made: Placement, seconds: dict[int, float]) -> Placement:
    for client, spent in seconds.items():
        made.note(client, spent)
    made.end_round()
    return made


def longest(made: Placement, seconds: dict[int, float]) -> float:
    homes = set(made.home.values())
    return max(sum(s for client, s in seconds.items() if made.home[client] == home) for home in homes)


def test_clients_are_dealt_in_turn_and_stay_while_nothing_is_known() -> None:
    made = placement(["a"] * 5)
    assert made.clients_of(0) == (0, 2, 4)
    assert made.arrange([client] for client in range(5)) == []


def test_the_default_models_end_in_the_best_division() -> None:
    seconds = {0: 6.0, 1: 1.5, 2: 3.9, 3: 2.0}
    made = measured(placement(["cnn", "mlp", "mixed", "deep-head"]), seconds)
    assert made.arrange([client] for client in range(4)) == [Move(2, 0, 1)]
    best = min(
        max(sum(s for c, s in seconds.items() if homes[c] == w) for w in (0, 1)) for homes in product((0, 1), repeat=4)
    )
    assert longest(made, seconds) == best == pytest.approx(7.4)
    assert made.arrange([client] for client in range(4)) == []
    assert made.arrange([]) == []


def test_a_sample_of_equal_clients_is_divided_equally() -> None:
    made = measured(placement(["a"] * 20), dict.fromkeys(range(20), 1.0))
    drawn = [0, 2, 4, 6, 8, 10, 12, 1, 3, 5]  # seven at home in one worker, three in the other
    assert len(made.arrange([client] for client in drawn)) == 2
    assert sum(made.home[client] for client in drawn) == 5


def test_noise_of_a_busy_machine_divides_equal_clients_equally() -> None:
    """Taken at their word, the first four would be worth the other six."""
    seen = dict.fromkeys(range(10), 1.0) | {0: 1.2, 2: 1.24, 4: 1.22, 6: 1.2}
    made = measured(placement(["a"] * 10), seen)
    assert made.arrange([client] for client in range(10)) == []
    assert len(measured(placement(["a"] * 10), seen | {0: 3.0}).arrange([client] for client in range(10))) == 1


def test_clients_never_seen_count_like_others_of_their_architecture() -> None:
    made = measured(placement(["slow", "fast", "slow", "fast", "slow"]), {0: 4.0, 1: 1.0})
    made.arrange([client] for client in [1, 2, 3, 4])
    assert longest(made, {1: 1.0, 2: 4.0, 3: 1.0, 4: 4.0}) == 5.0


def test_a_client_in_the_middle_of_a_round_stays() -> None:
    made = measured(placement(["a", "b", "c", "d"]), {0: 5.0, 1: 0.1, 2: 5.0, 3: 0.1})
    assert made.home[0] == made.home[2]
    made.note(0, 5.0)
    made.note(2, 5.0)
    assert made.arrange([client] for client in range(4)) == []
    made.end_round()
    made.note(0, 5.0)
    assert [move.client for move in made.arrange([client] for client in range(4))] == [2, 3]


def test_a_gain_below_a_millisecond_moves_nobody() -> None:
    made = measured(placement(["a"] * 4), {0: 4e-4, 1: 1e-5, 2: 4e-4, 3: 1e-5})
    assert made.arrange([client] for client in range(4)) == []


def test_clients_that_work_together_move_together() -> None:
    made = placement(["a"] * 6, workers=2)
    made.arrange([[0, 1], [2, 3], [4, 5]])
    assert [made.home[client] for client in range(6)] == [0, 0, 1, 1, 0, 0]
    measured(made, dict.fromkeys(range(6), 1.0) | {4: 9.0, 5: 9.0})
    assert made.arrange([[0, 1], [2, 3], [4, 5]]) == [Move(0, 0, 1), Move(1, 0, 1)]
    made.note(1, 1.0)
    made.arrange([[1, 4]])
    assert made.home[4] == made.home[1] == 1  # with the one that has begun its round


PATTERNS = {
    "in turn": lambda client, clients, kinds: client % kinds,
    "blocks": lambda client, clients, kinds: client * kinds // clients,
    "mixed": lambda client, clients, kinds: client * 7919 % 101 % kinds,
}


def best(costs: list[float], workers: int) -> float:
    """What the longest first reach; nobody can be below the mean, or below the longest client."""
    load = [0.0] * workers
    for cost in sorted(costs, reverse=True):
        load[load.index(min(load))] += cost
    return max(load)


@given(
    st.sampled_from([2, 3, 4, 7, 10, 44, 100, 333, 1000]),
    st.integers(1, 8),
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4),
    st.sampled_from(sorted(PATTERNS)),
    st.sampled_from([0.1, 0.3, 1.0]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60)
def test_the_longest_worker_is_within_five_percent_of_the_best_division(
    clients: int, workers: int, kinds: list[float], pattern: str, fraction: float, rng: Random
) -> None:
    """Whoever takes part, whatever the architectures cost, once each was seen."""
    architectures = [PATTERNS[pattern](client, clients, len(kinds)) for client in range(clients)]
    made = placement([str(kind) for kind in architectures], workers)
    seen: set[int] = set()
    for _ in range(4):
        drawn = sorted(rng.sample(range(clients), max(1, round(fraction * clients))))
        costs = {client: kinds[architectures[client]] for client in drawn}
        before = longest(made, costs)
        made.arrange([client] for client in drawn)
        if seen >= {architectures[client] for client in drawn}:
            assert longest(made, costs) <= min(before, 1.05 * best(list(costs.values()), workers)) + 1e-9
        seen |= {architectures[client] for client in drawn}
        measured(made, costs)


@pytest.mark.parametrize(("pattern", "clients"), [("in turn", 44), ("blocks", 100), ("in turn", 1000)])
def test_the_first_round_already_has_all_architectures_everywhere(pattern: str, clients: int) -> None:
    kinds = [PATTERNS[pattern](client, clients, 2) for client in range(clients)]
    costs = {client: (1.0, 0.1)[kind] for client, kind in enumerate(kinds)}
    made = placement([str(kind) for kind in kinds])
    assert made.arrange([client] for client in costs) == []
    assert longest(made, costs) <= 1.05 * sum(costs.values()) / 2
    drawn = {client: costs[client] for client in range(0, clients, 4)}  # all at home with the first worker or so
    made.arrange([client] for client in drawn)
    assert longest(made, drawn) <= max(1.05 * sum(drawn.values()) / 2, sum(drawn.values()) / 2 + 1)


@given(st.integers(2, 40), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(max_examples=10)
def test_noise_sends_nobody_to_and_fro(clients: int, workers: int, rng: Random) -> None:
    """In 30 rounds of seconds that vary by a fifth, every client moves once at most, on the average."""
    kinds = [rng.choice([1.0, 0.3]) for _ in range(clients)]
    made, moves = placement([str(kind) for kind in kinds], workers), 0
    for _ in range(30):
        moves += len(made.arrange([client] for client in range(clients)))
        measured(made, {client: kind * rng.uniform(0.9, 1.1) for client, kind in enumerate(kinds)})
    assert moves <= clients


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.integers(1, 6), st.sets(st.integers(0, 29)))
@settings(max_examples=60)
def test_nobody_is_lost_and_moves_are_worth_their_while(costs: list[float], workers: int, inside: set[int]) -> None:
    seconds = dict(enumerate(costs))
    made = measured(placement([str(client) for client in seconds], workers), seconds)
    before, staying = dict(made.home), longest(made, seconds)
    pinned = [client for client in seconds if client in inside]
    for client in pinned:
        made.note(client, 1.0)
    moves = made.arrange([client] for client in seconds)
    assert made.home == before | {move.client: move.target for move in moves}
    assert set(made.home) == set(seconds)
    assert all(0 <= home < workers for home in made.home.values())
    assert not {move.client for move in moves} & set(pinned)
    least = max(WORTHWHILE * staying, LEAST_SECONDS)
    assert not moves or staying - longest(made, seconds) >= least - 1e-9
    assert made.arrange([client] for client in seconds) == []  # once is enough
