"""A headless Chromium for tests, driven by its DevTools protocol over a pair of pipes. No package is needed for it."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATH = next(filter(None, map(shutil.which, NAMES)), None)
KEYS = {
    **{"Tab": (9, ""), "Enter": (13, "\r"), "Space": (32, " ")},
    **{"ArrowLeft": (37, ""), "ArrowRight": (39, ""), "ArrowUp": (38, ""), "ArrowDown": (40, "")},
}


class Browser:
    """One page. `requests` has the address of everything that it asked for, `messages` what it complained of."""

    def __init__(self, profile, width=1200, height=1000):
        self.requests, self.messages, self.number, self.buffer = [], [], 0, b""
        theirs_in, self.write_end = os.pipe()
        self.read_end, theirs_out = os.pipe()
        # Chromium talks on descriptors 3 and 4. First out of their way: one of ours may be one of these.
        parts = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (theirs_in, theirs_out)]
        os.close(theirs_in), os.close(theirs_out)

        def put_in_place():
            os.dup2(parts[0], 3), os.dup2(parts[1], 4)

        flags = ["--headless=new", "--no-first-run", "--disable-gpu", "--hide-scrollbars"]
        flags += ["--no-sandbox"] if os.getuid() == 0 else []
        # Whatever slips through finds no other machine.
        flags += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-background-networking"]
        command = [PATH, *flags, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            command, pass_fds=(3, 4), preexec_fn=put_in_place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for part in parts:
            os.close(part)
        self.session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def call(self, method, **parameters):
        """The result of a command of the protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        number, answer = self.number, {}
        while answer.get("id") != number:
            answer = self.receive()
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self, timeout=60):
        """The next message, and a note of it where it is about a request or a complaint."""
        while b"\0" not in self.buffer:
            assert select.select([self.read_end], [], [], timeout)[0], "the browser is silent"
            chunk = os.read(self.read_end, 1 << 20)
            assert chunk, "the browser has ended"
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(message)
        event = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        if message.get("method") == "Log.entryAdded":
            self.messages.append(event["entry"]["text"])
        if message.get("method") == "Runtime.exceptionThrown":
            self.messages.append(str(event["exceptionDetails"]))
        return message

    def open(self, url, ready):
        self.call("Page.navigate", url=url)
        self.wait(ready)

    def resize(self, width, height, mobile=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def evaluate(self, expression):
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition, seconds=60):
        """Until a JavaScript condition holds, and its value."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(condition)):
            assert time.monotonic() < end, f"waited in vain for {condition}"
            time.sleep(0.05)
        return value

    def find(self, selector, attribute):
        """The property of every element that the selector finds, such as textContent or dataset.token."""
        return self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.{attribute})")

    def place(self, selector):
        found = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.evaluate(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({found}.getBoundingClientRect())")
        return {"x": box[0], "y": box[1]}

    def point(self, selector):
        """Move the pointer there."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **self.place(selector))

    def click(self, selector):
        place = {**self.place(selector), "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", **place)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **place)

    def press(self, key, modifiers=0):
        code, text = KEYS[key]
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        event |= {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **{**event, "text": ""})

    def write(self, text):
        """Type into what has the focus, in place of what stands there."""
        self.evaluate("document.activeElement.select()")
        for letter in text:
            self.call("Input.insertText", text=letter)

    def screenshot(self, path, **clip):
        where = {"clip": {**clip, "scale": 1}} if clip else {}
        data = self.call("Page.captureScreenshot", format="png", **where)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.read_end), os.close(self.write_end)
