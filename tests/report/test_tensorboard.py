"""What TensorBoard's own reader finds of a run."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
from worlds import tiny_dataset

import interfuse
from interfuse.errors import ConfigError
from interfuse.runs import Given, execute, parse_config, resume


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        interfuse.TensorBoard(tmp_path / "board")


def test_its_reader_finds_every_round_once_also_after_a_cut(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tracking` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Cut(interfuse.Silent):
        def advance(self, row: interfuse.runs.Row) -> None:
            if row.round == 3:
                raise LookupError

    config = parse_config({
        "data": "in-memory:tiny", "clients": 2, "models": ["logistic"], "fusion_width": 8, "rounds": 4, "eval_every": 2,
        "beside": [], "metrics": ["auroc"], "execution": {"workers": 1, "commit_rounds": 2},
    })  # fmt: skip
    path, board = tmp_path / "run", tmp_path / "board"
    given = Given(dataset=tiny_dataset(), callbacks=[interfuse.TensorBoard(board)])
    with pytest.raises(LookupError):
        execute(config, path, given=given, progress=Cut())
    again = Given(dataset=tiny_dataset(), callbacks=[interfuse.TensorBoard(board)])
    summary = resume(path, given=again)
    found = EventAccumulator(str(board)).Reload()
    steps = found.Scalars("bytes/uplink")
    assert [event.step for event in steps] == [0, 1, 2, 3, 4]
    rows = interfuse.load_run(path).metrics
    assert [event.value for event in steps] == [row.uplink.raw for row in rows]
    scores = found.Scalars("score/global")
    assert [event.step for event in scores] == [0, 2, 4]
    assert math.isclose(scores[-1].value, summary.global_accuracy.mean, rel_tol=1e-6)
    assert math.isclose(found.Scalars("final/auroc")[0].value, summary.metric("auroc", "own").mean, rel_tol=1e-6)
    text = found.Tensors("headline/text_summary" if "headline/text_summary" in found.Tags()["tensors"] else "headline")
    assert text[0].tensor_proto.string_val[0].decode() == summary.headline.text
