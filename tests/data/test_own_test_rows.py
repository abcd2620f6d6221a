"""Whose the test rows of a source are, and clients that are tested on all of their own and on no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from interfuse import data as module
from interfuse.data import IID, ClientData, Dataset, Inputs, Natural, class_counts, deal, make_shares
from interfuse.errors import DataError

PEOPLE, TESTED = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2], [2, 0, 1, 0, 5, 1, 1]
"""Of the training and of the test rows; nobody trains for number 5."""


def data(**changes: Any) -> Dataset:
    x = np.arange(34.0).reshape(17, 2)
    given = {"groups": PEOPLE, "test_groups": TESTED, "class_names": ["a", "b"]} | changes
    return Dataset.from_arrays("made", x[:10], np.arange(10) % 2, x[10:], np.arange(7) % 2, **given)


def numbers(found: torch.Tensor | None) -> list[int]:
    assert found is not None
    return [int(number) for number in found]


def tensor(x: Inputs) -> torch.Tensor:
    assert isinstance(x, torch.Tensor)
    return x


def held(made: Dataset, clients: int = 3, **options: Any) -> dict[int, list[int]]:
    """The test rows of each person."""
    shares = make_shares(made, Natural(), clients, 4, test="source", **options)
    assert made.groups is not None
    return {int(made.groups[share.train[0]]): share.held.tolist() for share in shares if share.held is not None}


def test_a_client_has_all_test_rows_of_its_people_and_trains_on_all_that_is_not_validation() -> None:
    assert held(data(), validation=0.0) == {0: [1, 3], 1: [2, 5, 6], 2: [0]}
    shares = make_shares(data(), Natural(), 2, 0, validation=0.3, test="source")
    assert sorted(np.concatenate([share.rows for share in shares]).tolist()) == list(range(10))
    assert not any(len(share.test) for share in shares)
    for share in shares:
        own = {PEOPLE[row] for row in share.rows}
        assert share.held is not None
        assert share.held.tolist() == [row for row, person in enumerate(TESTED) if person in own]


def test_names_of_people_are_one_in_both_parts() -> None:
    names = np.array(["ann", "bob", "cy", "-", "-", "dan"])
    made = data(groups=names[PEOPLE], test_groups=names[TESTED])
    assert (numbers(made.groups), numbers(made.test_groups)) == (PEOPLE, [2, 0, 1, 0, 3, 1, 1])


def test_what_a_client_is_tested_on_is_its_own_rows_normalised_as_all_others() -> None:
    made = data()
    share = next(s for s in make_shares(made, Natural(), 3, 4, test="source") if s.held is not None and len(s.held) > 2)
    own = ClientData(made, share, made.normalise)
    x = torch.cat([tensor(batch.x) for batch in own.test()])
    assert torch.equal(x, tensor(made.normalise(made.x_test))[[2, 5, 6]])
    (few,) = own.test(2)  # the first and the last, not the first two
    assert torch.equal(tensor(few.x), tensor(made.normalise(made.x_test))[[2, 6]])


def test_rows_of_a_class_count_wherever_they_lie() -> None:
    made = data()
    counts = class_counts([made] * 3, make_shares(made, Natural(), 3, 4, test="source"))
    assert counts.sum() == 10 + 6  # nobody has the test row of number 5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"test_groups": None}, "does not say whose its test rows are, .* such as test = 0.25"),
        ({"groups": None}, "test_groups without groups"),
        ({"test_groups": TESTED[:-1]}, r"test_groups has shape \[6\], needs \[7\]"),
        ({"test_groups": [-1] * 7}, "test_groups has numbers below 0"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        held(data(**changes))


def test_people_whose_rows_are_divided_have_no_test_rows_of_their_own() -> None:
    with pytest.raises(DataError, match=r"the rows of group \d went to clients \d and \d, .* take --partition natural"):
        make_shares(data(), IID(), 3, 0, test="source")


def test_a_source_whose_test_rows_are_all_of_others_gives_nobody_any() -> None:
    with pytest.raises(DataError, match=r"no test row is of a group that a client has, .* test_groups alike"):
        make_shares(data(test_groups=[7] * 7), Natural(), 3, 0, test="source")


def test_the_digest_of_the_data_is_that_of_older_runs_and_shares_say_the_rest() -> None:
    assert data().digest == data(test_groups=None).digest


def test_fewer_test_rows_are_still_somebodys() -> None:
    few = data().with_test_rows(4)
    for row, person in zip(tensor(few.x_test), numbers(few.test_groups), strict=True):
        assert TESTED[int(row[0]) // 2 - 10] == person


def test_all_rows_can_be_divided_and_what_clients_test_on_is_the_common_test_set() -> None:
    made = data(groups=None, test_groups=None).with_all_rows()
    assert (len(made.y_train), len(made.y_test)) == (17, 0)
    datasets, before = deal([made], IID(), 3, 0, validation=0.25, test=0.25)
    datasets, shares = module.testing_on_shares(datasets, before)
    assert len({id(dataset) for dataset in datasets}) == 1
    whole = tensor(made.x_train)
    for dataset, old, new in zip(datasets, before, shares, strict=True):
        assert new.held is not None
        assert torch.equal(tensor(dataset.x_test)[new.held], whole[old.test])
        assert torch.equal(tensor(dataset.x_train)[new.train], whole[old.train])
        assert torch.equal(dataset.y_train[new.validation], made.y_train[old.validation])
    both = torch.cat([tensor(datasets[0].x_train), tensor(datasets[0].x_test)])[:, 0]
    assert sorted(both.tolist()) == whole[:, 0].tolist()
    assert sorted(np.concatenate([s.held for s in shares if s.held is not None])) == list(
        range(len(datasets[0].y_test))
    )
    with pytest.raises(DataError, match="leave out divide = 'all'"):
        data(test_groups=None).with_all_rows()
    assert numbers(data().with_all_rows().groups) == PEOPLE + TESTED


def test_plain_inputs_do_not_depend_on_the_rows() -> None:
    x = np.array([[[[0, 255], [51, 102]]]] * 2, np.uint8)
    made = Dataset.from_arrays("bytes", x, [0, 1], x, [0, 1]).normalised("plain")
    torch.testing.assert_close(
        tensor(made.normalise(made.x_train))[0, 0],
        torch.tensor([[-1.0, 1.0], [-0.6, -0.2]]),
    )
    floats = data().normalised("plain")
    assert torch.equal(tensor(floats.normalise(floats.x_train)), tensor(floats.x_train))
    assert data().normalised("data").mean == data().mean
