"""What cannot work is refused before the first run of a comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_execution import LOCAL, plan_of

from interfuse.comparison import Plan, compare
from interfuse.comparison import plots as comparison_plots
from interfuse.comparison.preflight import Trying, look, said
from interfuse.comparison.progress import Nobody
from interfuse.errors import ConfigError
from interfuse.federation import Federation
from interfuse.runs import Given
from interfuse.runs.loop import assemble

UNLIKE = {"models": ["cnn", "mlp"]}
LG, HETERO = {"name": "lg", "method": "lg-fedavg", **UNLIKE}, {"name": "hetero", "method": "heterofl", **UNLIKE}
FEDAVG = {"name": "fedavg", "method": "fedavg", **UNLIKE}

PICKY = '''
from dataclasses import dataclass

from interfuse import Client, Clients, Method, Server, cross_entropy, on_client
from interfuse.errors import ConfigError
from interfuse.randomness import generator


@dataclass(frozen=True)
class Picky(Method):
    """Local training that refuses one learning rate and one seed, and only when it starts."""

    lr: float = 0.1

    def start(self, server: Server, clients: Clients) -> None:
        seventh = generator(7, "server", "start", 0).initial_seed() == server.generator.initial_seed()
        if self.lr == 0.2 or seventh:
            raise ConfigError(f"no start with lr {self.lr}")

    def round(self, server: Server, clients: Clients) -> None:
        clients.call(self.train)

    @on_client
    def train(self, client: Client) -> None:
        client.fit(cross_entropy, steps=1, lr=self.lr, batch_size=8)
'''


@pytest.fixture(autouse=True)
def _without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the runs here, and have a test file of their own."""
    monkeypatch.setattr(comparison_plots, "figures", lambda rows: {})


def picky(tmp_path: Path, **values: Any) -> Plan:
    (tmp_path / "picky.py").write_text(PICKY)
    return plan_of({"name": "picky", "method": str(tmp_path / "picky.py")} | values.pop("entry", {}), LOCAL, **values)


def test_all_that_cannot_work_is_named_at_once_and_nothing_begins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        compare(plan_of(LG, LOCAL, HETERO), tmp_path / "out")
    first, *lines = str(caught.value).splitlines()
    assert first == "2 of 3 entries cannot work, so nothing was begun; or leave them out with --skip-refused"
    assert [line.partition(":")[0] for line in lines] == ["- lg, seed 0, seed 1", "- hetero, seed 0, seed 1"]
    assert "there is nothing to average" in lines[0]
    assert not (tmp_path / "out").exists()


def test_refused_entries_can_be_left_out_and_are_named_in_the_table(tmp_path: Path) -> None:
    lines: list[str] = []

    class Seen(Nobody):
        def note(self, text: str) -> None:
            lines.append(text)

    found = compare(plan_of(LG, FEDAVG, LOCAL), tmp_path, skip_refused=True, follower=Seen())
    lg, fedavg, _ = found.values["entries"]
    assert (lg["refused"], lg["seeds"], list(lg["failures"])) == (True, {}, ["seed 0, seed 1"])
    assert not (tmp_path / "runs" / "lg").exists()
    assert [line[0].text for line in found.tables[0].lines] == ["lg (refused)", "fedavg", "local"]
    assert any(note.startswith("lg, seed 0, seed 1, refused: no two clients") for note in found.notes)
    assert [line.partition(":")[0] for line in lines] == ["lg", "fedavg"]
    assert lines[1].startswith("fedavg: No two clients have a tensor in common")
    assert "every mean is over one client" in " ".join(fedavg["notes"])
    assert found.tables[0].lines[1][0].marks


def test_where_all_are_refused_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 of 2 entries cannot work, so nothing was begun\n"):
        compare(plan_of(LG, HETERO), tmp_path / "out", skip_refused=True)


def test_one_point_of_a_grid_and_one_seed_are_enough(tmp_path: Path) -> None:
    points = picky(tmp_path, entry={"grid": {"lr": [0.1, 0.2, 0.3]}})
    assert look(points, 2).refused == {"picky": {"no start with lr 0.2": ["lr=0.2"]}}
    seeds = picky(tmp_path, comparison={"seeds": [3, 7]})
    assert look(seeds, 2).refused == {"picky": {"no start with lr 0.1": ["seed 7"]}}


def test_data_that_cannot_be_loaded_refuse_their_entry(tmp_path: Path) -> None:
    plan = plan_of(LOCAL, {"name": "other", "method": "local", "data": str(tmp_path / "none.npz")})
    found = look(plan, 1)
    assert list(found.refused) == ["other"]
    assert list(found.failures("other")) == ["its data"]
    with pytest.raises(ConfigError) as caught:
        replace(found, refused=found.refused | {"more": found.refused["other"]}).check(plan, skip=False)
    _, *lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines if line.startswith("- ")] == ["- other, more, its data"]


def test_what_is_finished_is_not_set_up_again(tmp_path: Path) -> None:
    plan = plan_of(FEDAVG)
    for seed in (0, 1):
        (tmp_path / f"runs/fedavg/seed-{seed}").mkdir(parents=True)
        (tmp_path / f"runs/fedavg/seed-{seed}/summary.json").touch()
    assert look(plan, 1, tmp_path).notices == {}
    assert list(look(plan, 1).notices) == ["fedavg"]


def test_one_line_for_entries_with_one_notice() -> None:
    assert list(said({"a": {"text": ["seed 0"]}, "b": {"text": ["seed 1"]}, "c": {"other": ["seed 0"]}})) == [
        "a, b: text", "c: other",
    ]  # fmt: skip


def test_a_training_before_the_first_round_is_tried_with_one_step() -> None:
    (one,) = plan_of(
        {"name": "bank", "method": "ifl-bank", "settings": {"decoder_steps": 9, "bank_rows": 3}}, LOCAL
    ).entries[:1]
    setup = assemble(one.run(one.points()[0], 0), Given())
    federation = Federation(setup, Trying(setup))
    federation.start()
    assert federation.exchange.steps == dict.fromkeys(setup.profiles, 1)
