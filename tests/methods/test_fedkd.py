"""FedKD: decompositions against the theorem of Eckart and Young, training by PyTorch's own loop, bytes by rank."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from worlds import (
    Recorder,
    entries,
    federation,
    in_steps,
    largest_difference,
    live_model,
    resident,
    same_bits,
    tiny_dataset,
    weights_of,
    wide,
)

from interfuse.data import Batch
from interfuse.errors import ClientError, ConfigError
from interfuse.families.factors import Factored, Factors, factored, multiplied, truncated
from interfuse.families.memes import small_network
from interfuse.methods.fedkd import FedKD, distilled, projection
from interfuse.models import SplitModel, pair, side_by_side


@given(st.integers(0, 50), st.integers(1, 7), st.integers(1, 7), st.floats(0.05, 1))
def test_the_smallest_rank_that_keeps_the_energy_and_loses_just_the_rest(
    seed: int, rows: int, columns: int, energy: float
) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    found = truncated(matrix, energy)
    squares = torch.linalg.svdvals(matrix.double()).square()
    rank, total = len(found.scale), float(squares.sum())
    assert float(squares[:rank].sum()) >= energy * total * (1 - 1e-5)
    assert rank == 1 or float(squares[: rank - 1].sum()) <= energy * total * (1 + 1e-5)
    lost = (matrix.double() - (found.left * found.scale @ found.right).double()).square().sum()
    assert float(lost) == pytest.approx(float(squares[rank:].sum()), abs=1e-4)


def test_something_is_kept_of_two_rows_of_one_and_of_nothing() -> None:
    """HtFLlib keeps no row where no sum of fewer values exceeds the energy."""
    two = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert [len(truncated(two, energy).scale) for energy in (0.3, 0.6, 1.0)] == [1, 2, 2]
    assert len(truncated(torch.ones(1, 5), 0.95).scale) == 1
    zeros = truncated(torch.zeros(3, 4), 0.95)
    assert not (zeros.left * zeros.scale @ zeros.right).any()


def network_tensors(seed: int = 0) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    low = torch.randn(20, 2, generator=noise) @ torch.randn(2, 30, generator=noise)
    conv = torch.randn(8, 1, 1, 1, generator=noise) * torch.randn(1, 6, 3, 3, generator=noise)
    return {"low.weight": low, "conv.weight": conv, "bias": torch.randn(20), "full.weight": torch.randn(6, 6)}


def test_at_energy_1_nothing_is_lost_and_what_is_no_smaller_travels_as_it_is() -> None:
    tensors = network_tensors()
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    assert same_bits(multiplied(factored(tensors, 1.0), shapes), tensors)
    sent = factored(tensors, 0.999)
    assert {key: len(own.scale) for key, own in sent.factors.items()} == {"low.weight": 2, "conv.weight": 1}
    assert sent.whole.keys() == {"bias", "full.weight"}
    back = multiplied(sent, shapes)
    assert all(torch.allclose(back[key], tensors[key], atol=1e-4) for key in tensors)


def server_meme(f: Any) -> SplitModel:
    made = small_network(f.method.meme, f.setup.dataset.shape, 3, f.method.width(f.server.dims))
    made.load(f.server.state.weights)
    return made


def test_two_rounds_by_hand() -> None:
    """Lossless, so three networks in one loop: each loss reaches its own network alone, W the meme's."""
    method = FedKD(local_steps=3, batch_size=8, lr=0.2, energy_start=1.0, energy_end=1.0, meme_width=5, clip=0.5)
    f = federation(method, models=["logistic", wide], clients=2)
    own = [copy.deepcopy(live_model(f, c)) for c in f.clients]
    between = [copy.deepcopy(resident(f, c).network("projection")) for c in f.clients]
    meme, clipped = server_meme(f), 0
    for round in range(2):
        memes = []
        for client, model in enumerate(own):
            mine, w = copy.deepcopy(meme), between[client]
            networks = (model, mine, w)
            for x, y in in_steps(f.setup, client, 3 * (round + 1), 8)[3 * round :]:
                z, z_g = model.base(x), mine.base(x)
                out, out_g = model.modular(z), mine.modular(z_g)
                ce, ce_g = functional.cross_entropy(out, y), functional.cross_entropy(out_g, y)
                weight = 1 / (ce.item() + ce_g.item())
                fixed = [t.detach().clone() for t in (z, w(z_g), out.softmax(1), out_g.softmax(1))]
                log_p, log_q = out.log_softmax(1), out_g.log_softmax(1)
                of_model = ce + weight * ((fixed[3] * (fixed[3].log() - log_p)).mean() + (z - fixed[1]).square().mean())
                of_meme = ce_g + weight * (
                    (fixed[2] * (fixed[2].log() - log_q)).mean() + (w(z_g) - fixed[0]).square().mean()
                )
                parameters = [p for network in networks for p in network.parameters()]
                first, second = (
                    torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (of_model, of_meme)
                )
                assert all((a is None) != (b is None) for a, b in zip(first, second, strict=True))
                gradients = [b if a is None else a for a, b in zip(first, second, strict=True)]
                norm = float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())  # type: ignore[union-attr]
                clipped += norm > 0.5
                with torch.no_grad():
                    for p, g in zip(parameters, gradients, strict=True):
                        p -= 0.2 * min(1.0, 0.5 / (norm + 1e-6)) * g  # type: ignore[operator]
            memes.append(mine.tensors())
        meme.load({key: (memes[0][key] + memes[1][key]) / 2 for key in memes[0]})
        f.run_round()
        assert largest_difference(meme.tensors(), f.server.state.weights) < 1e-5
        for client, model in enumerate(own):
            assert largest_difference(model.tensors(), weights_of(f, client)) < 1e-5
            kept = resident(f, client).network("projection").tensors()
            assert largest_difference(between[client].tensors(), kept) < 1e-5
    assert clipped


