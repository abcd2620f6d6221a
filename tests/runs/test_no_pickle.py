"""A pickle is a program; no run writes or reads one, in its processes, on its wire or in its folder."""

from __future__ import annotations

import pickle
import pickletools
import re
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import interfuse
import interfuse.report.html  # Jinja2 pickles a number while it is imported
import interfuse.report.plots

SOURCE = Path(interfuse.__file__).parent


def test_no_module_imports_pickle_or_asks_others_to() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(?:import|from) (?:pickle|cloudpickle|dill|shelve|marshal)\b", text, re.MULTILINE), (
            path
        )
        assert not re.search(r"\btorch\.(?:load|save)\(|allow_pickle=True|weights_only=False", text), path


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pickletools")  # of what it takes for text in a packed tensor
def test_a_run_with_workers_and_its_resume_pickle_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object, **named: object) -> Any:
        raise AssertionError("pickled")

    for place, names in (
        (pickle, ("dump", "dumps", "load", "loads", "Pickler", "Unpickler")), (torch, ("save", "load")),
        (ForkingPickler, ("dumps", "loads")),
    ):  # fmt: skip
        for name in names:
            monkeypatch.setattr(place, name, refused)

    class Cut(interfuse.Silent):
        def advance(self, row: Any) -> None:
            if row.round == 2:
                raise LookupError

    settings: dict[str, Any] = {
        "models": ["mlp"], "clients": 2, "rounds": 2, "fusion_width": 8, "beside": [], "workers": 2, "commit_rounds": 1,
    }  # fmt: skip
    with pytest.raises(LookupError):
        interfuse.run("ifl", out=tmp_path / "run", progress=Cut(), **settings)
    result = interfuse.resume(tmp_path / "run", progress=interfuse.Silent())
    result.compose(0, 1)(np.zeros((2, 1, 8, 8), dtype=np.uint8))
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file() and file.stat().st_size:
            with pytest.raises((ValueError, EOFError)):
                list(pickletools.genops(file.read_bytes()))
