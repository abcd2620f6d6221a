"""FedGH against class means and head steps by hand."""

from __future__ import annotations

import torch
from by_hand import (
    HELD,
    fused,
    global_head,
    means_by_hand,
    one_hot,
    server_batches,
    skewed,
    softmax_steps,
)
from worlds import (
    Recorder,
    entries,
    federation,
    in_steps,
    largest_difference,
    plain_sgd,
    same_bits,
    server_copy,
    shares_of,
    weights_of,
)

from interfuse.families.prototypes import ClassMeans
from interfuse.methods.fedgh import FedGH


def test_a_round_is_local_sgd_class_means_and_steps_of_the_head() -> None:
    f = federation(
        FedGH(local_steps=3, batch_size=8, lr=0.1, server_lr=0.5, server_epochs=2, server_batch_size=3), **skewed()
    )
    head = global_head(f)
    first = {client: weights_of(f, client, "base") for client in f.clients}
    f.run_round()
    sent = []
    for client in f.clients:
        model = server_copy(f.setup, f.setup.architectures[client], {**first[client], **head})
        trained = plain_sgd(model, in_steps(f.setup, client, 3, 8), 0.1)
        assert same_bits({key: trained[key] for key in first[client]}, weights_of(f, client, "base"))
        sent += means_by_hand(fused(f, client, trained))
    assert [y for _, y in sent] == [0, 1, 1, 0, 2]
    z, labels = torch.stack([z for z, _ in sent]), one_hot([y for _, y in sent], 4)
    expected = softmax_steps(head, z, labels, server_batches(f, 1, 5, 3, 2), 0.5)
    assert largest_difference(expected, global_head(f)) < 1e-6


def test_one_class_of_one_client_moves_the_head_along_one_softmax() -> None:
    world = skewed()
    f = federation(FedGH(local_steps=0, server_lr=0.5), **world | {"shares": world["shares"][1:2]})
    head = global_head(f)
    f.run_round()
    ((z, y),) = means_by_hand(fused(f, 0, weights_of(f, 0)))
    moved = torch.softmax(head["classifier.weight"] @ z + head["classifier.bias"], 0)
    moved[y] -= 1
    torch.testing.assert_close(global_head(f)["classifier.bias"], head["classifier.bias"] - 0.5 * moved)
    torch.testing.assert_close(
        global_head(f)["classifier.weight"], head["classifier.weight"] - 0.5 * torch.outer(moved, z)
    )


def test_a_class_counts_once_however_many_samples_it_has() -> None:
    world = skewed()
    rows = world["shares"][1].train.tolist()
    settings = {"local_steps": 0, "server_lr": 0.5}
    once, often = (
        federation(FedGH(**settings), rounds=1, **world | {"shares": shares_of(rows, world["shares"][2].train, own)})
        for own in (world["shares"][0].train, [*world["shares"][0].train] * 3)
    )
    assert largest_difference(global_head(once), global_head(often)) < 1e-6


def test_uplink_is_a_mean_and_a_label_for_each_class_a_client_has() -> None:
    f = federation(FedGH(local_steps=1), rounds=2, wrap=Recorder, **skewed())
    up = [entry.raw for entry in entries(f) if entry.direction == "up"]
    assert up == [len(held) * (4 * 8 + 1) for held in HELD] * 2
    recorder = f.engine
    assert isinstance(recorder, Recorder)
    for _, client, message in recorder.up:
        assert isinstance(message, ClassMeans)
        assert message.y.tolist() == list(HELD[client])
