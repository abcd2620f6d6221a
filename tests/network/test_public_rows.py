"""Public data between parties: each has its own copy, the contract has its digest, and no row is in a message."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from parties import assert_equal_to_local, parties, rows

from interfuse.data import load
from interfuse.engines.parties.contract import rows_digest

FEDMD = str(Path(__file__).parents[1] / "outside" / "fedmd.py")
ALLOW = {"methods": [FEDMD], "disclosures": ["logits"]}


def test_fedmd_from_outside_gives_the_bits_of_the_local_engine(tmp_path: Path) -> None:
    public = rows(tmp_path, "public", 42)
    with parties(tmp_path, ("ant", "bee"), secure=False) as two:
        recipe = {"method": FEDMD, "public": str(public), "settings": {"public_rows": 20}}
        config = two.prepare(recipe, ["logistic", "mlp"], allow=ALLOW, data={"public": "mine.npz"})
        for name in two.names:
            shutil.copy(public, two.folder / name / "mine.npz")
        processes = [two.coordinate(), *two.all_nodes()]
        assert [process.wait() for process in processes] == [0] * 3, two.everything()
        assert_equal_to_local(two, config)


def test_other_public_data_is_refused_by_name(tmp_path: Path) -> None:
    public = rows(tmp_path, "public", 42)
    with parties(tmp_path, ("ant", "bee", "cat"), secure=False) as three:
        three.prepare({"method": FEDMD, "public": str(public)}, ["logistic"], allow=ALLOW)
        three.vendor("bee", tmp_path / "bee.npz", "logistic", allow=ALLOW, data={"public": "mine.npz"})
        three.vendor(
            "cat", rows(tmp_path, "cat", 3, shape=(1, 5, 5)), "logistic", allow=ALLOW, data={"public": "mine.npz"}
        )
        rows(tmp_path / "bee", "mine", 43)
        shutil.copy(public, tmp_path / "cat" / "mine.npz")
        three.coordinate()
        nodes = three.all_nodes()
        assert all(node.wait() != 0 for node in nodes), three.everything()
        said = {name: node.text() for name, node in zip(three.names, nodes, strict=True)}
        assert "public data: expected public, found none; the vendor's file can name it, [data] public" in said["ant"]
        assert "rows of the public data: expected" in said["bee"]
        assert "shape of the public data: expected that of the node's samples, found 1x4x4" in said["cat"]


def test_test_rows_beside_public_rows_are_nobodys_affair() -> None:
    public = load("digits")
    changed = replace(public, x_test=public.x_test + 1, y_test=public.y_test.flip(0))
    assert rows_digest(public.with_test_rows(5)) == rows_digest(changed) == rows_digest(public)
    assert rows_digest(replace(public, y_train=public.y_train.flip(0))) != rows_digest(public)
