"""How a run between parties is watched: a status file, and metrics for Prometheus."""

from __future__ import annotations

import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from interfuse.coordination.record import STATUS_FILE, NodeStatus, Record, Status
from interfuse.engines.parties.hub import Hub
from interfuse.engines.parties.logs import now
from interfuse.engines.parties.remote import Remote
from interfuse.errors import ConfigError
from interfuse.runs import Progress, Row, RunConfig
from interfuse.writing import write_whole

SECONDS = 1.0
"""Between two writings of the status, at least."""


class Watch:
    """Follows a run: hands on to its own follower, and keeps status file and metrics up to date."""

    def __init__(self, config: RunConfig, folder: Path, record: Record, hub: Hub, progress: Progress) -> None:
        self._config, self._folder, self._record, self._hub, self._progress = config, folder, record, hub, progress
        self.state, self.round = "waiting for nodes", 0
        self.engine: Remote | None = None
        self._written = 0.0
        self.registry = CollectorRegistry()
        self._rounds = Gauge("interfuse_round", "Rounds that are done.", registry=self.registry)
        self._there = Gauge("interfuse_node_connected", "1: the node is there.", ["node"], registry=self.registry)
        self._bytes = Gauge(
            "interfuse_bytes", "Bytes by node, direction, and whether framing is counted.",
            ["node", "direction", "layer"], registry=self.registry,
        )  # fmt: skip
        self._waited = Gauge(
            "interfuse_waiting_seconds", "Between call and answer, less work.", ["node"], registry=self.registry
        )
        self._failures = Counter("interfuse_failures", "Of nodes, by kind.", ["node", "kind"], registry=self.registry)

    def serve(self, address: str) -> None:
        """Answer Prometheus at ``HOST:PORT``.

        Raises:
            ConfigError: nothing can listen there.
        """
        host, _, port = address.rpartition(":")
        try:
            start_http_server(int(port), host or "127.0.0.1", registry=self.registry)
        except (OSError, ValueError) as error:
            raise ConfigError(f"metrics at {address}: {error}") from error

    def begin(self, config: RunConfig, done: int) -> None:
        self.state, self.round = "running", done
        self._progress.begin(config, done)
        self.update(at_once=True)

    def advance(self, row: Row) -> None:
        self.round = row.round
        self._progress.advance(row)
        self.update()

    def stage(self, text: str) -> None:
        self._progress.stage(text)

    def note(self, text: str) -> None:
        self._progress.note(text)

    def failed(self, node: str, kind: str) -> None:
        """Count a failure."""
        self._failures.labels(node, kind).inc()

    def enter(self, state: str) -> None:
        """The run is somewhere else now."""
        self.state = state
        self.update(at_once=True)

    def update(self, *, at_once: bool = False) -> None:
        """Bring everything up to date, if the last time is long enough ago."""
        if not at_once and time.monotonic() - self._written < SECONDS:
            return
        self._written = time.monotonic()
        status = self._status()
        self._rounds.set(status.round)
        for node in status.nodes:
            self._there.labels(node.name).set(node.connected)
            self._waited.labels(node.name).set(node.waited)
            for direction, payload, frames in (
                ("up", node.payload_up, node.frames_up), ("down", node.payload_down, node.frames_down),
            ):  # fmt: skip
                self._bytes.labels(node.name, direction, "payload").set(payload)
                self._bytes.labels(node.name, direction, "frames").set(frames)
        try:
            write_whole(self._folder / STATUS_FILE, status.model_dump_json(indent=1))
        except OSError as error:  # nothing depends on it
            self._progress.note(f"the status cannot be written: {error.strerror}")

    def _status(self) -> Status:
        waited = {} if self.engine is None else self.engine.waited
        with self._hub.lock:
            members = dict(self._hub.members)
        nodes = []
        for name in sorted({*members, *self._record.nodes}):
            known, member = self._record.nodes.get(name), members.get(name)
            counted = {} if member is None else vars(member.counters)
            nodes.append(
                NodeStatus(
                    name=name, client=None if known is None else known.client,
                    connected=member is not None and member.link is not None,
                    gone=None if known is None else known.gone, audit=None if known is None else known.audit,
                    waited=0.0 if known is None else round(waited.get(known.client, 0.0), 3), **counted,
                )
            )  # fmt: skip
        return Status(
            time=now(), state=self.state, round=self.round, rounds=self._config.rounds, attempt=self._record.attempt,
            address=self._hub.carrier.address, nodes=nodes,
        )  # fmt: skip
