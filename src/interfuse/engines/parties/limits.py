"""``[limits]`` of a vendor's file: how much may leave and be asked at most, whatever a contract says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any

from annotated_types import Ge, Gt
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from interfuse.engines.parties.contract import MESSAGE, Contract, JoinError
from interfuse.errors import ConfigError, nearest
from interfuse.handler import handlers, programs
from interfuse.messages import Disclosure, Leaf, Message, flatten, kind_of, leaves
from interfuse.messages.encoding import codec_of
from interfuse.messages.records import leaf_at
from interfuse.method import ALTERNATIVES, RETAINABLE, Method
from interfuse.methods import find
from interfuse.setup import with_settings
from interfuse.wire import Codec, Codecs

EPSILON = "label_epsilon"
"""The setting of methods that report labels at random."""


class Bound(BaseModel):
    """What a setting may be: a number from ``min`` to ``max``, or one of ``values``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: float | None = None
    max: float | None = None
    values: tuple[bool | int | float | str, ...] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Bound:
        if (self.values is None) == (self.min is None and self.max is None):
            raise ValueError("give min, max or both, or values")
        return self

    def holds(self, value: object) -> bool:
        """Whether it may be this."""
        if self.values is not None:
            return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.values)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def __str__(self) -> str:
        if self.values is not None:
            return f"one of {', '.join(map(str, self.values))}"
        ends = [
            f"from {self.min:g}" if self.min is not None else "",
            f"to {self.max:g}" if self.max is not None else "",
        ]
        return f"a number {' '.join(filter(None, ends))}"


