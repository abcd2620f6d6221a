"""``Method``: one class in one file is one federated method."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Self, get_type_hints

from annotated_types import Ge, Gt, Le
from jaxtyping import Int64
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from interfuse.client import Client, ClientId, Profile
from interfuse.clients import Clients
from interfuse.data import Inputs
from interfuse.errors import ConfigError, Notice, nearest
from interfuse.handler import Program, handlers, on_client, programs
from interfuse.messages import Dims, Disclosure, Message, State, Weights, disclosed, leaves
from interfuse.models import SplitModel
from interfuse.party import ALL as ALL
from interfuse.party import BUFFERS as BUFFERS
from interfuse.party import NOTHING as NOTHING
from interfuse.party import Network as Network
from interfuse.references import is_reference
from interfuse.server import Server
from interfuse.training import OwnSchedule

Predictor = Callable[[SplitModel, Inputs], Tensor]
"""From a model in evaluation mode and inputs to outputs, such as logits ``[batch, classes]``: of nothing else."""
Count = Annotated[int, Ge(1)]
Steps = Annotated[int, Ge(0)]
Fraction = Annotated[float, Gt(0), Le(1)]
NonNegative = Annotated[float, Ge(0)]

DEPLOY = "deploy"
"""The handler that puts in place what a client answers with."""
STREAMED = 100
"""Answers of a client in one round of a stream at most: who is fast comes again and again before others are done."""
ALTERNATIVES = ("local_epochs", "local_steps")
"""Settings of which a method has one: how much a client trains."""
RETAINABLE = (Disclosure.DATA, Disclosure.FEATURES, Disclosure.LABELS)
"""What speaks of single samples: parties agree whether it may be kept beyond its round."""


def whole(model: SplitModel, x: Inputs) -> Tensor:
    """What the model's two blocks make of inputs."""
    found: Tensor = model(x)
    return found


def _load(method: Method, client: Client[Any], message: Weights) -> None:
    """Put what :meth:`Method.deployed` returns in place, in the client's model; a method with another message or
    another place for it defines ``deploy`` anew."""
    client.model.load(message.tensors)


