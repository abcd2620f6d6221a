"""`make venv` replaces nothing that it did not make."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_an_environment_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    """As in a second checkout that uses the first one's."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    (here / "scripts").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("")
    for name in ("scripts/setup.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, here / name)
    (here / ".venv").symlink_to(elsewhere)
    ran = subprocess.run(["sh", here / "scripts" / "setup.sh"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert f"error: .venv is a link to {elsewhere}" in ran.stderr
    assert "Remove the link" in ran.stderr
    assert (here / ".venv").readlink() == elsewhere
    assert [path.name for path in elsewhere.iterdir()] == ["kept"]