def test_energy_grows_evenly_from_round_to_round() -> None:
    f = federation(FedKD(local_steps=1, energy_start=0.5, energy_end=0.9), rounds=0, wrap=Recorder)
    f.server._rounds = 4
    for _ in range(4):
        f.run_round()
    assert isinstance(f.engine, Recorder)
    told = [message.energy for _, client, message in f.engine.down if client == 0]  # type: ignore[attr-defined]
    assert told == pytest.approx([0.5, 0.6, 0.7, 0.8])
    even = federation(FedKD(local_steps=1, energy_start=0.9, energy_end=0.9), rounds=1)
    assert not even.server.rounds_read  # such a run can be extended


def test_bytes_follow_the_ranks() -> None:
    data = tiny_dataset(rows=60, shape=(30,))
    f = federation(FedKD(local_steps=2, energy_start=0.4, energy_end=0.4), dataset=data, wrap=Recorder, rounds=2)
    assert isinstance(f.engine, Recorder)
    counted = [entry.raw for entry in entries(f) if entry.heading == "training" and entry.direction == "up"]
    assert len(counted) == len(f.engine.up) == 6
    whole = 4 * (30 * 8 + 8 + 8 * 3 + 3)
    for raw, (_, _, message) in zip(counted, f.engine.up, strict=True):
        assert isinstance(message, Factored)
        ranks = {key: len(own.scale) for key, own in message.factors.items()}
        sizes = {"logistic.fc1.1.weight": (8, 30), "classifier.weight": (3, 8)}
        saved = [math.prod(sizes[key]) - rank * (sum(sizes[key]) + 1) for key, rank in ranks.items()]
        assert raw == whole - 4 * sum(saved) < whole
        assert "logistic.fc1.1.weight" in ranks


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m.whole.pop("classifier.bias"), "did not send 'classifier.bias'"),
        (lambda m: m.whole.update({"logistic.fc1.1.weight": torch.zeros(8, 30)}), "is there as a whole too"),
        (lambda m: m.factors.update({"classifier.bias": factors(3, 1, 1)}), "no matrix of the network"),
        (lambda m: m.factors.update({"other": factors(3, 1, 1)}), "no matrix of the network"),
        (lambda m: m.factors.update({"logistic.fc1.1.weight": factors(30, 8, 1)}), r"expected shape \(8, 30\), found"),
        (lambda m: m.factors.update({"logistic.fc1.1.weight": factors(8, 30, 1, 1e30)}), "not finite"),
    ],
)
def test_what_is_no_meme_is_refused_by_name(change: Callable[[Factored], object], complaint: str) -> None:
    class Changed(Recorder):
        def call(self, request: Any, messages: Any) -> Any:
            for answer in super().call(request, messages):
                if answer.client == 1 and isinstance(answer.reply, Factored):
                    changed = Factored(dict(answer.reply.whole), dict(answer.reply.factors))
                    change(changed)
                    answer = type(answer)(1, changed, 0.0)
                yield answer

    data = tiny_dataset(rows=60, shape=(30,))
    f = federation(FedKD(local_steps=1, energy_start=0.4), dataset=data, wrap=Changed)
    with pytest.raises(ClientError, match=f"client 1 sent what is not its meme: .*{complaint}"):
        f.run_round()


def factors(rows: int, columns: int, rank: int, value: float = 1.0) -> Factors:
    return Factors(torch.full((rows, rank), value), torch.full((rank,), value), torch.full((rank, columns), value))


def test_what_distances_are_divided_by_has_a_floor() -> None:
    """Of a client of one class the cross entropies go to 0, where features need not agree."""
    networks = {"model": wide((5,), 3, 8), "meme": wide((5,), 3, 8), "projection": projection(8, 8)}
    for name in ("model", "meme"):  # sure of class 0 beyond what float32 tells from 1
        last = networks[name].parameters_of("modular")
        networks[name].load({key: torch.zeros_like(p) for key, p in last.items()})
        networks[name].load({"modular.2.bias": torch.tensor([200.0, 0.0, 0.0])})
    batch = Batch(torch.randn(4, 5), torch.zeros(4, dtype=torch.int64))
    together = side_by_side(networks)
    z, aligned = networks["model"].base(batch.x), networks["projection"](networks["meme"].base(batch.x))
    for floor in (1.0, 1e-3):
        loss = distilled(together, batch, 0, over="batch", floor=floor)
        torch.testing.assert_close(loss, 2 * functional.mse_loss(z, aligned) / floor)
        gradients = torch.autograd.grad(loss, list(together.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)


def maps(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """No vector at its fusion layer."""
    return pair(torch.nn.Conv2d(1, 2, 1), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32, classes)))


def test_features_must_be_vectors() -> None:
    with pytest.raises(ConfigError, match="its fusion layer is no vector; give it a width"):
        federation(FedKD(meme_width=4), models=[maps], dataset=tiny_dataset(shape=(1, 4, 4)))
