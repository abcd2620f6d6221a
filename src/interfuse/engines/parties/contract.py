"""What both sides agree on when a node joins, and who refuses what by name."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import unicodedata
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Annotated, Any

from annotated_types import Ge, Le, Lt
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from interfuse.client import ClientId, Profile
from interfuse.data import AT_ONCE, Dataset, Normalise, Sampling, Tasks
from interfuse.engines.parties.words import Mark, Name, printable
from interfuse.errors import InterfuseError
from interfuse.evaluation import Mode
from interfuse.federation import carries_features, messages_of
from interfuse.handler import handlers, programs
from interfuse.messages import Disclosure, Leaf, Message, leaves
from interfuse.method import Method, disclosures, own_code, retained
from interfuse.methods import find
from interfuse.models import Initial
from interfuse.numerics import Numerics
from interfuse.setup import with_settings
from interfuse.wire.frame import VERSION

LIBRARY = version("interfuse")
WIRE = VERSION

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""It becomes a folder at the node, so it is no path."""
Size = Annotated[int, Ge(0), Le(2**53)]
MESSAGE = 1 << 30
"""Payload bytes of a message at most, unless a side says otherwise."""
BYTES = 4
"""Of a number of a model at least, as it travels."""
CLASS_NAMES = "class names"
"""What a refusal calls them."""
OTHER_NAMES = "others, or another order; `classes` under [data] in the vendor's file gives them as all agreed"
"""What a node has whose names of classes do not fit. The names themselves are told to nobody."""


class Contract(BaseModel):
    """What a run asks of every node. The run's own name keys what a node keeps on its disk.

    Attributes:
        method, settings, unset, client_settings, codecs: As in a run's configuration.
        interface: Digest of the method's handlers and messages: equal where both sides have the same method.
        discloses: All that the messages of a client disclose.
        retains: What of it the coordinator keeps after its round, in memory and in commits, or other clients do.
        weights: How clients count in a mean, where there is one.
        seed: From which nodes derive initial values, orders and divisions.
        public_test: Name of the public test set; with it ``test_labels``, the digest of its labels.
        public_data: Name of the public data that a method uses; with it ``public_digest``, that of its rows.
        initial, sampling, tasks, normalise: As in a run's configuration.
        class_names: Keyed digest of the names of classes in their order, see :func:`names_digest`; empty where the
            coordinator knows none, and the nodes have to agree with each other.
        message_bytes: The largest message that the coordinator takes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunName
    library: Name
    wire: Size
    method: Name
    settings: dict[str, Any]
    unset: tuple[Name, ...]
    client_settings: dict[int, dict[str, Any]]
    codecs: dict[Name, Name]
    interface: Name
    discloses: tuple[Disclosure, ...]
    retains: tuple[Disclosure, ...]
    weights: Name | None
    rounds: Annotated[int, Ge(0), Le(10**7)]
    fusion_width: Annotated[int, Ge(1), Le(2**31)]
    classes: Annotated[int, Ge(1), Le(2**31)]
    seed: Annotated[int, Ge(-(2**63)), Lt(2**63)]
    numerics: Numerics
    validation: Annotated[float, Ge(0), Lt(1)]
    test: Annotated[float, Ge(0), Lt(1)]
    evaluation: Mode
    public_test: Name
    test_rows: Annotated[int, Ge(1), Le(2**31)] | None
    test_labels: Mark
    public_data: Name = ""
    public_digest: Mark = ""
    class_names: Mark = ""
    initial: Initial = "own"
    sampling: Sampling = Sampling()
    tasks: Tasks = AT_ONCE
    normalise: Normalise = "data"
    message_bytes: Annotated[int, Ge(1), Le(2**53)] = MESSAGE


class Shapes(BaseModel):
    """What is known of a public model: the shape of a sample, by name where it has several inputs, the tensors that are
    given, which never travel, and the rest as in a profile.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sample: tuple[Size, ...] | dict[Name, tuple[Size, ...]]
    keys: dict[Name, tuple[Size, ...]]
    cuts: dict[Name, tuple[Size, ...]]
    stages: tuple[Name, ...]
    buffers: tuple[Name, ...]
    given: tuple[Name, ...] = ()

    @property
    def numbers(self) -> int:
        """How many numbers the tensors have that may travel."""
        given = frozenset(self.given)
        return sum(math.prod(shape) for key, shape in self.keys.items() if key not in given)


