"""Pushing to a Hub: one commit or nothing, twice is once, faults are survived or reported."""

import json
import os
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils._xet import abort_xet_session

from command import UserError
from publishing import hub as publishing_hub
from publishing.hub import Target, describe_size, digest, limit_waiting, list_files, log_in, push
from tests.builders.fake_hub import Fault, Hub, running_hub

# huggingface_hub 2.4 gives httpx2 large files in a way that httpx2 calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TARGET = Target("model", "tester/melody")
LARGE = (".safetensors", ".wav")


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """Let huggingface_hub speak to the loopback, by Git LFS, and keep each wait to nothing."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    for name, value in publishing_hub.XET_LIMITS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(publishing_hub, "TRIES", 3)


@pytest.fixture
def server():
    with running_hub(LARGE, {"hf_right": "tester", "hf_reader": "reader", "hf_other": "other"}) as hub:
        yield hub


@pytest.fixture
def api(server) -> HfApi:
    return HfApi(endpoint=server.url, token="hf_right")


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """A model of sorts: two large files, two small ones, one of them in a folder."""
    contents = {
        "model.safetensors": b"\x00weights" * 999,
        "samples/one.wav": b"RIFF" * 777,
        "modeling_melody_vae.py": b"import torch\n",
        "config.json": b"{}\n",
        "README.md": b"---\nlicense: mit\n---\n# A card\n",
    }
    for path, content in contents.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    return {path: tmp_path / path for path in contents}


def content(files: dict[str, Path]) -> dict[str, bytes]:
    return {path: file.read_bytes() for path, file in files.items()}


def requests(server: Hub, method: str, path: str) -> int:
    return sum(one == method and path in where and status == 200 for one, where, status in server.log)


def commits(server: Hub, name: str = "tester/melody") -> int:
    return requests(server, "POST", f"{name}/commit/")


# --- One commit, once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_a_push_brings_every_file_in_one_commit(server, api, files, kind):
    files["build.json"] = files["app.py"] = files["config.json"]
    change = push(api, Target(kind, "tester/melody"), files, "Publish")
    prefix = "" if kind == "model" else f"{kind}s/"
    assert server.files(f"{prefix}tester/melody") == content(files)
    assert commits(server) == 1
    assert (
        change.url == f"{server.url}/{prefix}tester/melody/commit/{server.repositories[f'{prefix}tester/melody'].head}"
    )
    assert (change.uploaded, change.deleted) == (len(files), 0)
    assert change.uploaded_bytes == sum(map(len, content(files).values()))


def test_a_second_push_uploads_nothing(server, api, files):
    push(api, TARGET, files, "Publish")
    del server.log[:]
    assert push(api, TARGET, files, "Publish").url is None
    assert {method for method, _, _ in server.log} == {"GET"}


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json"])
def test_only_what_changed_goes_up_and_what_is_gone_goes(server, api, files, changed):
    push(api, TARGET, files, "Publish")
    old = files.pop("samples/one.wav")
    same_size = files[changed].read_bytes()[::-1]
    files[changed].write_bytes(same_size)
    del server.log[:]
    change = push(api, TARGET, files, "Publish")
    assert (change.uploaded, change.uploaded_bytes, change.deleted) == (1, len(same_size), 1)
    assert server.files("tester/melody") == content(files)
    assert requests(server, "PUT", "/lfs/") == (changed == "model.safetensors")
    assert old.is_file()


def test_the_hubs_own_file_stays(server, api, files):
    push(api, TARGET, files, "Publish")
    repository = server.repositories["tester/melody"]
    first = repository.commits[repository.head]
    repository.commit({**first, ".gitattributes": first["config.json"]}, "main")
    assert push(api, TARGET, files, "Publish").url is None


def test_a_branch_is_made_and_the_main_one_stays(server, api, files):
    push(api, TARGET, files, "Publish")
    before = server.files("tester/melody")
    files["config.json"].write_bytes(b'{"latent_size": 7}\n')
    branch = Target("model", "tester/melody", "v2")
    change = push(api, branch, files, "Publish")
    repository = server.repositories["tester/melody"]
    assert change.uploaded == 1
    assert server.files("tester/melody") == before
    published = repository.commits[repository.branches["v2"]]
    assert {path: blob.content for path, blob in published.items()} == content(files)
    assert push(api, branch, files, "Publish").url is None


def test_a_branch_is_made_where_nothing_changed(server, api, files):
    push(api, TARGET, files, "Publish")
    assert push(api, Target("model", "tester/melody", "v1"), files, "Publish").url is None
    repository = server.repositories["tester/melody"]
    assert repository.branches["v1"] == repository.head


def test_private_is_private(server, api, files):
    push(api, Target("model", "tester/secret", private=True), files, "Publish")
    assert server.repositories["tester/secret"].private
    push(api, TARGET, files, "Publish")
    with pytest.raises(UserError, match="is there and public"):
        push(api, Target("model", "tester/melody", private=True), files, "Publish")


def test_a_spaces_variables_are_set_once(server, api, files):
    files["app.py"] = files["config.json"]
    target = Target("space", "tester/play", variables={"MODEL_ID": "tester/melody"})
    push(api, target, files, "Publish")
    assert server.repositories["spaces/tester/play"].variables == {"MODEL_ID": "tester/melody"}
    del server.log[:]
    push(api, target, files, "Publish")
    assert {method for method, _, _ in server.log} == {"GET"}


def test_a_static_space_is_made_as_one_and_replaces_no_other(server, api, files):
    page = {"index.html": files["config.json"], "README.md": files["README.md"]}
    static = Target("space", "tester/page", sdk="static")
    push(api, static, page, "Publish")
    assert server.repositories["spaces/tester/page"].sdk == "static"
    assert push(api, static, page, "Publish").url is None
    with pytest.raises(UserError, match=r"another Space \(it has no app.py\)"):
        push(api, Target("space", "tester/page"), {"app.py": files["config.json"]}, "Publish")
    assert server.files("spaces/tester/page") == content(page)


# --- What is refused ------------------------------------------------------------------------------------------------


def test_a_name_of_another_kind_is_refused(server, api, files):
    files["build.json"] = files["config.json"]
    push(api, Target("dataset", "tester/melody"), files, "Publish")
    with pytest.raises(UserError, match="tester/melody is there as a data set, not as a model"):
        push(api, TARGET, files, "Publish")
    assert "tester/melody" not in server.repositories


def test_somebody_elses_work_is_not_replaced(server, api, files):
    other = {path: file for path, file in files.items() if path != "modeling_melody_vae.py"}
    push(api, TARGET, other, "A BERT")
    with pytest.raises(UserError, match=r"holds another model \(it has no modeling_melody_vae.py\)"):
        push(api, TARGET, files, "Publish")
    assert server.files("tester/melody") == content(other)


@pytest.mark.parametrize(
    ("token", "message"),
    [("hf_wrong", "does not accept the token"), ("hf_reader", "may only read"), (None, "no token; run hf auth login")],
)
def test_a_token_that_will_not_do(server, monkeypatch, token, message):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError, match=message):
        log_in(HfApi(endpoint=server.url, token=token))


def test_no_rights_is_one_line_and_nothing_is_made(server, files):
    api = HfApi(endpoint=server.url, token="hf_other")
    assert log_in(api) == "other"
    with pytest.raises(UserError, match=r"model tester/melody: the token has no right to write there \(403\)"):
        push(api, TARGET, files, "Publish")
    assert not server.repositories


def test_no_rights_to_a_repository_that_is_there(server, api, files):
    push(api, TARGET, files, "Publish")
    before = server.files("tester/melody")
    files["config.json"].write_bytes(b"[]")
    with pytest.raises(UserError, match="no right to write"):
        push(HfApi(endpoint=server.url, token="hf_other"), TARGET, files, "Publish")
    assert server.files("tester/melody") == before


def test_no_network_is_one_line(files, capsys):
    with running_hub() as gone:
        pass
    with pytest.raises(UserError, match=r"cannot be reached; check the network") as error:
        log_in(HfApi(endpoint=gone.url, token="hf_right"))
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out.count("trying again") == publishing_hub.TRIES - 1


def test_offline_is_said(server, api, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        log_in(api)


@pytest.mark.parametrize("name", ["a/b/c", "tester/mel ody", "tester/-x", "tester/" + "x" * 100])
def test_names_that_cannot_be(name):
    with pytest.raises(UserError, match="no name for a repository"):
        publishing_hub.check_repo_id(name)


def test_programming_errors_are_not_hidden(api, files):
    with pytest.raises(ValueError, match=r"nowhere\.json"):
        push(api, TARGET, {**files, "more.json": Path("nowhere.json")}, "Publish")


# --- Faults of the server -------------------------------------------------------------------------------------------

REQUESTS = {
    "look": ("GET", r"/api/models/tester/melody$"),
    "tree": ("GET", r"/api/models/tester/melody/tree/"),
    "create": ("POST", r"/api/repos/create"),
    "card": ("POST", r"/api/validate-yaml"),
    "modes": ("POST", r"/preupload/"),
    "batch": ("POST", r"/info/lfs/objects/batch"),
    "upload": ("PUT", r"/lfs/"),
    "commit": ("POST", r"/commit/"),
}


@pytest.mark.parametrize("what", [500, "drop", "cut", "lose"])
@pytest.mark.parametrize("request_", REQUESTS)
def test_a_fault_is_survived(server, api, files, request_, what):
    server.faults.append(Fault(*REQUESTS[request_], what, times=2))
    push(api, TARGET, files, "Publish")
    assert server.faults[0].times < 2
    assert server.files("tester/melody") == content(files)
    assert len(server.repositories["tester/melody"].commits) == 2  # the empty first one and ours


@pytest.mark.parametrize("what", [409, 412, 429, 503, "half"])
def test_other_faults_of_a_commit_are_survived(server, api, files, what):
    """Somebody else's commit meanwhile (409, 412), a rate limit, a proxy's answer, an answer that breaks off."""
    server.faults.append(Fault(*REQUESTS["commit"], what))
    push(api, TARGET, files, "Publish")
    assert server.files("tester/melody") == content(files)


def test_a_slow_answer_is_waited_for_but_not_for_ever(server, api, files, monkeypatch):
    waits = []
    wait = threading.Event().wait  # sleep is switched off
    monkeypatch.setattr("tests.builders.fake_hub.pause", lambda seconds: waits.append(seconds) or wait(seconds))
    monkeypatch.setattr(publishing_hub, "TIMEOUT_SECONDS", 0.3)
    factory = huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY
    limit_waiting()
    try:
        server.faults.append(Fault(*REQUESTS["look"], "wait", seconds=0.1))
        server.faults.append(Fault(*REQUESTS["commit"], "wait", seconds=0.6))
        push(api, TARGET, files, "Publish")
        assert server.files("tester/melody") == content(files)
        assert len(server.repositories["tester/melody"].commits) == 2
        server.faults.append(Fault(*REQUESTS["look"], "wait", times=99, seconds=0.6))
        with pytest.raises(UserError, match="did not answer within"):
            push(api, TARGET, files, "Publish")
        assert waits == [0.1, 0.6, 0.6, 0.6, 0.6]
    finally:
        huggingface_hub.set_client_factory(factory)


@pytest.mark.parametrize("what", [500, "drop", 403, 400])
@pytest.mark.parametrize("request_", ["modes", "upload", "commit"])
def test_a_fault_that_lasts_is_one_line_and_leaves_the_old_state(server, api, files, request_, what):
    push(api, TARGET, files, "Publish")
    before = server.files("tester/melody")
    for file in files.values():
        file.write_bytes(file.read_bytes() + b"\n")
    server.faults.append(Fault(*REQUESTS[request_], what, times=999))
    with pytest.raises(UserError, match="model tester/melody: ") as error:
        push(api, TARGET, files, "Publish")
    assert "\n" not in str(error.value)
    assert server.files("tester/melody") == before
    assert len(server.repositories["tester/melody"].commits) == 2


def test_an_interrupted_push_goes_on(server, api, files):
    """The large files that are there stay there, though no commit names them; only the others are sent."""
    size = files["model.safetensors"].stat().st_size
    server.faults.append(Fault(*REQUESTS["commit"], 403, times=1))
    with pytest.raises(UserError, match="403"):
        push(api, TARGET, files, "Publish")
    assert server.files("tester/melody") == {}
    assert sorted(map(len, server.stored.values())) == sorted([size, files["samples/one.wav"].stat().st_size])
    files["samples/one.wav"].write_bytes(b"RIFF another")
    del server.log[:]
    push(api, TARGET, files, "Publish")
    assert requests(server, "PUT", "/lfs/") == 1
    assert server.files("tester/melody") == content(files)


# --- By Xet, as huggingface_hub sends large files by default ---------------------------------------------------------


@pytest.fixture
def xet(monkeypatch):
    """Let hf_xet send, its chunks as they are and its waits short; it reads its environment once a session."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    for name, value in {"XORB_COMPRESSION_POLICY": "none", "CLIENT_RETRY_BASE_DELAY": "10ms"}.items():
        monkeypatch.setenv(f"HF_XET_{name}", value)
    abort_xet_session()
    yield
    abort_xet_session()


