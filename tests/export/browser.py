"""Chromium without a window, driven through its DevTools protocol over two pipes; nothing but the standard library."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# no window, and no errand of the browser's own to the network
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps"),
    *("--disable-extensions", "--mute-audio", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
]


def chromium() -> str | None:
    """Where a Chromium is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page of a fresh browser.

    ``requests`` holds the addresses of all that the page asked for.
    """

    def __init__(self, seconds: float = 120) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._until = time.monotonic() + seconds
        self._number, self._buffer = 0, b""

    def __enter__(self) -> "Browser":
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [str(chromium()), *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        to_browser, ours_out = os.pipe()
        ours_in, from_browser = os.pipe()

        def pipes() -> None:
            # it reads commands from descriptor 3 and writes answers to 4; copied out of the way first, for they may be these
            kept = [os.dup(to_browser), os.dup(from_browser)]
            kept = [os.dup2(kept[0], 60), os.dup2(kept[1], 61)]
            os.dup2(kept[0], 3)
            os.dup2(kept[1], 4)

        self._process = subprocess.Popen(
            command, preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._out, self._in = ours_out, ours_in
        os.set_blocking(self._in, False)
        self._session = ""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "DOM", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)
        self._profile.cleanup()

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command's result; events on the way are noted."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert time.monotonic() < self._until, f"the browser does not answer. {self.complaints}"
            try:
                part = os.read(self._in, 1 << 20)
                assert part, "the browser has ended"
                self._buffer += part
            except BlockingIOError:
                time.sleep(0.01)
        line, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(line))

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Until JavaScript says yes."""
        while not self.evaluate(expression):
            assert time.monotonic() < self._until, f"never: {expression}. {self.complaints}"
            time.sleep(0.1)

    def choose_files(self, selector: str, files: list[str]) -> None:
        """As a person does in the dialog of a file input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=files)

    def screenshot(self, path: Path, *, width: int, height: int = 900, scheme: str = "light") -> None:
        """A picture of the whole page at a width, light or dark."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        small = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **small)
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))