class Facts(BaseModel):
    """What the coordinator knows of a node: :class:`interfuse.client.Profile`, and what both must agree on.

    ``shapes`` are there where the vendor calls its model public. ``class_names`` are a digest as in the contract, and
    ``given`` is one, keyed alike, of the tensors that a model is given and nobody trains.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Name
    classes: Size
    fusion_width: Size | None
    samples: Annotated[int, Ge(0), Le(10**9)]
    test_labels: Mark
    class_names: Mark
    given: Mark
    shapes: Shapes | None = None

    def profile(self, client: ClientId) -> Profile:
        """As methods see it."""
        known = self.shapes or Shapes(sample=(), keys={}, cuts={}, stages=(), buffers=())
        made, width, buffers = self.samples, self.fusion_width, frozenset(known.buffers)
        name, seen = self.architecture, (known.cuts, known.stages, buffers, known.sample)
        return Profile(client, name, known.keys, made, width, *seen, backbone=name)


class JoinError(InterfuseError):
    """The two sides do not agree; nothing in it is more than the contract and the facts say anyway.

    ``retry``: the same may work later. ``aside`` is for this side alone: it is in the text and not in what is sent.
    """

    def __init__(self, field: str, expected: str, found: str, retry: bool = False, aside: str = "") -> None:
        super().__init__(f"{field}: expected {expected}, found {found}{aside}")
        self.field, self.expected, self.found, self.retry = field, printable(expected), printable(found), retry


def same(field: str, expected: object, found: object) -> None:
    """Refuse what differs.

    Raises:
        JoinError: naming the field.
    """
    if expected != found:
        raise JoinError(field, str(expected)[:300], str(found)[:300])


def interface(method: Method) -> str:
    """A digest of all that two sides must have in common to understand each other: handlers and their messages.

    What a codec may do to a field is among it: both sides read off it which codec a tensor has.
    """
    lines = []
    for path, program in sorted(programs(method, "method").items()):
        for name, handler in sorted(handlers(type(program)).items()):
            lines.append(f"{path}.{name}({_described(handler.message_type)}) -> {_described(handler.reply_type)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _described(message: type[Message] | None) -> str:
    return "" if message is None else f"{message.__name__}: {'; '.join(map(_leaf, leaves(message)))}"


def _leaf(leaf: Leaf) -> str:
    scalar = "" if leaf.scalar is None else leaf.scalar.__name__
    return f"{leaf.path} {scalar} {leaf.dtypes} {leaf.dims} {leaf.disclosure} {leaf.precision}"


def method_of(contract: Contract) -> Method:
    """The method of a contract as this side has it.

    Raises:
        JoinError: it is another than the coordinator's.
        ConfigError: it is not there, or its settings are impossible.
    """
    method = find(contract.method).configure(dict.fromkeys(contract.unset) | contract.settings)
    for own in ({}, *contract.client_settings.values()):
        for name, reference in own_code(with_settings(method, own)).items():
            raise JoinError(name, "a value that interfuse itself knows, since no code travels", reference)
    same("method's handlers and messages", contract.interface, interface(method))
    same("discloses", sorted(contract.discloses), sorted(disclosures(method)))
    same("retains", sorted(contract.retains), sorted(retained(method)))
    return method


def check_facts(contract: Contract, method: Method, facts: Facts) -> None:
    """What a node says of itself against the contract; both sides look.

    Raises:
        JoinError: naming the field.
    """
    same("classes", contract.classes, facts.classes)
    if carries_features(messages_of(method)):
        same("fusion width", method.crossing(contract.fusion_width), facts.fusion_width)
    if contract.evaluation == "shared":
        same("labels of the public test set", contract.test_labels, facts.test_labels)
    if contract.class_names not in ("", facts.class_names):
        raise JoinError(CLASS_NAMES, "those of the contract, in their order", OTHER_NAMES)
    if Disclosure.PARAMETERS in contract.discloses and facts.shapes is None:
        raise JoinError("model", "a public one, since the method shares parameters", "one that is not")
    if facts.samples < 1:
        raise JoinError("samples", "at least 1", str(facts.samples))


def check_messages(contract: Contract, facts: Facts, most: int, whose: str) -> None:
    """Refuse a model whose tensors do not go into one message, where a method shares parameters.

    Args:
        most: Bytes of a message that a side takes, and ``whose`` limit that is.

    Raises:
        JoinError: naming the limit.
    """
    size = 0 if facts.shapes is None else BYTES * facts.shapes.numbers
    if Disclosure.PARAMETERS in contract.discloses and size > most:
        raise JoinError(whose, f"at least {size}, since that is what the tensors of the model take", str(most))


def labels_digest(labels: Tensor) -> str:
    """A digest of the labels of a public test set, in order."""
    return hashlib.sha256(labels.cpu().numpy().tobytes()).hexdigest()[:32]


def rows_digest(public: Dataset) -> str:
    """A digest of the rows of public data. Test rows that a data set has beside them are none of these."""
    return public.with_test_rows(0).digest


def names_digest(run: str, names: Sequence[str]) -> str:
    """A digest of names in their order, keyed with the random name of the run (HMAC-SHA-256).

    Only who is admitted to the run knows the key, and digests of two runs cannot be compared. Who has it can still try
    names until they fit: docs/security.md.
    """
    # file systems and exports differ in how they compose letters: what reads the same is the same
    text = json.dumps([unicodedata.normalize("NFC", name) for name in names])
    return hmac.new(run.encode(), text.encode(), hashlib.sha256).hexdigest()


def names(disclosed: Iterable[Disclosure]) -> str:
    """Disclosures in words."""
    return ", ".join(sorted(disclosed)) or "nothing"
