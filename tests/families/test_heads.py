"""What methods with a global head have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from by_hand import global_head, skewed
from worlds import (
    alone,
    entries,
    everything_owned,
    federation,
    largest_difference,
    linear_head,
    same_bits,
    server_copy,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.errors import ModelError
from interfuse.evaluation import evaluate
from interfuse.families.heads import check_common_head
from interfuse.federation import Federation
from interfuse.method import Method
from interfuse.methods.fedallrep import FedAllRep
from interfuse.methods.fedgh import FedGH
from interfuse.methods.fedre import FedRE
from interfuse.methods.local import Local

WITH_HEAD = pytest.mark.parametrize("kind", [FedGH, FedRE, FedAllRep])
FAST: dict[str, Any] = {"local_steps": 2, "batch_size": 8, "lr": 0.1, "server_lr": 0.1}


@WITH_HEAD
def test_different_modular_blocks_are_refused_before_anything_is_trained(kind: type[Method]) -> None:
    f = federation(kind.configure(FAST), models=["logistic", linear_head, wide], clients=4, start=False)
    with pytest.raises(ModelError) as refusal:
        f.start()
    text = str(refusal.value)
    assert "client 0 (logistic) has classifier.weight (3, 8), classifier.bias (3,)" in text
    assert "client 2 (wide) has modular.0.weight (6, 8), modular.0.bias (6,), modular.2.weight (3, 6)" in text
    assert "client 1" not in text  # has what client 0 has
    assert "for instance --models cnn,mlp-linear,mixed-linear,deep-linear" in text
    assert not entries(f)


def test_the_shape_of_a_modular_block_counts_too() -> None:
    def narrower(sample_shape: tuple[int, ...], classes: int, width: int) -> Any:
        return linear_head(sample_shape, classes, width - 1)

    f = federation(Local(), models=["logistic", narrower], clients=2)
    with pytest.raises(ModelError, match=r"client 0 .*weight \(3, 8\).*client 1 .*weight \(3, 7\)"):
        check_common_head(f.server, f.clients)


@WITH_HEAD
def test_clients_keep_their_base_blocks_and_begin_with_the_global_head(kind: type[Method]) -> None:
    f = federation(kind.configure(FAST | {"lr": 1e-30}), **skewed())  # clients' steps change nothing
    for _ in range(2):
        before, bases = global_head(f), {client: weights_of(f, client, "base") for client in f.clients}
        f.run_round()
        for client in f.clients:
            assert same_bits(weights_of(f, client, "base"), bases[client])
            assert same_bits(weights_of(f, client, "modular"), before)  # of the beginning of the round
        assert largest_difference(before, global_head(f)) > 1e-4


@WITH_HEAD
def test_clients_answer_with_their_base_and_the_newest_head(kind: type[Method]) -> None:
    f = federation(kind.configure(FAST), rounds=3, **skewed())
    measured = evaluate(f, full=True)
    x, y = f.setup.dataset.normalise(f.setup.dataset.x_test), f.setup.dataset.y_test
    assert measured.composition is not None
    for client in f.clients:
        weights = {**weights_of(f, client, "base"), **global_head(f)}
        scores = server_copy(f.setup, f.setup.architectures[client], weights)(x)
        right = float((scores.argmax(1) == y).double().mean())
        assert measured.common[client] == right
        assert measured.composition[client] == [right] * 3  # there is one modular block


@WITH_HEAD
def test_a_head_that_is_not_trained_stays(kind: type[Method]) -> None:
    f = federation(kind.configure(FAST | {"server_epochs": 0}), **skewed())
    first = global_head(f)
    for _ in range(2):
        f.run_round()
    assert same_bits(first, global_head(f))


@WITH_HEAD
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_resumed_run_goes_on_with_the_head(kind: type[Method], optimizer: str, tmp_path: Path) -> None:
    method = kind.configure(FAST | {"optimizer": optimizer})

    def made(**settings: Any) -> Federation:
        return federation(method, **skewed(), **settings)

    straight, resumed = made(rounds=2), made(start=False)
    resumed.load(tmp_path, 2, straight.save(tmp_path))
    for f in (straight, resumed):
        f.run_round()
    assert same_bits(everything_owned(straight), everything_owned(resumed))


@WITH_HEAD
def test_downlink_is_the_head_for_each_client(kind: type[Method]) -> None:
    dataset = tiny_dataset(rows=200, classes=100)
    f = federation(kind.configure(FAST), clients=20, width=512, dataset=dataset, rounds=1)
    down = [entry for entry in entries(f) if entry.direction == "down"]
    assert {entry.heading for entry in down} == {"training"}
    # HtFLlib's setting: 20 clients, 100 classes, width 512; 1.026 million parameters a round (FedKTL, Table 5)
    assert sum(entry.raw for entry in down) == 4 * 1_026_000


@WITH_HEAD
def test_what_a_client_would_do_alone_takes_as_many_steps(kind: type[Method]) -> None:
    method = kind.configure({"local_steps": 3, "batch_size": 8, "lr": 0.1, "optimizer": "adam"})
    local = alone(method)
    assert (local.local_steps, local.local_epochs, local.batch_size) == (3, None, 8)
    assert (local.lr, local.optimizer, local.keep_optimizer) == (0.1, "adam", True)
    assert alone(kind.configure({"local_epochs": 2})).local_epochs == 2
