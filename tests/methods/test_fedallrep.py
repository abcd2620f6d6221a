"""FedAllRep against features and head steps by hand."""

from __future__ import annotations

from typing import Any

import torch
from by_hand import fused, global_head, one_hot, server_batches, skewed, softmax_steps
from worlds import (
    entries,
    federation,
    in_epochs,
    largest_difference,
    plain_sgd,
    same_bits,
    server_copy,
    shares_of,
    weights_of,
)

from interfuse.methods.fedallrep import FedAllRep
from interfuse.methods.fedgh import FedGH


def test_a_round_is_local_sgd_and_steps_of_the_head_on_all_features() -> None:
    f = federation(
        FedAllRep(local_epochs=2, batch_size=6, lr=0.1, server_lr=0.5, server_epochs=2, server_batch_size=16),
        **skewed(),
    )
    head = global_head(f)
    first = {client: weights_of(f, client, "base") for client in f.clients}
    f.run_round()
    sent = []
    for client in f.clients:
        model = server_copy(f.setup, f.setup.architectures[client], {**first[client], **head})
        trained = plain_sgd(model, in_epochs(f.setup, client, 2, 6), 0.1)
        assert same_bits({key: trained[key] for key in first[client]}, weights_of(f, client, "base"))
        sent += fused(f, client, trained)
    assert len(sent) == 17 + 5 + 22
    z, labels = torch.stack([z for z, _ in sent]), one_hot([y for _, y in sent], 4)
    expected = softmax_steps(head, z, labels, server_batches(f, 1, len(sent), 16, 2), 0.5)
    assert largest_difference(expected, global_head(f)) < 1e-5


def test_with_one_sample_a_class_it_is_fedgh() -> None:
    world = skewed()
    world["shares"] = shares_of([0, 1], [4], [2, 3])
    settings: dict[str, Any] = {"local_steps": 2, "lr": 0.1, "server_lr": 0.5, "server_batch_size": 5}
    every, means = (federation(kind(**settings, batch_size=2), **world) for kind in (FedAllRep, FedGH))
    first = global_head(means)
    for _ in range(3):
        every.run_round()
        means.run_round()
        assert largest_difference(global_head(every), global_head(means)) < 1e-5
    assert largest_difference(first, global_head(means)) > 1e-2


def test_uplink_is_the_whole_share_at_the_fusion_layer() -> None:
    f = federation(FedAllRep(local_steps=1), rounds=2, **skewed())
    up = [entry.raw for entry in entries(f) if entry.direction == "up"]
    assert up == [samples * (4 * 8 + 1) for samples in (17, 5, 22)] * 2
