"""Hyperparameters, declarations, settings with their comments, and how a method is found."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from jaxtyping import Float32
from torch import Tensor

import interfuse
from interfuse.client import Client
from interfuse.clients import Clients
from interfuse.errors import ConfigError, DeclarationError, InterfuseError
from interfuse.handler import handlers, on_client
from interfuse.messages import Disclosure, Features, Labels, Message, State, Weights
from interfuse.method import (
    ALL,
    NOTHING,
    Count,
    Fraction,
    Method,
    NonNegative,
    Setting,
    Steps,
    check_declaration,
    disclosures,
    disclosures_of,
    settings,
    state_type,
)
from interfuse.methods import built_in, find, name_of
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.ifl import IFL
from interfuse.methods.scaffold import SCAFFOLD
from interfuse.methods.scaffold import Global as ScaffoldGlobal
from interfuse.methods.scaffold import Own as ScaffoldOwn
from interfuse.server import Server
from interfuse.training import Cosine, Exponential, LearningRate


@dataclass(frozen=True)
class Settings(Method):
    """All kinds of settings."""

    needed: Count  # how many there are
    steps: Steps = 0  # none is allowed
    share: Fraction = 0.5  # a part
    weight: NonNegative = 0.0
    lr: LearningRate = 0.1  # a rate, with "quotes" # and a hash
    mode: Literal["a", "b"] = "a"  # one of two
    flag: bool = False  # on or off
    several: tuple[int, ...] = field(default=(1, 2))  # more than one


@dataclass(frozen=True)
class Extended(Settings):
    steps: Steps = 5  # another comment
    extra: int = 1  # of the subclass


def test_settings_carry_the_comments_beside_them() -> None:
    found = {setting.name: setting for setting in settings(Extended)}
    assert list(found) == ["needed", "steps", "share", "weight", "lr", "mode", "flag", "several", "extra"]
    assert found["needed"] == Setting("needed", Count, None, "how many there are", "interfuse")
    assert found["steps"] == Setting("steps", Steps, 5, "another comment", "interfuse")
    assert found["weight"].comment == ""
    assert found["lr"].comment == 'a rate, with "quotes" # and a hash'
    assert found["extra"].comment == "of the subclass"


@pytest.mark.parametrize(
    "wrong",
    [
        {"needed": 0},
        {"needed": 1.5},
        {"needed": "many"},
        {"steps": -1},
        {"share": 0.0},
        {"share": 1.01},
        {"weight": -0.1},
        {"lr": 0.0},
        {"lr": -1},
        {"lr": "fast"},
        {"mode": "c"},
        {"flag": "perhaps"},
        {"several": (1, "x")},
    ],
    ids=str,
)
def test_an_impossible_value_is_refused_with_name_and_value(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    for make in (lambda values: Settings(**values), Settings.configure):
        with pytest.raises(ConfigError) as caught:
            make({"needed": 1} | wrong)
        assert str(caught.value).startswith(f"Settings: {name} = {value!r} is impossible: ")


def test_values_from_a_recipe_take_their_types() -> None:
    made = Settings.configure(
        {"needed": "3", "share": 1, "several": [4, 5], "lr": {"start": 0.5, "decay": 0.9}, "flag": "true"}
    )
    assert (made.needed, made.share, made.several, made.flag) == (3, 1.0, (4, 5), True)
    assert made.lr == Exponential(0.5, 0.9)
    assert Settings(1, lr=Cosine(1.0, 10)).lr == Cosine(1.0, 10)
    assert Settings.configure({"needed": 1, "lr": {"start": 0.5, "rounds": 9}}).lr == Cosine(0.5, 9)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Settings has no setting 'neded': did you mean 'needed'\\? valid: flag, lr,"):
        Settings.configure({"neded": 1})
    with pytest.raises(ConfigError, match="Settings needs a value for needed"):
        Settings.configure({})


def test_a_method_object_is_a_frozen_value() -> None:
    assert IFL(local_steps=3) == IFL(local_steps=3)
    assert IFL(local_steps=3) != IFL(local_steps=4)
    with pytest.raises(FrozenInstanceError):
        IFL().local_steps = 1  # type: ignore[misc]


# --- declarations ---------------------------------------------------------------------------------


class Pair(Message):
    z: Features
    y: Labels


class Loose(Message):
    z: Float32[Tensor, "batch d"]


@dataclass(frozen=True)
class Sender(Method):
    @on_client
    def send(self, client: Client) -> Pair:
        raise AssertionError


@dataclass(frozen=True)
class Inheriting(Sender):
    def deployed(self, server: Server, clients: Clients) -> Weights:
        """What goes down discloses nothing of a client."""
        raise AssertionError


@dataclass(frozen=True)
class Wrapping(Method):
    inner: Sender = Sender()


@dataclass(frozen=True)
class LooseReceiver(Method):
    """What goes down must be declared completely too."""

    @on_client
    def receive(self, client: Client, loose: Loose) -> None: ...


def test_what_a_method_discloses_follows_from_its_replies() -> None:
    assert disclosures_of(Method) == disclosures_of(LooseReceiver) == frozenset()
    assert disclosures_of(Sender) == disclosures_of(Inheriting) == {Disclosure.FEATURES, Disclosure.LABELS}
    assert disclosures(Wrapping()) == {Disclosure.FEATURES, Disclosure.LABELS}
    check_declaration(Inheriting)
    with pytest.raises(TypeError, match=r"Loose\.z.*needs its shape and what it discloses"):
        check_declaration(LooseReceiver)


def test_no_client_answers_to_deploy_where_nothing_is_deployed() -> None:
    """Otherwise a coordinator could replace models that clients keep to themselves."""
    assert list(handlers(Sender)) == ["send"]
    assert list(handlers(Inheriting)) == ["deploy", "send"]


@dataclass(frozen=True)
class Forgetful(Method):
    def keeps(self) -> frozenset[str]:
        return NOTHING

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.train)  # type: ignore[call-overload]  # what the test is about

    def train(self, client: Client) -> None:
        raise AssertionError


@dataclass(frozen=True)
class Unmarked(Forgetful):
    def keeps(self) -> frozenset[str]:
        return ALL


def test_errors_name_the_hook_or_decorator_that_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"Forgetful keeps nothing.*define `deployed\(self, server, clients\)`"):
        interfuse.run(Forgetful(), data="digits", rounds=1, clients=2)
    with pytest.raises(DeclarationError, match=r"Forgetful\.train.*write @on_client above it"):
        interfuse.run(Unmarked(), data="digits", rounds=1, clients=2, beside=())


def test_types_of_state_are_read_off_the_annotations() -> None:
    assert state_type(SCAFFOLD.start) is ScaffoldGlobal
    assert state_type(SCAFFOLD.new_client) is ScaffoldOwn
    assert state_type(Method.start) is None
    assert state_type(IFL().new_client) is None
    assert issubclass(ScaffoldOwn, State)


# --- names ----------------------------------------------------------------------------------------

MINE = """
from dataclasses import dataclass
from interfuse import Method

