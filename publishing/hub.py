"""Bring a set of files to a repository on the Hub in one commit, or leave it as it is.

`HfApi.upload_folder` may make several commits of a folder, so that a reader could meet new code beside old weights.
Here large files are uploaded first, by their content and bound to nothing, and one commit names all of them at its end.
Every try begins by comparing with what the Hub has: so a second run uploads nothing, an interrupted one goes on where
it stopped, and a commit whose answer was lost on the way is not made twice.
"""

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, set_client_factory
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from tqdm.auto import tqdm

from command import UserError, first_line

Result = TypeVar("Result")
Kind = Literal["model", "dataset", "space"]
NAMES: dict[Kind, str] = {"model": "model", "dataset": "data set", "space": "Space"}
SIGNATURES = {"model": "modeling_melody_vae.py", "dataset": "build.json", "gradio": "app.py", "static": "index.html"}
"""A file that each repository of ours has; one that holds others but not this is somebody's other work."""

KEPT = {".gitattributes"}  # the Hub's own; it says which files are large
TIMEOUT_SECONDS = 60.0  # of silence, after which a try counts as failed; huggingface_hub would wait for ever
TRIES = 4
FIRST_WAIT_SECONDS = 2.0  # doubled after each try
TRANSIENT_STATUS = {408, 409, 412, 425, 429, 500, 502, 503, 504}
XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")  # in the text of hf_xet's errors
XET_LIMITS = {
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",  # by default five minutes of them, in silence
    "HF_XET_CLIENT_READ_TIMEOUT": f"{TIMEOUT_SECONDS:.0f}s",
}
XET_ERRORS = (ConnectionError, TimeoutError, RuntimeError)  # hf_xet raises Python's own


@dataclass(frozen=True)
class Target:
    """Where files go.

    Args:
        kind: Of repository.
        repo_id: `owner/name`.
        revision: Branch; made if it is not there.
        private: Whether a new repository is for the owner's eyes only.
        variables: Of a Space's environment, set before its files change.
        sdk: Of a Space: `gradio` or `static`.
    """

    kind: Kind
    repo_id: str
    revision: str = "main"
    private: bool = False
    variables: Mapping[str, str] | None = None
    sdk: str = "gradio"

    @property
    def signature(self) -> str:
        """A file that such a repository of ours has, see [`SIGNATURES`]."""
        return SIGNATURES[self.sdk if self.kind == "space" else self.kind]

    def url(self, endpoint: str) -> str:
        """Return the address of the repository's page."""
        return f"{endpoint}/{'' if self.kind == 'model' else f'{self.kind}s/'}{self.repo_id}"


@dataclass(frozen=True)
class Change:
    """What a push did: the commit's address and how many files it brought and took; no address if nothing changed."""

    url: str | None
    uploaded: int = 0
    uploaded_bytes: int = 0
    deleted: int = 0


def limit_waiting() -> None:
    """Let every request to the Hub fail after [`TIMEOUT_SECONDS`] of silence, those too that ask for no limit.

    To be called before the first upload: hf_xet reads its limits once.
    """
    for name, value in XET_LIMITS.items():
        os.environ.setdefault(name, value)
    hooks = get_session().event_hooks

    def limit(request: httpx2.Request) -> None:
        request.extensions["timeout"] = httpx2.Timeout(TIMEOUT_SECONDS).as_dict()

    limited = {**hooks, "request": [*hooks["request"], limit]}
    set_client_factory(lambda: httpx2.Client(event_hooks=limited, follow_redirects=True))


