"""FedRE against mixtures and head steps by hand."""

from __future__ import annotations

from typing import Any

import torch
from by_hand import HELD, fused, global_head, means_by_hand, server_batches, skewed, softmax_steps
from torch.nn import functional
from worlds import Recorder, entries, federation, largest_difference, weights_of, wide

from interfuse.data import Batch
from interfuse.federation import Federation
from interfuse.methods.fedgh import FedGH
from interfuse.methods.fedre import Entangled, FedRE, entangled_cross_entropy


def recorded(rounds: int, **settings: Any) -> tuple[Federation, list[tuple[int, Entangled]]]:
    f = federation(FedRE(local_steps=2, batch_size=8, **settings), wrap=Recorder, rounds=rounds, **skewed())
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    return f, [(client, m) for _, client, m in recorder.up if isinstance(m, Entangled)]


def test_a_client_mixes_its_class_means_and_its_labels_by_the_same_weights() -> None:
    f, sent = recorded(1)
    for client, mixture in sent:
        means = means_by_hand(fused(f, client, weights_of(f, client)))
        assert [y for _, y in means] == list(HELD[client]) == mixture.y.nonzero().flatten().tolist()
        assert (mixture.y >= 0).all()
        torch.testing.assert_close(mixture.y.sum(), torch.tensor(1.0))
        torch.testing.assert_close(mixture.z, torch.stack([mixture.y[y] * z for z, y in means]).sum(0))
    assert len(sent) == 3


def test_weights_are_drawn_anew_for_each_client_and_round() -> None:
    _, sent = recorded(4)
    drawn = [float(mixture.y[0]) for client, mixture in sent if client in (0, 2)]
    assert len(set(drawn)) == 8
    assert min(drawn) < 0.4
    assert max(drawn) > 0.6
    assert all(mixture.y.tolist() == [0, 1, 0, 0] for client, mixture in sent if client == 1)


def test_the_loss_is_the_sum_of_weighted_cross_entropies() -> None:
    model = wide((5,), 4, 8)
    z, labels = torch.randn(3, 8), torch.softmax(torch.randn(5, 4), 1)
    rows = torch.tensor([4, 0, 2])
    loss = entangled_cross_entropy(model, Batch(z, rows), 0, labels=labels)
    expected = torch.zeros(())
    for position, row in enumerate(rows.tolist()):
        for c in range(4):
            logits = model.modular(z[position : position + 1])
            expected = expected + labels[row, c] * functional.cross_entropy(logits, torch.tensor([c]))
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters_of("modular").values())
    for one, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_the_server_takes_steps_on_the_mixtures_in_closed_form() -> None:
    f = federation(FedRE(server_lr=0.2, server_epochs=2, server_batch_size=2), wrap=Recorder, **skewed())
    head = global_head(f)
    f.run_round()
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    mixtures = [m for _, _, m in recorder.up if isinstance(m, Entangled)]
    z, labels = torch.stack([m.z for m in mixtures]), torch.stack([m.y for m in mixtures])
    expected = head
    for batch in server_batches(f, 1, 3, 2, 2):
        expected = softmax_steps(expected, z, labels, [batch], 0.2 * len(batch))  # a sum, where the oracle takes means
    assert largest_difference(expected, global_head(f)) < 1e-6


def test_clients_of_one_class_send_what_they_send_in_fedgh() -> None:
    world = skewed()
    world["shares"] = [world["shares"][1]] * 3
    settings: dict[str, Any] = {"local_steps": 2, "batch_size": 8, "lr": 0.1, "server_batch_size": 3}
    entangled = federation(FedRE(server_lr=0.1, **settings), **world)
    plain = federation(FedGH(server_lr=0.3, **settings), **world)  # a mean of three, where FedRE takes the sum
    first = global_head(plain)
    for _ in range(3):
        entangled.run_round()
        plain.run_round()
        assert largest_difference(global_head(entangled), global_head(plain)) < 1e-5
    assert largest_difference(first, global_head(plain)) > 1e-2


def test_uplink_is_one_vector_and_one_label_distribution_a_client() -> None:
    f, _ = recorded(2)
    assert [entry.raw for entry in entries(f) if entry.direction == "up"] == [4 * (8 + 4)] * 6
