"""A page in headless Chromium, which is moved as a person would: over the pipe of its developer tools."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_QUIET = ("quic", "component-update", "background-networking", "sync", "gpu", "dev-shm-usage", "extensions")


class Page:
    """One page. ``complaints`` are what its console and its network say of it."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest, self._number, self._session = write, read, b"", 0, ""
        self.complaints: list[str] = []
        self.requested: list[str] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> Any:
        """Carry a command out, and take what is told meanwhile."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(
            self._write, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]
            self._told(found)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._read, 1 << 20)
            assert more, "the browser ended"
            self._rest += more
        one, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(one)
        return found

    def _told(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(str(told["exceptionDetails"].get("exception", {}).get("description")))
            case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning"):
                self.complaints.append(str(told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] == "error":
                self.complaints.append(told["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requested.append(f"{told['request']['method']} {told['request']['url']}")

    def open(self, url: str, width: int, height: int = 900) -> None:
        """Go to an address in a window of a width."""
        self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.do("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """Of an expression in the page."""
        found = self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> Any:
        """Until an expression holds."""
        until = time.monotonic() + seconds
        while not (found := self.value(expression)):
            assert time.monotonic() < until, f"{expression}; {self.complaints}; {self.value('document.body.innerText')}"
            time.sleep(0.05)
        return found

    def draw(self, *points: tuple[float, float]) -> None:
        """A stroke on the paper, in parts of its width and height."""
        box = self.value("Object.values(document.querySelector('canvas').getBoundingClientRect().toJSON()).slice(0, 4)")
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, (*points, points[-1]), strict=True):
            at = {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}
            self.do("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **at)

    def press(self, key: str, times: int = 1) -> None:
        """A key."""
        text = {"text": " "} if key == " " else {}
        for _ in range(times):
            self.do("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.do("Input.dispatchKeyEvent", type="keyUp", key=key)

    def screenshot(self, path: Path) -> None:
        """All of the page, as PNG."""
        found = self.do("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def names(self) -> dict[str, list[str]]:
        """What a screen reader is told: names by role."""
        self.do("Accessibility.enable")
        found: dict[str, list[str]] = {}
        for node in self.do("Accessibility.getFullAXTree")["nodes"]:
            if not node.get("ignored"):
                found.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
        return found


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Chromium with one page."""
    assert BROWSER is not None
    (read_by_it, write), (read, written_by_it) = os.pipe(), os.pipe()
    options = [f"--user-data-dir={profile}", "--headless", "--no-sandbox", "--no-first-run", "--remote-debugging-pipe"]
    command = [BROWSER, *options, *(f"--disable-{name}" for name in _QUIET)]
    shell = f'exec "$@" 3<&{read_by_it} 4>&{written_by_it}'
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *command], pass_fds=(read_by_it, written_by_it), stderr=subprocess.DEVNULL
    )
    os.close(read_by_it)
    os.close(written_by_it)
    try:
        yield Page(write, read)
    finally:
        process.terminate()
        process.wait(30)
        os.close(write)
        os.close(read)