def check_repo_id(repo_id: str) -> None:
    """Check that a name can be one on the Hub.

    Raises:
        UserError: If it cannot.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id}: no name for a repository ({first_line(error)})") from error


def log_in(api: HfApi) -> str:
    """Return the name of the account that the token belongs to.

    Raises:
        UserError: If there is no valid token that may write, or the Hub does not answer.
    """
    account = with_patience(lambda: api.whoami(), f"{api.endpoint}")
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UserError(
            "the token of this machine may only read; make one that may write at "
            f"{api.endpoint}/settings/tokens and run hf auth login --force, or set HF_TOKEN"
        )
    return account["name"]


def push(api: HfApi, target: Target, files: Mapping[str, Path], message: str) -> Change:
    """Make a repository hold exactly these files, by one commit; nothing is sent that it has already.

    Args:
        api: With the address and the token to use.
        target: Where to.
        files: Local file of each path in the repository. What else is there goes, [`KEPT`] aside.
        message: First line of the commit.

    Raises:
        UserError: If it cannot be done; the repository is as it was then.
    """
    return with_patience(lambda: push_once(api, target, files, message), f"{NAMES[target.kind]} {target.repo_id}")


def with_patience(work: Callable[[], Result], name: str) -> Result:
    """Do something with the Hub, again if that may help.

    Raises:
        UserError: If it fails for good.
    """
    wait = FIRST_WAIT_SECONDS
    for attempt in range(1, TRIES + 1):
        try:
            return work()
        except UserError:
            raise
        except Exception as error:  # httpx2, huggingface_hub, hf_xet and JSON have one of their own each
            problem = explain(error, name)
            if problem is None:
                raise
            if attempt == TRIES or not is_transient(error):
                raise UserError(problem) from error
            tqdm.write(f"{problem}; trying again in {wait:.0f} s ({attempt} of {TRIES - 1})")
        time.sleep(wait)
        wait *= 2
    raise AssertionError


def push_once(api: HfApi, target: Target, files: Mapping[str, Path], message: str) -> Change:
    """Try once to do what [`push`] says."""
    where = {"repo_id": target.repo_id, "repo_type": target.kind}
    present, head = look(api, target)
    added = [path for path, file in files.items() if not is_same(file, present.get(path))]
    deleted = sorted(set(present) - set(files) - KEPT)
    if target.variables:
        set_variables(api, target)
    if head is None:
        api.create_branch(**where, branch=target.revision, exist_ok=True)
    if not added and not deleted:
        return Change(None)
    operations = [
        *(CommitOperationAdd(path, files[path]) for path in added),
        *(CommitOperationDelete(path, is_folder=False) for path in deleted),
    ]
    commit = api.create_commit(
        repo_id=target.repo_id,
        repo_type=target.kind,
        operations=operations,
        commit_message=message,
        revision=target.revision,
        parent_commit=head,
    )
    size = sum(files[path].stat().st_size for path in added)
    return Change(commit.commit_url, len(added), size, len(deleted))


def look(api: HfApi, target: Target) -> tuple[dict[str, RepoFile], str | None]:
    """See what a repository has, making it if it is not there.

    Returns:
        Its files by path, and the newest commit of the branch; None where the branch is still to be made.

    Raises:
        UserError: If it is none that these files should go into.
    """
    where = {"repo_id": target.repo_id, "repo_type": target.kind}
    if not api.repo_exists(**where):
        check_not_another_kind(api, target)
        sdk = {"space_sdk": target.sdk} if target.kind == "space" else {}
        api.create_repo(**where, private=target.private or None, exist_ok=True, **sdk)
    info = api.repo_info(**where)
    if target.private and not info.private:
        raise UserError(
            f"{target.repo_id} is there and public, and --private changes nothing about that; "
            f"make it private at {target.url(api.endpoint)}/settings, or leave --private out"
        )
    head = info.sha
    if target.revision != "main":
        try:
            head = api.repo_info(**where, revision=target.revision).sha
        except RevisionNotFoundError:
            head = None
    tree = api.list_repo_tree(**where, recursive=True, revision=target.revision if head else "main")
    present = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    if set(present) - KEPT - {"README.md"} and target.signature not in present:
        raise UserError(
            f"{target.repo_id} is there and holds another {NAMES[target.kind]} (it has no "
            f"{target.signature}), which would be replaced; choose another --repo_id"
        )
    return present, head


def check_not_another_kind(api: HfApi, target: Target) -> None:
    """Check that a name which is to be new is not that of a repository of another kind.

    The Hub would allow it, but every link and every command that lacks a prefix would lead to the wrong one.

    Raises:
        UserError: If it is.
    """
    for kind, name in NAMES.items():
        if kind != target.kind and api.repo_exists(target.repo_id, repo_type=kind):
            raise UserError(
                f"{target.repo_id} is there as a {name}, not as a {NAMES[target.kind]}; "
                f"choose another name, or publish the {name} with publish.py {kind}"
            )


def set_variables(api: HfApi, target: Target) -> None:
    """Set the variables of a Space's environment that differ; it starts anew with them."""
    current = {name: variable.value for name, variable in api.get_space_variables(target.repo_id).items()}
    for name, value in (target.variables or {}).items():
        if current.get(name) != value:
            api.add_space_variable(target.repo_id, name, value)


