"""Small federations for tests: synthetic data, tiny models, and what their clients hold inside.

Only this module reaches into the engine's private parts.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from interfuse.aggregation import Plan, extract
from interfuse.client import Client, ClientId
from interfuse.clients import Answer, Engine, Request
from interfuse.clock import UNIFORM, Devices
from interfuse.data import IID, Classification, Dataset, EpochOrder, Normalisation, Partition, Share, make_shares
from interfuse.engines import InProcess, Room, local
from interfuse.evaluation import evaluation
from interfuse.families.adapters import AdapterTraining
from interfuse.families.intermediate import PARTS, IntermediateLearning
from interfuse.federation import Federation, check
from interfuse.handler import Handler
from interfuse.messages import Message, flatten
from interfuse.method import Method
from interfuse.methods import built_in, find
from interfuse.methods.local import Local
from interfuse.models import Builder, SplitModel, pair, resolve
from interfuse.numerics import DEFAULT, Numerics
from interfuse.setup import Setup
from interfuse.wire import Codecs, Entry, FileRecord, Packs, Part

PLAIN = Normalisation(1.0, (0.0,), (1.0,))
"""Leaves floats as they are."""


ADAPTERS: Mapping[str, Any] = {
    "rank": 2, "blocks": 2, "probe": f"{__file__}:llama2", "public_rows": 6,
    "linears": ("q", "down"),  # one that reads, one that writes: every further one costs as much again
}  # fmt: skip
"""Settings with which methods on adapters are small."""


def tiny_dataset(
    rows: int = 60,
    classes: int = 3,
    shape: tuple[int, ...] = (5,),
    seed: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    test_rows: int = 24,
) -> Dataset:
    """Gaussian blobs, one a class; labels go round, so every class is there. ``dtype``: float32 or uint8."""
    noise = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, *shape, generator=noise)
    y = torch.arange(rows + test_rows) % classes
    x = centres[y] + 0.5 * torch.randn(rows + test_rows, *shape, generator=noise)
    if dtype == torch.uint8:
        x = (x * 40 + 128).clamp(0, 255).to(torch.uint8)
    normal = Normalisation(255.0 if dtype == torch.uint8 else 1.0, (0.0,), (1.0,))
    return Dataset("tiny", x[:rows], y[:rows], x[rows:], y[rows:], classes_of(classes), {"x": normal})


def dataset_of(x: Tensor, y: Tensor, classes: int, *, test_rows: int = 6) -> Dataset:
    """A data set of given training rows; the first of them are the test set too."""
    return Dataset("given", x, y, x[:test_rows], y[:test_rows], classes_of(classes), {"x": PLAIN})


def classes_of(count: int) -> Classification:
    """So many classes."""
    return Classification(tuple(f"class {i}" for i in range(count)))


def tiny(name: str, **smaller: Any) -> Method:
    """A built-in method with small settings, and with all that it can send, where it has them."""
    kind = built_in()[name]
    wanted = {"local_steps": 2, "batch_size": 4, "average_clients": True, "joins_at": 2, "participation": 1.0}
    wanted |= {"generator_steps": 2, "channels": 4, "finetune_epochs": 1, "latents": 2, "warm_up": 2}
    wanted |= {"decoder_steps": 2, "vtc_steps": 2, "bank_rows": 9, "centroids": 1, "smallest_cluster": 1}
    wanted |= {"directions": 4}
    if issubclass(kind, AdapterTraining):  # FML's alpha is another
        wanted |= ADAPTERS | {"alpha": 4.0}
    wanted |= smaller
    return kind.configure({f.name: wanted[f.name] for f in fields(kind) if f.name in wanted})


def of_each_state() -> list[str]:
    """A method for each pair of states, of the server and of a client, that methods have."""
    found: dict[tuple[object, ...], str] = {}
    for name, kind in sorted(built_in().items()):
        states = tuple(get_type_hints(begin)["return"] for begin in (kind.start, kind.new_client))
        found.setdefault(states, name)
    return sorted(found.values())


def shares_of(*rows: Sequence[int]) -> list[Share]:
    """Shares that are all training: these rows for client 0, those for client 1, and so on."""
    empty = np.empty(0, np.int64)
    return [Share(np.asarray(own, np.int64), empty, empty) for own in rows]


def setup_of(
    method: Method | str,
    *,
    clients: int = 3,
    models: Sequence[str | Builder] = ("logistic",),
    width: int = 8,
    seed: int = 0,
    partition: Partition | None = None,
    dataset: Dataset | None = None,
    shares: Sequence[Share] | None = None,
    overrides: Mapping[ClientId, Mapping[str, Any]] | None = None,
    codecs: Mapping[str, str] | None = None,
    devices: Devices = UNIFORM,
    public: Dataset | None = None,
    numerics: Numerics = DEFAULT,
    across: Collection[str] = (),
) -> Setup:
    """A checked setup; models are dealt in turn, ``shares`` replace the partition; public data is ``dataset``, unless
    another is given. ``across``: metrics across tasks."""
    method = find(method)() if isinstance(method, str) else method
    dataset = dataset or tiny_dataset()
    shares = shares or make_shares(dataset, partition or IID(), clients, seed)
    dealt = [models[i % len(models)] for i in range(len(shares))]
    setup = Setup(
        method, [dataset] * len(shares), shares,
        [resolve(m) for m in dealt],
        [m if isinstance(m, str) else m.__qualname__ for m in dealt],
        width, seed, devices=devices, overrides=overrides or {}, extra_programs=partial(evaluation, across=across),
        codecs=Codecs.parse(codecs or {}), public_set=public or dataset, numerics=numerics,
    )  # fmt: skip
    check(setup)
    return setup


def wide(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Two linear layers on either side of the fusion layer."""
    base = nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(sample_shape), 11), nn.ReLU(), nn.Linear(11, width), nn.ReLU()
    )
    return pair(base, nn.Sequential(nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, classes)))


