"""What a client may send: every reply of every method that runs between parties, changed in every field.

A reply that is none is refused where frames are decoded. One that is well formed is the server's to judge: it goes on
with numbers, or says who sent it. What clients do is done once, and replayed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from worlds import Recorder, federation, fitting, shares_of, tiny, tiny_dataset

from interfuse import wire
from interfuse.client import ClientId, Profile
from interfuse.clients import Answer, Engine, Request
from interfuse.engines import local
from interfuse.errors import ClientError, InterfuseError, MessageError
from interfuse.federation import Federation
from interfuse.messages import Dims, Disclosure, Message, flatten, kind_of
from interfuse.messages.delivery import LARGEST
from interfuse.messages.encoding import decode
from interfuse.messages.records import Leaf, leaf_at
from interfuse.method import disclosures_of
from interfuse.methods import built_in
from interfuse.models import SplitModel, pair
from interfuse.wire import FileRecord, Part

BETWEEN_PARTIES = sorted(name for name, kind in built_in().items() if Disclosure.DATA not in disclosures_of(kind))
ROUNDS = 2
FINE = ("goes on", "its sender's fault")

Flat = dict[str, Tensor]
Place = tuple[str, str, int, int, ClientId]
"""Program, handler, round, how often it was called before in the round, client."""


def normed(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """A model with statistics of normalisation, which are neither to be moved nor below 0."""
    base = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample_shape), width), nn.BatchNorm1d(width), nn.ReLU())
    return pair(base, nn.Linear(width, classes))


class Recording(Recorder):
    """Keeps all answers by where they stand in the run."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.answers: dict[Place, Answer] = {}

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        for answer in self.inner.call(request, messages):
            self.answers[request.program, request.handler, request.round, request.index, answer.client] = answer
            yield answer


class Replay:
    """An engine whose clients answer as they did before, but for one answer."""

    def __init__(self, profiles: Mapping[ClientId, Profile], answers: Mapping[Place, Answer]) -> None:
        self.profiles, self.answers = profiles, answers

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        for client in messages:
            place = (request.program, request.handler, request.round, request.index, client)
            # a round of which a step was left out goes on with fewer calls
            yield self.answers.get(place) or next(
                answer for known, answer in self.answers.items() if (*known[:2], known[4]) == (*place[:2], client)
            )

    def undo(self, clients: Sequence[ClientId]) -> None: ...

    def end_round(self) -> None: ...

    def save(self, folder: Path, stem: str, again: Collection[ClientId]) -> list[FileRecord]:
        return []

    def restore(self, parts: Mapping[ClientId, Part]) -> None: ...

    def close(self) -> None: ...


class Lying(Recorder):
    """An engine whose clients answer as they do, but for one answer."""

    def __init__(self, inner: Engine, place: Place, answer: Answer) -> None:
        super().__init__(inner)
        self.place, self.answer = place, answer

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        for answer in self.inner.call(request, messages):
            place = (request.program, request.handler, request.round, request.index, answer.client)
            yield self.answer if place == self.place else answer


def filled(tensor: Tensor, leaf: Leaf) -> dict[str, Tensor]:
    """Tensors of the same type and shape with other values, by what they are."""
    if not tensor.numel():
        return {}
    if tensor.dtype == torch.bool:
        return {"all the other way": ~tensor}
    if not tensor.dtype.is_floating_point:
        info = torch.iinfo(tensor.dtype)
        return {f"all {value}": torch.full_like(tensor, value) for value in {info.min, info.max, 0}}
    most, near = torch.finfo(tensor.dtype).max, 0.9 * LARGEST
    values = [math.nan, -math.inf, most, near]
    values += [-most, -near, -1.0, 0.0] if leaf.disclosure in (Disclosure.STATISTICS, Disclosure.LABELS) else []
    return {f"all {value:g}": torch.full_like(tensor, value) for value in values}


IMPOSSIBLE = ("all nan", "all -inf", "of another type", "with an axis more", "unknown", "left out", "below 0")
"""Endings of what never does: with any of these a message is none, or its sender's fault."""


