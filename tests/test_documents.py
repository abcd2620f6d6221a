"""What the documents tell people to write runs as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from worlds import Recorder, federation, largest_difference, same_bits, shares_of

import interfuse
from interfuse.messages import Weights
from interfuse.methods import find

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("no_report")


def code(document: str) -> str:
    """The Python of a document."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL))


def test_the_method_of_the_contributing_page_runs(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code("CONTRIBUTING.md"), encoding="utf-8")
    result = interfuse.run(
        str(file), fusion_width=8, models=["mlp"], clients=2, rounds=2, settings={"lr": 0.1}, out=tmp_path / "run",
        progress=interfuse.Silent(),
    )  # fmt: skip
    assert result.summary.discloses == ("logits",)
    assert result.summary.uplink_bytes.raw == 2 * 2 * 10 * 10 * 4
    assert result.summary.beside["local"].uplink_bytes.raw == 0


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = code("README.md")
    assert "rounds=50" in text
    names: dict[str, object] = {}
    exec(compile(text.replace("rounds=50", "rounds=1"), "README.md", "exec"), names)
    scores = names["scores"]
    assert tuple(scores.shape) == (360, 10)  # type: ignore[attr-defined]


@pytest.fixture
def quick_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of comparisons without plots."""
    monkeypatch.setattr("interfuse.comparison.plots.figures", lambda rows: {})


@pytest.mark.usefixtures("quick_pages")
def test_the_page_on_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(code("docs/python.md"), "python.md", "exec"), names)
    assert names["stopped"].summary.stopped is not None
    assert names["mine"].config.metrics == ("balanced-accuracy", "in-memory:top_two")
    assert names["over_seeds"].seeds == (0, 1, 2)
    assert names["one"].summary.method == "ifl"


def test_the_page_on_attacks_runs() -> None:
    names: dict[str, Any] = {}
    exec(compile(code("docs/privacy.md"), "privacy.md", "exec"), names)
    found = names["found"]
    assert (found.verbatim.value, found.nearly.rows) == (0.1, 200)
    assert f"# {found.verbatim}" in code("docs/privacy.md")


def run_notebook(name: str) -> dict[str, Any]:
    """What is there after its last cell. It is a notebook of version 4.5 without outputs."""
    found = json.loads((ROOT / "examples" / name).read_text(encoding="utf-8"))
    assert (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in found["cells"]}) == len(found["cells"])
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in (cell for cell in found["cells"] if cell["cell_type"] == "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    return names


@pytest.mark.usefixtures("quick_pages")
def test_the_notebook_runs_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell that ends in a value has one to show."""
    monkeypatch.chdir(tmp_path)
    names = run_notebook("notebook.ipynb")
    for shown in ("result", "over_seeds", "found"):
        assert "<table>" in names[shown]._repr_html_()
    assert names["mine"].config.partition == {"name": "in-memory:by_parity"}


def test_blocks_in_the_notebook_on_serving_answer_as_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_notebook("serving.ipynb")
    assert names["largest"] < 1e-6
    assert names["matrix"]["ant", "cat"] > 0.8
    assert "bee has left" in capsys.readouterr().out


def test_the_python_of_the_page_on_data_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code("docs/data.md"), "data.md", "exec"), {})
    assert "('test rows', 'the rows of 1 of 5 groups, whole: the source has no test rows')" in capsys.readouterr().out


def test_the_example_without_its_pull_is_fedavg(tmp_path: Path) -> None:
    def accuracies(method: str, **settings: float) -> list[float]:
        result = interfuse.run(
            method, fusion_width=8, models=["mlp"], clients=2, rounds=2, beside=(), settings={"lr": 0.1} | settings,
            out=tmp_path / f"{Path(method).stem}-{settings}", progress=interfuse.Silent(),
        )  # fmt: skip
        return list(result.curve("global")[1][-1])

    example, average = str(ROOT / "examples" / "fedprox.py"), accuracies("fedavg")
    assert accuracies(example, mu=0.0) == average
    assert accuracies(example, mu=10.0) != average


def test_fedavg_from_outside_averages_by_samples_what_comes_in() -> None:
    file = ROOT / "examples" / "fedavg.py"
    f = federation(find(str(file))(), models=["mlp"], shares=shares_of(range(20), range(20, 25)), wrap=Recorder)
    f.run_round()
    assert isinstance(f.engine, Recorder)
    one, other = (message.tensors for _, _, message in f.engine.up if isinstance(message, Weights))
    mean = {key: (20 * one[key] + 5 * other[key]) / 25 for key in one}
    assert largest_difference(f.server.network("global").tensors(), mean) < 1e-6
    lines = file.read_text(encoding="utf-8").split('"""')[2].splitlines()
    assert len([line for line in lines if line.strip()]) <= 25


CHECKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "design-checks.md").read_text(encoding="utf-8"), re.DOTALL)
EXAMPLES = {
    name: (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8") for name in ("fedrep", "fedbabu", "decoder")
}
WHOLE = EXAMPLES | {re.findall(r"class (\w+)\(Method\)", text)[0]: text for text in CHECKS}


@pytest.mark.parametrize("name", WHOLE)
def test_methods_of_one_file_have_equal_bits_with_two_workers_and_after_a_resume(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name.lower()}.py"
    file.write_text(WHOLE[name], encoding="utf-8")
    settings: dict[str, Any] = {
        "fusion_width": 8, "models": ["mlp"], "clients": 3, "rounds": 3, "beside": (), "progress": interfuse.Silent(),
        "commit_rounds": 1, "settings": {"lr": 0.1},
    }  # fmt: skip
    results = [interfuse.run(str(file), out=tmp_path / str(workers), workers=workers, **settings) for workers in (1, 2)]
    with pytest.raises(LookupError):
        interfuse.run(str(file), out=tmp_path / "cut", **settings | {"progress": Cut()})
    results.append(interfuse.resume(tmp_path / "cut", progress=interfuse.Silent()))
    first, *others = ([dict(r.model(c).state_dict()) for c in range(3)] for r in results)
    for other in others:
        assert all(same_bits(a, b) for a, b in zip(first, other, strict=True))
    assert len(EXAMPLES.get(name, "").splitlines()) <= 60


AROUND = {
    "a round of two calls": "from interfuse.families.fusion import FusionPairs, SharingFusionOutputs as Base\n",
    "a stream": f"{CHECKS[-1]}\nBase = Buffered\n",
}


@pytest.mark.parametrize(("what", "number"), [(what, number) for number, what in enumerate(AROUND)])
def test_the_rounds_of_the_page_on_the_model_run(what: str, number: int, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "model.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == len(AROUND)
    head = f"{AROUND[what]}\nfrom dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Mine(Base):\n"
    (tmp_path / "mine.py").write_text(head + indent(blocks[number], "    "), encoding="utf-8")
    f = federation(find(f"{tmp_path / 'mine.py'}:Mine")(), models=["mlp"])
    f.run_round()
    assert f.exchange.steps.total() > 0


class Cut(interfuse.Silent):
    """Breaks a run off in its second round."""

    def advance(self, row: Any) -> None:
        if row.round == 2:
            raise LookupError


def test_every_link_of_the_documents_leads_somewhere() -> None:
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    for document in documents:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (document.parent / link).exists(), f"{document.name}: {link}"