@dataclass(frozen=True)
class Mine(Method):
    steps: int = 4  # of mine

    def round(self, server, clients):
        pass
"""


def test_built_in_methods_have_the_names_of_their_files() -> None:
    assert {"ifl", "local", "pooled", "fedavg", "scaffold", "splitfed-v1"} <= built_in().keys()
    assert find("ifl") is IFL
    assert all(find(name) is kind and name_of(kind) == name for name, kind in built_in().items())


def test_a_method_is_found_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    kind = find(str(file))
    assert kind.__name__ == "Mine"
    assert [setting.comment for setting in settings(kind)] == ["of mine"]
    assert find(f"{file}:Mine").__name__ == "Mine"
    assert find(name_of(kind)).__name__ == "Mine"


def test_a_file_with_several_methods_needs_a_class(tmp_path: Path) -> None:
    file = tmp_path / "several.py"
    file.write_text(MINE + "\n@dataclass(frozen=True)\nclass Other(Mine):\n    pass\n")
    with pytest.raises(
        ConfigError, match=r"should define one method, but has Mine, Other; name one: .*several.py:Class"
    ):
        find(str(file))
    assert find(f"{file}:Other").__name__ == "Other"
    nothing = tmp_path / "nothing.py"
    nothing.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="but has none"):
        find(str(nothing))


def test_a_method_is_found_by_module_and_class() -> None:
    assert find("interfuse.methods.fedavg:FedAvg") is FedAvg
    with pytest.raises(ConfigError, match="is no subclass of interfuse.Method"):
        find("interfuse.families.averaging:Global")


@pytest.mark.parametrize("reference", ["ifll", "no.such.module:Class", "missing.py", "interfuse.methods.fedavg:FedAv"])
def test_what_is_not_there_is_a_clear_error(reference: str) -> None:
    with pytest.raises(InterfuseError) as caught:
        find(reference)
    assert reference.split(":")[0] in str(caught.value)
    if reference == "ifll":
        assert "did you mean 'ifl'?" in str(caught.value)


def test_prediction_is_the_own_model_unless_a_method_says_otherwise() -> None:
    class Fake:
        model = torch.nn.Linear(2, 3)

    x = torch.ones(4, 2)
    client: Any = Fake()
    assert torch.equal(Method().predict(client, x), Fake.model(x))


def test_a_method_that_is_no_dataclass_is_named() -> None:
    class Forgotten(Method):
        lr: float = 0.1

    with pytest.raises(ConfigError, match="Forgotten has fields but is no dataclass"):
        Forgotten.configure({})


@dataclass(frozen=True)
class Family(Method):
    """Sets three."""

    origin = "their paper"

    lr: float = 0.1  # rate of a step
    mu: float = 0.2  # weight of a term [their code]
    own: int = 3  # ours alone [interfuse]


@dataclass(frozen=True)
class Later(Family):
    """Sets one anew, and one more."""

    usual = {"lr": 0.5}

    more: bool = True  # nobody else has it


@dataclass(frozen=True)
class Others(Family):
    """Sets one anew, after others."""

    origin = "others' code"
    usual = {"mu": 0.0}


def test_a_default_is_from_who_set_it_last() -> None:
    sources = [{s.name: s.source for s in settings(kind)} for kind in (Family, Later, Others)]
    assert sources[0] == {"lr": "their paper", "mu": "their code", "own": "interfuse"}
    assert sources[1] == {"lr": "interfuse", "mu": "their code", "own": "interfuse", "more": "interfuse"}
    assert sources[2] == {"lr": "their paper", "mu": "others' code", "own": "interfuse"}
    assert [s.comment for s in settings(Family)] == ["rate of a step", "weight of a term", "ours alone"]
