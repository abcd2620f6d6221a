"""What clients draw at the end of a run, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Int64
from small_runs import GIVEN, IMAGES, Fuse, Killed, config_of, lines
from torch import Tensor
from worlds import tiny_dataset

from interfuse import report
from interfuse.client import Client
from interfuse.data import Dataset
from interfuse.evaluation.accuracy import evaluation_on
from interfuse.methods.local import Local
from interfuse.runs import Given, RunConfig, execute, resume
from interfuse.runs.folder import RunFolder
from interfuse.runs.loop import Silent, assemble


@dataclass(frozen=True)
class Draws(Local):
    """Local, whose clients can draw: the number of the class and of the client, and noise."""

    fails_at: int = -1
    knows: int = 1000

    def samples_of(self, client: Client[Any], y: Int64[Tensor, "n"]) -> Tensor | None:
        if client.id == self.fails_at:
            return torch.full((len(y), *client.data.dataset.x_train.shape[1:]), torch.nan)
        if int(y.max()) >= self.knows:
            return None
        shape = (len(y), *client.data.dataset.drawable.shape[1:])
        noise = 1e-3 * torch.randn(shape, generator=client.generator)
        return y.reshape(-1, *[1] * (len(shape) - 1)) + 10.0 * client.id + noise


def drawing(**values: Any) -> RunConfig:
    return config_of("local", **{"rounds": 1, "validation": 0.0} | values)


def given(draws: Draws = Draws(), dataset: Given = GIVEN) -> Given:
    return replace(dataset, method=draws)


def test_what_is_drawn_lies_beside_the_first_row_of_each_class_that_a_client_has(tmp_path: Path) -> None:
    config = drawing(partition={"name": "pathological", "classes_per_client": 2})
    execute(config, tmp_path / "run", given=given())
    data = GIVEN.dataset
    assert isinstance(data, Dataset)
    found = RunFolder(tmp_path / "run").drawn()
    assert [one.client for one in found] == [0, 1, 2]
    for one, share in zip(found, assemble(config, given()).shares, strict=True):
        y = data.y_train[share.train]
        first = {c: share.train[(y == c).nonzero()[0]].item() for c in range(3) if (y == c).any()}
        assert len(first) == 2
        assert one.real_y.tolist() == list(first)
        assert torch.equal(one.real, data.drawable[list(first.values())])
        assert one.drawn_y.tolist() == [0, 0, 1, 1, 2, 2]
        values = data.normalise(one.drawn)
        assert isinstance(values, Tensor)
        wanted = (one.drawn_y + 10 * one.client)[:, None].expand_as(values)
        torch.testing.assert_close(values, wanted.float(), atol=1e-2, rtol=0)
    assert {line["heading"] for line in lines(tmp_path / "run/ledger.jsonl") if line["handler"] == "draw"} == {
        "evaluation"
    }


def test_bits_depend_on_neither_workers_nor_a_kill(tmp_path: Path) -> None:
    for workers in (1, 2):
        execute(drawing(workers=workers), tmp_path / str(workers), given=given())
    with pytest.raises(Killed):
        execute(drawing(), tmp_path / "killed", given=given(), engine=Fuse(at="evaluation 1 draw 3").engine)
    assert not (tmp_path / "killed/drawn.safetensors").exists()
    resume(tmp_path / "killed", given=given())
    one, *others = ((tmp_path / name / "drawn.safetensors").read_bytes() for name in ("1", "2", "killed"))
    assert others == [one, one]
    resume(tmp_path / "1", given=given(), rounds=2)
    assert (tmp_path / "1/drawn.safetensors").read_bytes() != one


def test_of_many_clients_and_classes_some_evenly_spread_are_drawn(tmp_path: Path) -> None:
    data = Given(dataset=tiny_dataset(rows=480, classes=25))
    execute(drawing(clients=40), tmp_path / "run", given=given(dataset=data))
    found = RunFolder(tmp_path / "run").drawn()
    assert [one.client for one in found] == [0, 10, 20, 30]
    assert found[0].drawn_y.unique().tolist() == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]
    execute(drawing(clients=1), tmp_path / "one", given=given())
    assert [one.client for one in RunFolder(tmp_path / "one").drawn()] == [0]


class Heard(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_a_class_that_cannot_be_drawn_is_left_out_and_a_client_that_fails_is_named(tmp_path: Path) -> None:
    class Heard(Silent):
        said: list[str] = []

        def note(self, text: str) -> None:
            self.said.append(text)

    heard = Heard()
    execute(drawing(), tmp_path / "run", given=given(Draws(fails_at=1, knows=2)), progress=heard)
    found = RunFolder(tmp_path / "run").drawn()
    assert [one.client for one in found] == [0, 2]
    assert found[0].drawn_y.tolist() == [0, 0, 1, 1]
    assert [text for text in heard.said if "client 1" in text and "Draws.samples_of" in text]
    assert (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize("draws", [Local(), Draws(knows=0)])
def test_what_draws_nothing_leaves_nothing(draws: Any, tmp_path: Path) -> None:
    execute(drawing(), tmp_path / "run", given=replace(GIVEN, method=draws))
    assert not (tmp_path / "run/drawn.safetensors").exists()
    execute(drawing(evaluation="none"), tmp_path / "blind", given=given())
    assert not (tmp_path / "blind/drawn.safetensors").exists()


def test_parties_have_no_such_program() -> None:
    assert evaluation_on({}, "shared")(Draws()).keys() == {"evaluation"}


def test_the_page_has_the_picture_and_says_what_it_shows(tmp_path: Path) -> None:
    config = drawing(partition={"name": "pathological", "classes_per_client": 2})
    execute(config, tmp_path / "run", given=given(dataset=IMAGES))
    page = report.write(tmp_path / "run").read_text()
    assert "<h2>Samples</h2>" in page
    assert isinstance(IMAGES.dataset, Dataset)
    for one in RunFolder(tmp_path / "run").drawn():
        (missing,) = {0, 1, 2} - set(one.real_y.tolist())
        assert f"client {one.client} {IMAGES.dataset.class_names[missing]}" in page
    assert {"samples.svg", "samples.png"} <= {path.name for path in (tmp_path / "run/plots").iterdir()}