def linear_head(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Another base block than that of "logistic", with the same modular block under the same key."""
    base = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample_shape), 7), nn.Tanh(), nn.Linear(7, width), nn.ReLU())
    return SplitModel({"tanh": base, "classifier": nn.Linear(width, classes)})


def _nested(depth: int, sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    stages: dict[str, nn.Module] = {"stem": nn.Sequential(nn.Flatten(), nn.Linear(math.prod(sample_shape), width))}
    stages |= {f"block{i}": nn.Sequential(nn.ReLU(), nn.Linear(width, width)) for i in range(1, depth)}
    return SplitModel(stages | {"classifier": nn.Linear(width, classes)})


def depth1(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """The shallowest of three models whose tensors nest."""
    return _nested(1, sample_shape, classes, width)


def depth2(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """``depth1`` and one block more."""
    return _nested(2, sample_shape, classes, width)


def depth3(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """``depth1`` and two blocks more."""
    return _nested(3, sample_shape, classes, width)


def fitting(method: Method | type[Method], models: Sequence[str | Builder]) -> Sequence[str | Builder]:
    """Models of two blocks with the parts or layers that the method asks for."""
    kind = method if isinstance(method, type) else type(method)
    if issubclass(kind, AdapterTraining):
        return [llama2, llama3]
    return [in_three_parts(model) for model in models] if issubclass(kind, IntermediateLearning) else models


class LlamaLayer(nn.Module):
    """A layer whose linear layers have the names of Llama's, without normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width, bias=False) for name in "qkvo"})
        sizes = {"gate_proj": (width, 12), "up_proj": (width, 12), "down_proj": (12, width)}
        self.mlp = nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.self_attn[f"{name}_proj"](x) for name in "qkv")
        x = x + self.self_attn["o_proj"](functional.scaled_dot_product_attention(q, k, v, is_causal=True))
        return x + self.mlp["down_proj"](functional.silu(self.mlp["gate_proj"](x)) * self.mlp["up_proj"](x))


