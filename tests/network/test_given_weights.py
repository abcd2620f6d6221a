"""Models of one name have the same frozen weights at all parties, and after a while still."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import tomli_w
import torch
from parties import CLASSES, rows
from torch import nn

import interfuse
from interfuse.coordination.driver import Public, make_contract
from interfuse.engines.parties.contract import Facts
from interfuse.engines.parties.frames import Accept, Offer
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.node import Node
from interfuse.engines.parties.setups import RemoteSetup
from interfuse.engines.parties.vendor import read_vendor
from interfuse.errors import ModelError, RunError
from interfuse.models import SplitModel, given_digest
from interfuse.runs import parse_config

BUILDER = """
from pathlib import Path
import torch
from torch import nn
from interfuse.models import SplitModel

def build(sample_shape, classes, width):
    made = nn.Sequential(nn.Flatten(), nn.Linear({inputs}, 6))
    with torch.no_grad():
        made[1].weight.fill_({weight})
    return SplitModel({{"stem": made, "head": nn.Linear(6, classes)}}, given=("stem",))
"""
CONFIG = parse_config({"method": "local", "evaluation": "own", "models": ["mine"], "beside": []})


def facts_of(folder: Path, name: str, weight: float, run: str = "3f2ab1c9d4e5f607") -> Facts:
    """What a vendor's node says of a model whose frozen weights are these."""
    home = folder / name
    home.mkdir()
    rows(home, "rows", 0)
    (home / f"{name}.py").write_text(BUILDER.format(inputs=16, weight=weight))
    (home / "vendor.toml").write_text(
        tomli_w.dumps(
            {
                "name": name,
                "model": {"build": f"{name}.py:build", "architecture": "mine", "public": True},
                "data": {"source": "rows.npz"},
                "allow": {"methods": ["local"], "disclosures": [], "evaluation": "own"},
            }
        )
    )
    contract = make_contract(CONFIG, CONFIG.make_method(), run, Public.of(CONFIG, CLASSES))
    with closing(Node(read_vendor(home / "vendor.toml"), Events(None, lambda text: None), lambda *each: None)) as node:
        ((answer, _),) = node.answer(Offer(contract=contract), b"")
    assert isinstance(answer, Accept)
    return answer.facts


def test_one_name_with_other_frozen_weights_is_refused(tmp_path: Path) -> None:
    alike = [facts_of(tmp_path, name, 0.5) for name in ("ant", "bee")]
    other = facts_of(tmp_path, "cat", 0.5 + 2**-24)
    contract = make_contract(CONFIG, CONFIG.make_method(), "3f2ab1c9d4e5f607", Public.of(CONFIG, CLASSES))

    def profiles(*facts: Facts) -> object:
        known = dict(enumerate(facts))
        public = Public.of(CONFIG, CLASSES)
        return RemoteSetup(contract, None, CONFIG.make_method(), known, public.labels, {}, public.class_names).profiles

    assert profiles(*alike)
    with pytest.raises(ModelError, match=r"clients 0 and 2 .*'mine', but their frozen weights differ; give one of"):
        profiles(*alike, other)
    assert profiles(alike[0], other.model_copy(update={"architecture": "another"}))


def test_digests_of_two_runs_cannot_be_compared(tmp_path: Path) -> None:
    one, two = (facts_of(tmp_path, name, 0.5, run) for name, run in (("ant", "a" * 16), ("bee", "b" * 16)))
    assert one.given != two.given


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
def test_a_digest_is_of_every_bit_shape_and_name(dtype: torch.dtype) -> None:
    def digest(values: torch.Tensor, name: str = "stem") -> str:
        module = nn.Module()
        module.register_buffer("w", values)
        head = nn.Linear(2, 2)
        return given_digest(SplitModel({name: module, "head": head}, given=(name,)))

    values = torch.arange(6).to(dtype)
    first = digest(values)
    assert first == digest(values.clone()) != digest(values.reshape(2, 3)) != digest(values, "other")
    for i in range(6):
        changed = values.clone()
        changed[i] += 1
        assert digest(changed) != first
    assert given_digest(SplitModel({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})) == ""


@pytest.mark.usefixtures("no_report")
def test_a_run_does_not_go_on_with_other_frozen_weights(tmp_path: Path) -> None:
    file, weights = tmp_path / "own_frozen.py", tmp_path / "weight.txt"
    file.write_text(BUILDER.format(inputs=64, weight=f"float(Path({str(weights)!r}).read_text())"))
    weights.write_text("0.5")
    result = interfuse.run(
        "local",
        data="digits",
        models=[f"{file}:build"],
        clients=2,
        rounds=1,
        beside=(),
        workers=1,
        out=tmp_path / "run",
        settings={"local_steps": 1},
        progress=interfuse.Silent(),
    )
    weights.write_text("0.25")
    with pytest.raises(RunError, match="models that are given other weights$"):
        interfuse.resume(result.path, rounds=2)
    weights.write_text("0.5")
    assert interfuse.resume(result.path, rounds=2).summary.rounds == 2
