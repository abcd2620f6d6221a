"""IFL with a bank of drawn images: what is sent once, what is drawn, and that the rest is IFL."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import Recorder, dataset_of, entries, federation, resident, run_handler, shares_of, tiny_dataset

from interfuse.data import Dataset, Normalisation, load
from interfuse.engines import InProcess
from interfuse.errors import ClientError, ConfigError
from interfuse.evaluation import evaluate
from interfuse.families.banks import Images
from interfuse.federation import Federation
from interfuse.messages import Disclosure, flatten
from interfuse.method import Method, disclosures
from interfuse.methods.ifl import IFL
from interfuse.methods.ifl_bank import IFLBank, TrainedDecoder
from interfuse.methods.ifl_bank_centroids import IFLBankCentroids
from interfuse.methods.ifl_bank_public import IFLBankPublic
from interfuse.methods.ifl_bank_vtc import IFLBankVTC, TrainedGenerator
from interfuse.models import resolve
from interfuse.models.autoencoders import autoencoder
from interfuse.setup import Setup

SMALL: dict[str, Any] = {"local_steps": 2, "batch_size": 6, "bank_rows": 8}
DECODER = IFLBank(**SMALL, decoder_steps=2)
CENTROIDS = IFLBankCentroids(**SMALL, centroids=2, smallest_cluster=3)
PUBLIC = IFLBankPublic(**SMALL)
VTC = IFLBankVTC(**SMALL, vtc_steps=2, channels=4)
EVERY = [DECODER, CENTROIDS, PUBLIC, VTC]
PIXELS = tiny_dataset(rows=90, shape=(1, 6, 6), dtype=torch.uint8)
SIGNALS = tiny_dataset(rows=90, shape=(2, 9))
SKEWED = shares_of(range(0, 90, 3), range(1, 90, 3))
"""Client 0 has class 0 alone, client 1 class 1; nobody has class 2."""


def made(method: Method, dataset: Dataset = PIXELS, shares: Any = SKEWED, rounds: int = 2, **others: Any) -> Federation:
    return federation(
        method, models=["logistic"], dataset=dataset, shares=shares, rounds=rounds, wrap=Recorder, **others
    )


def bank_of(f: Federation, client: int) -> Images:
    found: Images = resident(f, client).state.images
    return found


def sent_by(f: Federation, kind: type[Any]) -> list[Any]:
    assert isinstance(f.engine, Recorder)
    return [message for _, _, message in f.engine.up if type(message) is kind]


def test_what_each_bank_discloses_beyond_ifl() -> None:
    beyond = [disclosures(method) - disclosures(IFL()) for method in EVERY]
    generator = {Disclosure.GENERATORS, Disclosure.STATISTICS}
    assert beyond == [generator, {Disclosure.SURROGATES}, frozenset(), generator | {Disclosure.PROTOTYPES}]


@pytest.mark.parametrize(("side", "channels", "size"), [(28, 1, 203_332), (16, 1, 89_284), (32, 3, 257_228)])
def test_bytes_of_a_decoder(side: int, channels: int, size: int) -> None:
    """204 kB at 28 x 28 and 90 kB at 16 x 16, for ten classes."""
    decoder = autoencoder((channels, side, side), 10, 16).tensors("decoder")
    assert sum(4 * tensor.numel() for tensor in decoder.values()) == size


def test_the_decoder_goes_up_once_and_the_rest_is_ifl() -> None:
    f, plain = made(DECODER, rounds=3), made(IFL(local_steps=2, batch_size=6), rounds=3)
    start = [entry for entry in entries(f) if entry.heading == "start"]
    decoder = sum(4 * t.numel() for t in autoencoder((1, 6, 6), 3, 16).tensors("decoder").values())
    assert [(e.direction, e.kind, e.raw) for e in start if e.direction == "up"] == [
        ("up", "TrainedDecoder", decoder + 3 * 4 + 1)
    ] * 2
    images = 2 * 8 * (36 + 1)  # two classes, uint8 and a label each, to everybody
    assert [(e.kind, e.raw, e.casting) for e in start if e.direction == "down"] == [("Images", images, "broadcast")] * 2
    both = [[e for e in entries(one) if e.heading == "training"] for one in (f, plain)]
    assert both[0] == both[1]


def test_no_row_and_no_part_of_an_encoder_is_in_a_message() -> None:
    f = made(DECODER)
    assert isinstance(f.engine, Recorder)
    rows = {row.numpy().tobytes() for row in PIXELS.x_train.flatten(1)}
    rows |= {row.numpy().tobytes() for row in PIXELS.x_train.flatten(1).float() / 255}
    for _, _, message in f.engine.up + f.engine.down:
        assert not any("encoder" in path for path in flatten(message))
        for tensor in flatten(message).values():
            if tensor.numel() and tensor.dim() > 1:
                assert not rows & {row.numpy().tobytes() for row in tensor.flatten(1).contiguous()}
    # neither is there anything of the autoencoder left at home
    assert not any("autoencoder" in path and len(t) for path, t in resident(f, 0).owned().items())


@pytest.mark.parametrize("method", EVERY, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("dataset", [PIXELS, SIGNALS, tiny_dataset(rows=90)], ids=["pixels", "signals", "table"])
def test_a_client_of_one_class_sees_all_that_exist(method: Any, dataset: Dataset) -> None:
    f = made(method, dataset, rounds=1)
    client = resident(f, 0)
    batches = [method.mixed(client) for _ in range(40)]
    y, x = torch.cat([b.y for b in batches]), torch.cat([b.features for b in batches])
    exist = [0, 1, 2] if method is PUBLIC else [0, 1]
    assert y.unique().tolist() == exist
    assert x.shape == (240, *dataset.shape)
    assert x.isfinite().all()
    assert (torch.bincount(y) / 240 - 1 / len(exist)).abs().max() < 0.13
    # 30 own rows of class 0: 30 / 80 of its rows are own ones
    own = {row.numpy().tobytes() for row in client.data.train(torch.arange(30).numpy()).features.flatten(1)}
    mine = torch.tensor([row.contiguous().numpy().tobytes() in own for row in x.flatten(1)])
    assert not mine[y != 0].any()
    if method is not PUBLIC:  # whose bank has the same rows here
        assert abs(float(mine[y == 0].float().mean()) - 30 / 80) < 0.2


def test_bank_and_rows_are_normalised_alike() -> None:
    """Centroids of clusters of equal images are these images, in the bank as in the share."""
    image = torch.arange(36, dtype=torch.uint8).reshape(1, 6, 6)
    pixels = torch.stack([image, 5 * image]).repeat(30, 1, 1, 1)
    for x, scale in ((pixels, 255.0), (pixels, 200.0), (pixels.float() - 40, 1.0)):
        normal = Normalisation(scale, (0.25,), (0.5,))
        data = replace(dataset_of(x, torch.arange(60) % 2, 2), normalisation={"x": normal})
        f = made(CENTROIDS, data, shares_of(range(60)), rounds=1)
        drawn = CENTROIDS.samples_of(resident(f, 0), torch.tensor([1, 0, 1]))
        assert drawn is not None
        torch.testing.assert_close(drawn, normal(x[[1, 0, 1]]), atol=1 / 255, rtol=1e-5)


def test_centroids_are_means_of_enough_rows_and_few_rows_send_nothing() -> None:
    f = made(CENTROIDS, PIXELS, shares_of([*range(0, 90, 3), 1, 4], range(2, 90, 3)), rounds=1)
    first, second = sent_by(f, Images)
    assert first.y.unique().tolist() == [0]  # of class 1 it has two rows, fewer than three
    assert second.y.unique().tolist() == [2]
    assert first.x.dtype == torch.uint8
    one = made(IFLBankCentroids(**SMALL, centroids=1), PIXELS, rounds=1)
    mean = (PIXELS.x_train[0::3].float().mean(0)).round().to(torch.uint8)
    assert torch.equal(sent_by(one, Images)[0].x, mean[None])


def test_of_more_centroids_the_bank_has_some() -> None:
    method = IFLBankCentroids(**SMALL | {"bank_rows": 3}, centroids=4, smallest_cluster=1)
    bank = bank_of(made(method, shares=shares_of(range(45), range(45, 90)), rounds=1), 0)
    assert torch.bincount(bank.y.long()).tolist() == [3, 3, 3]


@pytest.mark.parametrize("method", [DECODER, CENTROIDS], ids=["decoder", "centroids"])
def test_all_get_one_bank_and_forty_no_larger_one(method: Any) -> None:
    few, many = (made(method, shares=shares_of(*[range(c, 90, n) for c in range(n)]), rounds=0) for n in (4, 40))
    sizes = [torch.bincount(bank_of(f, 0).y.long(), minlength=3).tolist() for f in (few, many)]
    assert max(max(size) for size in sizes) <= 8
    assert torch.equal(bank_of(many, 0).x, bank_of(many, 39).x)
    if method is DECODER:
        assert sizes == [[8, 8, 8], [8, 8, 8]]


def test_clients_with_samples_of_another_shape_have_a_bank_of_their_own() -> None:
    others = tiny_dataset(rows=90, shape=(1, 5, 4), dtype=torch.uint8)
    shares = shares_of(range(0, 90, 3), range(1, 90, 3), range(2, 90, 3))
    architectures = ["logistic", "logistic", "logistic 1x5x4"]
    setup = Setup(DECODER, [PIXELS, PIXELS, others], shares, [resolve("logistic")] * 3, architectures, 8, 0)
    f = Federation(setup, InProcess(setup))
    f.start()
    banks = [bank_of(f, client) for client in range(3)]
    assert [tuple(bank.x.shape[1:]) for bank in banks] == [(1, 6, 6), (1, 6, 6), (1, 5, 4)]
    assert [bank.y.unique().tolist() for bank in banks] == [[0, 1], [0, 1], [2]]
    f.run_round()


def test_public_data_of_other_classes_or_none_is_refused() -> None:
    other = tiny_dataset(rows=30, classes=4, shape=(1, 6, 6), dtype=torch.uint8)
    with pytest.raises(ConfigError, match="classes of the public data are not those of the task"):
        made(PUBLIC, public=other)


def test_public_rows_are_the_first_of_each_class() -> None:
    f = made(PUBLIC, shares=shares_of(range(30), range(30, 60)), rounds=1)
    places = resident(f, 1).state.places
    assert places.tolist() == [c + 3 * i for c in range(3) for i in range(8)]
    assert [entry for entry in entries(f) if entry.heading == "start"] == []


# ------------------------------------------------------------------------------------------------------ hostile replies


def honest(f: Federation) -> TrainedDecoder:
    found: TrainedDecoder = run_handler(f, DECODER.train_decoder)
    return found


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda d: {k: t for k, t in d.items() if "0.weight" not in k},
            "sent as what draws images 'decoder.0.weight'",
        ),
        (lambda d: d | {"more": torch.zeros(1)}, r"'more' \(1,\), expected nothing"),
        (lambda d: {k: t[..., :1] for k, t in d.items()}, "expected"),
        (lambda d: {k: t * 1e30 for k, t in d.items()}, "values beyond"),
    ],
)
def test_decoders_that_are_none_are_refused_by_name(change: Any, problem: str) -> None:
    f = made(DECODER, SIGNALS, rounds=0)
    good = honest(f)
    bad = TrainedDecoder(change(dict(good.decoder)), good.counts, good.pixels)
    with pytest.raises(ClientError, match=problem) as found:
        DECODER.drawn({0: good, 1: bad}, f.clients.profiles, 3, torch.Generator())
    assert found.value.client == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"generator": {}}, "client 1 sent as what draws images 'first.0.bias' nothing, expected"),
        ({"variance": torch.full((1, 8), -1.0)}, "client 1 sent a variance below 0"),
        ({"count": torch.zeros(1)}, "client 1 sent counts that are not above 0"),
        ({"mean": torch.full((1, 8), 1e30)}, "client 1 sent a mean above"),
    ],
)
def test_generators_and_statistics_that_are_none_are_refused_by_name(change: dict[str, Any], problem: str) -> None:
    f = made(VTC, SIGNALS, rounds=0)
    good: TrainedGenerator = run_handler(f, VTC.train_vtc)
    with pytest.raises(ClientError, match=problem) as found:
        VTC.drawn({0: good, 1: replace(good, **change)}, f.clients.profiles, f.setup.dims, torch.Generator())
    assert found.value.client == 1


@pytest.mark.parametrize("scale", [255.0, 16.0])
def test_a_vtc_learns_pixels_between_their_bounds(scale: float) -> None:
    """Equal images have features without a variance, so the generator learns these images."""
    x = (torch.arange(36).reshape(1, 6, 6) * scale / 36).to(torch.uint8)[None].repeat(30, 1, 1, 1)
    data = replace(dataset_of(x, torch.zeros(30).long(), 2), normalisation={"x": Normalisation(scale, (0.3,), (0.6,))})
    f = made(IFLBankVTC(**SMALL, vtc_steps=150, vtc_lr=0.01), data, shares_of(range(30)), rounds=0)
    error = (bank_of(f, 0).x.float() / 255 - x[:1].float() / scale).abs().mean()
    assert float(error) < 0.05


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 1, 5, 5), torch.zeros(2, 1, 6, 6).double(), torch.full((2, 1, 6, 6), 1e9)]
)
def test_images_that_are_no_samples_are_refused_by_name(x: Tensor) -> None:
    f = made(CENTROIDS, rounds=0)
    y = torch.zeros(len(x), dtype=torch.uint8)
    with pytest.raises(ClientError, match="images of client 1") as found:
        CENTROIDS.chosen(
            {0: Images(torch.zeros(2, 1, 6, 6), y), 1: Images(x, y)}, f.clients.profiles, 3, torch.Generator()
        )
    assert found.value.client == 1


def test_who_sends_more_centroids_than_all_may_is_refused_by_name() -> None:
    f, y = made(CENTROIDS, rounds=0), torch.zeros(3, dtype=torch.uint8)
    many = {1: Images(torch.zeros(3, 1, 6, 6, dtype=torch.uint8), y)}
    with pytest.raises(ClientError, match="client 1 sent more than 2 images of a class") as found:
        CENTROIDS.chosen(many, f.clients.profiles, 3, torch.Generator())
    assert found.value.client == 1


@pytest.mark.parametrize("method", [DECODER, VTC], ids=["decoder", "vtc"])
def test_who_lies_about_pixels_has_a_bank_apart(method: Any) -> None:
    """Joined, pixels became values from 0 to 255 for everybody."""
    f = made(method, shares=shares_of(range(0, 90, 3), range(1, 90, 3), range(2, 90, 3)), rounds=0)
    sent = dict(enumerate(sent_by(f, TrainedDecoder if method is DECODER else TrainedGenerator)))
    sent[1] = replace(sent[1], pixels=False)
    known: dict[str, Any] = {"dims": f.setup.dims} if method is VTC else {"classes": 3}
    drawn = partial(method.drawn, profiles=f.clients.profiles, generator=torch.Generator(), **known)
    method.hand_out(f.clients, sent, drawn, lambda own: own.pixels)
    banks = [bank_of(f, client) for client in range(3)]
    assert [bank.x.dtype for bank in banks] == [torch.uint8, torch.float32, torch.uint8]
    assert [set(bank.y.tolist()) for bank in banks] == [{0, 2}, {1}, {0, 2}]


def test_a_decoder_draws_what_it_learnt() -> None:
    """Images of the bank are nearer to the mean of their class than to any other, for classes that look different."""
    digits = load("digits")
    few = IFLBank(local_steps=1, decoder_steps=200, bank_rows=20)
    f = federation(few, models=["logistic"], dataset=digits, clients=2, rounds=0)
    bank = bank_of(f, 0)
    means = torch.stack([digits.x_train[digits.y_train == c].float().mean(0) for c in range(10)]).flatten(1)
    nearest = torch.cdist(bank.x.float().flatten(1), means).argmin(1)
    assert float((nearest == bank.y).float().mean()) > 0.8


def test_evaluation_is_of_models_and_not_of_banks() -> None:
    assert len(evaluate(made(DECODER), full=True).common) == 2
