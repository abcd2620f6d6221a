"""The page in a real browser: nothing to complain about in its console, and no scrolling sideways on a telephone."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from fake_run import LOCAL, FakeRun, write_page, write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = [390, 1280]
LONG = "a-very-long-name-without-a-single-place-to-break-it" * 3
FAKES = {
    "four": FakeRun(),
    "sixteen": FakeRun(clients=16),
    "hundred": FakeRun(clients=100),
    "long names": FakeRun(method=LONG, architectures=(LONG,), class_names=[LONG] * 3, note=LONG),
}

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on PATH, and there is none")


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    quiet = ("quic", "component-update", "background-networking", "sync", "gpu")
    return subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet),
            f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", *options, page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


def console_errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module", params=FAKES)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, fake = tmp_path_factory.mktemp("run"), FAKES[request.param]
    write_run(folder, fake, (replace(LOCAL, clients=fake.clients, architectures=fake.architectures),))
    return write_page(folder)


def test_complaints_of_a_page_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!DOCTYPE html><script>undefined_function()</script>", encoding="utf-8")
    assert len(console_errors(browse(page, tmp_path / "profile", "--dump-dom"))) == 1


def test_page_opens_without_complaint(page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    done = browse(page, tmp_path / "profile", "--window-size=1280,1600", f"--screenshot={picture}")
    assert console_errors(done) == []
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_page_does_not_scroll_sideways(page: Path, tmp_path: Path) -> None:
    # Frames, because a window cannot be as narrow as a telephone.
    measure = "<script>parent.document.title += `${document.documentElement.scrollWidth} of ${innerWidth}.`</script>"
    inner = html.escape(page.read_text(encoding="utf-8").replace("</body>", f"{measure}</body>"))
    frames = tmp_path / "frames.html"
    frames.write_text(
        '<!DOCTYPE html><meta charset="utf-8">'
        + "".join(f'<iframe style="border:0;width:{w}px;height:900px" srcdoc="{inner}"></iframe>' for w in WIDTHS),
        encoding="utf-8",
    )
    done = browse(frames, tmp_path / "profile", "--window-size=1500,1000", "--dump-dom")
    measured = re.findall(r"(\d+) of (\d+)\.", re.findall("<title>(.*?)</title>", done.stdout)[0])
    assert sorted(int(width) for _, width in measured) == WIDTHS
    assert all(int(content) <= int(width) for content, width in measured)