@dataclass(frozen=True)
class Method(Program):
    """A federated method. Subclasses are frozen dataclasses whose fields are the hyperparameters.

    ``round`` runs at the server and moves things with ``clients.call``; work of a client is a method marked
    ``@on_client``. A method object holds hyperparameters only: what lasts from round to round is ``server.state``,
    ``client.state`` and the parts of the model that :meth:`keeps` names.
    """

    usual: ClassVar[Mapping[str, Any]] = {}
    """The method's own defaults of settings that it inherits."""
    origin: ClassVar[str] = "interfuse"
    """Where the defaults that a class sets, in its fields and in :attr:`usual`, are from: a paper, somebody's code, or
    ``interfuse`` where these are silent. What stands in brackets at the end of a field's comment goes before."""
    agreed: ClassVar[Collection[str]] = ()
    """Hyperparameters that no client may have of its own."""
    shaping: ClassVar[Collection[str]] = ()
    """Hyperparameters by which :meth:`adapted` makes a model: a client with others of its own has another
    architecture. Between parties no client may have its own."""
    references: ClassVar[Mapping[str, str]] = {}
    """The methods that run beside this one in the place of a reference, by the latter's name, such as ``local``."""
    lasting: ClassVar[bool] = True
    """Whether parameters that a client sends mean the same in each round: what rounding lost can then be sent later."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own, hints = vars(cls).get("usual", {}), {k: v for base in cls.__mro__[:0:-1] for k, v in _hints(base).items()}
        changed = {name: value for name, value in own.items() if name not in ALTERNATIVES}
        for name in changed.keys() - hints.keys():
            raise ConfigError(f"{cls.__name__}.usual: {name!r} is no setting it inherits: {nearest(name, hints)}")
        cls.__annotations__ = vars(cls).get("__annotations__", {}) | {name: hints[name] for name in changed}
        for name, value in changed.items():
            setattr(cls, name, value)

    def __post_init__(self) -> None:
        kind: Any = type(self)  # mypy takes the instances' __hash__ for that of the class
        for name, adapter in _adapters(kind).items():
            try:
                object.__setattr__(self, name, adapter.validate_python(getattr(self, name)))
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                given = getattr(self, name)
                raise ConfigError(f"{type(self).__name__}: {name} = {given!r} is impossible: {reason}") from None

    def round(self, server: Server[Any], clients: Clients) -> None:
        """One round."""
        raise NotImplementedError

    def start(self, server: Server[Any], clients: Clients) -> Any:
        """Once, before the first round: returns the server's initial state, or None."""
        return None

    def new_client(self, client: Client[Any]) -> Any:
        """The initial state of a client, made when it is first called; or None."""
        return None

    def keeps(self) -> frozenset[str]:
        """The parts of its model that a client owns between rounds: ``ALL``, ``NOTHING``, or names of parts."""
        return ALL

    def deployed(self, server: Server[Any], clients: Clients) -> Weights | Mapping[ClientId, Message] | Message | None:
        """The tensors with which each client answers when the run is over: one message for all, or one each.

        Evaluation, export and a service use it; handler ``deploy`` puts it in place. None: what clients keep is all.
        """
        return None

    deploy: ClassVar[on_client[Any, None]] = on_client(_load)

    def networks(self, owner: Profile | None, dims: Dims) -> Mapping[str, Network]:
        """What a party has beside its model, by name: a generator, a proxy, a probe.

        Args:
            owner: The client's profile; None for the server.
            dims: Sizes bound for the run.
        """
        return {}

    def adapted(self, model: SplitModel) -> SplitModel:
        """A client's new model as the method trains it: with adapters, for instance. PyTorch's global generator is
        seeded around the call. Clients of one architecture get models of one shape; settings that decide on it are
        :attr:`shaping`.

        Raises:
            ModelError: the method cannot work with such a model; says what to do.
        """
        return model

    def crossing(self, width: int) -> int:
        """How many numbers cross the fusion layer of a client's model that is built with ``width`` of them."""
        return width

    def fused(self, model: SplitModel, width: int, seed: int) -> SplitModel:
        """A client's new model with the fusion layer that the method has all clients agree on, which :meth:`crossing`
        numbers cross. It follows from the arguments: nothing is drawn but from the run's seed.

        Raises:
            ModelError: the method cannot work with such a model; says what to do.
        """
        return model

    def finish(self, server: Server[Any], clients: Clients) -> None:
        """Once, after the last round, as a part of it."""

    def welcome(
        self, server: Server[Any], client: Client[Any], peer: SplitModel, profiles: Mapping[ClientId, Profile]
    ) -> None:
        """Put in place what a client begins with that comes when the last round is over: by what the server has kept of
        the others. Its model is new, ``peer`` that of a client of its architecture. In simulations alone, for
        :meth:`.Result.adaptation`; a method without it has nothing for newcomers."""

    def retains(self) -> frozenset[Disclosure]:
        """What of the clients' messages lasts when a round is over: in the server's state, and in its commits, or with
        other clients."""
        state = state_type(self.start)
        held = () if state is None else leaves(state)
        return frozenset(leaf.disclosure for leaf in held if leaf.disclosure in RETAINABLE)

    def predictor(self) -> Predictor:
        """How a client's model answers, where that depends on nothing of the client but the model: clients with equal
        models then have equal answers, and evaluation asks for them once. A method that wants more defines
        :meth:`predict`, and is asked for every client."""
        return whole

    def predict(self, client: Client[Any], x: Inputs) -> Tensor:
        """What a score means for this method: inputs to outputs, such as logits ``[batch, classes]``."""
        return self.predictor()(client.model, x)

    def samples_of(self, client: Client[Any], y: Int64[Tensor, "n"]) -> Tensor | None:
        """Samples of these classes ``[n, ...]``, normalised as the client's model takes them, made by what the client
        has to draw with; None: it draws none. For pictures and attacks, in simulations alone."""
        return None

    def shown(self, server: Server[Any]) -> Mapping[str, Tensor]:
        """What there is to see of the server's state after a round, by name: a number ``[]``, one for each client
        ``[clients]``, or one for each two of them ``[clients, clients]``; NaN where it is unknown. It is a part of
        ``metrics.jsonl``, of the summary and of the report, and changes nothing."""
        return {}

    def alone(self) -> dict[str, Any]:
        """Settings of the Local run beside this method that it does not take from the method's of equal names."""
        return {}

    def check_run(self, clients: Sequence[ClientId], rounds: int) -> None:
        """Refuse settings that cannot work in a run with these clients and so many rounds, before it begins.

        Raises:
            ConfigError: names the setting, and what to do.
        """

    def rows_of_a_step(self, samples: int) -> Mapping[str, int]:
        """By block that a client trains on its own rows, those of its largest batch where its share has so many; empty:
        it trains on none, or who knows."""
        return {}

    def rows_of_an_upload(self, samples: int) -> Mapping[str, int]:
        """By handler, how many rows there are at most in what a client with so many samples sends; of handlers that
        are not named nobody knows. Between parties more is that client's failure."""
        return {}

    def calls_of_a_round(self, samples: int) -> Mapping[str, int]:
        """By handler, how often at most a client with so many samples answers it in one round, where that is more than
        a few times. A vendor's node answers no more, unless its file says another number."""
        return {}

    def notice(self, profiles: Mapping[ClientId, Profile]) -> Notice | None:
        """What a user should know before this method runs with these clients; None: nothing."""
        return None

    @classmethod
    def idle(cls) -> Collection[str]:
        return () if cls.deployed is not Method.deployed else (DEPLOY,)

    @classmethod
    def configure(cls, settings: Mapping[str, Any]) -> Self:
        """Make a method of settings by name, as they come from a recipe or the command line.

        Raises:
            ConfigError: a name is unknown or a value impossible.
        """
        own = [a for a in vars(cls).get("__annotations__", {}).values() if "ClassVar" not in str(a)]
        if own and "__dataclass_fields__" not in vars(cls):
            raise ConfigError(f"{cls.__name__} has fields but is no dataclass: write @dataclass(frozen=True) above it")
        known = {f.name: f for f in fields(cls)}
        for name in settings:
            if name not in known:
                raise ConfigError(f"{cls.__name__} has no setting {name!r}: {nearest(name, known)}")
        missing = [n for n, f in known.items() if f.default is f.default_factory is MISSING and n not in settings]
        if missing:
            raise ConfigError(f"{cls.__name__} needs a value for {', '.join(missing)}")
        return cls(**settings)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    """The types of the fields that a dataclass has."""
    if not is_dataclass(cls):
        return {}
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in fields(cls)}


