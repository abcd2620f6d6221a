"""What a type checker says of calls: lines marked as refused are errors, all others are not."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse import (
    Arrival,
    Client,
    Clients,
    Dirichlet,
    Features,
    Labels,
    Message,
    Method,
    Replies,
    Server,
    SplitModel,
    State,
    on_client,
    run,
)
from interfuse.families.fusion import FusionOutputs, FusionPairs
from interfuse.methods.ifl import IFL
from interfuse.runs import Summary


class Ask(Message):
    z: Features


class Tell(Message):
    y: Labels


class Own(State):
    count: int


@dataclass(frozen=True)
class Mine(Method):
    def round(self, server: Server, clients: Clients) -> None:
        replies: Replies[Tell] = clients.call(self.answer, self.ask())
        for client, reply in replies.items():
            number: int = client
            print(reply.y, number)
        clients.call(self.answer, {client: self.ask() for client in clients}, minimum=2)
        clients.call(self.learn, replies)
        clients.call(self.by_itself)
        done: Replies[None] = clients.call(self.learn, replies[0])
        print(done)
        clients.call(self.answer, self.ask(), deadline=1.5)
        for arrival in clients.stream(self.answer, lambda client: self.ask()):
            told: Arrival[Tell] = arrival
            print(told.reply.y, arrival.reply.z)  # refused
        clients.stream(self.by_itself)
        clients.stream(self.answer, self.ask())
        clients.stream(self.answer, lambda client: replies[client])  # refused
        clients.stream(self.answer)  # refused
        clients.call(self.answer, replies[0])  # refused
        clients.call(self.answer, {0: replies[0]})  # refused
        clients.call(self.answer)  # refused
        clients.call(self.by_itself, self.ask())  # refused
        clients.call(self.learn, "tell")  # refused
        wrong: Replies[Ask] = clients.call(self.answer, self.ask())  # refused
        print(wrong, replies[0].z)  # refused
        clients.call(self.ask)  # refused
        Tell(z=replies[0].y)  # refused
        replies[0].y = replies[0].y  # refused

    def ask(self) -> Ask:
        raise NotImplementedError

    @on_client
    def answer(self, client: Client, ask: Ask) -> Tell:
        print(ask.y)  # refused
        return Tell(ask.z)

    @on_client
    def learn(self, client: Client[Own], tell: Tell) -> None:
        client.state = Own(client.state.count + 1)
        client.state = tell  # refused

    @on_client
    def by_itself(self, client: Client) -> Tell:
        raise NotImplementedError


def of_ifl(method: IFL, clients: Clients) -> None:
    outputs: Replies[FusionOutputs] = clients.call(method.train_base)
    clients.call(method.train_modular, FusionPairs(tuple(outputs.values())))
    clients.call(method.train_modular, outputs)  # refused


def runs() -> None:
    run(IFL(), data="digits", partition=Dirichlet(0.5), models=["mlp", build], rounds=3, workers=None, out="here")
    run("ifl", test_rows=100, evaluation="own", codecs={"default": "int8"}, client={1: {"base_lr": 0.1}})
    run("ifl", roundz=3)  # refused
    run("ifl", rounds="three")  # refused
    run("ifl", evaluation="mine")  # refused
    run("ifl", execution={})  # refused
    summary: Summary = run("ifl").summary
    print(summary.best.round)  # refused
    print(summary.own_accuracy.mean + 1, summary.own_accuracy + 1)  # refused
    run("ifl", seeds=[0, 1]).mean["own_accuracy"]
    print(run("ifl", seeds=[0, 1]).summary)  # refused


def build(sample_shape: tuple[int, ...], classes: int, width: int) -> SplitModel:
    raise NotImplementedError
