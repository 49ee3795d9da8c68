"""Firefox over WebDriver BiDi and WebKitGTK over WebDriver, with the standard library alone.

Each opens an address, runs the body of an async JavaScript function, and moves a pressed pointer.
"""

import base64
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE = 600  # seconds, for a machine that is busy


def drag(x: float, y: float, across: float, down: float) -> list[dict]:
    """WebDriver's actions of a mouse that is pressed at a place, moved, and released."""
    here = {"type": "pointerMove", "x": int(x), "y": int(y)}
    there = here | {"x": int(x + across), "y": int(y + down)}
    actions = [
        here,
        {"type": "pointerDown", "button": 0},
        there,
        {"type": "pointerUp", "button": 0},
    ]
    return [{"type": "pointer", "id": "mouse", "actions": actions}]


def end(process: subprocess.Popen | None) -> None:
    """Ends a process, if there is one, and waits until it has."""
    if process is not None:
        process.terminate()
        process.wait()


class Firefox:
    """A headless Firefox with a profile in a folder."""

    program = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)
    process = None

    def start(self, folder: Path) -> None:
        command = [self.program, "--headless", "--remote-debugging-port", "0"]
        command += ["--profile", str(folder)]
        log = folder / "firefox.log"
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)
        found = None
        while found is None:
            assert self.process.poll() is None, "Firefox ended before it listened"
            time.sleep(0.05)
            found = re.search(r"BiDi listening on ws://[^:]+:(\d+)\s", log.read_text())
        self.socket = socket.create_connection(("127.0.0.1", int(found[1])), PATIENCE)
        key = base64.b64encode(os.urandom(16)).decode()
        request = f"GET /session HTTP/1.1\r\nHost: 127.0.0.1:{found[1]}\r\nUpgrade: websocket\r\n"
        request += (
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
        )
        self.socket.sendall(f"{request}\r\n".encode())
        self.stream = self.socket.makefile("rb")
        while self.stream.readline().strip():  # the answer's header
            pass
        self.count = 0
        self.send("session.new", capabilities={})
        self.context = self.send("browsingContext.getTree")["contexts"][0]["context"]

    def send(self, method: str, **parameters) -> dict:
        """A command's result. Raises AssertionError for one that fails."""
        self.count += 1
        command = {"id": self.count, "method": method, "params": parameters}
        data = json.dumps(command).encode()
        mask = b"mask"
        data = bytes(byte ^ mask[k % 4] for k, byte in enumerate(data))
        size = bytes([0x80 | min(125, len(data))])  # in as few bytes as there can be
        if len(data) > 125:
            size = struct.pack("!BH", 0xFE, len(data))
        if len(data) > 65535:
            size = struct.pack("!BQ", 0xFF, len(data))
        self.socket.sendall(b"\x81" + size + mask + data)
        answer = {}
        while answer.get("id") != self.count:
            answer = self.receive()
        assert answer["type"] == "success", answer
        return answer["result"]

    def receive(self) -> dict:
        """The next message."""
        data = b""
        is_last = False
        while not is_last:
            first, length = self.stream.read(2)
            is_last = bool(first & 0x80)
            if length > 125:
                size, kind = (2, "!H") if length == 126 else (8, "!Q")
                (length,) = struct.unpack(kind, self.stream.read(size))
            data += self.stream.read(length)
        return json.loads(data or b"{}")

    def open(self, address: str) -> None:
        self.send("browsingContext.navigate", context=self.context, url=address, wait="complete")

    def run(self, body: str):
        """What the body of an async function returns, as JSON."""
        script = f"(async () => JSON.stringify(await (async () => {{ {body} }})()))()"
        target = {"context": self.context}
        found = self.send("script.evaluate", expression=script, target=target, awaitPromise=True)
        assert found["type"] == "success", found
        return json.loads(found["result"]["value"])

    def move(self, actions: list[dict]) -> None:
        self.send("input.performActions", context=self.context, actions=actions)

    def close(self) -> None:
        end(self.process)


class WebKit:
    """WebKitGTK's small browser, on a display of its own."""

    folders = sorted(Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser"))
    program = folders[0] if folders and shutil.which("WebKitWebDriver") else None
    program = program if shutil.which("Xvfb") else None
    process = display = None

    def start(self, folder: Path) -> None:
        self.display = subprocess.Popen(
            ["Xvfb", "-displayfd", "1", "-screen", "0", "1280x900x24"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        number = self.display.stdout.readline().strip()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {"DISPLAY": f":{number}", "HOME": str(folder)}
        self.process = subprocess.Popen(["WebKitWebDriver", f"--port={port}"], env=environment)
        self.address = f"http://127.0.0.1:{port}/session"
        options = {"binary": str(self.program), "args": ["--automation"]}
        wanted = {"alwaysMatch": {"webkitgtk:browserOptions": options}}
        self.address += "/" + self.send("", capabilities=wanted)["sessionId"]
        self.send("/timeouts", script=1000 * PATIENCE)

    def send(self, path: str, **parameters):
        """A command's value, once the driver listens."""
        data = json.dumps(parameters).encode()
        header = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, data, header)
        while True:
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                    return json.load(answer)["value"]
            except urllib.error.HTTPError as error:
                raise AssertionError(error.read().decode()) from error
            except urllib.error.URLError:
                assert self.process.poll() is None, "WebKitWebDriver ended"

    def open(self, address: str) -> None:
        self.send("/url", url=address)

    def run(self, body: str):
        """What the body of an async function returns, as JSON."""
        script = f"const done = arguments[0]; (async () => {{ {body} }})().then(done, done);"
        return self.send("/execute/async", script=script, args=[])

    def move(self, actions: list[dict]) -> None:
        self.send("/actions", actions=actions)

    def close(self) -> None:
        end(self.process)
        end(self.display)
