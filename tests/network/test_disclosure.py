"""What leaves a node: everything is looked at, and nothing outside of what the method declares is found."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from parties import CLASSES, parties, rows
from typer.testing import CliRunner

from interfuse.cli import app
from interfuse.engines.parties.audit import verify
from interfuse.engines.parties.contract import names_digest
from interfuse.engines.parties.vendor import DataTable
from interfuse.errors import DataError

SECRETS = ("blue-whale", "giraffe", "okapi", "secret_layer", "SecretNet", "hidden_file")
MODULE = """
import torch
from torch import nn

class SecretNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.secret_layer = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(175, 37), nn.ReLU())
        self.rest = nn.Linear(37, 3)

    def forward(self, x):
        return self.rest(self.secret_layer(x))
"""


def strange_vendor(folder: Path, *, extra: str = "", **allow: Any) -> Path:
    """A model and rows that nobody else has seen: images of 9 by 7, classes with names, cut at a named layer."""
    (folder / "hidden_file.py").write_text(MODULE)
    lines = ["species," + ",".join(f"p{i}" for i in range(63))]
    noise = np.random.default_rng(0)
    for row in range(60):
        name = SECRETS[row % 3]
        lines.append(f"{name}," + ",".join(f"{v:.4f}" for v in noise.normal(row % 3, 1, 63)))
    (folder / "animals.csv").write_text("\n".join(lines))
    (folder / "data.py").write_text(
        "from pathlib import Path\n"
        "import numpy as np\n"
        "import interfuse\n"
        "from interfuse.data import load_table\n"
        "def load():\n"
        "    table = load_table(Path(__file__).parent / 'animals.csv', 'species')\n"
        "    x = table.x_train.reshape(-1, 1, 9, 7).numpy()\n"
        "    return interfuse.Dataset.from_arrays('animals', x, table.y_train, x[:0], table.y_train[:0],\n"
        "                                         class_names=table.class_names)\n"
    )
    (folder / "vendor.toml").write_text(
        'name = "zoo"\n'
        '[model]\nmodule = "hidden_file.py:SecretNet"\nsplit_at = "secret_layer"\n'
        '[data]\nsource = "data.py:load"\n'
        "[allow]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in allow.items()) + "\n" + extra
    )
    return folder / "vendor.toml"


def dry_run(vendor: Path, recipe: Mapping[str, Any], out: str = "out") -> tuple[list[dict[str, Any]], str]:
    """What ``interfuse node --dry-run`` writes down, as a process of its own, and what it says."""
    with parties(vendor.parent, (), secure=False) as nobody:
        (vendor.parent / "recipe.toml").write_text(tomli_w.dumps(recipe))
        process = nobody.start("node", str(vendor), "--dry-run", out, "--recipe", "recipe.toml", log=out)
        process.wait()
        files = sorted((vendor.parent / out).glob("*.json"))
        return [json.loads(file.read_text()) for file in files], process.text()


def test_of_ifl_only_features_and_labels_leave(tmp_path: Path) -> None:
    vendor = strange_vendor(tmp_path, methods=["ifl"], disclosures=["features", "labels"], evaluation="own")
    recipe = {"method": "ifl", "fusion_width": 8, "settings": {"local_steps": 1, "batch_size": 16}}
    messages, said = dry_run(vendor, recipe)
    assert "format: arrays\n" in said
    wide = "a linear layer with ReLU (to_fusion) was added behind it"
    assert f"model: the code after 'secret_layer' has 37 numbers, the contract's fusion width is 8: {wide}" in said
    kinds = [message["envelope"]["kind"] for message in messages]
    assert kinds[:3] == ["hello", "accept", "ready"]
    assert set(kinds[3:]) == {"reply", "done"}
    facts = dict(messages[1]["envelope"]["facts"])
    assert facts.pop("class_names") == names_digest("dry-run", sorted(SECRETS[:3]))
    assert facts.pop("given") == names_digest("dry-run", [""])  # nothing is
    assert facts == {"architecture": "zoo", "classes": 3, "fusion_width": 8, "samples": 48, "test_labels": ""}
    tensors = [message["tensors"] for message in messages if "tensors" in message]
    assert [sorted(t) for t in tensors] == [["y", "z"], *[["common", "own", "validation"]] * 2]  # curve and everything
    assert tensors[0]["z"]["shape"] == [16, 8]
    assert tensors[0]["y"]["shape"] == [16]
    whole = json.dumps(messages)
    assert not [word for word in SECRETS if word in whole]
    assert not re.search(r"\b(37|175|9, 7|63)\b", json.dumps([m["envelope"] for m in messages[:3]]))


def test_an_exception_leaves_as_a_code(tmp_path: Path) -> None:
    vendor = strange_vendor(tmp_path, methods=["ifl"], disclosures=["features", "labels"])
    recipe = {"method": "ifl", "fusion_width": 8, "settings": {"base_lr": 1e30, "local_steps": 3}}
    messages, said = dry_run(vendor, recipe)
    last = messages[-1]["envelope"]
    assert last["failure"] == "handler-error"
    assert set(last) == {"kind", "size", "attempt", "number", "seconds", "steps", "left_out", "message", "failure"}
    assert "failed code=handler-error handler=train_base round=1 reason=" in said


@pytest.mark.parametrize(
    ("method", "allowed"),
    [
        ("fedavg", {"parameters"}),
        ("scaffold", {"parameters"}),
        ("fedproto", {"labels", "prototypes", "statistics"}),
        ("splitfed-v1", {"features", "labels", "parameters"}),
    ],
)
def test_of_every_other_class_only_what_is_declared_leaves(method: str, allowed: set[str], tmp_path: Path) -> None:
    rows(tmp_path, "rows", 0)
    (tmp_path / "vendor.toml").write_text(
        f'name = "ant"\n[model]\nbuild = "logistic"\npublic = true\n[data]\nsource = "rows.npz"\n'
        f'[allow]\nmethods = ["{method}"]\ndisclosures = {json.dumps(sorted(allowed))}\n'
    )
    recipe = {"method": method, "models": ["logistic"], "fusion_width": 8, "settings": {"batch_size": 32}}
    messages, _ = dry_run(tmp_path / "vendor.toml", recipe)
    shapes = {n.rsplit("/", 1)[-1]: t["shape"] for m in messages for n, t in m.get("tensors", {}).items()}
    keys = messages[1]["envelope"]["facts"]["shapes"]["keys"]
    if "parameters" in allowed:
        assert {name: shape for name, shape in shapes.items() if name in keys}
        assert all(keys[name] == shape for name, shape in shapes.items() if name in keys)
    else:
        assert not set(shapes) & set(keys)
    assert not any(shape[1:] == [1, 4, 4] for shape in shapes.values())  # no sample


def test_what_the_vendor_does_not_allow_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    vendor = strange_vendor(tmp_path, methods=["ifl"], disclosures=["features"])
    messages, said = dry_run(vendor, {"fusion_width": 8})
    assert "discloses: expected at most features, found labels" in said
    assert [message["envelope"]["kind"] for message in messages] == ["hello", "refusal"]


def test_a_vendor_refuses_that_features_are_kept(tmp_path: Path) -> None:
    vendor = strange_vendor(tmp_path, methods=["fedin"], disclosures=["features", "parameters"])
    _, said = dry_run(vendor, {"method": "fedin", "fusion_width": 8})
    assert "retention: expected nothing kept beyond its round, found features" in said


def test_a_private_model_is_no_party_to_a_method_that_shares_parameters(tmp_path: Path) -> None:
    vendor = strange_vendor(tmp_path, methods=["fedavg"], disclosures=["parameters"])
    _, said = dry_run(vendor, {"method": "fedavg", "fusion_width": 8})
    assert "model: expected a public one" in said


def test_noise_is_added_before_anything_leaves(tmp_path: Path) -> None:
    values = []
    for number, extra in enumerate(("", "", "[limits.noise]\nfeatures = 50.0\n", "[limits.noise]\nfeatures = 50.0\n")):
        allow: dict[str, Any] = {"methods": ["ifl"], "disclosures": ["features", "labels"], "draws_from": "seed"}
        vendor = strange_vendor(tmp_path, extra=extra, **allow)
        recipe = {"fusion_width": 8, "settings": {"local_steps": 1}, "sampling": {"draws_from": "seed"}}
        messages, _ = dry_run(vendor, recipe, str(number))
        values.append(next(m["tensors"]["z"]["first values"] for m in messages if "tensors" in m))
    assert values[0] == values[1]
    assert min(values[0]) >= 0  # behind a ReLU
    assert values[2] != values[3]
    for noisy in values[2:]:
        assert max(abs(a - b) for a, b in zip(noisy, values[0], strict=True)) > 5


def test_a_model_that_nobody_has_seen_joins_by_configuration_alone(tmp_path: Path) -> None:
    with parties(tmp_path, ("ant", "zoo")) as two:
        recipe = {"settings": {"local_steps": 1, "batch_size": 8}, "evaluation": "own", "rounds": 2}
        two.prepare(recipe, ["logistic"], data={"classes": sorted(SECRETS[:3])})
        text = (tmp_path / "zoo" / "vendor.toml").read_text()
        allow = {"methods": ["ifl"], "disclosures": ["features", "labels"], "evaluation": "own", "draws_from": "seed"}
        strange_vendor(tmp_path / "zoo", **allow)
        keys = text[text.index("[keys]") :]
        top = f'name = "zoo"\ncoordinator = "127.0.0.1:{two.port}"\n'
        file = tmp_path / "zoo" / "vendor.toml"
        file.write_text(top + file.read_text().removeprefix('name = "zoo"\n') + keys)
        coordinator = two.coordinate("--classes", str(CLASSES))
        nodes = [two.node("ant"), two.node("zoo")]
        assert coordinator.wait() == 0, two.everything()
        assert [node.wait() for node in nodes] == [0, 0]
        summary = json.loads((two.run / "summary.json").read_text())
        assert None not in summary["own_accuracy"]["per_client"]
        assert summary["composition_matrix"] is None
        everything = b"".join(p.read_bytes() for p in two.run.rglob("*") if p.is_file())
        assert not [word for word in SECRETS if word.encode() in everything]
        log = tmp_path / "zoo" / "state" / "audit.jsonl"
        assert verify(log).lines > 5
        done = CliRunner().invoke(app, ["audit", str(log)])
        assert "the chain holds" in done.output
        shown = CliRunner().invoke(app, ["status", str(two.run)])
        mark = next(line for line in shown.output.splitlines() if "audit log of zoo" in line).split()[-1]
        assert verify(log, mark=mark).lines > int(mark.partition(":")[0])
        assert "finished, round 2/2" in shown.output


def test_without_evaluation_nothing_is_measured(tmp_path: Path) -> None:
    with parties(tmp_path, ("ant", "bee")) as two:
        two.prepare({"settings": {"local_steps": 1, "batch_size": 8}, "evaluation": "none"}, ["logistic"])
        coordinator = two.coordinate("--classes", str(CLASSES))
        nodes = [two.node("ant"), two.node("bee")]
        assert coordinator.wait() == 0, two.everything()
        assert [node.wait() for node in nodes] == [0, 0]
        ledger = [json.loads(line) for line in (two.run / "ledger.jsonl").read_text().splitlines()]
        assert {line["heading"] for line in ledger} == {"training"}
        assert {line["kind"] for line in ledger if line["direction"] == "up"} == {"FusionOutputs"}


def test_a_vendors_files_are_read_as_its_file_says(tmp_path: Path) -> None:
    rows = "".join(f"P{i},{i / 7},{'AB'[i % 2]},{i % 3 + 1}\n" for i in range(30))
    (tmp_path / "rows.csv").write_text("patient,a,site,kind\n" + rows)
    given = DataTable(source="rows.csv", label="kind", drop=("patient",), group="site", classes=("1", "2", "3", "4"))
    found = given.load(tmp_path)
    assert (len(found.y_train), len(found.y_test), found.columns) == (30, 0, ("a",))
    assert (found.class_names, found.y_train[:3].tolist()) == (("1", "2", "3", "4"), [0, 1, 2])
    with_test = given.model_copy(update={"test": "rows.csv", "group": None, "drop": ("patient", "site")}).load(tmp_path)
    assert (len(with_test.y_train), len(with_test.y_test)) == (24, 6)
    with pytest.raises(DataError, match=r"column 'patient' is not all numbers.*column 'site'.* drop=patient,site"):
        DataTable(source="rows.csv", label="kind").load(tmp_path)