def usual_amount(cls: type[Method]) -> dict[str, Any]:
    """How much a client trains where no setting says it."""
    said = (vars(base).get("usual", {}) for base in cls.__mro__)
    return next(({name: own[name]} for own in said for name in ALTERNATIVES if name in own), {})


def layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, of which later ones win: so of epochs and steps only what was given last is left."""
    found: dict[str, Any] = {}
    for layer in layers:
        if any(layer.get(name) is not None for name in ALTERNATIVES):
            found = {name: value for name, value in found.items() if name not in ALTERNATIVES}
        found |= layer
    return found


@cache
def _adapters(cls: Any) -> dict[str, TypeAdapter[Any]]:
    return {name: _adapter(hint) for name, hint in _hints(cls).items()}


def _adapter(hint: Any) -> TypeAdapter[Any]:
    # pydantic takes no settings for a dataclass, such as a wrapped method
    return TypeAdapter(hint) if is_dataclass(hint) else TypeAdapter(hint, config={"arbitrary_types_allowed": True})


@dataclass(frozen=True)
class Setting:
    """One hyperparameter as the command line and the docs show it.

    Attributes:
        source: Where the default is from.
    """

    name: str
    type: Any
    default: Any
    comment: str
    source: str


def settings(cls: type[Method]) -> list[Setting]:
    """The hyperparameters of a method with the comments that stand beside them in its file."""
    comments: dict[str, str] = {}
    sources: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if is_dataclass(base)]):
        origin, own = vars(base).get("origin", Method.origin), vars(base).get("usual", {})
        found = re.findall(r"^    (\w+):[^\n]*?  # (.*?)(?: \[([^\]]*)\])?$", _source(base), flags=re.MULTILINE)
        comments |= {name: comment for name, comment, _ in found}
        sources |= {name: said or origin for name, _, said in found}
        sources |= dict.fromkeys(ALTERNATIVES if own.keys() & set(ALTERNATIVES) else (), origin)
        sources |= dict.fromkeys(own, origin)
    kind: Any = cls  # mypy takes the instances' __hash__ for that of the class
    amount, hints = usual_amount(cls), _hints(kind)
    defaults = {f.name: amount.get(f.name, None if f.default is MISSING else f.default) for f in fields(cls)}
    return [
        Setting(name, hints[name], default, comments.get(name, ""), sources.get(name, Method.origin))
        for name, default in defaults.items()
    ]


def _source(kind: type) -> str:
    """The source of a class; empty where there is none to be found, as in an interactive session."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def check_declaration(cls: type[Program]) -> None:
    """Check that all messages of a method are declared completely, those that go down too.

    Raises:
        TypeError: a handler or message is not.
    """
    for handler in handlers(cls).values():
        for message in (handler.message_type, handler.reply_type):
            if message is not None:
                disclosed(message)


