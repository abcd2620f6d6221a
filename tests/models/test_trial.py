"""A batch in training mode before a run: state outside of the state dict, and what cannot be trained on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils import parametrizations
from worlds import tiny_dataset

from interfuse.errors import ConfigError, ModelError
from interfuse.models import SplitModel, available, pair, resolve
from interfuse.models.trial import trial
from interfuse.randomness import seeded
from interfuse.result import Result
from interfuse.runs import Given, execute, parse_config

IMPORTED = np.random.default_rng(0)
X = torch.linspace(-1, 1, 10).view(2, 5)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.relu(self.linear(x))
        return found


class Counting(Plain):
    """A number that grows with every batch, and scales outputs by so much."""

    def __init__(self, effect: float = 0.1) -> None:
        super().__init__()
        self.calls, self.effect = 0, effect

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return super().forward(x) * (1 + self.effect * self.calls)


class Remembering(Plain):
    """A running mean as a plain attribute, made in the first batch. More of the same rows leave it as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            now = x.mean(0).detach()
            self.mean = now if self.mean is None else (self.mean + now) / 2
        return super().forward(x if self.mean is None else x - self.mean)


class Buffered(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls.data.add_(1)
        return super().forward(x) * (1 + 0.1 * self.calls)


class Listing(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(len(x))
        return super().forward(x) * (1 + len(self.seen))


class Annealing(nn.Module):
    """It changes an attribute of a module of PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(5, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.drop.p *= 0.9
        found: Tensor = self.drop(self.linear(x))
        return found


class Drawing(Plain):
    """Noise from a generator that it has as an attribute."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.source, torch.Generator):
            return super().forward(x + torch.rand(x.shape, generator=self.source))
        noise = self.source.random(x.shape) if not isinstance(self.source, random.Random) else self.source.random()
        return super().forward(x + torch.as_tensor(noise, dtype=torch.float32))


class Lambda(Plain):
    """Noise from anywhere."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.draw())


class Writing(Plain):
    """What it keeps of a batch is never read; what it reads again depends on shapes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.positions: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[1]
        if width not in self.positions:
            self.positions[width] = torch.arange(width).float()
        self.last, self.shape, self.started = x, x.shape, True
        return super().forward(x + self.positions[width])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(5, 4, num_layers=2, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.cell(x[:, None])[0][:, 0]
        return found


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.first, self.attention = nn.Linear(5, 4), nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(self.first(x)[:, None])
        found: Tensor = self.attention(z, z, z)[0][:, 0]
        return found


def model(build: Callable[[], nn.Module]) -> SplitModel:
    with seeded(0, "trial of a test"):
        return pair(build(), nn.Linear(4, 3))


def seed_of(kind: Any) -> Callable[[], nn.Module]:
    return lambda: Drawing(kind(3))


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (Counting, ["base.calls"]),
        (lambda: Counting(0.0), ["base.calls"]),
        (Remembering, ["base.mean"]),
        (Buffered, ["base.calls"]),
        (Listing, ["base.seen"]),
        (Annealing, ["base.drop.p"]),
        (seed_of(lambda seed: torch.Generator().manual_seed(seed)), ["base.source"]),
        (seed_of(np.random.default_rng), ["base.source"]),
        (seed_of(random.Random), ["base.source"]),
        (lambda: nn.Sequential(Plain(), nn.Linear(4, 4), Counting4()), ["base.2.calls"]),
    ],
)
def test_what_training_changes_outside_of_the_state_dict_is_named_and_put_back(
    build: Callable[[], nn.Module], names: list[str]
) -> None:
    made = model(build)
    before = {key: tensor.clone() for key, tensor in made.state_dict().items()}
    found = trial(made, X)
    assert list(found.outside) == names
    notice = found.notice("mine")
    assert notice is not None
    assert names[0] in notice.text
    assert "register_buffer" in notice.remedy
    fresh = model(build)
    with seeded(0, "pass"):
        wanted = fresh(X)
    for _ in range(2):  # as it was made, also after what came before
        made.reset()
        with seeded(0, "pass"):
            assert torch.equal(made(X), wanted)
    assert all(torch.equal(tensor, before[key]) for key, tensor in made.state_dict().items())


class Counting4(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)


ORDINARY: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "writing": Writing,
    "dropout": lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(), nn.RReLU()),
    "batch normalisation": lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)),
    "recurrent": Recurrent,
    "attention": Attending,
    "spectral norm": lambda: utils.spectral_norm(nn.Linear(5, 4)),
    "weight norm": lambda: utils.weight_norm(nn.Linear(5, 4)),
    "parametrised spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(5, 4)),
    "parametrised weight norm": lambda: parametrizations.weight_norm(nn.Linear(5, 4)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(5, 4)),
    "noise of random": lambda: Lambda(random.random),
    "noise of numpy": lambda: Lambda(lambda: float(np.random.standard_normal())),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ORDINARY)
