"""Placement: no worker is left with much more than the others, and clients in the middle of a round stay."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
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
    assert made.arrange(range(5)) == []


def test_the_default_models_end_in_the_best_division() -> None:
    seconds = {0: 6.0, 1: 1.5, 2: 3.9, 3: 2.0}
    made = measured(placement(["cnn", "mlp", "mixed", "deep-head"]), seconds)
    assert made.arrange(range(4)) == [Move(2, 0, 1)]
    best = min(
        max(sum(s for c, s in seconds.items() if homes[c] == w) for w in (0, 1)) for homes in product((0, 1), repeat=4)
    )
    assert longest(made, seconds) == best == pytest.approx(7.4)
    assert made.arrange(range(4)) == []


def test_a_sample_of_equal_clients_is_divided_equally() -> None:
    made = measured(placement(["a"] * 20), dict.fromkeys(range(20), 1.0))
    drawn = [0, 2, 4, 6, 8, 10, 12, 1, 3, 5]  # seven at home in one worker, three in the other
    assert len(made.arrange(drawn)) == 2
    assert sum(made.home[client] for client in drawn) == 5


def test_noise_of_a_busy_machine_divides_equal_clients_equally() -> None:
    """Taken at their word, the first four would be worth the other six."""
    seen = dict.fromkeys(range(10), 1.0) | {0: 1.2, 2: 1.24, 4: 1.22, 6: 1.2}
    made = measured(placement(["a"] * 10), seen)
    assert made.arrange(range(10)) == []
    assert len(measured(placement(["a"] * 10), seen | {0: 3.0}).arrange(range(10))) == 1


def test_clients_never_seen_count_like_others_of_their_architecture() -> None:
    made = measured(placement(["slow", "fast", "slow", "fast", "slow"]), {0: 4.0, 1: 1.0})
    moves = made.arrange([1, 2, 3, 4])
    assert [move.client for move in moves] == [4, 3]  # 8 and 2 seconds, then 4 and 6, then 5 and 5


def test_a_client_in_the_middle_of_a_round_stays() -> None:
    made = measured(placement(["a", "b", "a", "b"]), {0: 5.0, 1: 0.1, 2: 5.0, 3: 0.1})
    made.note(0, 1.0)
    made.note(2, 1.0)
    assert made.arrange(range(4)) == []
    made.end_round()
    made.note(0, 5.0)
    assert [move.client for move in made.arrange(range(4))] == [2, 3]


def test_a_gain_below_a_millisecond_moves_nobody() -> None:
    made = measured(placement(["a"] * 4), {0: 4e-4, 1: 1e-5, 2: 4e-4, 3: 1e-5})
    assert made.arrange(range(4)) == []


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=30),
    st.integers(1, 6),
    st.sets(st.integers(0, 29)),
)
def test_nothing_worthwhile_is_left_and_nobody_is_lost(costs: list[float], workers: int, inside: set[int]) -> None:
    seconds = dict(enumerate(costs))
    made = measured(placement([str(client) for client in seconds], workers), seconds)
    before = dict(made.home)
    pinned = [client for client in seconds if client in inside]
    for client in pinned:
        made.note(client, 1.0)
    moves = made.arrange(seconds)
    expected = before | {move.client: move.target for move in moves}
    assert made.home == expected
    assert set(made.home) == set(seconds)
    assert all(0 <= home < workers for home in made.home.values())
    assert not {move.client for move in moves} & set(pinned)
    loads = [sum(s for c, s in seconds.items() if made.home[c] == w) for w in range(workers)]
    start = [sum(s for c, s in seconds.items() if before[c] == w) for w in range(workers)]
    assert max(loads) <= max(start) + 1e-6
    busiest = loads.index(max(loads))
    gap = max(loads) - min(loads)
    # clients moved in this call stay in their new home until the next
    free = [s for c, s in seconds.items() if made.home[c] == busiest == before[c] and c not in inside]
    assert all(min(s, gap - s) <= max(WORTHWHILE * max(loads), LEAST_SECONDS) + 1e-6 for s in free)
