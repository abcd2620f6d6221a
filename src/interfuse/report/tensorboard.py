"""A run in TensorBoard, while it goes on. Needs the package of that name (extra ``tracking``), no TensorFlow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from interfuse.errors import ConfigError
from interfuse.report.text import measured, told_by
from interfuse.runs import Callback, Row, RunConfig, Summary
from interfuse.runs.config import to_toml
from interfuse.runs.summary import mean
from interfuse.runs.summing import scores_of


class TensorBoard(Callback):
    """Writes means over clients at each point of the curve, and bytes and steps of each round, for TensorBoard.

    ``tensorboard --logdir FOLDER`` shows them. A run that goes on writes another file, and what an earlier one had
    after that round counts no more.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.plugins.text.summary_v2 import text_pb
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ConfigError(f"tracking needs TensorBoard ({error}): pip install tensorboard") from error
        self._open: Callable[[str], Any] = EventFileWriter
        self._events, self._summaries, self._text_of = event_pb2, summary_pb2, text_pb
        self._writer: Any = None

    def on_start(self, config: RunConfig, done: int) -> None:
        self._writer = self._open(str(self.folder))
        began = self._events.SessionLog(status=self._events.SessionLog.START)
        self._add(done + 1 if done else 0, session_log=began)
        self._add(done, summary=self._text_of("config.toml", f"```toml\n{to_toml(config)}\n```"))

    def on_round(self, row: Row) -> None:
        values = {
            "bytes/uplink": row.uplink.raw,
            "bytes/downlink": row.downlink.raw,
            "steps/clients": row.steps.clients,
            "steps/server": row.steps.server,
        }
        point = row.accuracy
        scores = (
            {}
            if point is None
            else {
                "score/own": mean(point.own),
                "score/others": mean(point.others),
                "score/validation": mean(point.validation),
                "score/global": mean(point.common),
                "score/composition": scores_of(point).mean_composition,
            }
        )
        shown = {f"shown/{name}": value for name, value in row.shown.means.items()}
        self._scalars(values | scores | shown, row.round)

    def on_end(self, summary: Summary) -> None:
        metrics = {f"final/{name}": summary.metric(name, told_by(name)).mean for name in measured(summary)}
        self._scalars(metrics, summary.rounds)
        self._add(summary.rounds, summary=self._text_of("headline", summary.headline.text))
        self._writer.close()

    def _scalars(self, values: Mapping[str, float], round: int) -> None:
        kind = self._summaries.Summary
        known = [kind.Value(tag=name, simple_value=value) for name, value in values.items() if math.isfinite(value)]
        self._add(round, summary=kind(value=known))

    def _add(self, round: int, **what: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=round, **what))
        self._writer.flush()