def is_same(file: Path, present: RepoFile | None) -> bool:
    """Tell whether the Hub has a file's content already, by its size and its hash."""
    if present is None or present.size != file.stat().st_size:
        return False
    if present.lfs:
        with file.open("rb") as content:
            return sha_fileobj(content).hex() == present.lfs.sha256
    return git_hash(file.read_bytes()) == present.blob_id


def chain(error: BaseException | None) -> list[BaseException]:
    """List an error and what it was raised from."""
    errors = []
    while error is not None and error not in errors:
        errors.append(error)
        error = error.__cause__
    return errors


def status_of(error: BaseException) -> int | None:
    """Return the status of the answer that an error is about, if it is about one."""
    for each in chain(error):
        if isinstance(each, HfHubHTTPError):
            return each.response.status_code
        if isinstance(each, XET_ERRORS) and (found := XET_STATUS.search(str(each))):
            return int(found[1])
    return None


def is_transient(error: BaseException) -> bool:
    """Tell whether the same request may succeed later."""
    status = status_of(error)
    if status is not None:
        return status in TRANSIENT_STATUS
    kinds = (httpx2.TransportError, json.JSONDecodeError, ConnectionError, TimeoutError)
    return any(isinstance(each, kinds) for each in chain(error)) or type(error) is RuntimeError


def explain(error: BaseException, name: str) -> str | None:
    """Say in a line what went wrong and what to do; None for an error that has nothing to do with the Hub.

    Args:
        error: From huggingface_hub or below it.
        name: What was worked on.
    """
    status, errors = status_of(error), chain(error)

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in errors)

    # What is wrong with the token or the files is the user's to mend.
    if is_any(OfflineModeIsEnabled):
        return f"{name}: HF_HUB_OFFLINE is set, so nothing may be sent; unset it, or use --dry_run"
    if is_any(LocalTokenNotFoundError):
        return f"{name}: no token; run hf auth login with one that may write, or set HF_TOKEN"
    if status == 401:
        return f"{name}: the Hub does not accept the token; run hf auth login --force, or set HF_TOKEN to a valid one"
    if status == 403:
        return (
            f"{name}: the token has no right to write there (403); use a token with the write role, "
            "and a name that begins with your account or an organisation of yours"
        )
    if is_any(BadRequestError) or (status == 400) or (is_any(ValueError) and "README.md" in str(error)):
        return f"{name}: the Hub refuses the files ({' '.join(str(error).split())})"
    # What is wrong with the Hub or the way to it: the same command goes on.
    if status in (409, 412):
        return f"{name}: somebody else changed it meanwhile ({status})"
    if status is not None:
        return f"{name}: the Hub answers {status}; see https://status.huggingface.co and try again later"
    if is_any(httpx2.TimeoutException):
        return f"{name}: the Hub did not answer within {TIMEOUT_SECONDS:.0f} s; the same command goes on"
    if is_any(httpx2.ConnectError):
        return f"{name}: the Hub cannot be reached; check the network (and HF_ENDPOINT, if it is set)"
    if is_any(httpx2.TransportError, ConnectionError, TimeoutError) or type(error) is RuntimeError:
        return f"{name}: the connection to the Hub broke off ({first_line(errors[-1])}); the same command goes on"
    if is_any(json.JSONDecodeError):
        return f"{name}: the Hub's answer cannot be read; check HF_ENDPOINT, and try again later"
    return None


def describe_size(size: float) -> str:
    """Write a number of bytes for people: `12.3 MB`, with powers of 1000 as the Hub does."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def list_files(target: Target, files: Mapping[str, Path]) -> str:
    """List what would go up, with sizes."""
    rows = [(describe_size(file.stat().st_size), path) for path, file in sorted(files.items())]
    width = max(len(size) for size, _ in rows)
    total = describe_size(sum(file.stat().st_size for file in files.values()))
    branch = "" if target.revision == "main" else f", branch {target.revision}"
    head = f"{NAMES[target.kind]} {target.repo_id}{branch}{', private' if target.private else ''}"
    variables = [f"variable {name}={value}" for name, value in (target.variables or {}).items()]
    lines = [f"  {size:>{width}}  {path}" for size, path in rows]
    return "\n".join([f"{head}: {len(files)} files, {total}", *lines, *(f"  {each}" for each in variables)])


def digest(paths: Sequence[Path], *words: str) -> str:
    """Return a short name for the content of files and some words; the same for the same, on any machine."""
    whole = sha256("\0".join(words).encode())
    for path in paths:
        whole.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            whole.update(sha_fileobj(file))
    return whole.hexdigest()[:16]
