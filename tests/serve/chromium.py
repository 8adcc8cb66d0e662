"""A headless Chromium, driven over its DevTools protocol (https://chromedevtools.github.io)."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # as root there is no other way
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1280,900",
    "--remote-debugging-port=0",
)


def find_chromium() -> str | None:
    """The program, where there is one."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


class Browser:
    """A browser with one page. Everything that it sent, logged or failed at is in ``events``.

    Args:
        folder: for its profile; it is ended with :meth:`close`.
    """

    def __init__(self, program: str, folder: Path) -> None:
        self.process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.events: list[dict[str, Any]] = []
        self._ids = itertools.count(1)
        self._socket = self._connect(folder / "DevToolsActivePort")
        self._session: str | None = None
        (target,) = (
            t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"
        )
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _connect(self, file: Path) -> ClientConnection:
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            lines = file.read_text().split() if file.exists() else []
            if len(lines) == 2:
                url = f"ws://127.0.0.1:{lines[0]}{lines[1]}"
                return connect(url, max_size=None, compression=None, proxy=None)
            time.sleep(0.02)
        self.process.kill()
        raise RuntimeError("Chromium did not start")

    def close(self) -> None:
        self._socket.close()
        self.process.terminate()
        self.process.wait(30)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._socket.send(json.dumps(message))
        while True:
            reply = json.loads(self._socket.recv(timeout=60))
            if reply.get("id") == number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return dict(reply["result"])
            self.events.append(reply)

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; of a promise, what it gives."""
        found = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str, *, within_s: float = 20) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if self.js(f"Boolean({condition})"):
                return
            time.sleep(0.02)
        raise AssertionError(f"it never came: {condition}\n{self.js('document.body.innerText')}")

    def open(self, url: str) -> None:
        """Go there, with nothing left of the page before."""
        self.events.clear()
        self.call("Page.navigate", url=url)

    def fill(self, selector: str, value: object) -> None:
        """Type into a field, as far as its page can tell."""
        self.js(
            f"(e => {{ e.value = {json.dumps(str(value))};"
            "for (const kind of ['input', 'change'])"
            " e.dispatchEvent(new Event(kind, {bubbles: true})); })"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    def click(self, selector: str) -> None:
        """Click on the middle of an element, with the mouse."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def hover(self, selector: str) -> None:
        """Move the mouse over an element."""
        x, y = self._middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str, *, ctrl: bool = False) -> None:
        """Press a key that writes nothing."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, modifiers=2 * ctrl)

    def _middle(self, selector: str) -> tuple[float, float]:
        box = self.js(
            f"(e => {{ e.scrollIntoView({{block: 'nearest'}}); const r = e.getClientRects()[0];"
            "return [r.left + r.width / 2, r.top + r.height / 2]; })"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        return box[0], box[1]

    def screenshot(
        self, file: Path, *, width: int = 1280, height: int = 900, dark: bool = False
    ) -> None:
        """The page as a PNG, in a window of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        time.sleep(0.3)
        data = self.call("Page.captureScreenshot", format="png")["data"]
        file.write_bytes(base64.b64decode(data))
