"""RELA's relevance and weights: invariants, limits, and clients that send what is no gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from worlds import federation

from interfuse.errors import ClientError
from interfuse.families.relevance import ProbeGradient, Relevance, RelevanceGuided
from interfuse.families.weighing import Similarity, calibrated, effective_sources, relevance, weights
from interfuse.methods.local import Local
from interfuse.server import Server

both = pytest.mark.parametrize("similarity", ["columns", "flat"])
every_size = pytest.mark.parametrize("count", [1, 2, 4, 40])


def gradients(count: int, rows: int = 6, columns: int = 9, seed: int = 0) -> Tensor:
    return torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(seed))


def by_hand(x: Tensor, similarity: Similarity) -> list[list[float]]:
    """Cosines one by one."""

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))

    if similarity == "flat":
        return [[cosine(a, b) for b in x] for a in x]
    columns = range(x.shape[2])
    return [[sum(cosine(a[:, k], b[:, k]) for k in columns) / len(columns) for b in x] for a in x]


@both
@every_size
def test_e11_relevance_is_a_symmetric_matrix_of_cosines(count: int, similarity: Similarity) -> None:
    x = gradients(count)
    found = relevance(x, similarity)
    torch.testing.assert_close(found, torch.tensor(by_hand(x, similarity)), atol=1e-6, rtol=0)
    torch.testing.assert_close(found, found.T, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.diagonal(), torch.ones(count), atol=1e-6, rtol=0)


@both
def test_e11_scale_duplicates_and_order(similarity: Similarity) -> None:
    x = gradients(5)
    found = relevance(x, similarity)
    scales = torch.tensor([1e-30, 3.0, 1e-3, 1e8, 7.0])[:, None, None]
    torch.testing.assert_close(relevance(x * scales, similarity), found, atol=1e-6, rtol=0)
    twice = relevance(torch.cat([x, 2 * x[:1]]), similarity)
    assert float(twice[0, 5]) == pytest.approx(1.0, abs=1e-6)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(relevance(x[order], similarity), found[order][:, order], atol=1e-6, rtol=0)


@both
def test_e11_a_common_index_set_is_needed(similarity: Similarity) -> None:
    """Of one gradient, different rows are no more alike than chance."""
    x = gradients(1, rows=80, columns=40)[0]
    assert abs(float(relevance(torch.stack([x[:40], x[40:]]), similarity)[0, 1])) < 0.1


@both
def test_a_gradient_of_zeros_weighs_like_any_other(similarity: Similarity) -> None:
    x = gradients(4)
    x[2] = 0
    matrix = relevance(x, similarity)
    assert not matrix[2].any()
    assert weights(matrix, 0.1)[2].tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert matrix.isfinite().all()
    assert weights(relevance(torch.zeros(3, 2, 2), similarity), 0.1).isfinite().all()


def test_who_may_get_from_whom_may_be_said_on_another_device() -> None:
    """As on a GPU, where the server's state is, and what is known of clients is not."""
    matrix, among = torch.zeros(3, 3, device="meta"), torch.ones(3, 3, dtype=torch.bool)
    assert weights(matrix, 0.1, among).device.type == "meta"


def test_columns_of_zeros_do_not_count() -> None:
    x = gradients(2)
    wider = torch.cat([x, torch.zeros(2, 6, 5)], dim=2)
    wider[0, :, -1] = 1.0
    torch.testing.assert_close(relevance(wider), relevance(x), atol=1e-6, rtol=0)


@every_size
def test_e5_weights_are_a_softmax_over_the_others(count: int) -> None:
    matrix, tau = relevance(gradients(count)), 0.3
    found = weights(matrix, tau)
    torch.testing.assert_close(found.sum(1), torch.ones(count))
    if count == 1:
        assert found.tolist() == [[1.0]]
        return
    assert not found.diagonal().any()
    for i in range(count):
        exps = [math.exp(float(matrix[i, j]) / tau) if j != i else 0.0 for j in range(count)]
        assert found[i].tolist() == pytest.approx([e / sum(exps) for e in exps], abs=1e-6)


@pytest.mark.parametrize("count", [2, 4, 40])
def test_e5_limits_of_the_temperature(count: int) -> None:
    matrix = relevance(gradients(count))
    uniform = (1 - torch.eye(count)) / (count - 1)
    torch.testing.assert_close(weights(matrix, math.inf), uniform)
    torch.testing.assert_close(weights(matrix, 1e9), uniform, atol=1e-6, rtol=0)
    nearest = (matrix - 3 * torch.eye(count)).argmax(1)
    for tau in (1e-9, 1e-300):
        torch.testing.assert_close(weights(matrix, tau), functional.one_hot(nearest, count).float())
    torch.testing.assert_close(effective_sources(weights(matrix, math.inf)), torch.full((count,), count - 1.0))
    torch.testing.assert_close(effective_sources(weights(matrix, 1e-9)), torch.ones(count))


def test_e5_order_of_clients() -> None:
    matrix, order = relevance(gradients(5)), torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(weights(matrix[order][:, order], 0.2), weights(matrix, 0.2)[order][:, order])


