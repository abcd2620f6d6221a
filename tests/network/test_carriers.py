"""Whatever carries the messages, a run is the same: over gRPC between processes, and with only queues in between."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest
from parties import parties, states, timeless
from worlds import same_bits

from interfuse.coordination import Terms, coordinate, driver
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.loopback import Loopback
from interfuse.engines.parties.node import Node
from interfuse.engines.parties.participation import take_part
from interfuse.engines.parties.vendor import read_vendor
from interfuse.errors import RunError
from interfuse.runs import Silent
from interfuse.runs.folder import RunFolder


def test_a_run_through_queues_equals_one_over_grpc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with parties(tmp_path, ("ant",), secure=False) as one:
        config = one.prepare({"settings": {"local_steps": 1, "batch_size": 8}}, ["logistic"])
        processes = [one.coordinate(), one.node("ant")]
        assert [process.wait() for process in processes] == [0, 0], one.everything()
    monkeypatch.setattr(driver.report, "write", lambda path: path)
    again, carrier, last = tmp_path / "again", Loopback(), []
    with closing(Node(read_vendor(tmp_path / "ant" / "vendor.toml"), Events(None, lambda text: None))) as node:
        thread = threading.Thread(target=lambda: last.append(take_part(node, carrier.dial)), daemon=True)
        thread.start()  # it tries again until somebody listens
        coordinate(config, again, Terms(carrier, nodes=1), Silent())
        thread.join(10)
        assert last == ["the run is finished"]
        with pytest.raises(RunError, match="the last try: the stream ended"):
            take_part(node, carrier.dial, patience=0.1)  # nobody listens any more
    folders = {"client-00000": tmp_path / "ant" / "state"}
    assert same_bits(states(one.run, folders), states(again, folders))
    assert (one.run / "ledger.jsonl").read_bytes() == (again / "ledger.jsonl").read_bytes()
    rows, wanted = ([row.values() for row in RunFolder(path).metrics()] for path in (one.run, again))
    assert timeless(rows) == timeless(wanted)