def check_run(method: Method, clients: Sequence[ClientId], rounds: int) -> None:
    """Check with a method and those that it wraps that their settings can work in a run.

    Raises:
        ConfigError: names the setting, and what to do.
    """
    _check_answers(method)
    for program in programs(method, "method").values():
        if isinstance(program, Method):
            program.check_run(clients, rounds)


def _check_answers(method: Method) -> None:
    kind = type(method)
    if not method.keeps() - {BUFFERS} and DEPLOY in kind.idle() and kind.predict is Method.predict:
        raise ConfigError(
            f"{kind.__name__} keeps nothing of a client's model between rounds, so a client has nothing to answer "
            "with: define `deployed(self, server, clients)`, which returns the tensors, or let `keeps` say what stays"
        )


def own_schedules(method: Method) -> dict[str, OwnSchedule]:
    """The schedules of the user by setting, those of methods that it wraps included."""
    return {
        name: value
        for program in programs(method, "method").values()
        for name, value in vars(program).items()
        if isinstance(value, OwnSchedule)
    }


def own_code(method: Method) -> dict[str, str]:
    """The references of code, or of models elsewhere, that settings name, those of methods that it wraps included."""
    named = {
        name: value
        for program in programs(method, "method").values()
        for name, value in vars(program).items()
        if isinstance(value, str) and is_reference(value)
    }
    return named | {name: schedule.function for name, schedule in own_schedules(method).items()}


def disclosures_of(kind: type[Program]) -> frozenset[Disclosure]:
    """What the replies of a method's handlers disclose, all together."""
    replies = (handler.reply_type for handler in handlers(kind).values())
    return frozenset(disclosure for reply in replies if reply is not None for disclosure in disclosed(reply))


def disclosures(method: Method) -> frozenset[Disclosure]:
    """What a method discloses, with those that it wraps."""
    return frozenset[Disclosure]().union(*map(disclosures_of, map(type, programs(method, "method").values())))


def retained(method: Method) -> frozenset[Disclosure]:
    """What a method and those that it wraps retain."""
    found = [program.retains() for program in programs(method, "method").values() if isinstance(program, Method)]
    return frozenset(disclosure for held in found for disclosure in held)


def check_state(state: object, function: Any) -> None:
    """Check that a state is of the type that ``start`` or ``new_client`` is annotated to return.

    Raises:
        ConfigError: it is another, so it could not be read again from a commit; says what to write.
    """
    declared = state_type(function)
    if type(state) is not (declared or type(None)):
        name = type(state).__name__
        wanted = "returns no state" if declared is None else f"returns {declared.__name__}"
        raise ConfigError(
            f"the state is of type {name}, but {function.__qualname__} is annotated to say that it {wanted}; "
            f"a state is made by it, of a subclass of interfuse.State, and annotated: -> {name}"
        )


def state_type(function: Any) -> type[State] | None:
    """The type of state that ``start`` or ``new_client`` returns, read off its annotation."""
    return _state_type(getattr(function, "__func__", function))


@cache
def _state_type(function: Any) -> type[State] | None:
    kind = get_type_hints(function).get("return")
    return kind if isinstance(kind, type) and issubclass(kind, State) else None