def test_e5_among_the_same_architecture_and_alone() -> None:
    """A client alone with its architecture has its own; the others softmax over their subset."""
    kinds = torch.tensor([0, 1, 0, 2, 0])
    matrix = relevance(gradients(5))
    found = weights(matrix, 0.2, kinds[:, None] == kinds)
    assert found[1].tolist() == [0, 1, 0, 0, 0]
    assert found[3].tolist() == [0, 0, 0, 1, 0]
    torch.testing.assert_close(found[0, [0, 2, 4]], weights(matrix[[0, 2, 4]][:, [0, 2, 4]], 0.2)[0])
    assert not found[0, [1, 3]].any()


def test_the_sheet_s_example_of_how_selective_the_published_temperature_is() -> None:
    """Ten clients, similarity 0.6 to two, 0.1 to seven: 8.0 effective sources at 0.5, 2.0 at 1/16."""
    matrix = torch.full((10, 10), 0.1)
    matrix[0, 1:3] = 0.6
    found = weights(matrix, 0.5)[0]
    assert found[1].item() == pytest.approx(0.22, abs=5e-3)
    assert found[9].item() == pytest.approx(0.08, abs=5e-3)
    assert float(effective_sources(weights(matrix, 0.5))[0]) == pytest.approx(8.0, abs=0.05)
    assert float(effective_sources(weights(matrix, 1 / 16))[0]) == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("count", [1, 2, 4, 40])
@pytest.mark.parametrize("sources", [1.5, 2.0, 3.0])
def test_a_calibrated_temperature_gives_as_many_sources_as_wanted(count: int, sources: float) -> None:
    matrix = relevance(gradients(count)) * torch.tensor([[1e-4], [1.0], [10.0], [0.3]]).repeat(10, 1)[:count]
    temperatures = calibrated(matrix, sources)
    found = effective_sources(weights(matrix, temperatures))
    torch.testing.assert_close(found, torch.full((count,), min(sources, max(1.0, count - 1.0))), atol=1e-4, rtol=0)
    assert temperatures.isfinite().all()


def test_a_calibrated_temperature_where_not_all_is_known() -> None:
    matrix, kinds = relevance(gradients(6)), torch.tensor([0, 0, 0, 0, 1, 2])
    matrix[4] = matrix[:, 4] = torch.nan
    found = effective_sources(weights(matrix, calibrated(matrix, 2.0)))
    torch.testing.assert_close(found, torch.tensor([2.0, 2, 2, 2, 1, 2]), atol=1e-4, rtol=0)
    among = kinds[:, None] == kinds
    found = effective_sources(weights(matrix, calibrated(matrix, 2.0, among), among))
    torch.testing.assert_close(found, torch.tensor([2.0, 2, 2, 2, 1, 1]), atol=1e-4, rtol=0)
    alike = torch.ones(5, 5)  # four that are equally relevant cannot be two
    assert effective_sources(weights(alike, calibrated(alike, 2.0))).tolist() == pytest.approx([4.0] * 5)


def unknown(count: int, rows: int = 6, columns: int = 9) -> Relevance:
    nan = torch.full((count, count), torch.nan)
    return Relevance(torch.zeros(count, rows, columns), nan, nan)


def informed(old: Relevance, sent: dict[int, Tensor], momentum: float = 0.5) -> Relevance:
    method = RelevanceGuided(gradient_momentum=momentum)
    return method.informed(a_server(), old, {client: ProbeGradient(gradient) for client, gradient in sent.items()})


def a_server() -> Server:
    return federation(Local()).server


def test_e11_the_first_round_is_the_mean_and_later_ones_a_moving_average() -> None:
    x = gradients(4)
    first = informed(unknown(3), {0: x[0], 2: x[2]}, momentum=0.25)
    assert torch.equal(first.gradients, torch.stack([x[0], torch.zeros(6, 9), x[2]]))
    assert first.known.tolist() == [True, False, True]
    assert first.matrix[1].isnan().all()
    torch.testing.assert_close(first.matrix[[0, 2]][:, [0, 2]], relevance(x[[0, 2]]))
    second = informed(first, {0: x[3], 1: x[1]}, momentum=0.25)
    torch.testing.assert_close(second.gradients[0], 0.75 * x[0] + 0.25 * x[3])
    assert torch.equal(second.gradients[1:], x[1:3])
    assert second.matrix.isfinite().all()


def test_nobody_gets_from_whom_nothing_is_known() -> None:
    state = informed(unknown(4), {c: gradients(4)[c] for c in (0, 1, 3)})
    found = RelevanceGuided().mixture(state)
    assert torch.equal(found, weights(state.matrix, 0.5))
    assert found[2].tolist() == [0, 0, 1, 0]
    assert not found[[0, 1, 3], 2].any()
    assert found.isfinite().all()
    seen = RelevanceGuided().seen(state)
    assert seen["effective sources e^H"].isnan().tolist() == [False, False, True, False]
    alone = informed(unknown(2), {1: gradients(1)[0]})
    assert RelevanceGuided().mixture(alone).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("sent", "words"),
    [(torch.zeros(5, 9), r"shape \(5, 9\), expected \(6, 9\)"), (torch.full((6, 9), 1e30), "a gradient above")],
)
def test_who_sends_what_is_no_gradient_is_named(sent: Tensor, words: str) -> None:
    with pytest.raises(ClientError, match=f"client 1 sent .*{words}") as found:
        informed(unknown(2), {0: gradients(1)[0], 1: sent})
    assert found.value.client == 1