@pytest.mark.usefixtures("xet")
def test_xet_brings_the_same_in_one_commit_and_nothing_twice(server, api, files):
    push(api, TARGET, files, "Publish")
    assert server.files("tester/melody") == content(files)
    assert commits(server) == 1
    assert requests(server, "POST", "/v1/xorbs/")
    assert not requests(server, "PUT", "/lfs/")
    del server.log[:]
    assert push(api, TARGET, files, "Publish").url is None
    assert {method for method, _, _ in server.log} == {"GET"}


@pytest.mark.usefixtures("xet")
@pytest.mark.parametrize("what", [500, "drop", "cut", "lose"])
@pytest.mark.parametrize("path", ["/xet-write-token/", "/v1/xorbs/", "/v1/shards"])
def test_a_fault_of_the_storage_is_survived(server, api, files, path, what):
    server.faults.append(Fault("GET" if "token" in path else "POST", path, what, times=2))
    push(api, TARGET, files, "Publish")
    assert server.faults[0].times == 0
    assert server.files("tester/melody") == content(files)
    assert len(server.repositories["tester/melody"].commits) == 2


@pytest.mark.usefixtures("xet")
@pytest.mark.parametrize(
    ("what", "message"),
    [
        (500, r"the Hub answers 500"),
        (401, "does not accept the token"),
        (403, r"no right to write there \(403\)"),
        ("drop", "the connection to the Hub broke off"),
    ],
)
@pytest.mark.parametrize("path", ["/xet-write-token/", "/v1/xorbs/"])
def test_a_storage_that_stays_away_is_one_line_and_leaves_the_old_state(server, api, files, path, what, message):
    push(api, TARGET, {**files, "model.safetensors": files["config.json"]}, "Publish")
    before = server.files("tester/melody")
    files["model.safetensors"].write_bytes(os.urandom(997))  # chunks that no session has sent
    server.faults.append(Fault("GET" if "token" in path else "POST", path, what, times=999))
    with pytest.raises(UserError, match=f"model tester/melody: .*{message}") as error:
        push(api, TARGET, files, "Publish")
    assert "\n" not in str(error.value)
    assert server.files("tester/melody") == before


