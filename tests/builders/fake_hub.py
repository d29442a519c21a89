"""A Hub on the loopback: models, data sets and Spaces in memory, as much of the protocol as this project needs.

Files go up inside their commit ("regular"), or, where a `Hub` is made with `large` endings, before it: by Xet as
`huggingface_hub` prefers (see fake_xet.py), or as Git LFS does it where HF_HUB_DISABLE_XET=1. They come down by plain
HTTP. A `Fault` makes the server fail as servers do.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from tests.builders.fake_xet import Storage

DATE = "2026-01-01T00:00:00.000Z"
ID = r"([^/]+/[^/]+)"
KINDS = {"model": "", "dataset": "datasets/", "space": "spaces/"}  # what stands before a repository's name


pause = time.sleep  # of a slow server


def git_id(content: bytes) -> str:
    """Name content as git does; the Hub's ETag of a regular file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Blob(NamedTuple):
    """A file's content, and whether it went up as a large one."""

    content: bytes
    is_large: bool = False

    @property
    def etag(self) -> str:
        """Name the content: git's name, or the SHA-256 of a large file."""
        return hashlib.sha256(self.content).hexdigest() if self.is_large else git_id(self.content)

    def describe(self, path: str) -> dict[str, Any]:
        """Describe a file as the tree does."""
        about = {"type": "file", "path": path, "size": len(self.content), "oid": git_id(self.content)}
        large = {"oid": self.etag, "size": len(self.content), "pointerSize": 130}
        return about | ({"lfs": large} if self.is_large else {})


@dataclass
class Fault:
    """What goes wrong with the next requests of a kind.

    Args:
        method: Of the requests.
        path: Regular expression that is found in their path.
        what: A status to answer; or `drop`, to hang up without reading; `cut`, to hang up in the middle of reading;
            `lose`, to do as asked and hang up without an answer; `half`, to hang up in the middle of the answer;
            `wait`, to be slow.
        times: How many requests it is for.
        seconds: How slow.
    """

    method: str
    path: str
    what: int | Literal["drop", "cut", "lose", "half", "wait"]
    times: int = 1
    seconds: float = 0.0


class Repository:
    """Commits of a repository, for each its files, and branches."""

    def __init__(self, name: str, prefix: str = "", private: bool = False):
        self.name = name
        self.prefix = prefix
        self.private = private
        self.sdk: str | None = None  # of a Space
        self.commits: dict[str, Mapping[str, Blob]] = {}
        self.branches: dict[str, str] = {"main": ""}
        self.variables: dict[str, str] = {}
        self.commit({}, "main")

    @property
    def head(self) -> str:
        """Return the newest commit of the main branch."""
        return self.branches["main"]

    def commit(self, files: Mapping[str, Blob], branch: str) -> str:
        """Make `files` the newest commit of a branch; returns its id."""
        listing = json.dumps([self.branches[branch], sorted((path, blob.etag) for path, blob in files.items())])
        oid = hashlib.sha1(listing.encode()).hexdigest()
        self.branches[branch], self.commits[oid] = oid, files
        return oid

    def describe(self, commit: str) -> dict[str, Any]:
        """Describe a commit as the API does."""
        siblings = [{"rfilename": path} for path in sorted(self.commits[commit])]
        own = {"id": self.name, "author": self.name.split("/")[0], "sha": commit, "private": self.private}
        if not self.prefix:
            own["modelId"] = self.name
        return {**own, "gated": False, "disabled": False, "lastModified": DATE, "tags": [], "siblings": siblings}

    def tree(self, commit: str, folder: str, is_recursive: bool) -> list[dict[str, Any]]:
        """List a folder as the API does."""
        start = f"{folder.strip('/')}/" if folder else ""
        files, folders = [], set()
        for path, blob in sorted(self.commits[commit].items()):
            if path.startswith(start):
                parts = path.removeprefix(start).split("/")
                folders |= {start + "/".join(parts[:end]) for end in range(1, len(parts) if is_recursive else 2)}
                if is_recursive or len(parts) == 1:
                    files.append(blob.describe(path))
        folders -= {file["path"] for file in files}
        return [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)] + files


