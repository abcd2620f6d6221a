"""Baselines on adapters against rounds worked out by hand, on weights W + s·B A of a plain model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from worlds import (
    Recorder,
    dataset_of,
    everything_owned,
    federation,
    in_steps,
    largest_difference,
    live_model,
    llama2,
    llama3,
    resident,
    same_bits,
    shares_of,
    tiny_dataset,
)

from interfuse.client import ClientId
from interfuse.clients import Answer, Engine, Request
from interfuse.errors import ClientError, ConfigError
from interfuse.families.adapters import Adapters
from interfuse.families.averaging import under
from interfuse.federation import Federation
from interfuse.messages import Disclosure, Message
from interfuse.method import disclosures_of
from interfuse.methods import find
from interfuse.methods.ditto_lora import DittoLoRA
from interfuse.methods.fed_sb import FedSB
from interfuse.methods.feddat import FedDAT
from interfuse.methods.feddpa import FedDPA
from interfuse.methods.fedit import FedIT
from interfuse.methods.fedmkt import Answers, FedMKT, Knowledge
from interfuse.methods.fedsim import FedSim
from interfuse.methods.perada import PerAda
from interfuse.methods.takfl import TAKFL

STEPS, BATCH, LR, SCALE = 2, 6, 0.2, 2.0
SGD: dict[str, Any] = {
    "local_steps": STEPS, "batch_size": BATCH, "lr": LR, "optimizer": "sgd", "dropout": 0.0, "clip": 0.0,
    "rank": 2, "alpha": 4.0, "keep_optimizer": False,
}  # fmt: skip
BUILDERS = {"llama2": llama2, "llama3": llama3}
CLIENTS = {0: "llama2", 1: "llama3", 2: "llama2"}
EQUALLY = {0: 1, 1: 1, 2: 1}
Tensors = Mapping[str, Tensor]
Loss = Callable[[Tensors, Tensor, Tensor], Tensor]
CE = functional.cross_entropy


def world(method: Any, **settings: Any) -> Federation:
    """Three clients, of which the first and the last have one architecture."""
    shares = shares_of(range(0, 14), range(14, 31), range(31, 60))
    return federation(method, models=[llama2, llama3], shares=shares, wrap=Recorder, **settings)


class Plain:
    """The backbone of an architecture, without any module for adapters."""

    def __init__(self, f: Federation, architecture: str) -> None:
        self.model = BUILDERS[architecture]((5,), 3, 8)
        built = f.setup.build(architecture, "plain").state_dict()
        self.model.load_state_dict({k.replace(".base.", "."): built[k] for k in built if self.known(k)})
        self.weights = dict(self.model.named_parameters())

    def known(self, key: str) -> bool:
        return key.replace(".base.", ".") in self.model.state_dict()

    def __call__(self, x: Tensor, *parts: tuple[float, Tensors]) -> Tensor:
        """Logits with W + s · Σ share · B A, or B R A where there is an R."""
        changed = {}
        for key, weight in self.weights.items():
            for share, own in parts:
                path = key.removesuffix(".weight")
                named = {k.rpartition(".")[2]: t for k, t in own.items() if k.startswith(path + ".")}
                if named:
                    update = named["B"] @ named.get("R", torch.eye(2)) @ named["A"]
                    changed[key] = changed.get(key, weight.detach()) + SCALE * share * update
        found: Tensor = functional_call(self.model, changed, (x,))
        return found


def sgd(loss: Loss, start: Tensors, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Plain gradient descent."""
    now = {key: tensor.detach().clone().requires_grad_() for key, tensor in start.items()}
    for x, y in batches:
        gradients = torch.autograd.grad(loss(now, x, y), list(now.values()))
        for tensor, gradient in zip(now.values(), gradients, strict=True):
            tensor.data -= LR * gradient
    return {key: tensor.detach() for key, tensor in now.items()}