def lies(message: Message, dims: Dims) -> Iterator[tuple[str, Flat]]:
    """What else could come in the place of a reply, in words and in its flat form."""
    flat, kind = flatten(message), type(message)
    axes: dict[tuple[str, str], list[tuple[str, int]]] = defaultdict(list)
    items: dict[str, list[str]] = defaultdict(list)
    for path, tensor in flat.items():
        leaf = leaf_at(kind, path)
        assert leaf is not None
        for words, other in filled(tensor, leaf).items():
            yield f"{path} {words}", flat | {path: other}
        if path.endswith("running_var"):
            yield f"{path} below 0", flat | {path: torch.full_like(tensor, -1.0)}
        double = torch.float64 if tensor.dtype != torch.float64 else torch.float32
        yield f"{path} of another type", flat | {path: tensor.to(double)}
        yield f"{path} with an axis more", flat | {path: tensor[None].clone()}
        yield f"{path}-not unknown", flat | {f"{path}-not": tensor}
        rest = {other: t for other, t in flat.items() if other != path}
        yield (f"{path} without its key" if "/" in path else f"{path} left out"), rest
        for axis, dim in enumerate(leaf.dims or ()):
            if dim not in dims and dim != "..." and not dim.isdecimal():
                axes[path.rpartition("/")[0], dim].append((path, axis))
        for axis in range(tensor.ndim):
            yield (
                f"{path} shorter along {axis}",
                flat | {path: tensor.narrow(axis, 0, max(0, tensor.shape[axis] - 1)).clone()},
            )
        field, _, key = path.partition("/")
        if key and (first := key.partition("/")[0]) not in items[field]:
            items[field].append(first)
    for (_, dim), places in axes.items():  # all tensors that have it
        for words, resize in SIZES.items():
            yield f"{dim} {words}", flat | {path: resize(flat[path], axis).clone() for path, axis in places}
    for field, keys in items.items():
        under = {path for path in flat if path.startswith(f"{field}/")}
        yield f"{field} empty", {path: tensor for path, tensor in flat.items() if path not in under}
        more = str(len(keys)) if keys[0].isdecimal() else "made-up"
        yield f"{field} with one more", flat | moved(flat, f"{field}/{keys[0]}", f"{field}/{more}")
        for other in items.keys() - {field}:
            mine = moved(flat, f"{field}/{keys[-1]}", f"{other}/{keys[-1]}")
            gone = moved(flat, f"{field}/{keys[-1]}", "")
            yield (
                f"{keys[-1]} of {field} under {other}",
                {p: t for p, t in flat.items() if f"{p}" not in under}
                | {p: flat[p] for p in under if p[len(f"{field}/{keys[-1]}") :] not in gone}
                | mine,
            )
    yield "nothing at all", {}


SIZES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "none": lambda tensor, axis: tensor.narrow(axis, 0, 0),
    "one less": lambda tensor, axis: tensor.narrow(axis, 0, max(0, tensor.shape[axis] - 1)),
    "twice": lambda tensor, axis: torch.cat([tensor] * 2, axis),
    "a hundred times": lambda tensor, axis: torch.cat([tensor] * 100, axis),
}


def moved(flat: Flat, old: str, new: str) -> Flat:
    """An item of a field under another name."""
    return {new + path[len(old) :]: t for path, t in flat.items() if path == old or path.startswith(f"{old}/")}


SMALLER: dict[str, Any] = {
    "server_epochs": 1, "server_steps": 2, "virtual": 4, "hidden": 4, "noise": 2, "latent": 2, "decoder_batch_size": 4,
    "generator_batch_size": 4, "energy_start": 0.3, "energy_end": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("name", BETWEEN_PARTIES)
def test_a_lie_is_its_senders_fault_or_does_no_harm(name: str) -> None:
    method = tiny(name, **SMALLER)
    honest = federation(
        method, wrap=Recording, rounds=ROUNDS, last=ROUNDS, models=fitting(method, [normed]), width=4,
        dataset=tiny_dataset(rows=40, classes=4), shares=shares_of(range(8), range(8, 20), range(20, 40)),
    )  # fmt: skip
    assert isinstance(honest.engine, Recording)
    answers, profiles, dims = honest.engine.answers, honest.clients.profiles, honest.setup.dims
    found: Counter[str] = Counter()
    wrong: list[str] = []
    for place in first_of_each(answers):
        answer, liar = answers[place], place[-1]
        message = answer.reply
        assert isinstance(message, Message)
        for words, flat in lies(message, dims):
            try:
                received = decode(wire.encode(kind_of(message), flat), type(message), dims, profiles[liar].keys)
            except MessageError:
                found["refused"] += 1
                continue
            told = replace(answer, reply=received)
            outcome = judged(Federation(honest.setup, Replay(profiles, answers | {place: told}), rounds=ROUNDS), liar)
            if outcome not in FINE:  # other clients may have answered otherwise
                outcome = judged(
                    Federation(honest.setup, Lying(local(honest.setup, 1), place, told), rounds=ROUNDS), liar
                )
            found[outcome] += 1
            if outcome not in FINE or (words.endswith(IMPOSSIBLE) and outcome == FINE[0]):
                wrong.append(f"{place}: {words}: {outcome}")
    assert not wrong, "\n".join(wrong)
    assert not found or found["refused"] > 10


def first_of_each(answers: Mapping[Place, Answer]) -> list[Place]:
    """Where each handler of a method was first answered by a message: by client 1, or who else was asked."""
    by_handler: dict[tuple[str, str], Place] = {}
    for place in sorted(answers, key=lambda place: (place[2], place[3], place[4] != 1)):
        if isinstance(answers[place].reply, Message):
            by_handler.setdefault(place[:2], place)
    return list(by_handler.values())


def judged(f: Federation, liar: ClientId) -> str:
    """What comes of a run."""
    try:
        f.start()
        for _ in range(ROUNDS):
            f.run_round()
    except ClientError as error:
        mine = error.client == liar or str(error).startswith(f"client {liar} failed")
        return FINE[1] if mine else f"{error.client}: {error}"
    except InterfuseError as error:
        return f"ends with nobody's fault: {error}"
    except Exception as error:
        return f"a crash: {error!r}"
    unsound = [key for key, t in f.server.owned().items() if t.is_floating_point() and not t.isfinite().all()]
    return f"not finite: {unsound[:3]}" if unsound else FINE[0]
