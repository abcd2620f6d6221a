"""A run goes on with the data that it began with, and says what is doubtful in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import interfuse
from interfuse.data import Divide
from interfuse.errors import RunError

ROWS = [f"{i},{(7 * i) % 10},{'yes' if i % 3 else 'no'}" for i in range(60)]


def trained(data: Path, out: Path, partition: str | Divide = "iid") -> interfuse.Result:
    return interfuse.run(
        "local",
        data=str(data),
        models=["mlp"],
        clients=2,
        fusion_width=4,
        rounds=1,
        beside=(),
        settings={"local_steps": 1, "batch_size": 8},
        workers=1,
        out=out,
        progress=interfuse.Silent(),
        partition=partition,
    )


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("head", "change"), [("b,a,label", str), ("a,b,label", lambda row: row.replace("yes", "aye").replace("no", "zno"))]
)
def test_other_names_of_columns_or_classes_are_other_data(tmp_path: Path, head: str, change: object) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("\n".join(["a,b,label", *ROWS]))
    result = trained(source, tmp_path / "run")
    assert result.compose(0, 0)({"a": [1.0], "b": [2.0]}).shape == (1, 2)
    assert callable(change)
    source.write_text("\n".join([head, *map(change, ROWS)]))
    with pytest.raises(RunError, match="other names of columns or classes$"):
        interfuse.resume(result.path, rounds=2)
    with pytest.raises(RunError, match="other names of columns or classes$"):
        interfuse.load_run(result.path).compose(0, 0)([[1.0, 2.0]])


def unseeded(labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    """As many people write it."""
    return np.array_split(np.random.permutation(len(labels)), clients)


def elsewhere(labels: np.ndarray, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
    """What no seed reaches."""
    return np.array_split(np.random.default_rng().permutation(len(labels)), clients)


@pytest.mark.usefixtures("no_report")
def test_a_division_is_the_same_or_refused(tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("\n".join(["a,b,label", *ROWS]))
    np.random.seed(1)
    path = trained(source, tmp_path / "global", partition=unseeded).path
    np.random.seed(2)
    interfuse.resume(path, rounds=2)
    path = trained(source, tmp_path / "elsewhere", partition=elsewhere).path
    with pytest.raises(RunError, match="has another division between the clients"):
        interfuse.resume(path, rounds=2)
    assert interfuse.load_run(path).model(0) is not None  # models as they are do not depend on it


def test_what_is_doubtful_in_the_data_is_a_warning_of_the_run(tmp_path: Path) -> None:
    source = tmp_path / "rows.csv"
    source.write_text("\n".join(["a,b,label", *[row for row in ROWS[:12] for _ in range(5)]]))
    result = trained(source, tmp_path / "run")
    (warning,) = [one for one in result.summary.warnings if "test rows are equal to a training row" in one.text]
    assert warning.name == "data as it was read"
    assert warning.text in repr(result)
    assert warning.text in (result.path / "report.html").read_text()
    assert "equal to a training row" not in result.summary.headline.text