def test_there_is_no_false_alarm(name: str) -> None:
    found = trial(model(ORDINARY[name]), X)
    assert found.outside == ()
    assert found.several == ({"base"} if name == "batch normalisation" else set())


@pytest.mark.parametrize("info", available(), ids=lambda info: info.name)
def test_nothing_of_the_zoo_raises_an_alarm(info: Any) -> None:
    shape = (9, 128) if "har" in info.name else (1, 28, 28)
    try:
        made = resolve(info.name)(shape, 4, 8)
        made(torch.rand(2, *shape))
    except (RuntimeError, ModelError):
        pytest.skip("made for other samples")
    assert trial(made, torch.rand(2, *shape)).outside == ()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: 1e6 * time.perf_counter() % 1,
        lambda: float(IMPORTED.random()),
        lambda: float(np.random.default_rng().random()),
    ],
)
def test_what_can_be_neither_kept_nor_seeded_is_refused(draw: Callable[[], float]) -> None:
    with pytest.raises(
        ModelError, match=r"two equal passes with equal seeds give different outputs.*global generators"
    ):
        trial(model(lambda: Lambda(draw)), X)


def test_a_hook_with_a_memory_of_its_own_is_refused() -> None:
    calls = [0]

    def hook(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        calls[0] += 1
        return output * calls[0]

    made = model(Plain)
    made.get_submodule("base").register_forward_hook(hook)
    with pytest.raises(ModelError, match="different outputs"):
        trial(made, X)


def test_a_model_that_no_batch_trains_is_refused() -> None:
    layers = nn.Sequential(nn.Linear(5, 4), nn.Unflatten(1, (4, 1)), nn.InstanceNorm1d(4), nn.Flatten())
    with pytest.raises(ModelError, match="cannot be trained on a batch of such samples: Expected more than 1 spatial"):
        trial(model(lambda: layers), X)


def run(path: Path, build: Any, method: str = "fedavg", **options: Any) -> Result:
    values: dict[str, Any] = {
        "method": method, "data": "in-memory:tiny", "models": ["in-memory:mine"], "clients": 3, "rounds": 3,
        "fusion_width": 4, "beside": [], "eval_every": 3, "execution": {"workers": 1}, "settings": {"batch_size": 8},
    }  # fmt: skip
    given = Given(dataset=tiny_dataset(90), builders=[lambda shape, classes, width: pair(build(), nn.Linear(4, 3))])
    execute(parse_config(values | options), path, given=given)
    return Result(path, given)


def bits(result: Result) -> tuple[list[Tensor], list[float]]:
    return list(result.model(0).state_dict().values()), list(result.summary.global_accuracy.per_client)


@pytest.mark.parametrize(
    "build",
    [Counting, Buffered, seed_of(np.random.default_rng), ORDINARY["noise of numpy"], ORDINARY["noise of random"]],
)
@pytest.mark.parametrize("method", ["fedavg", "fedet"])
def test_bits_depend_on_neither_workers_nor_evaluations(tmp_path: Path, build: Any, method: str) -> None:
    """Fed-ET trains a model at the server too, which lives through the whole run."""
    few = {"settings": {"batch_size": 8} | ({"server_steps": 4} if method == "fedet" else {})}
    tensors, accuracies = bits(run(tmp_path / "a", build, method, **few))
    if method == "fedavg" and build in (Counting, Buffered):  # one global model answers alike for all
        assert len({*accuracies}) == 1
    for name, changes in {"b": {"execution": {"workers": 3}}, "c": {"eval_every": 1}}.items():
        again, same = bits(run(tmp_path / name, build, method, **few | changes))
        assert all(map(torch.equal, tensors, again))
        assert same == accuracies


def test_state_that_does_not_last_is_among_the_warnings(tmp_path: Path) -> None:
    summary = run(tmp_path / "r", Counting).summary
    assert [w.name for w in summary.warnings if "base.calls" in w.text] == ["models that do not fit"]
    assert "models that do not fit" not in [w.name for w in run(tmp_path / "s", Plain).summary.warnings]


NORMALISED = ORDINARY["batch normalisation"]


@pytest.mark.parametrize("method", ["fedavg", "local", "fedgen", "ifl", "splitfed-v1"])
def test_a_batch_of_one_row_for_a_block_that_needs_two_is_refused_by_client_and_setting(
    tmp_path: Path, method: str
) -> None:
    with pytest.raises(ConfigError, match=r"client 0 \(in-memory:mine\): batch_size = 1: its base block normalises"):
        run(tmp_path / "r", NORMALISED, method, settings={"batch_size": 1})


@pytest.mark.parametrize("method", ["fedavg", "local", "fedgen"])
def test_a_share_of_one_row_is_said_and_refused_where_all_are_such(tmp_path: Path, method: str) -> None:
    def one_row(rows: int) -> Result:
        given = Given(
            dataset=tiny_dataset(rows), builders=[lambda shape, classes, width: pair(NORMALISED(), nn.Linear(4, 3))]
        )
        values: dict[str, Any] = {
            "method": method, "data": "in-memory:tiny", "models": ["in-memory:mine"], "clients": 3, "fusion_width": 4,
            "validation": 0.0, "test": 0.0, "rounds": 2, "beside": [], "execution": {"workers": 1},
        }  # fmt: skip
        execute(parse_config(values), tmp_path / str(rows), given=given)
        return Result(tmp_path / str(rows), given)

    summary = one_row(4).summary
    alone = [client.id for client in summary.clients if client.samples == 1]
    assert (len(alone), summary.untrained) == (2, tuple(alone))
    assert summary.gradient_steps.clients > 0
    warnings = {warning.name: warning.text for warning in summary.warnings}
    named = f"Clients {alone[0]} and {alone[1]}"
    assert warnings["models that do not fit"].startswith(f"{named} (in-memory:mine): its training share has one row")
    assert warnings["clients that never trained"].startswith(named)
    with pytest.raises(ConfigError, match=r"client 0, as all others: its training share has one row: its base block"):
        one_row(3)


def test_a_reference_that_could_not_make_a_step_is_refused_before_the_method_runs(tmp_path: Path) -> None:
    """IFL trains the base block on own rows, Pooled everything on everybody's; Local both blocks on its own."""
    head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    given = Given(dataset=tiny_dataset(30), builders=[lambda shape, classes, width: pair(Plain(), head)])
    values: dict[str, Any] = {
        "method": "fedbuff", "data": "in-memory:tiny", "models": ["in-memory:mine"], "clients": 3, "fusion_width": 4,
        "settings": {"batch_size": 1}, "beside": ["local"],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="its modular block normalises"):
        execute(parse_config(values), tmp_path / "r", given=given)