class Hub(ThreadingHTTPServer):
    """The server; `log` keeps method, path and status of every request.

    Args:
        large: Endings of the files that go up as Git LFS does it.
        users: Names by token, where only these may log in; otherwise whoever comes is `tester`.
    """

    daemon_threads = True

    def __init__(self, large: Collection[str] = (), users: Mapping[str, str] | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.large = tuple(large)
        self.users = users
        self.lock = threading.Lock()
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}  # large files by their SHA-256, committed or not
        self.storage = Storage()
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, int]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self, method: str, path: str) -> Fault | None:
        """Return what is to go wrong with a request, once more at most as often as it shall."""
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def files(self, name: str) -> dict[str, bytes]:
        """Return the newest files of a repository; its name has the prefix of its kind."""
        repository = self.repositories[name]
        return {path: blob.content for path, blob in repository.commits[repository.head].items()}

    def handle_error(self, request, client_address) -> None:
        """Say nothing of clients that hang up."""


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer leaves in one piece, not its head first
    disable_nagle_algorithm = True
    server: Hub
    fault: Fault | None = None

    def log_message(self, *arguments) -> None:
        """Write nothing to the test's output."""

    def hang_up(self) -> None:
        """Close the connection as it is."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def reply(self, status: int, content: Any = None, **headers: str) -> None:
        """Send JSON, or bytes as they are."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.server.log.append((self.command, self.path, status))
        if self.fault and self.fault.what == "lose":
            return self.hang_up()
        self.send_response(status)
        fields = {"Content-Type": kind, "Content-Length": str(len(body))}
        for name, value in (fields | {name.replace("_", "-"): value for name, value in headers.items()}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.fault and self.fault.what == "half":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            return self.hang_up()
        if self.command != "HEAD":
            self.wfile.write(body)
        return None

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
        """Fail as planned, or do what is asked."""
        address = urlsplit(self.path)
        self.fault = self.server.next_fault(self.command, unquote(address.path))
        if self.fault and self.fault.what in ("drop", "cut"):
            if self.fault.what == "cut":
                self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.server.log.append((self.command, self.path, 0))
            return self.hang_up()
        body = self.read_body()
        if self.fault and self.fault.what == "wait":
            pause(self.fault.seconds)
        if self.fault and isinstance(self.fault.what, int):
            return self.refuse(self.fault.what, "PlannedFault")
        with self.server.lock:
            return self.route(unquote(address.path), parse_qs(address.query), body)

    def route(self, path: str, query: Mapping[str, list[str]], body: bytes) -> None:
        """Find what the path asks for."""
        if path == "/api/whoami-v2":
            return self.who()
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": [], "warnings": []})
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            return self.store(match[1], body)
        if match := re.fullmatch(r"/v1/(xorbs|shards)(?:/default/([0-9a-f]{64}))?", path):
            return self.store_by_xet(match[2], body)
        if match := re.fullmatch(rf"/(datasets/|spaces/)?{ID}\.git/info/lfs/objects/batch", path):
            return self.batch(json.loads(body))
        if match := re.fullmatch(rf"/api/(models|datasets|spaces)/{ID}(?:/([\w-]+)(?:/([^/]+)(?:/(.*))?)?)?", path):
            prefix = "" if match[1] == "models" else f"{match[1]}/"
            return self.api(prefix + match[2], match[3] or "revision", match[4] or "main", match[5] or "", query, body)
        if match := re.fullmatch(rf"/(datasets/|spaces/)?{ID}/resolve/([^/]+)/(.+)", path):
            return self.resolve((match[1] or "") + match[2], match[3], match[4])
        return self.refuse(404, "EntryNotFound")

    def user(self) -> str | None:
        """Return who asks; None for a token that is not known."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return "tester" if self.server.users is None else self.server.users.get(token)

    def may_write(self, name: str) -> bool:
        """Tell whether a repository is the asker's; if not, refuse."""
        user = self.user()
        if user is None:
            self.reply(401, {"error": "Invalid"}, X_Error_Message="Invalid credentials in Authorization header")
        elif name.split("/")[-2] != user:
            self.reply(403, {"error": "Forbidden"}, X_Error_Message="You don't have the rights")
        return user is not None and name.split("/")[-2] == user

    def who(self) -> None:
        """Say whose token it is."""
        user = self.user()
        if user is None:
            return self.reply(401, {"error": "Invalid"}, X_Error_Message="Invalid credentials in Authorization header")
        role = "read" if user.startswith("reader") else "write"
        return self.reply(200, {"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": role}}})

    def create(self, wish: dict[str, Any]) -> None:
        """Make a repository."""
        name = f"{wish.get('organization') or self.user()}/{wish['name']}"
        prefix = KINDS[wish.get("type") or "model"]
        if not self.may_write(name):
            return
        status = 409 if prefix + name in self.server.repositories else 200
        is_private = wish.get("visibility") == "private"
        self.server.repositories.setdefault(prefix + name, Repository(name, prefix, is_private)).sdk = wish.get("sdk")
        self.reply(status, {"url": f"{self.server.url}/{prefix}{name}", "name": name, "id": name})

    def store(self, oid: str, content: bytes) -> None:
        """Take a large file."""
        if hashlib.sha256(content).hexdigest() != oid:
            return self.refuse(400, "BadDigest")
        self.server.stored[oid] = content
        return self.reply(200, {}, ETag=f'"{oid}"')

    def store_by_xet(self, xorb: str | None, content: bytes) -> None:
        """Take a xorb of this name, or a shard."""
        if self.headers.get("Authorization") != "Bearer xet":
            return self.refuse(401, "Unauthorized")
        if xorb:
            return self.reply(200, {"was_inserted": self.server.storage.add_xorb(xorb, content)})
        self.server.stored.update(self.server.storage.files_of(content))
        return self.reply(200, {"result": 1})

    def batch(self, wish: dict[str, Any]) -> None:
        """Say where large files are to go that are not there yet."""
        objects = []
        for each in wish["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}
            actions = {} if each["oid"] in self.server.stored else {"actions": upload}
            objects.append({"oid": each["oid"], "size": each["size"]} | actions)
        self.reply(200, {"transfer": "basic", "objects": objects})

    def find(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """Find a commit, or refuse."""
        repository = self.server.repositories.get(name)
        if repository is None:
            return self.refuse(404, "RepoNotFound")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self.refuse(404, "RevisionNotFound")
        return repository, commit

    def api(self, name: str, verb: str, revision: str, rest: str, query: Mapping[str, list[str]], body: bytes) -> None:
        """Answer what `HfApi` asks about a repository, or do what it says."""
        writing = verb in ("preupload", "commit", "branch", "variables") and self.command == "POST"
        if (writing or verb == "xet-write-token") and not self.may_write(name):
            return None
        found = self.find(name, "main" if verb in ("branch", "variables") else revision)
        if found is None:
            return None
        repository, commit = found
        files = repository.commits[commit]
        if verb == "revision":
            return self.reply(200, repository.describe(commit))
        if verb == "tree":
            tree = repository.tree(commit, rest, query.get("recursive", [""])[0].lower() in ("1", "true"))
            return self.refuse(404, "EntryNotFound") if rest and not tree else self.reply(200, tree)
        if verb == "paths-info":
            return self.reply(200, self.describe_paths(repository, commit, body))
        if verb == "xet-write-token":
            return self.reply(200, {"casUrl": self.server.url, "exp": int(time.time()) + 3600, "accessToken": "xet"})
        if verb == "variables":
            return self.set_variables(repository, body)
        if verb == "branch":
            if revision in repository.branches:
                return self.refuse(409, "RefExists")
            repository.branches[revision] = repository.head
            return self.reply(200, {})
        if verb == "preupload":
            return self.reply(200, {"files": [self.mode(each, files) for each in json.loads(body)["files"]]})
        if verb == "commit":
            return self.commit(repository, revision, commit, [json.loads(line) for line in body.splitlines()])
        return self.refuse(404, "EntryNotFound")

    def describe_paths(self, repository: Repository, commit: str, body: bytes) -> list[dict[str, Any]]:
        """Describe the paths that are asked for; those that are not there are left out."""
        try:
            paths = json.loads(body)["paths"]
        except ValueError:
            paths = parse_qs(body.decode()).get("paths", [])
        files, about = repository.commits[commit], []
        for path in paths:
            if path in files:
                about.append(files[path].describe(path))
            elif any(each.startswith(f"{path}/") for each in files):
                about.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        return about

    def set_variables(self, repository: Repository, body: bytes) -> None:
        """Set a variable of a Space, or only list all."""
        if self.command == "POST":
            wish = json.loads(body)
            repository.variables[wish["key"]] = wish["value"]
        self.reply(200, {name: {"key": name, "value": value} for name, value in repository.variables.items()})

    def mode(self, file: dict[str, Any], files: Mapping[str, Blob]) -> dict[str, Any]:
        """Say how a file is to go up."""
        present, path = files.get(file["path"]), file["path"]
        mode = "lfs" if path.endswith(self.server.large) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": present and present.etag}

    def commit(self, repository: Repository, branch: str, parent: str, lines: list[dict[str, Any]]) -> None:
        """Do all that a commit says, or nothing."""
        files = dict(repository.commits[parent])
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header" and value.get("parentCommit") not in (None, parent):
                return self.refuse(412, "ParentCommitMismatch")
            if key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.server.stored:
                    return self.refuse(400, "MissingLfsObject")
                files[value["path"]] = Blob(self.server.stored[value["oid"]], is_large=True)
            elif key == "deletedFile" and files.pop(value["path"], None) is None:
                return self.refuse(404, "EntryNotFound")
        oid = repository.commit(files, branch)
        url = f"{self.server.url}/{repository.prefix}{repository.name}/commit/{oid}"
        return self.reply(200, {"success": True, "commitOid": oid, "commitUrl": url})

    def resolve(self, name: str, revision: str, path: str) -> None:
        """Send a file, or the part of it that is asked for."""
        found = self.find(name, revision)
        if found is None:
            return
        repository, commit = found
        blob = repository.commits[commit].get(path)
        if blob is None:
            self.reply(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        headers = {"X_Repo_Commit": commit, "ETag": f'"{blob.etag}"', "Accept_Ranges": "bytes"}
        if blob.is_large:
            headers |= {"X_Linked_Etag": f'"{blob.etag}"', "X_Linked_Size": str(len(blob.content))}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            last = min(int(asked[2] or len(blob.content) - 1), len(blob.content) - 1)
            headers["Content_Range"] = f"bytes {asked[1]}-{last}/{len(blob.content)}"
            self.reply(206, blob.content[int(asked[1]) : last + 1], **headers)
        else:
            self.reply(200, blob.content, **headers)

    do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815 - the base class's names


@contextmanager
def running_hub(large: Collection[str] = (), users: Mapping[str, str] | None = None) -> Iterator[Hub]:
    """Serve a Hub while the block runs; set `HF_ENDPOINT` to its `url`."""
    hub = Hub(large, users)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
