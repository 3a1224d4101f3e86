"""A headless browser, steered over its own debugging protocol."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 30  # for a browser to start, or to answer


class Browser:
    """One page of a running browser."""

    def __init__(self, wire: Any) -> None:
        self._wire = wire
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        found = self._ask("Target.createTarget", url="about:blank")
        self._session = self._ask("Target.attachToTarget", targetId=found["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.tell(f"{domain}.enable")

    def tell(self, method: str, **given: Any) -> dict[str, Any]:
        """Send a command about the page; returns its answer."""
        return self._ask(method, session=self._session, **given)

    def open(self, url: str, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """Open a page in a window of that size."""
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.tell("Emulation.setEmulatedMedia", features=scheme)
        self.tell("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        found = self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> Any:
        """The value of an expression as soon as it is true; a machine that stands still meanwhile takes no time."""
        for _ in range(round(seconds / 0.05)):
            if found := self.value(expression):
                return found
            time.sleep(0.05)
        raise AssertionError(f"never true: {expression}; the page says {self.value('document.body.innerText')}")

    def press(self, key: str, code: int) -> None:
        """Press and release a key; `code` is its virtual key code."""
        for kind in ("rawKeyDown", "keyUp"):
            self.tell("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def picture(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.tell("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def requests(self) -> list[str]:
        """The addresses that the page has asked."""
        self.value("0")
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Errors that the browser has logged, such as a script that broke or was refused."""
        self.value("0")
        logged = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        thrown = [str(e["params"]) for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        return thrown + [f"{e['text']} {e.get('url', '')}" for e in logged if e["level"] == "error"]

    def _ask(self, method: str, session: str | None = None, **given: Any) -> dict[str, Any]:
        number = next(self._numbers)
        about = {"sessionId": session} if session else {}
        self._wire.send(json.dumps({"id": number, "method": method, "params": given, **about}))
        while True:
            word = json.loads(self._wire.recv(timeout=SECONDS))
            if word.get("id") == number:
                assert "error" not in word, (method, word["error"])
                found: dict[str, Any] = word["result"]
                return found
            self.events.append(word)


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in `folder`; skips the test where none is installed."""
    client = pytest.importorskip("websockets.sync.client", reason="websockets is not installed")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(NAMES)})")
    words = [found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    words += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "--no-proxy-server", "about:blank"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            for line in process.stderr:
                if at := re.search(r"listening on (ws://\S+)", line):
                    break
            else:
                pytest.fail("the browser has ended before it was asked anything")
            with client.connect(at[1], max_size=2**26, open_timeout=SECONDS) as wire:
                yield Browser(wire)
        finally:
            process.terminate()
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
