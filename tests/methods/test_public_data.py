"""Public data: everybody has the same rows, nobody discloses them, and FedMD from outside learns with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import Recorder, federation, tensors_in, tiny_dataset

import interfuse
from interfuse import Disclosure, Silent
from interfuse.data import Dataset
from interfuse.errors import ConfigError, InterfuseError, RunError
from interfuse.method import disclosures
from interfuse.methods import find
from interfuse.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("no_report")

FEDMD = str(Path(__file__).parents[1] / "outside" / "fedmd.py")
PRIVATE = tiny_dataset(rows=60, test_rows=60)
PUBLIC = tiny_dataset(rows=90, seed=0)
OTHER = tiny_dataset(rows=90, seed=1)


def run(path: Path, **values: Any) -> interfuse.Result:
    defaults: dict[str, Any] = {
        "data": PRIVATE,
        "public": PUBLIC,
        "clients": 3,
        "models": ["logistic", "mlp"],
        "fusion_width": 8,
        "rounds": 3,
        "eval_every": 1,
        "beside": (),
        "workers": 1,
        "commit_rounds": 1,
        "progress": Silent(),
    }
    return interfuse.run(FEDMD, out=path, **defaults | values)


def test_fedmd_from_outside(tmp_path: Path) -> None:
    result = run(tmp_path / "run")
    assert disclosures(find(FEDMD)()) == {Disclosure.LOGITS}
    assert result.config.public == "in-memory:tiny"
    two = run(tmp_path / "two", workers=2)
    for client in range(3):
        own, other = result.model(client).state_dict(), two.model(client).state_dict()
        assert all(torch.equal(own[key], other[key]) for key in own)
    # what it learns from matters, and another set is another run
    assert not torch.equal(
        run(tmp_path / "other", public=OTHER).model(0).state_dict()["classifier.weight"],
        result.model(0).state_dict()["classifier.weight"],
    )


def test_public_rows_are_the_same_for_all_and_in_no_message() -> None:
    f = federation(find(FEDMD)(), dataset=PRIVATE, public=PUBLIC, rounds=1, wrap=Recorder)
    public = f.server.public
    assert (len(public), public.digest) == (90, PUBLIC.digest)
    assert torch.equal(torch.cat([batch.x for batch in public.batches(40)]), PUBLIC.normalise(PUBLIC.x_train))
    assert public.rows(torch.tensor([5, 2])).y.tolist() == PUBLIC.y_train[[5, 2]].tolist()
    assert isinstance(f.engine, Recorder)
    sent = tensors_in([message for _, _, message in [*f.engine.down, *f.engine.up]])
    assert all(tensor.shape[-1] == 3 or tensor.dtype == torch.int64 for tensor in sent if tensor.ndim)


def test_a_run_goes_on_with_the_public_data_that_it_began_with(tmp_path: Path) -> None:
    run(tmp_path / "run", rounds=2)
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(RunError, match="public data of this run was given as an object"):
        interfuse.resume(tmp_path / "run", data=PRIVATE, progress=Silent())
    with pytest.raises(RunError, match="changed since the run began"):
        interfuse.resume(tmp_path / "run", data=PRIVATE, public=OTHER, progress=Silent())
    interfuse.resume(tmp_path / "run", data=PRIVATE, public=PUBLIC, progress=Silent())
    commit = RunFolder(tmp_path / "run").last_commit()
    assert commit is not None
    assert commit.data["values"] == f"{PRIVATE.digest},{PUBLIC.digest}"


@pytest.mark.parametrize(
    ("public", "problem"),
    [
        (None, 'the run has none: name a data set with public = "..."'),
        (tiny_dataset(shape=(6,)), "public = 'tiny' has samples of 6, but tiny of 5"),
    ],
)
def test_public_data_that_does_not_do(public: Dataset | None, problem: str, tmp_path: Path) -> None:
    with pytest.raises(InterfuseError, match=problem):
        run(tmp_path / "run", public=public)


def test_a_table_of_public_data_by_name(tmp_path: Path) -> None:
    result = run(tmp_path / "run", data="digits", public="digits", rounds=1)
    assert result.config.public == "digits"
    with pytest.raises(ConfigError, match="unknown data set 'digitz'"):
        run(tmp_path / "other", data="digits", public="digitz")
