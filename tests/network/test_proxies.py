"""Between node and coordinator: an HTTP CONNECT proxy, and a line that is slow and far."""

from __future__ import annotations

import sys
from pathlib import Path

from parties import assert_equal_to_local, free_port, parties, until

from interfuse.engines.processes import fork

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from lines import listens, proxy


def test_nodes_behind_an_http_proxy_and_a_slow_line_change_nothing(tmp_path: Path) -> None:
    with parties(tmp_path, ("ant", "bee")) as two:
        config = two.prepare({"settings": {"local_steps": 1, "batch_size": 8}}, ["logistic"])
        ports = {name: free_port() for name in ("ant", "bee")}
        lines = [
            fork(proxy, port, two.port, name == "ant", tmp_path / f"used-{name}", name=f"proxy-{name}")
            for name, port in ports.items()
        ]
        two.vendor("ant", tmp_path / "ant.npz", "logistic", top={"proxy": f"127.0.0.1:{ports['ant']}"})
        two.vendor("bee", tmp_path / "bee.npz", "logistic", top={"coordinator": f"127.0.0.1:{ports['bee']}"})
        until(lambda: all(map(listens, ports.values())) or not all(line.is_alive() for line in lines), 10)
        assert not (tmp_path / "used-ant").exists()
        coordinator = two.coordinate()
        nodes = [two.node(name) for name in ("ant", "bee")]
        assert coordinator.wait() == 0, two.everything()
        assert [node.wait() for node in nodes] == [0, 0], two.everything()
        for line in lines:
            line.kill()
        assert (tmp_path / "used-ant").exists()
        assert (tmp_path / "used-bee").exists()
        assert_equal_to_local(two, config)
