"""What a method does after the last round is a part of it: committed with it, and done again where it was cut off."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import interfuse
from interfuse import Client, Clients, Server, State, on_client


class Tuned(State):
    rounds: int


@dataclass(frozen=True)
class TunedAtTheEnd(interfuse.Method):
    """Clients train their base blocks, and their heads only after the last round (the order of FedBABU)."""

    breaks: str = ""  # a file whose presence makes finishing fail

    def start(self, server: Server[Tuned], clients: Clients) -> Tuned:
        return Tuned(server.rounds)

    def round(self, server: Server[Tuned], clients: Clients) -> None:
        clients.call(self.train)

    def finish(self, server: Server[Tuned], clients: Clients) -> None:
        assert server.round == server.rounds == server.state.rounds
        clients.call(self.tune)
        server.state = Tuned(-1)

    @on_client
    def train(self, client: Client) -> None:
        client.fit(client.loss, train="base", steps=3, lr=0.1)

    @on_client
    def tune(self, client: Client) -> None:
        if self.breaks and Path(self.breaks).exists():
            raise LookupError("cut off")
        client.fit(client.loss, train="modular", steps=5, lr=0.1)


def heads(result: interfuse.Result) -> list[dict[str, torch.Tensor]]:
    return [dict(result.model(c).tensors("modular")) for c in range(2)]


@pytest.mark.usefixtures("no_report")
def test_what_finishes_a_run_happens_once_and_survives_a_cut(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "models": ["mlp"], "clients": 2, "fusion_width": 8, "rounds": 3, "beside": (), "commit_rounds": 1,
        "progress": interfuse.Silent(),
    }  # fmt: skip
    whole = interfuse.run(TunedAtTheEnd(), out=tmp_path / "whole", **settings)
    breaks = tmp_path / "break"
    breaks.touch()
    method = TunedAtTheEnd(str(breaks))
    with pytest.raises(interfuse.InterfuseError, match="cut off"):
        interfuse.run(method, out=tmp_path / "cut", **settings)
    breaks.unlink()
    cut = interfuse.resume(tmp_path / "cut", method=method, progress=interfuse.Silent())
    assert [row.steps.clients for row in cut.metrics] == [row.steps.clients for row in whole.metrics]
    assert [row.steps.clients for row in whole.metrics] == [0, 6, 6, 16]
    for one, other in zip(heads(whole), heads(cut), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