@pytest.mark.usefixtures("xet")
def test_an_interrupted_push_by_xet_goes_on(server, api, files):
    """What the storage has is not sent again, though no commit names it."""
    files["model.safetensors"].write_bytes(os.urandom(99_991))
    server.faults.append(Fault(*REQUESTS["commit"], 403, times=1))
    with pytest.raises(UserError, match="403"):
        push(api, TARGET, files, "Publish")
    assert server.files("tester/melody") == {}
    assert requests(server, "POST", "/v1/xorbs/")
    del server.log[:]
    push(api, TARGET, files, "Publish")
    assert not requests(server, "POST", "/v1/xorbs/")
    assert server.files("tester/melody") == content(files)


def test_xet_waits_no_longer_than_the_rest(monkeypatch):
    for name in publishing_hub.XET_LIMITS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_XET_CLIENT_READ_TIMEOUT", "7s")
    factory = huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY
    limit_waiting()
    huggingface_hub.set_client_factory(factory)
    assert os.environ["HF_XET_CLIENT_READ_TIMEOUT"] == "7s"
    assert os.environ["HF_XET_CLIENT_RETRY_MAX_ATTEMPTS"] == "2"


# --- Small things ---------------------------------------------------------------------------------------------------


def test_the_list_names_every_file_with_its_size(files):
    text = list_files(Target("space", "tester/play", "v2", True, {"MODEL_ID": "tester/melody"}), files)
    total = sum(map(len, content(files).values()))
    assert text.splitlines()[0] == f"Space tester/play, branch v2, private: 5 files, {describe_size(total)}"
    for path, file in files.items():
        assert f"{describe_size(file.stat().st_size)}  {path}" in text
    assert "variable MODEL_ID=tester/melody" in text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (26_381_624, "26.4 MB"), (5e15, "5000.0 TB")]
)
def test_sizes_are_for_people(size, text):
    assert describe_size(size) == text


def test_a_digest_is_of_content_names_and_words(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"a")
    two.write_bytes(b"a")
    names = {digest([one]), digest([two]), digest([one, two]), digest([one], "1.0"), digest([one], "1.1")}
    assert len(names) == 5
    os.utime(one, (0, 0))
    assert digest([one]) in names
    one.write_bytes(json.dumps("b").encode())
    assert digest([one]) not in names
