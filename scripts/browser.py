"""Unpack Debian's headless Chromium into build/browser, and drive one over its DevTools protocol.

    scripts/browser.py          fetch it where there is none, and say where it is

A Chromium that is installed is used. Else apt-get fetches one without root (cross_tools.py, 170 MB), once.
The protocol goes over two pipes, so it needs no port and no package. Exit code 77: there is none to be had.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from cross_tools import ROOT, SKIPPED, Unavailable, unpack

FOLDER = ROOT / "build" / "browser"
INSTALLED = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
_PATIENCE = 30  # seconds for anything that is waited for

#: Puts the two ends that it inherits where the browser looks for them, and becomes the browser.
_BECOME = """\
import fcntl, os, sys
ends = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""

_FONTS = """\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
<dir>/usr/share/fonts</dir><dir>{folder}/usr/share/fonts</dir><cachedir>{folder}/fontcache</cachedir>
<include ignore_missing="yes">{folder}/etc/fonts/conf.d</include>
</fontconfig>
"""

#: Without a screen it would say that it has no mouse.
_MOUSE = (
    "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"
)

_KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "Backspace": 8, "F2": 113, "ArrowDown": 40}
_SHIFT = 8


def fetched() -> Path | None:
    """The program that was unpacked before, or None."""
    program = FOLDER / "usr" / "lib" / "chromium" / "chromium-headless-shell"
    return program if (FOLDER / "complete").is_file() else None


def found() -> Path | None:
    """A Chromium of this machine, else the one in build/browser, or None."""
    here = next(filter(None, map(shutil.which, INSTALLED)), None)
    return Path(here) if here else fetched()


def fetch() -> Path:
    """A Chromium; unpacked where there is none.

    Raises:
        Unavailable: see `cross_tools.unpack`.
    """
    if (program := found()) is not None:
        return program
    for folder in (FOLDER, FOLDER.with_name(f"{FOLDER.name}.apt")):
        shutil.rmtree(folder, ignore_errors=True)
    unpack(["chromium-headless-shell", "fonts-dejavu-core"], FOLDER)
    (FOLDER / "fonts.conf").write_text(_FONTS.format(folder=FOLDER), encoding="utf-8")
    (FOLDER / "complete").touch()
    program = fetched()
    assert program is not None
    return program


def _environment(program: Path) -> dict[str, str]:
    """What the program runs with: its own libraries, if it was unpacked here."""
    if not program.is_relative_to(FOLDER):
        return dict(os.environ)
    folders = sorted({str(each.parent) for each in FOLDER.glob("**/*.so*")})
    return os.environ | {
        "LD_LIBRARY_PATH": os.pathsep.join(folders),
        "FONTCONFIG_FILE": os.environ.get("FONTCONFIG_FILE", str(FOLDER / "fonts.conf")),
    }


class Page:
    """A tab. Clicks and keys are the browser's own events, at the place where an element is drawn."""

    def __init__(self, process: "subprocess.Popen[bytes]", reads: int, writes: int) -> None:
        self._process, self._reads, self._writes = process, reads, writes
        self._rest, self._count = b"", 0
        self._session: str | None = None
        self.complaints: list[str] = []  # errors that the page did not catch, and what its policy refused
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command of the protocol."""
        self._count += 1
        asked: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            asked["sessionId"] = self._session
        os.write(self._writes, json.dumps(asked).encode() + b"\0")
        while (message := self._message()).get("id") != self._count:
            self._note(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]  # type: ignore[no-any-return]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._reads], [], [], _PATIENCE)[0]:
                raise RuntimeError("The browser says nothing.")
            part = os.read(self._reads, 1 << 20)
            if not part:
                raise RuntimeError("The browser has ended.")
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)  # type: ignore[no-any-return]

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            details = message["params"]["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        if message.get("method") == "Log.entryAdded":
            entry = message["params"]["entry"]
            if entry["level"] == "error" and entry["source"] != "network":
                self.complaints.append(entry["text"])

    def open(self, url: str) -> None:
        """Go there, and wait until it is loaded."""
        self.send("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What the expression is in the page; a promise is waited for."""
        found = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """What the expression is once it is true."""
        ends = time.monotonic() + _PATIENCE
        while time.monotonic() < ends:
            with contextlib.suppress(RuntimeError):  # between two pages nothing is there
                if (value := self.value(expression)) not in (None, False, 0, ""):  # an element is {}
                    return value
            time.sleep(0.02)
        raise AssertionError(f"It never became true: {expression}")

    def text(self, selector: str) -> str:
        """The text that the first such element shows."""
        return str(self.value(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of the first such element, which has to be what is drawn there; it
        may show only when the mouse is on what it is in."""
        for expression in ("found.parentElement", "found"):
            middle = self.wait(f"""(() => {{
                const found = document.querySelector({json.dumps(selector)});
                if (!found) return null;
                const place = {expression};
                place.scrollIntoView({{block: "nearest"}});
                const box = place.getBoundingClientRect();
                const x = box.x + box.width / 2, y = box.y + box.height / 2;
                return place !== found || found.contains(document.elementFromPoint(x, y)) ? [x, y] : null;
            }})()""")
            place = {"x": middle[0], "y": middle[1]}
            self.send("Input.dispatchMouseEvent", type="mouseMoved", **place)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def type(self, text: str) -> None:
        """Put the text where the focus is."""
        self.send("Input.insertText", text=text)

    def fill(self, selector: str, text: str) -> None:
        """Click the field, and replace all that it holds."""
        self.click(selector)
        self.value(f"document.querySelector({json.dumps(selector)}).select()")
        self.type(text) if text else self.press("Backspace")

    def press(self, key: str, shift: bool = False) -> None:
        """Press one of a few keys that write no letter."""
        code = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        more = {"text": "\r"} if key == "Enter" else {}
        held = _SHIFT if shift else 0
        self.send("Input.dispatchKeyEvent", type="keyDown", modifiers=held, **code, **more)
        self.send("Input.dispatchKeyEvent", type="keyUp", modifiers=held, **code)

    def look(
        self, width: int, height: int, dark: bool = False, scale: float = 1, phone: bool = False
    ) -> None:
        """Be a window of this size, for somebody who prefers light or dark."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)

    def picture(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browsing(program: Path) -> Generator[Page]:
    """A page of a browser that knows nothing of earlier ones."""
    commands, answers = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-gpu"]
        options += [_MOUSE, "--hide-scrollbars", "--no-first-run", "--disable-dev-shm-usage"]
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        process = subprocess.Popen(
            [sys.executable, "-c", _BECOME, str(commands[0]), str(answers[1]), str(program), *options],
            pass_fds=(commands[0], answers[1]),
            env=_environment(program),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands[0])
        os.close(answers[1])
        try:
            yield Page(process, answers[0], commands[1])
        finally:
            process.kill()
            process.wait()
            os.close(answers[0])
            os.close(commands[1])


def main() -> int:
    try:
        print(fetch())
    except Unavailable as error:
        print(f"NOT RUN: no Chromium could be fetched: {error}.", file=sys.stderr)
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
