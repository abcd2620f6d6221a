"""IFL with a late joiner who is given an incumbent's modular block."""

from __future__ import annotations

from dataclasses import dataclass

from interfuse.client import Client, ClientId
from interfuse.clients import Clients
from interfuse.errors import ModelError
from interfuse.families.checks import check_tensors
from interfuse.families.late_joining import LateJoining
from interfuse.handler import on_client
from interfuse.messages import Message, Parameters
from interfuse.method import Steps
from interfuse.server import Server


class Published(Message):
    """The tensors of a modular block."""

    tensors: Parameters


@dataclass(frozen=True)
class IFLLatePublished(LateJoining):
    """IFL in which a vendor publishes its modular block, and newcomers train their base blocks behind it.

    It discloses parameters, once, by the vendor's own decision. The newcomer's modular block must be of the same
    architecture. Not from the paper.
    """

    teacher: Steps = 0  # the client whose modular block is published

    def asked(self) -> ClientId:
        return self.teacher

    def start(self, server: Server, clients: Clients) -> None:
        incumbents, newcomers = self.parted(clients)
        (vendor,) = incumbents.only([self.teacher]).profiles.values()
        published = server.new_model(vendor.architecture).tensors("modular")
        shapes = {key: tuple(tensor.shape) for key, tensor in published.items()}
        for profile in newcomers.profiles.values():
            own = server.new_model(profile.architecture).tensors("modular")
            if {key: tuple(tensor.shape) for key, tensor in own.items()} != shapes:
                raise ModelError(
                    f"client {profile.id} ({profile.architecture}) cannot use the modular block of client {vendor.id} "
                    f"({vendor.architecture}): another architecture. Give both one head, such as cnn and mlp-linear"
                )

    def round(self, server: Server, clients: Clients) -> None:
        incumbents, newcomers = self.parted(clients)
        if server.round < self.joins_at:
            self.exchange(incumbents)
            return
        if server.round == self.joins_at:
            asked = incumbents.only([self.teacher])
            published = asked.call(self.publish)[self.teacher]
            declared = server.new_model(asked.architecture).tensors("modular")
            check_tensors(self.teacher, published.tensors, declared, "its modular block")
            newcomers.call(self.adopt, published)
        newcomers.call(self.catch_up)

    @on_client
    def publish(self, client: Client) -> Published:
        return Published(client.tensors("modular"))

    @on_client
    def adopt(self, client: Client, published: Published) -> None:
        client.model.load(published.tensors)

    @on_client
    def catch_up(self, client: Client) -> None:
        self.fit_base(client)