def drawn(f: Federation, client: int, first: int, count: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """A client's batches from this one on."""
    return in_steps(f.setup, client, first + count, BATCH)[first:]


def recorder(f: Federation) -> Any:
    return f.engine


def at_server(f: Federation, client: int) -> dict[str, Tensor]:
    """The server's adapters for a client."""
    return {key: t.clone() for key, t in under(f"{CLIENTS[client]}:", f.server.state.weights).items()}


def in_model(f: Federation, client: int, group: str = "own") -> dict[str, Tensor]:
    return {key: t.clone() for key, t in live_model(f, client).tensors([group]).items()}


def means(trained: Mapping[int, Tensors], counts: Mapping[int, float] = EQUALLY) -> dict[int, Any]:
    """The mean over the clients of each architecture, for each client."""
    found: dict[int, Any] = {}
    for client, architecture in CLIENTS.items():
        alike = [c for c in trained if CLIENTS[c] == architecture]
        total = sum(counts[c] for c in alike)
        found[client] = {k: sum(counts[c] * trained[c][k] for c in alike) / total for k in trained[client]}
    return found


def close(found: Tensors, expected: Tensors) -> bool:
    assert found.keys() == expected.keys()
    return largest_difference(found, expected) < 2e-6


@pytest.fixture(name="plain")
def plain_models() -> Callable[[Federation], dict[int, Plain]]:
    return lambda f: {client: Plain(f, architecture) for client, architecture in CLIENTS.items()}


Models = Callable[[Federation], dict[int, Plain]]


@pytest.mark.parametrize("weights", ["uniform", "samples"])
def test_fedit_averages_adapters_of_equal_models(weights: Any, plain: Models) -> None:
    f = world(FedIT(**SGD, weights=weights))
    models, server = plain(f), {client: at_server(f, client) for client in CLIENTS}
    for round in range(2):
        trained = {
            c: sgd(lambda own, x, y, c=c: CE(models[c](x, (1.0, own)), y), server[c], drawn(f, c, STEPS * round))
            for c in CLIENTS
        }
        f.run_round()
        server = means(trained, {0: 14, 1: 17, 2: 29} if weights == "samples" else EQUALLY)
        for client in CLIENTS:
            assert close(at_server(f, client), server[client])
            assert close(in_model(f, client), trained[client])  # with which it answers


def test_of_the_newest_mean_clients_keep_nothing_and_answer_with_it() -> None:
    f = world(FedIT(**SGD, answers="averaged"), rounds=1)
    deployed: Any = f.method.deployed(f.server, f.clients)
    assert all(close(deployed[client].tensors, at_server(f, client)) for client in CLIENTS)
    assert deployed[0] is deployed[2]
    assert not f.method.keeps() - {"basis"}
    assert FedIT().keeps() == {"all"}


def test_fed_sb_averages_updates_exactly(plain: Models) -> None:
    f = world(FedSB(**SGD))
    models, bases = plain(f), {client: in_model(f, client, "basis") for client in CLIENTS}
    assert close(bases[0], bases[2])
    assert all(not t.any() for client in CLIENTS for t in in_model(f, client).values())
    server: dict[int, Any] = {client: at_server(f, client) for client in CLIENTS}
    assert {key.rpartition(".")[2] for key in server[0]} == {"R"}
    for round in range(2):
        trained = {
            c: sgd(
                lambda own, x, y, c=c: CE(models[c](x, (1.0, own | bases[c])), y), server[c], drawn(f, c, STEPS * round)
            )
            for c in CLIENTS
        }
        f.run_round()
        server = means(trained)
        assert all(close(at_server(f, client), server[client]) for client in CLIENTS)
    key = next(iter(server[0]))
    a, b = (bases[0][key.replace("own.R", name)] for name in "AB")
    together = (b @ trained[0][key] @ a + b @ trained[2][key] @ a) / 2
    torch.testing.assert_close(b @ at_server(f, 0)[key] @ a, together)
    sent = [m for request, _, m in recorder(f).up if request.handler == "train"]
    sizes = [sum(t.numel() for t in message.tensors.values()) for message in sent]
    assert sizes == [layers * 7 * 2 * 2 for layers in (2, 3, 2)] * 2


def test_fedsim_trains_both_adapters_on_the_sum_of_logits(plain: Models) -> None:
    f = world(FedSim(**SGD))
    models, server = plain(f), {client: at_server(f, client) for client in CLIENTS}
    own = {client: in_model(f, client) for client in CLIENTS}
    for round in range(2):

        def loss(now: Tensors, x: Tensor, y: Tensor, c: int) -> Tensor:
            personal, common = ({k: t for k, t in now.items() if f".{g}." in k} for g in ("own", "received"))
            return CE(models[c](x, (1.0, personal)) + models[c](x, (1.0, common)), y)

        trained = {
            c: sgd(lambda now, x, y, c=c: loss(now, x, y, c), own[c] | server[c], drawn(f, c, STEPS * round))
            for c in CLIENTS
        }
        f.run_round()
        own = {c: {k: t for k, t in trained[c].items() if ".own." in k} for c in CLIENTS}
        server = means({c: {k: t for k, t in trained[c].items() if ".received." in k} for c in CLIENTS})
        assert all(close(at_server(f, c), server[c]) and close(in_model(f, c), own[c]) for c in CLIENTS)
    x = drawn(f, 0, 0)[0][0]
    with torch.no_grad():
        both = models[0](x, (1.0, own[0])) + models[0](x, (1.0, in_model(f, 0, "received")))
        torch.testing.assert_close(f.method.predict(resident(f, 0), x), both, atol=1e-5, rtol=1e-5)


def test_feddpa_trains_its_own_beside_what_came_and_then_that_alone(plain: Models) -> None:
    f = world(FedDPA(**SGD, global_share=0.3))
    models, server = plain(f), {client: at_server(f, client) for client in CLIENTS}
    own = {client: in_model(f, client) for client in CLIENTS}
    for round in range(2):
        first = 2 * STEPS * round
        own = {
            c: sgd(
                lambda now, x, y, c=c, came=server[c]: CE(models[c](x, (0.7, now), (0.3, came)), y),
                own[c],
                drawn(f, c, first),
            )
            for c in CLIENTS
        }
        common = {
            c: sgd(lambda now, x, y, c=c: CE(models[c](x, (1.0, now)), y), server[c], drawn(f, c, first + STEPS))
            for c in CLIENTS
        }
        f.run_round()
        server = means(common)
        assert all(close(at_server(f, c), server[c]) and close(in_model(f, c), own[c]) for c in CLIENTS)


def kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """PyTorch's divergence of softened answers, with the square of the temperature."""
    log_q, p = functional.log_softmax(student / temperature, 1), functional.softmax(teacher.detach() / temperature, 1)
    return temperature**2 * functional.kl_div(log_q, p, reduction="batchmean")


def test_feddat_is_two_steps_of_its_authors_on_each_batch(plain: Models) -> None:
    """The student steps first, then the teacher, towards what the student answered before its step."""
    f = world(FedDAT(**SGD, temperature=2.0))
    models, server = plain(f), {client: at_server(f, client) for client in CLIENTS}
    own = {client: in_model(f, client) for client in CLIENTS}
    for round in range(2):
        common = {}
        for c in CLIENTS:
            student, personal, came = server[c], own[c], server[c]
            for x, y in drawn(f, c, STEPS * round):
                teacher = models[c](x, (0.5, personal), (0.5, came)).detach()
                answered = models[c](x, (1.0, student)).detach()

                def of_student(now: Tensors, x: Tensor, y: Tensor, c: int = c, teacher: Tensor = teacher) -> Tensor:
                    logits = models[c](x, (1.0, now))
                    return (CE(logits, y) + kl(logits, teacher, 2.0)) / 2

                def of_teacher(
                    now: Tensors, x: Tensor, y: Tensor, c: int = c, answered: Tensor = answered, came: Tensors = came
                ) -> Tensor:
                    logits = models[c](x, (0.5, now), (0.5, came))
                    return (CE(logits, y) + kl(logits, answered, 2.0)) / 2

                student = sgd(of_student, student, [(x, y)])
                personal = sgd(of_teacher, personal, [(x, y)])
            common[c], own[c] = student, personal
        f.run_round()
        assert all(close(in_model(f, c, "received"), server[c]) for c in CLIENTS)  # the half of the teacher
        server = means(common)
        assert all(close(at_server(f, c), server[c]) and close(in_model(f, c), own[c]) for c in CLIENTS)


def personal_training(
    f: Federation, models: Mapping[int, Plain], server: Mapping[int, Tensors], own: Mapping[int, Tensors], round: int
) -> tuple[dict[int, Tensors], dict[int, Tensors]]:
    """Both trainings of Ditto with λ = 0.5, on the same batches: what travels, and what stays."""
    common, personal = dict[int, Tensors](), dict[int, Tensors]()
    for c in CLIENTS:

        def loss(now: Tensors, x: Tensor, y: Tensor, c: int = c) -> Tensor:
            return CE(models[c](x, (1.0, now)), y)

        def near(now: Tensors, x: Tensor, y: Tensor, c: int = c) -> Tensor:
            squares = torch.stack([(now[key] - server[c][key]).square().sum() for key in now]).sum()
            return loss(now, x, y, c) + 0.25 * squares

        batches = drawn(f, c, STEPS * round)
        common[c], personal[c] = sgd(loss, server[c], batches), sgd(near, own[c], batches)
    return common, personal


def test_ditto_keeps_personal_adapters_near_what_came(plain: Models) -> None:
    f = world(DittoLoRA(**SGD, lam=0.5))
    models, server = plain(f), {client: at_server(f, client) for client in CLIENTS}
    own: Any = server  # they begin as what came first
    for round in range(2):
        common, own = personal_training(f, models, server, own, round)
        f.run_round()
        server = means(common)
        assert all(close(at_server(f, c), server[c]) and close(in_model(f, c), own[c]) for c in CLIENTS)


def last(f: Federation, handler: str, client: int) -> Any:
    """The last message that went to a handler of a client."""
    return [m for request, c, m in recorder(f).down if request.handler == handler and c == client][-1]


def public_batches(f: Federation, rows: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Public rows in the order in which they were drawn, with targets for labels."""
    x = f.setup.dataset.normalise(f.setup.dataset.x_train[rows])
    return list(zip(x.split(BATCH), targets.split(BATCH), strict=True))


def public_inputs(f: Federation, rows: Tensor) -> Tensor:
    return f.setup.dataset.normalise(f.setup.dataset.x_train[rows])


def test_perada_teaches_averages_what_all_answer(plain: Models) -> None:
    f = world(PerAda(**SGD, lam=0.5, public_rows=9, temperature=3.0))
    models, server = plain(f), {client: at_server(f, client) for client in CLIENTS}
    own: Any = server
    seen = []
    for round in range(2):
        common, own = personal_training(f, models, server, own, round)
        f.run_round()
        rows = last(f, "train", 0).rows
        seen.append(rows)
        x = public_inputs(f, rows)
        with torch.no_grad():
            teacher = torch.stack([models[c](x, (1.0, common[c])) for c in CLIENTS]).mean(0)
        server = {
            c: sgd(
                lambda now, x, t, c=c: kl(models[c](x, (1.0, now)), t, 3.0) / 9, mean, public_batches(f, rows, teacher)
            )
            for c, mean in means(common).items()
        }
        assert all(close(at_server(f, c), server[c]) and close(in_model(f, c), own[c]) for c in CLIENTS)
    assert len(seen[0]) == 9
    assert not torch.equal(*seen)


def test_takfl_adds_up_what_a_fresh_student_learns_from_each_teacher(plain: Models) -> None:
    f = world(TAKFL(**SGD, public_rows=9, gamma=0.1, public_epochs=2))
    models, server = plain(f), {client: at_server(f, client) for client in CLIENTS}
    for round in range(2):
        trained = {
            c: sgd(lambda own, x, y, c=c: CE(models[c](x, (1.0, own)), y), server[c], drawn(f, c, STEPS * round))
            for c in CLIENTS
        }
        f.run_round()
        rows, averages = last(f, "train", 0).rows, means(trained)
        x = public_inputs(f, rows)
        with torch.no_grad():
            answers = [models[c](x, (1.0, trained[c])) for c in CLIENTS]
            teachers = [(answers[0] + answers[2]) / 2, answers[1]]
            itself = {c: models[c](x, (1.0, averages[c])) for c in CLIENTS}
        server = {}
        for c, mean in averages.items():

            def loss(now: Tensors, x: Tensor, both: Tensor, c: int = c) -> Tensor:
                logits = models[c](x, (1.0, now))
                return kl(logits, both[:, 0], 3.0) + 0.1 * kl(logits, both[:, 1], 20.0)

            students = [sgd(loss, mean, 2 * public_batches(f, rows, torch.stack([t, itself[c]], 1))) for t in teachers]
            server[c] = {key: start + sum(s[key] - start for s in students) / 2 for key, start in mean.items()}
            assert largest_difference(server[c], mean) > 1e-3  # the release's task vectors are zero
        assert all(close(at_server(f, c), server[c]) and close(in_model(f, c), trained[c]) for c in CLIENTS)


def test_fedmkt_has_the_best_model_of_each_row_teach_the_worse(plain: Models) -> None:
    f = world(FedMKT(**SGD, public_rows=20, top_k=2))
    models, server = plain(f), {client: at_server(f, client) for client in CLIENTS}
    own = {client: in_model(f, client) for client in CLIENTS}
    taught = 0

    def taught_by(c: int, start: Tensors, rows: Tensor, logits: Tensor, loss: Tensor) -> tuple[dict[str, Tensor], int]:
        """Adapters after a lesson, and how many rows were part of it: the softmax of the two largest logits."""
        x, y = public_inputs(f, rows), f.setup.dataset.y_train[rows]
        with torch.no_grad():
            better = loss < CE(models[c](x, (1.0, start)), y, reduction="none")
        kept = torch.full_like(logits, -math.inf).scatter(1, (top := logits.topk(2)).indices, top.values).softmax(1)
        batches = list(zip(x[better].split(BATCH), kept[better].split(BATCH), strict=True))

        def towards(now: Tensors, x: Tensor, target: Tensor) -> Tensor:
            return -(target * models[c](x, (1.0, now)).log_softmax(1)).sum(1).mean()

        return sgd(towards, start, batches if better.any() else []), int(better.sum())

    for round in range(2):
        own = {
            c: sgd(lambda now, x, y, c=c: CE(models[c](x, (1.0, now)), y), own[c], drawn(f, c, STEPS * round))
            for c in CLIENTS
        }
        f.run_round()
        rows = last(f, "train", 0).rows
        x, y = public_inputs(f, rows), f.setup.dataset.y_train[rows]
        with torch.no_grad():
            answers = torch.stack([models[c](x, (1.0, own[c])) for c in CLIENTS])
        losses = torch.stack([CE(one, y, reduction="none") for one in answers])
        best = losses.argmin(0)
        assert len(set(best.tolist())) > 1
        for c in (0, 1):
            server[c], count = taught_by(c, server[c], rows, answers[best, torch.arange(20)], losses.min(0).values)
            taught += count
        server[2] = server[0]
        for c in CLIENTS:
            with torch.no_grad():
                of_global = models[c](x, (1.0, server[c]))
            own[c], count = taught_by(c, own[c], rows, of_global, CE(of_global, y, reduction="none"))
            taught += count
        assert all(close(at_server(f, c), server[c]) and close(in_model(f, c), own[c]) for c in CLIENTS)
    assert 20 < taught < 200


ALL = ("fedit", "fed-sb", "ditto-lora", "fedsim", "feddpa", "feddat", "perada", "takfl", "fedmkt")


def sized(name: str) -> Any:
    """A method with small settings."""
    return find(name)(**SGD | ({"public_rows": 5} if name in ("perada", "takfl", "fedmkt") else {}))


@pytest.mark.parametrize(("name", "clients"), [*((name, 1) for name in ALL), ("perada", 40), ("fedmkt", 40)])
def test_any_number_of_clients(name: str, clients: int) -> None:
    f = federation(replace(sized(name), local_steps=1), models=[llama2, llama3], clients=clients, rounds=1)
    owned = everything_owned(f)
    assert all(tensor.isfinite().all() for tensor in owned.values() if tensor.is_floating_point())
    assert not any(".base." in key or "embed" in key for key in owned)  # the backbone is given


@pytest.mark.parametrize("name", ["fedit", "takfl", "fedmkt"])
def test_clients_that_a_round_leaves_out_keep_what_they_have(name: str) -> None:
    f = federation(replace(sized(name), participation=0.5), models=[llama2, llama3], clients=4, wrap=Recorder)
    before = {client: in_model(f, client) for client in f.clients}
    f.run_round()
    chosen = {c for request, c, _ in recorder(f).down if request.handler == "train"}
    assert len(chosen) == 2
    assert all((largest_difference(in_model(f, c), before[c]) > 0) == (c in chosen) for c in f.clients)


def test_who_is_better_on_all_rows_learns_nothing() -> None:
    method = sized("fedmkt")
    f = federation(method, models=[llama2], clients=1, rounds=1)
    client, before = resident(f, 0), in_model(f, 0)
    own = method.answered(client, before, torch.arange(6))
    worse = Knowledge(torch.arange(6), replace(own, loss=own.loss + 1))
    assert largest_difference(method.learnt(client, before, worse), before) == 0
    assert client.model.tensors(["own"]).keys() == before.keys()


def test_what_is_sent_of_public_rows_is_what_says_so() -> None:
    assert disclosures_of(PerAda) == disclosures_of(TAKFL) == {Disclosure.ADAPTERS, Disclosure.LOGITS}
    f = world(FedMKT(**SGD, public_rows=7, top_k=2), rounds=1)
    sent = [m for request, _, m in recorder(f).up if request.handler == "train"]
    assert all(type(message) is Answers and message.logits.shape == (7, 2) for message in sent)


def test_public_data_must_be_there_and_have_the_classes_of_the_task() -> None:
    data = tiny_dataset()
    with pytest.raises(ConfigError, match="classes are not those of the task"):
        federation(FedMKT(**SGD), models=[llama2], dataset=data, public=dataset_of(data.x_train, data.y_train, 4))
    for name in ("perada", "takfl", "fedmkt"):
        f = federation(sized(name), models=[llama2], start=False)
        f.server._public = None
        with pytest.raises(ConfigError, match="the run has none"):
            f.start()
            f.run_round()


class Lying(Recorder):
    """An engine whose client 1 changes its replies to a handler."""

    def __init__(self, inner: Engine, handler: str, lie: Callable[[Any], Message]) -> None:
        super().__init__(inner)
        self.handler, self.lie = handler, lie

    def call(self, request: Request, messages: Mapping[ClientId, Message | None]) -> Iterator[Answer]:
        for answer in super().call(request, messages):
            lies = request.handler == self.handler and answer.client == 1
            yield replace(answer, reply=self.lie(answer.reply)) if lies else answer


def fewer(tensors: Any) -> Any:
    return {key: tensor for key, tensor in list(tensors.items())[1:]}


@pytest.mark.parametrize(
    ("name", "handler", "lie", "said"),
    [
        ("fedit", "train", lambda r: Adapters(fewer(r.tensors)), "what is not just what it holds"),
        ("takfl", "train", lambda r: replace(r, logits=r.logits[1:]), "answers to 4 public rows, expected 5"),
        ("takfl", "train", lambda r: replace(r, logits=r.logits * 1e30), "a logit above"),
        ("perada", "distil", lambda r: Adapters(fewer(r.tensors)), "as the adapters that it taught"),
        ("fedmkt", "train", lambda r: replace(r, loss=r.loss - 99), "a loss below 0"),
        ("fedmkt", "train", lambda r: replace(r, of=r.of + 1), "logits not of 3 of 3 classes a row"),
        ("fedmkt", "train", lambda r: replace(r, of=r.of[:, 1:]), "logits not of 3 of 3 classes a row"),
        ("fedmkt", "train", lambda r: replace(r, of=0 * r.of), "logits not of 3 of 3 classes a row"),
        ("fedmkt", "teach_global", lambda r: replace(r, answers=replace(r.answers, of=-r.answers.of)), "logits not of"),
    ],
)
def test_what_nobody_can_have_names_who_sent_it(name: str, handler: str, lie: Any, said: str) -> None:
    lying = partial(Lying, handler=handler, lie=lie)
    f = federation(sized(name), models=[llama2, llama3], clients=3, wrap=lying)
    with pytest.raises(ClientError, match=f"client 1 sent {said}"):
        f.run_round()


@pytest.mark.parametrize("handler", ["train", "teach_global"])
def test_a_false_loss_gains_nothing_where_logits_of_all_classes_are_sent(handler: str) -> None:
    """Where fewer are sent, nobody can tell what the loss is."""

    def lie(reply: Any) -> Any:
        if isinstance(reply, Answers):
            return replace(reply, loss=0 * reply.loss)
        return replace(reply, answers=lie(reply.answers))

    for kept, believed in ((3, False), (2, True)):
        method = replace(sized("fedmkt"), public_rows=20, top_k=kept)
        honest, other = (
            federation(method, models=[llama2, llama3], wrap=wrap, rounds=1)
            for wrap in (Recorder, partial(Lying, handler=handler, lie=lie))
        )
        assert same_bits(everything_owned(honest), everything_owned(other)) == (not believed)
