"""What stands behind the test Hub: bare git repositories, and one store for large files (LFS or Xet)."""

import os
import re
import struct
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".onnx", ".parquet", ".arrow", ".zip")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
AUTHOR = {f"GIT_{role}_{key}": "tester" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
ABSENT = "0" * 40


class HubError(Exception):
    """A refusal with its HTTP status and the code the clients turn into their own exceptions."""

    def __init__(self, status, message, code=None, headers=None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


@dataclass
class Entry:
    """One file of a commit. `oid` is git's; `lfs` is the SHA-256 of a large file, `size` its real size."""

    path: str
    oid: str
    size: int
    lfs: str | None = None
    pointer_size: int = 0

    def as_json(self):
        row = {"type": "file", "path": self.path, "oid": self.oid, "size": self.size}
        if self.lfs:
            row["lfs"] = {"oid": self.lfs, "size": self.size, "pointerSize": self.pointer_size}
        return row


class LargeFiles:
    """Contents by SHA-256: files that came through LFS, or what hf_xet itself wrote into a local folder."""

    def __init__(self, folder: Path, xet: bool):
        self.folder, self.xet_folder = folder / "lfs", folder / "xet" if xet else None
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, oid):
        return self.folder / oid

    def size(self, oid):
        """Size in bytes, or None for what was never uploaded."""
        if self.xet_folder:
            return self._xet_files().get(oid, (None, None))[1]
        return self.path(oid).stat().st_size if self.path(oid).exists() else None

    def xet_hash(self, oid):
        return self._xet_files()[oid][0]

    def _xet_files(self):
        """SHA-256 -> (Xet hash, size), read from the shard files that hf_xet leaves in its local store."""
        found = {}
        for shard in self.xet_folder.rglob("*.mdb"):
            data, position = shard.read_bytes(), 48
            while position + 48 <= len(data) and data[position : position + 32] != b"\xff" * 32:
                xet_hash = _xet_hex(data[position : position + 32])
                flags, segments = struct.unpack_from("<II", data, position + 32)
                position += 48
                size = sum(struct.unpack_from("<I", data, position + 48 * i + 36)[0] for i in range(segments))
                # A second table of the same length follows where the segments carry verification hashes.
                position += 48 * segments * (2 if flags & 0x80000000 else 1)
                if flags & 0x40000000:
                    found[_xet_hex(data[position : position + 32])] = (xet_hash, size)
                    position += 48
        return found


def _xet_hex(raw):
    # Xet prints a hash as four little-endian 64-bit numbers.
    return "".join(raw[i : i + 8][::-1].hex() for i in range(0, 32, 8))


class Repository:
    """One bare git repository; every write is a real commit."""

    def __init__(self, folder: Path, name: str, private: bool):
        self.folder, self.name, self.private, self.gated = folder, name, private, False
        self._lock, self._entries = threading.Lock(), {}
        folder.mkdir(parents=True)
        self.git("init", "-q", "--bare", "-b", "main")
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.commit("main", "initial commit", added={".gitattributes": attributes.encode()})

    @property
    def owner(self):
        return self.name.split("/")[0]

    def git(self, *arguments, stdin=None, environment=None, check=True):
        command = ["git", "--git-dir", str(self.folder), *arguments]
        environment = {**os.environ, **AUTHOR, **(environment or {})}
        done = subprocess.run(command, input=stdin, capture_output=True, env=environment)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode()}")
        return done.stdout

    def has_ref(self, ref):
        return bool(self.git("rev-parse", "-q", "--verify", ref, check=False))

    def resolve(self, revision):
        """The commit that a branch, a tag, a ref or a hash names."""
        candidates = [f"refs/heads/{'main' if revision == 'HEAD' else revision}", f"refs/tags/{revision}"]
        if revision.startswith("refs/") or re.fullmatch("[0-9a-f]{7,40}", revision):
            candidates.append(revision)
        for candidate in candidates:
            sha = self.git("rev-parse", "-q", "--verify", candidate + "^{commit}", check=False).decode().strip()
            if sha:
                return sha
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def entries(self, sha):
        """The files of a commit, in git's order."""
        if sha not in self._entries:
            rows = self.git("ls-tree", "-r", "-l", "-z", sha).decode().split("\0")
            self._entries[sha] = [self._entry(row) for row in rows if row]
        return self._entries[sha]

    def entry(self, sha, path):
        for entry in self.entries(sha):
            if entry.path == path:
                return entry
        raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": sha})

    def _entry(self, row):
        meta, path = row.split("\t", 1)
        _, _, oid, size = meta.split()
        if int(size) < 200:
            pointer = re.match(rb"version https://git-lfs\S+\noid sha256:(\w{64})\nsize (\d+)\n", self.read(oid))
            if pointer:
                return Entry(path, oid, int(pointer[2]), pointer[1].decode(), int(size))
        return Entry(path, oid, int(size))

    def read(self, oid):
        return self.git("cat-file", "blob", oid)

    def folder_oid(self, sha, path):
        return self.git("rev-parse", f"{sha}:{path}").decode().strip()

    def commit(self, branch, message, added=None, deleted=(), parent=None):
        """Commit `added` (path -> bytes) and drop `deleted` (paths, or folders ending in "/"). Returns the commit."""
        with self._lock:
            head = self.git("rev-parse", "-q", "--verify", f"refs/heads/{branch}", check=False).decode().strip()
            if parent and not head.startswith(parent):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            index = {"GIT_INDEX_FILE": str(self.folder / "new-index")}
            self.git("read-tree", head or "--empty", environment=index)
            rows = []
            for path, data in (added or {}).items():
                oid = self.git("hash-object", "-w", "--stdin", stdin=data).decode().strip()
                rows.append(f"100644 {oid}\t{path}\n")
            for entry in self.entries(head) if deleted else ():
                if any(entry.path == path or path.endswith("/") and entry.path.startswith(path) for path in deleted):
                    rows.append(f"0 {ABSENT}\t{entry.path}\n")
            self.git("update-index", "--add", "--index-info", stdin="".join(rows).encode(), environment=index)
            tree = self.git("write-tree", environment=index).decode().strip()
            parents = ["-p", head] if head else []
            sha = self.git("commit-tree", tree, *parents, "-m", message).decode().strip()
            self.git("update-ref", f"refs/heads/{branch}", sha)
            return sha

    def refs(self):
        """(kind, short name, full name, commit) of each branch and tag."""
        for row in self.git("for-each-ref", "--format=%(refname) %(objectname)").decode().splitlines():
            ref, sha = row.split()
            _, kind, name = ref.split("/", 2)
            yield {"heads": "branches"}.get(kind, kind), name, ref, sha

    def log(self, sha):
        """(commit, title, rest of the message, date), newest first."""
        text = self.git("log", "--format=%H%x1f%s%x1f%b%x1f%ct%x1e", sha).decode()
        for row in text.split("\x1e"):
            if row.strip():
                commit, title, body, seconds = row.strip("\n").split("\x1f")
                # The clients parse exactly this form, milliseconds included.
                yield commit, title, body.strip(), time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(int(seconds)))