class LimitsTable(BaseModel):
    """``[limits]``: how much at most. What is counted, the node counts in its own state, whatever restarts.

    Attributes:
        rounds: Of a run.
        bytes: Of messages that leave, over the whole run.
        message_bytes: Of one message that comes.
        rows: Of single samples (features, labels, data) in one message that leaves.
        runs: Of which anything has begun here, counted by the runs that the state folder knows.
        calls: Of one handler in one round that are answered with a message; what the method needs, unless said.
        answers: That differ, to one call: a coordinator that goes back to a commit asks again, and who asks with
            another message gets another answer. The same answer is sent as often as it is asked for.
        memory: Bytes that the node's process may take, of the processor's; as much as the machine has, unless said.
        seconds: Of work for one call; what takes longer is given up, and the node goes back to its last saved state.
        fusion_width, classes: Of the contract.
        label_epsilon: Labels leave only as reports at random, with no larger epsilon.
        settings: What settings of methods may be, by name.
        noise: Standard deviation of Gaussian noise on numbers that leave, by what they disclose.
        codec: The one codec that the contract must have for what leaves of a disclosure.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: Annotated[int, Ge(1)] | None = None
    bytes: Annotated[int, Ge(0)] | None = None
    message_bytes: Annotated[int, Ge(1)] = MESSAGE
    rows: Annotated[int, Ge(0)] | None = None
    runs: Annotated[int, Ge(1)] | None = None
    calls: Annotated[int, Ge(1)] | None = None
    answers: Annotated[int, Ge(1)] = 8
    memory: Annotated[int, Ge(1)] | None = None
    seconds: Annotated[float, Gt(0)] = 3600.0
    fusion_width: Annotated[int, Ge(1)] = 1 << 16
    classes: Annotated[int, Ge(1)] = 1 << 20
    label_epsilon: Annotated[float, Gt(0)] | None = None
    settings: dict[str, Bound] = Field(default_factory=dict)
    noise: dict[Disclosure, Annotated[float, Gt(0)]] = Field(default_factory=dict)
    codec: dict[Disclosure, str] = Field(default_factory=dict)

    @field_validator("codec")
    @classmethod
    def _known(cls, given: dict[Disclosure, str]) -> dict[Disclosure, str]:
        try:
            return {disclosure: str(Codec.parse(text)) for disclosure, text in given.items()}
        except ConfigError as error:
            raise ValueError(str(error)) from None

    def check_names(self, methods: Iterable[str]) -> None:
        """Refuse a bound on what no allowed method has: nothing would hold it.

        Raises:
            ConfigError: naming the setting.
        """
        known = {f.name for name in methods for f in fields(find(name))} if self.settings else set()
        for name in self.settings:
            if name not in known:
                raise ConfigError(f"[limits.settings] {name}: no method under [allow] has it: {nearest(name, known)}")

    def check_sizes(self, contract: Contract) -> None:
        """Refuse what a contract says itself, before anything is made of it.

        Raises:
            JoinError: naming the field.
        """
        at_most = {
            "rounds": (self.rounds, contract.rounds),
            "fusion width": (self.fusion_width, contract.fusion_width),
            "classes": (self.classes, contract.classes),
        }
        for field, (most, found) in at_most.items():
            if most is not None and found > most:
                raise JoinError(field, f"at most {most}", str(found))

    def check_method(self, method: Method, contract: Contract) -> None:
        """Refuse settings beyond the bounds, those of single clients included, and replies that nothing protects as
        the file asks for.

        Raises:
            JoinError: naming the setting or field.
        """
        for own in ({}, *contract.client_settings.values()):
            for program in programs(with_settings(method, own), "method").values():
                values = (
                    {f.name: getattr(program, f.name) for f in fields(program)} if isinstance(program, Method) else {}
                )
                self._check_settings(values)
        for disclosure, field in without_noise(method).items():
            if disclosure in self.noise:
                raise JoinError(f"noise on {disclosure}", "what noise can be added to", f"whole numbers of {field}")
        sends_labels = any(leaf.disclosure is Disclosure.LABELS for _, leaf in _sent(method))
        if sends_labels and self.label_epsilon is not None:
            self._check_epsilon(method, contract)

    def check_calls(self, method: Method, samples: int) -> None:
        """Refuse a method that has to ask a client with so many samples more often than the file lets it.

        Raises:
            JoinError: naming the handler.
        """
        for program in programs(method, "method").values():
            needed = program.calls_of_a_round(samples) if isinstance(program, Method) else {}
            for handler, calls in needed.items():
                if self.calls is not None and calls > self.calls:
                    raise JoinError(f"calls of {handler} in a round", f"at most {self.calls}", str(calls))

    def _check_settings(self, values: Mapping[str, Any]) -> None:
        for name, bound in self.settings.items():
            unused = name in ALTERNATIVES and name in values and values[name] is None
            if name in values and not unused and not bound.holds(values[name]):
                raise JoinError(f"setting {name}", str(bound), str(values[name])[:100])

    def _check_epsilon(self, method: Method, contract: Contract) -> None:
        for own in ({}, *contract.client_settings.values()):
            values = {f.name: getattr(with_settings(method, own), f.name) for f in fields(method)}
            found = values.get(EPSILON)
            if not isinstance(found, int | float) or found > (self.label_epsilon or 0):
                words = "labels as they are" if found is None else str(found)
                raise JoinError(EPSILON, f"reports of labels with at most {self.label_epsilon:g}", words)

    def check_codecs(self, codecs: Codecs, method: Method) -> None:
        """Refuse other codecs than the vendor asks for, on what leaves.

        Small tensors of a model, which every lossy codec leaves as they are, are not looked at.

        Raises:
            JoinError: naming the field.
        """
        for kind, leaf in _sent(method):
            wanted = None if leaf.disclosure is None else self.codec.get(leaf.disclosure)
            found = str(codec_of(codecs, kind_of(kind), leaf, 2))
            if wanted not in (None, found) and leaf.scalar is None:
                raise JoinError(f"codec of {leaf.field} ({leaf.disclosure})", str(wanted), found)


def rows_of(message: Message) -> int:
    """How many single samples a message speaks of: the most rows of one of its fields, items of a group together."""
    kind = type(message)
    found: dict[str, int] = {}
    for path, tensor in flatten(message).items():
        leaf = leaf_at(kind, path)
        if leaf is not None and leaf.disclosure in RETAINABLE and tensor.ndim:
            found[leaf.field] = found.get(leaf.field, 0) + tensor.shape[0]
    return max(found.values(), default=0)


def without_noise(method: Method) -> dict[Disclosure, str]:
    """Disclosures of which a method sends a message without anything that noise can be added to, and its field."""
    takes = {(kind, leaf.disclosure) for kind, leaf in _sent(method) if _takes_noise(leaf)}
    left = [leaf for kind, leaf in _sent(method) if (kind, leaf.disclosure) not in takes]
    return {leaf.disclosure: leaf.field for leaf in left if leaf.disclosure is not None}


def _sent(method: Method) -> Iterator[tuple[type[Message], Leaf]]:
    """All that a method's replies are made of, with those of methods that it wraps."""
    for program in programs(method, "method").values():
        for handler in handlers(type(program)).values():
            if handler.reply_type is not None:
                for leaf in leaves(handler.reply_type):
                    yield handler.reply_type, leaf


def _takes_noise(leaf: Leaf) -> bool:
    """Whether it is made of numbers with a fraction. Between parties targets are numbers of classes."""
    if leaf.scalar is not None or leaf.targets:
        return leaf.scalar is float
    return leaf.dtypes is None or any(dtype.startswith(("float", "bfloat")) for dtype in leaf.dtypes)
