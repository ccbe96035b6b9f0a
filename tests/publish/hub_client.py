"""Runs the real clients in processes of their own: HF_ENDPOINT is read when huggingface_hub is imported.

As a script it is a worker that imports once and then obeys many calls, one JSON line each.
"""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import time
import zlib

# A canary: no file, log, card or commit may ever hold it. (Put together here so that no scanner takes it for real.)
TOKEN = "hf_" + "Canary" * 6
OTHER_TOKEN = "hf_" + "Stranger" * 4


def client_environment(hub, home, token=TOKEN):
    """The environment of a client of `hub`; `home` is where it keeps its cache."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    # hf_xet would try a failing request again for minutes.
    kept |= {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1", "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms"}
    names = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    names |= {"HF_TOKEN": token} if token else {}
    names |= {} if hub.xet_url else {"HF_HUB_DISABLE_XET": "1"}
    return {**kept, **names, "HF_HUB_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}


class ClientError(Exception):
    """An exception of the worker: its type's name and message."""

    def __init__(self, kind, message):
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


class Client:
    """A worker process: `client.call(module, "push_folder", ...)` returns its result; prints go to `client.output`."""

    def __init__(self, hub, home, log):
        self.log = open(log, "w")
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=client_environment(hub, home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def call(self, module, function, *arguments, **keywords):
        self.process.stdin.write(json.dumps([module, function, arguments, keywords]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.output = answer["output"]
        if "error" in answer:
            raise ClientError(answer["error"], answer["message"])
        return answer["result"]

    def push(self, folder, repo_id, **keywords):
        return self.call("electra_hf.publish.hub", "push_folder", str(folder), repo_id, **keywords)

    def as_user(self, token):
        """Use another token from now on; None for no token."""
        self.call("hub_client", "set_token", token)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def set_token(token):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token


def remote_files(repo_id, revision=None):
    """Path -> checksum of what is on the Hub."""
    from huggingface_hub import HfApi

    entries = HfApi().list_repo_tree(repo_id, revision=revision, recursive=True)
    return {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in entries}


def read_remote(repo_id, name):
    from huggingface_hub import hf_hub_download

    with open(hf_hub_download(repo_id, name), encoding="utf-8") as file:
        return file.read()


def files_that_hold(token, place):
    """Files below `place` with the token in them, git's compressed objects looked into."""
    found = []
    for path in place.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            is_git_object = "objects" in path.parts and len(path.parent.name) == 2
            if token.encode() in (zlib.decompress(content) if is_git_object else content):
                found.append(path)
    return found


def fetch_rows(name):
    """Numbers of rows of the dataset, after a comparison with its manifest."""
    from electra_hf.text.packed_rows import open_packed_rows
    from electra_hf.text.remote_rows import find_packed_rows

    packed = open_packed_rows(find_packed_rows(name))
    return [len(packed.train), len(packed.test)]


def push_at_the_end(folders):
    from electra_hf.publish.hub import PushSettings, push_results

    push_results(folders, PushSettings(push_to_hub=True))


def ask(method, *arguments, **keywords):
    """Call a method of HfApi; what cannot be told in JSON comes back as text."""
    from huggingface_hub import HfApi

    return json.loads(json.dumps(getattr(HfApi(), method)(*arguments, **keywords), default=lambda value: vars(value)))


def obey():
    import huggingface_hub.utils._http as http

    # The client waits 1 + 2 + 4 + 8 + 8 seconds between its attempts; a test need not.
    http.time = type("Impatient", (), {"sleep": staticmethod(lambda seconds: time.sleep(seconds / 200))})
    for line in sys.stdin:
        module, function, arguments, keywords = json.loads(line)
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                answer = {"result": getattr(importlib.import_module(module), function)(*arguments, **keywords)}
        except (Exception, SystemExit) as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps({**answer, "output": output.getvalue()}), flush=True)


if __name__ == "__main__":
    sys.modules["hub_client"] = sys.modules["__main__"]
    obey()
