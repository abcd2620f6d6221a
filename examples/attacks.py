"""What a run's generators, decoders or banks tell of the rows they were learnt from: attacks on a finished run folder.

    python examples/attacks.py RUN [DRAWS]

RUN is a run folder of a simulation whose method draws samples (`fedvtc`, `ifl-bank`, `ifl-bank-centroids` ...). The
attacker has what the method shares, and no more, unless a line says so. Members are training rows, others are rows of
the common test set, of each class as many of either; of both at most 1,000.

- copies: how near DRAWS samples of each class (100) come to a training row, beside fresh rows; verbatim ones;
- likeness: PSNR and SSIM of these to their nearest training row, beside those of fresh rows;
- membership by draws: are training rows nearer to what is drawn of their class than other rows are?
- membership by search, of a generator or decoder that travels: can training rows be made better than other rows?

Where generators stay at home (`share_vtc = false`), nothing of the first three leaves a client: then they say what
would leave it, client by client, on its own rows.

Into RUN/attacks go attacks.json and attacks.md. Each figure has its 95 % interval and the rows behind it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import interfuse
from interfuse.data import Dataset, Share
from interfuse.engines import InProcess
from interfuse.errors import ConfigError
from interfuse.families.priors import Prior
from interfuse.federation import Federation
from interfuse.methods.ifl_bank import IFLBank, TrainedDecoder
from interfuse.models import SplitModel, run_with
from interfuse.models.generators import as_samples, vtc
from interfuse.privacy import (
    Estimate,
    area,
    copies,
    median,
    membership_by_draws,
    nearest_of_class,
    psnr,
    search_errors,
    ssim,
)
from interfuse.result import Result
from interfuse.runs.loop import assemble
from interfuse.setup import Setup

CAPTION = (
    "Attacks on what a run's method shares, with 95 % intervals for these rows and this run.",
    "Distances: median root mean square over the values of a sample, of pixels of 255. PSNR in dB, SSIM from -1 to 1:",
    "medians. Shares from 0 to 1. AUC: area under the ROC curve, 0.5 where members are not told from others.",
)
MOST = 1000
"""Members, and others, at most."""
SEARCHED = 200
"""Of each that are searched for."""
STEPS = 150
"""Of a search."""
DRAWN = 1000
"""By a decoder that is attacked by its draws."""
Rows = tuple[Tensor, Tensor]
"""Samples as they are stored, and their classes."""


def of(dataset: Dataset, share: Share) -> Rows:
    """The training rows of a client."""
    rows = torch.from_numpy(share.train)
    return dataset.drawable[rows], dataset.y_train[rows]


def alike(train: Rows, test: Rows, most: int) -> tuple[Rows, Rows]:
    """Members and others: training and test rows, of each class as many of either, drawn once and for all.

    Distances differ between classes, so unequal shares of these would look like membership.
    """
    noise, classes = torch.Generator().manual_seed(0), train[1].unique()
    chosen: list[list[Tensor]] = [[], []]
    for label in classes:
        places = [(y == label).nonzero().flatten() for _, y in (train, test)]
        count = min(most // len(classes), *map(len, places))
        for side, own in enumerate(places):
            chosen[side].append(own[torch.randperm(len(own), generator=noise)[:count]])
    members, others = map(torch.cat, chosen)
    return (train[0][members], train[1][members]), (test[0][others], test[1][others])


def of_classes(rows: Rows, classes: Tensor) -> Rows:
    """The rows that have one of these classes."""
    there = torch.isin(rows[1], classes)
    return rows[0][there], rows[1][there]


def both(parts: list[Rows]) -> Rows:
    """Rows one after the other."""
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def distinct(rows: Rows) -> Rows:
    """Each sample once: a bank is drawn from with repetition."""
    x, y = rows
    first = {
        (int(label), sample.numpy().tobytes()): place for place, (sample, label) in enumerate(zip(x, y, strict=True))
    }
    places = sorted(first.values())
    return x[places], y[places]


def by_draws(drawn: Rows, train: Rows, test: Rows, span: float) -> dict[str, Estimate]:
    """The attacks that need nothing but draws."""
    members, others = alike(of_classes(train, drawn[1]), test, MOST)
    near = copies(*drawn, train, others)
    found = {
        "distance to the nearest training row": near.distance,
        "the same of fresh rows": near.reference,
        "verbatim training rows, share": near.verbatim,
        "nearer than 99 % of fresh rows, share": near.nearly,
    }
    for name, rows in (("", drawn), (", fresh rows", others)):
        _, place = nearest_of_class(*rows, *train)
        known = torch.isin(rows[1], train[1])
        x, y = rows[0][known].double(), train[0][place][known].double()
        found[f"PSNR to the nearest training row{name}, dB"] = median(psnr(x, y, span))
        if x.ndim == 4:
            found[f"SSIM to the nearest training row{name}"] = median(ssim(x, y, span))
    return found | {"membership by draws, AUC": membership_by_draws(members, others, drawn)}


def searched(decode: Callable[[Tensor], Tensor], starts: Tensor, x: Tensor) -> Tensor:
    """How well a decoder can make rows, whatever latent vector it takes: larger is better."""
    return -search_errors(decode, x, [starts], STEPS)


def of_prior(
    result: Result, prior: Prior, dataset: Dataset, train: Rows, test: Rows, span: float
) -> Iterator[tuple[str, Estimate]]:
    """On class means, and on the mean generator, where it travels with them."""
    y_of_means = prior.y.long()
    rows = [(dataset.normalise(x), y) for x, y in alike(of_classes(train, y_of_means), test, SEARCHED)]
    table = torch.zeros(dataset.classes, prior.mean.shape[1]).index_copy(0, y_of_means, prior.mean)
    model = result.model(0)
    with model.evaluating():
        features = [model.base(x) for x, _ in rows]
    apart = [-(z - table[y]).square().mean(1) for z, (_, y) in zip(features, rows, strict=True)]
    yield "membership by class means, with client 0's extractor, AUC", area(*apart)
    if not prior.generator:
        return
    network = vtc(table.shape[1], tuple(dataset.drawable.shape[1:]), result.config.settings["channels"]).eval()
    network.load(prior.generator)

    def decode(v: Tensor) -> Tensor:
        return as_samples(network(v), dataset.bounds)

    with torch.no_grad():
        centres = dataset.denormalise(decode(prior.mean)).double()
        made = [-(decode(z) - x).square().flatten(1).mean(1) for z, (x, _) in zip(features, rows, strict=True)]
    _, place = nearest_of_class(centres, y_of_means, *train)
    means = torch.stack([train[0][train[1] == label].double().mean(0) for label in y_of_means])
    for name, truth in (("nearest", train[0][place].double()), ("mean", means)):
        yield f"PSNR of the generator at class means to the {name} training row, dB", median(psnr(centres, truth, span))
        if centres.ndim == 4:
            yield f"SSIM of the generator at class means to the {name} training row", median(ssim(centres, truth, span))
    yield "membership by z = g(x), with client 0's extractor, AUC", area(*made)
    yield "membership by search, AUC", area(*(searched(decode, table[y], x) for x, y in rows))


def of_decoders(method: IFLBank, setup: Setup, test: Rows) -> Iterator[tuple[str, Estimate]]:
    """On the decoders that clients sent before the first round."""
    search, draws = [[], []], [[], []]
    sent = sent_decoders(setup)
    for client, reply in sent.items():
        dataset, own = setup.datasets[client], of(setup.datasets[client], setup.shares[client])
        decoder = method.networks(setup.profiles[client], setup.dims)["autoencoder"].build().only("decoder")
        noise = torch.randn(DRAWN, method.latent, generator=torch.Generator().manual_seed(client))
        for side, (x, y) in enumerate(alike(own, test, SEARCHED // len(sent))):
            rows = x.float() / 255 if reply.pixels else dataset.normalise(x)
            made = partial(decoded, decoder, reply, dataset.classes)
            search[side].append(searched(partial(made, y), torch.zeros(len(y), method.latent), rows))
            with torch.no_grad():
                for row, label in zip(rows, y, strict=True):
                    errors = (made(label.expand(DRAWN), noise) - row).square().flatten(1).mean(1)
                    draws[side].append(-errors.min()[None])
    yield "membership by search in each client's decoder, AUC", area(*map(torch.cat, search))
    yield f"membership by {DRAWN:,} draws of each client's decoder, AUC", area(*map(torch.cat, draws))


def sent_decoders(setup: Setup) -> Mapping[int, TrainedDecoder]:
    """What clients sent before the first round, made again: to the same bits."""
    federation = Federation(setup, InProcess(setup))
    federation.exchange.enter(0, "start")
    with setup.numerics.applied():
        return federation.clients.call(setup.method.train_decoder)


def decoded(decoder: SplitModel, sent: TrainedDecoder, classes: int, y: Tensor, z: Tensor) -> Tensor:
    """Samples of classes by a decoder, as it learnt them: pixels from 0 to 1, or normalised values."""
    made = run_with(decoder, sent.decoder, torch.cat([z, functional.one_hot(y, classes).to(z)], 1))
    return made.sigmoid() if sent.pixels else made


def attack(run: Path, each: int = 100) -> dict[str, Estimate]:
    """All attacks that fit the method of a run."""
    result = interfuse.load_run(run)
    setup = assemble(result.config)
    clients, dataset = range(result.config.clients), setup.datasets[0]
    if any(other is not dataset for other in setup.datasets):
        raise ConfigError("clients have several data sets; these attacks are for runs with one")
    span = 255.0 if dataset.bounds is not None else float(dataset.drawable.max() - dataset.drawable.min())
    test, classes = (dataset.x_test, dataset.y_test), range(dataset.classes)
    everybody = both([of(setup.datasets[client], setup.shares[client]) for client in clients])
    at_home = result.config.settings.get("share_vtc") is False
    if not at_home:
        found = by_draws(distinct(result.draw(0, classes, each)), everybody, test, span)
    else:
        found = {}
        for client in clients:
            own = of(setup.datasets[client], setup.shares[client])
            drawn = result.draw(client, own[1].unique().tolist(), each)
            found |= {f"client {client}: {name}": one for name, one in by_draws(drawn, own, test, span).items()}
    prior = result.deployed(0)
    if isinstance(prior, Prior):
        found |= of_prior(result, prior, dataset, everybody, test, span)
    if isinstance(setup.method, IFLBank):
        found |= of_decoders(setup.method, setup, test)
    return found


def main(run: Path, each: int = 100) -> None:
    found = attack(run, each)
    out = run / "attacks"
    out.mkdir(exist_ok=True)
    lines = [*CAPTION, "", "| figure | value | 95 % interval | rows |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {name} | {e.value:.3f} | {e.low:.3f} to {e.high:.3f} | {e.rows:,} |" for name, e in found.items()]
    (out / "attacks.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "attacks.json").write_text(json.dumps({n: asdict(e) for n, e in found.items()}, indent=1), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