class TinyLlama(nn.Module):
    """Every value of a sample is a token; the last one's hidden state is the output, cut to the width."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.layers = nn.ModuleList(LlamaLayer(width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.flatten(1)[:, :, None])
        for layer in self.layers:
            h = layer(h)
        return torch.relu(h[:, -1])


def llama2(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Two layers of a transformer."""
    return SplitModel({"transformer": TinyLlama(2, width), "answer": nn.Linear(width, classes)})


def llama3(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    """Three layers, wider inside."""
    last = nn.Sequential(TinyLlama(3, 10), nn.Linear(10, width))
    return SplitModel({"transformer": last, "answer": nn.Linear(width, classes)})


def in_three_parts(model: str | Builder) -> Builder:
    """The model with a layer between its two blocks."""

    def build(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
        both = (resolve(model) if isinstance(model, str) else model)(sample_shape, classes, width)
        names = [both.only(part).stage_names for part in ("base", "modular")]
        blocks: list[dict[str, nn.Module]] = [{f"of.{n}": both.get_submodule(n) for n in some} for some in names]
        blocks.insert(1, {"between": nn.Sequential(nn.Linear(width, width), nn.Tanh())})
        stages = {name: stage for block in blocks for name, stage in block.items()}
        return SplitModel(stages, {part: list(block) for part, block in zip(PARTS, blocks, strict=True)})

    build.__qualname__ = f"three-{model if isinstance(model, str) else model.__qualname__}"
    return build


def federation(
    method: Method | str,
    *,
    workers: int = 1,
    memory: int | None = None,
    folder: Path | None = None,
    rounds: int = 0,
    last: int = 0,
    start: bool = True,
    wrap: Callable[[Engine], Engine] = lambda engine: engine,
    **settings: Any,
) -> Federation:
    """A federation after its start and some rounds; in round ``last`` the method finishes. ``settings`` are those of
    :func:`setup_of`.

    ``memory`` and ``folder`` are for clients at rest. Close ``federation.engine`` where there are several workers.
    """
    setup = setup_of(method, **settings)
    made = Federation(setup, wrap(local(setup, workers, Room(memory, folder))), rounds=last)
    if start:
        made.start()
        for _ in range(rounds):
            made.run_round()
    return made


class Recorder:
    """An engine around another that remembers every message of every call, as the receiver got it."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.profiles = inner.profiles
        self.down: list[tuple[Request, ClientId, Message]] = []
        self.up: list[tuple[Request, ClientId, Message]] = []

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        self.down += [(request, client, m) for client, m in messages.items() if m is not None]
        for answer in self.inner.call(request, messages):
            if isinstance(answer.reply, Message):
                self.up.append((request, answer.client, answer.reply))
            yield answer

    def undo(self, clients: Sequence[ClientId]) -> None:
        self.inner.undo(clients)

    def end_round(self) -> None:
        self.inner.end_round()

    def save(self, folder: Path, stem: str, again: Collection[ClientId]) -> list[FileRecord]:
        return self.inner.save(folder, stem, again)

    def restore(self, parts: Mapping[ClientId, Part]) -> None:
        self.inner.restore(parts)

    def close(self) -> None:
        self.inner.close()


class Backwards(Recorder):
    """An engine that hands out work and answers in the opposite order of clients."""

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        turned = {client: messages[client] for client in reversed(list(messages))}
        yield from reversed(list(self.inner.call(request, turned)))


def in_process(federation: Federation) -> InProcess:
    """The in-process engine of a federation, out of its wrapping."""
    engine = federation.engine.inner if isinstance(federation.engine, Recorder) else federation.engine
    assert isinstance(engine, InProcess)
    return engine


def resident(federation: Federation, client: ClientId) -> Client[Any]:
    """A client with all it owns, live, in its engine, with modules at work; made if it was never called."""
    return in_process(federation)._host.visit(client)


def live_model(federation: Federation, client: ClientId) -> SplitModel:
    """The model of a client that keeps it between rounds; changing it changes the client."""
    return resident(federation, client).model


def weights_of(federation: Federation, client: ClientId, part: str | None = None) -> dict[str, Tensor]:
    """A copy of the tensors of a client that keeps its model."""
    return {key: tensor.clone() for key, tensor in live_model(federation, client).tensors(part).items()}


def everything_owned(federation: Federation) -> dict[str, Tensor]:
    """All owned tensors of both sides, as a first commit writes them, on any engine."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        return in_packs(place, [record for record in federation.save(place).packs if (place / record.name).exists()])


def in_packs(folder: Path, records: Iterable[FileRecord]) -> dict[str, Tensor]:
    """The newest version of all tensors in some packs by part and path, read with their SHA-256."""
    packs = Packs()
    for record in records:
        record.check(folder)
        packs.add(folder, record)
    return {f"{name}:{key}": t for name, part in packs.parts.items() for key, t in part.tensors().items()}


def run_handler(federation: Federation, handler: Handler[Any, Any], *messages: Any, client: ClientId = 0) -> Any:
    """The reply of one client to one call, outside of a round."""
    return federation.clients.only([client]).call(handler, *messages)[client]


def entries(federation: Federation) -> list[Entry]:
    """All entries of the ledger that were not drained."""
    return list(federation.exchange.ledger._pending)


def same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Equal keys, dtypes, shapes and bits."""
    return a.keys() == b.keys() and all(
        (a[k].dtype, a[k].shape, a[k].numpy().tobytes()) == (b[k].dtype, b[k].shape, b[k].numpy().tobytes()) for k in a
    )


def largest_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The largest absolute difference of two sets of tensors with equal keys."""
    assert a.keys() == b.keys()
    return max((float((a[key].double() - b[key].double()).abs().max()) for key in a), default=0.0)


def tensors_in(messages: Iterable[Message]) -> list[Tensor]:
    """All tensors of some messages."""
    return [tensor for message in messages for tensor in flatten(message).values()]


def in_steps(setup: Setup, client: ClientId, steps: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """The first batches that a client draws with ``steps``, taken from the data set by hand."""
    share = setup.shares[client].train
    order = EpochOrder(setup.seed, client, len(share))
    drawn = [torch.from_numpy(share[order.take(batch_size)]) for _ in range(steps)]
    return [(setup.dataset.normalise(setup.dataset.x_train[rows]), setup.dataset.y_train[rows]) for rows in drawn]


def in_epochs(setup: Setup, client: ClientId, epochs: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """The first batches that a client draws with ``epochs``, taken from the data set by hand."""
    share = setup.shares[client].train
    order = EpochOrder(setup.seed, client, len(share))
    drawn = [torch.from_numpy(share[positions]) for positions in order.epochs(epochs, batch_size)]
    return [(setup.dataset.normalise(setup.dataset.x_train[rows]), setup.dataset.y_train[rows]) for rows in drawn]


def plain_training(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer
) -> nn.Module:
    """PyTorch's usual loop on the mean cross entropy: the oracle that knows nothing of interfuse."""
    model.train()
    for x, y in batches:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def alone(method: Method) -> Local:
    """What a client would do by itself: the Local run beside a method."""
    values = {f.name: getattr(method, f.name) for f in fields(method)} | dict(method.alone())
    return Local(**{f.name: values[f.name] for f in fields(Local) if f.name in values})


def plain_sgd(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], lr: float) -> dict[str, Tensor]:
    """The state after plain SGD from where the model is."""
    trained = plain_training(model, batches, torch.optim.SGD(model.parameters(), lr=lr))
    return {key: tensor.detach().clone() for key, tensor in trained.state_dict().items()}


def server_copy(setup: Setup, architecture: str, weights: Mapping[str, Tensor]) -> SplitModel:
    """A model of the architecture with these weights."""
    model = setup.build(architecture, "copy")
    model.load(weights)
    return model


def coverage(server: Mapping[str, Tensor], plans: Iterable[Plan]) -> dict[str, Tensor]:
    """How many of the plans hold each element of the server's tensors."""
    counts = {key: torch.zeros(tensor.shape, dtype=torch.int64) for key, tensor in server.items()}
    places = {key: torch.arange(tensor.numel()).reshape(tensor.shape) for key, tensor in server.items()}
    for plan in plans:
        for key, at in extract(places, plan).items():
            counts[key].view(-1)[at.flatten()] += 1
    return counts
