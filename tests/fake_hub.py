"""A Hub on the loopback: models in memory, as much of the protocol as pushing to and loading from it takes.

Every file is uploaded inside its commit ("regular"), so neither LFS nor Xet is needed.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

DATE = "2026-01-01T00:00:00.000Z"
ID = r"([^/]+/[^/]+)"


def git_id(content: bytes) -> str:
    """Name content as git does; the Hub's ETag of a regular file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Repository:
    """Commits of one model: for each its files."""

    def __init__(self, name: str):
        self.name = name
        self.commits: dict[str, dict[str, bytes]] = {}
        self.head = ""
        self.commit({})

    def commit(self, files: dict[str, bytes]) -> str:
        """Make `files` the newest commit; returns its id."""
        listing = json.dumps([self.head, sorted((path, git_id(content)) for path, content in files.items())])
        self.head = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[self.head] = files
        return self.head

    def describe(self, commit: str) -> dict[str, Any]:
        """Describe a commit as the API does."""
        siblings = [{"rfilename": path} for path in sorted(self.commits[commit])]
        own = {"id": self.name, "modelId": self.name, "author": self.name.split("/")[0], "sha": commit}
        return {**own, "private": False, "gated": False, "lastModified": DATE, "tags": [], "siblings": siblings}


class Hub(ThreadingHTTPServer):
    """The server; `log` keeps method, path and status of every request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.repositories: dict[str, Repository] = {}
        self.log: list[tuple[str, str, int]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments) -> None:
        """Write nothing to the test's output."""

    def reply(self, status: int, content: Any = None, **headers: str) -> None:
        """Send JSON, or bytes as they are."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.server.log.append((self.command, self.path, status))
        self.send_response(status)
        fields = {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in (fields | {name.replace("_", "-"): value for name, value in headers.items()}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        """Send an error with the code that `huggingface_hub` reads."""
        self.reply(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def read_body(self) -> bytes:
        """Read the request's body, chunked or not."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self) -> None:
        """Find what the path asks for."""
        body, path = self.read_body(), unquote(urlsplit(self.path).path)
        with self.server.lock:
            if path == "/api/repos/create":
                return self.create(json.loads(body))
            if path == "/api/validate-yaml":
                return self.reply(200, {"errors": [], "warnings": []})
            if match := re.fullmatch(rf"/api/models/{ID}(?:/(\w+)/([^/]+)(?:/.*)?)?", path):
                return self.api(match[1], match[2] or "revision", match[3] or "main", body)
            if match := re.fullmatch(rf"/{ID}/resolve/([^/]+)/(.+)", path):
                return self.resolve(*match.groups())
        return self.refuse(404, "EntryNotFound")

    def create(self, wish: dict[str, Any]) -> None:
        """Make a repository."""
        name = f"{wish.get('organization') or 'tester'}/{wish['name']}"
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, Repository(name))
        self.reply(status, {"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def find(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """Find a commit, or refuse."""
        repository = self.server.repositories.get(name)
        if repository is None:
            return self.refuse(404, "RepoNotFound")
        commit = repository.head if revision == "main" else revision
        if commit not in repository.commits:
            return self.refuse(404, "RevisionNotFound")
        return repository, commit

    def api(self, name: str, verb: str, revision: str, body: bytes) -> None:
        """Answer what `HfApi` asks about a model, or do what it says."""
        found = self.find(name, revision)
        if found is None:
            return None
        repository, commit = found
        files = repository.commits[commit]
        if verb == "revision":
            return self.reply(200, repository.describe(commit))
        if verb == "tree":
            tree = [
                {"type": "file", "path": path, "size": len(content), "oid": git_id(content)}
                for path, content in sorted(files.items())
            ]
            return self.reply(200, tree)
        if verb == "preupload":
            modes = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for each in json.loads(body)["files"]
            ]
            return self.reply(200, {"files": modes})
        if verb == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            new = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            oid = repository.commit(files | new)
            return self.reply(
                200, {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"}
            )
        return self.refuse(404, "EntryNotFound")

    def resolve(self, name: str, revision: str, path: str) -> None:
        """Send a file."""
        found = self.find(name, revision)
        if found is None:
            return
        repository, commit = found
        content = repository.commits[commit].get(path)
        if content is None:
            self.reply(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        else:
            self.reply(200, content, X_Repo_Commit=commit, ETag=f'"{git_id(content)}"')

    do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815 - the base class's names


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a Hub while the block runs; set `HF_ENDPOINT` to its `url`."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
