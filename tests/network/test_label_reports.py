"""Reports of labels between parties: who knows the contract cannot undo them, and a restart draws none anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from parties import parties, until
from safetensors.torch import load_file, save_file
from torch import Tensor
from worlds import Recorder

from interfuse.engines import local
from interfuse.engines.parties import keeping, session
from interfuse.families.fusion import FusionOutputs
from interfuse.federation import Federation
from interfuse.messages import flatten
from interfuse.runs import RunConfig
from interfuse.runs.loop import assemble

TWO = ("ant", "bee")
# base blocks stay as they began and whole shares are sent, so features name their row in every round
SETTINGS = {"local_steps": 0, "batch_size": 64, "label_epsilon": 0.5}
ALLOW = {"methods": ["ifl-private-labels"]}

Reports = dict[tuple[int, ...], set[int]]


def copies_to(folder: Path) -> Callable[[], None]:
    """A node that keeps a copy of every pair that it sends."""

    def lie() -> None:
        honest = session.encoded

        def encoded(message: object, *rest: object) -> object:
            if isinstance(message, FusionOutputs):
                save_file(flatten(message), folder / f"sent-{len(list(folder.glob('sent-*')))}")
            return honest(message, *rest)  # type: ignore[arg-type]

        session.encoded = encoded  # type: ignore[assignment]

    return lie


def add(reports: Reports, z: Tensor, y: Tensor) -> None:
    for row, label in zip((z * 1000).round().int().tolist(), y.tolist(), strict=True):
        reports.setdefault(tuple(row), set()).add(label)


def replayed(config: RunConfig, client: int) -> Reports:
    """What whoever has the contract, its seed among it, finds that a client would report, were that all there is."""
    setup = assemble(config)
    engine = Recorder(local(setup, 1))
    federation = Federation(setup, engine)
    federation.start()
    federation.run_round()
    found: Reports = {}
    for _, sender, message in engine.up:
        if sender == client and isinstance(message, FusionOutputs):
            add(found, message.z, message.y)
    return found


def test_reports_do_not_follow_from_the_contract_and_outlive_a_restart(tmp_path: Path) -> None:
    with parties(tmp_path, TWO, secure=False) as two:
        config = two.prepare(
            {"method": "ifl-private-labels", "settings": SETTINGS, "rounds": 12}, ["logistic"], allow=ALLOW
        )
        coordinator = two.coordinate("--commit-every", "4")
        ant, bee = two.node("ant"), two.node("bee", lie=copies_to(tmp_path))
        until(lambda: two.rounds_done() >= 6, 40, two.everything)
        bee.kill()
        before = len(list(tmp_path.glob("sent-*")))
        bee = two.node("bee", lie=copies_to(tmp_path))
        assert coordinator.wait() == 0, two.everything()
        assert [process.wait() for process in (ant, bee)] == [0, 0], two.everything()
        files = sorted(tmp_path.glob("sent-*"))
        assert len(files) > before
        reports: Reports = {}
        for file in files:
            sent = load_file(file)
            add(reports, sent["z"], sent["y"])
        assert len(reports) == 48  # of 60 rows
        assert all(len(labels) == 1 for labels in reports.values())
        derived = replayed(config, client=1)
        assert derived.keys() == reports.keys()  # the same rows
        differing = sum(derived[row] != reports[row] for row in reports)
        assert 16 < differing < 48  # of two independent draws 31 in the mean
        (secret,) = (tmp_path / "bee" / "state").glob("*/secret")
        assert secret.stat().st_mode & 0o777 == 0o600
        assert secret.read_bytes() != next((tmp_path / "ant" / "state").glob("*/secret")).read_bytes()


def test_a_secret_is_made_once_and_a_run_does_not_go_on_with_another(tmp_path: Path) -> None:
    made = keeping.secret_of(tmp_path / "run")
    assert keeping.secret_of(tmp_path / "run") == made != keeping.secret_of(tmp_path / "other")
    (tmp_path / "run" / keeping.RUN_FILE).write_text("{}")  # the run has begun
    path = tmp_path / "run" / "secret"
    path.write_bytes(b"short")
    with pytest.raises(keeping.JoinError, match="a secret of 32 bytes"):
        keeping.secret_of(tmp_path / "run")
    path.unlink()
    with pytest.raises(keeping.JoinError, match="the secret that the run began with, found none"):
        keeping.secret_of(tmp_path / "run")
