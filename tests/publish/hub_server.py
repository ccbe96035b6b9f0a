"""A small Hub-compatible server on loopback, for tests: the real clients talk HTTP to it.

It keeps real git repositories (hub_repository.py), asks for tokens, and answers as the Hub does in the calls that
huggingface_hub, transformers, `hf` and the JavaScript client make. `Fault` makes chosen requests go wrong. Requests
are kept in `hub.requests`, bodies included, so that a test can look for what should never have been sent.
"""

import contextlib
import json
import re
import socket
import threading
import traceback
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from hub_api import ROUTES
from hub_repository import HubError, LargeFiles


@dataclass
class Fault:
    """Does `action(handler)` in place of serving the next `times` requests that fit; it may also serve them."""

    method: str
    path: str  # a regular expression, searched for
    action: Callable
    times: int = 1

    def fits(self, method, path):
        return self.times > 0 and method == self.method and re.search(self.path, path)


def answer(status, message="injected fault"):
    """A fault: this status."""

    def action(handler):
        raise HubError(status, message)

    return action


def hang_up(handler):
    """A fault: the connection closes without an answer."""
    handler.close_connection = True


def serve_then_hang_up(handler):
    """A fault: the request is served, the answer is lost."""
    handler.deaf = True
    handler.serve()
    handler.close_connection = True


class Hub:
    """Users, repositories, large files; `serve` and `stop` as often as wanted, always on the same port."""

    def __init__(self, folder, tokens, xet=False):
        self.folder, self.tokens = Path(folder), tokens  # tokens: token -> user name
        self.files, self.repositories, self.faults, self.requests = LargeFiles(self.folder, xet), {}, [], []
        self.xet_url = f"local://{self.files.xet_folder}" if xet else None
        self.lock, self.port, self.server, self.connections = threading.Lock(), 0, None, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), type("BoundHandler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.server = None
        # Connections kept alive would go on being served by their threads.
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.connections.clear()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def setup(self):
        super().setup()
        self.hub.connections.append(self.connection)

    def log_message(self, *arguments):
        pass

    def dispatch(self):
        self.status, self.deaf = None, False
        self.body = self._read_body()
        self.address = urllib.parse.urlsplit(self.path)
        self.query = urllib.parse.parse_qs(self.address.query)
        try:
            fault = next((fault for fault in self.hub.faults if fault.fits(self.command, self.path)), None)
            if fault:
                fault.times -= 1
                fault.action(self)
            else:
                self.serve()
        except HubError as error:
            headers = {"X-Error-Message": error.message, **error.headers}
            if error.code:
                headers["X-Error-Code"] = error.code
            self.reply({"error": error.message}, error.status, headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:
            traceback.print_exc()
            self.reply({"error": repr(error)}, 500)
        finally:
            authorized = bool(self.headers.get("authorization"))
            request = {"method": self.command, "path": self.path, "status": self.status, "authorized": authorized}
            self.hub.requests.append({**request, "body": self.body})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = dispatch

    def serve(self):
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, function in ROUTES:
            match = pattern.fullmatch(self.address.path) if route_method == method else None
            if match:
                parts = {key: value and urllib.parse.unquote(value) for key, value in match.groupdict().items()}
                return function(self, **parts)
        raise HubError(404, "Sorry, we can't find the page you are looking for.")

    def _read_body(self):
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def reply(self, content=None, status=200, headers=None):
        """`content`: bytes as they are, None for nothing, anything else as JSON."""
        self.status = status
        if self.deaf:
            return
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        data = b"" if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def user(self):
        """Who asks: a name, or None for anonymous. A wrong token is refused."""
        header = self.headers.get("authorization")
        if not header:
            return None
        if header.removeprefix("Bearer ") not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[header.removeprefix("Bearer ")]

    def repository(self, kind, name, write=False):
        repository, user = self.hub.repositories.get((kind or "models", name)), self.user()
        if repository is None or (repository.private and user != repository.owner):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user != repository.owner:
            raise HubError(403 if user else 401, f"You have no right to write to {name}")
        if repository.gated and user is None:
            raise HubError(401, "Access to this model is restricted.", "GatedRepo")
        return repository
