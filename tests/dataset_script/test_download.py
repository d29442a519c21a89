"""Downloads, from a server in this process that fails in every way the real one may."""

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dataset_script import download
from dataset_script.download import LAKH_FILES, RemoteFile, fetch, main
from dataset_script.midi_sources import InputError

CONTENT = random.Random(0).randbytes(1_000_003)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content` under every path; the other attributes are how it misbehaves.

    Attributes:
        etag: entity tag of the content; None: the server gives none, and no date.
        has_ranges: whether it knows Range.
        has_if_range: whether it knows If-Range.
        has_length: whether it says how long the content is.
        answers: answers to the next requests: a status, or the number of bytes after which to drop the connection.
        seconds_per_block: how long it waits after each 10,000 bytes.
        log: the first byte of each request, and the number of bytes sent.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag = CONTENT, '"one"'
        self.has_ranges = self.has_if_range = self.has_length = True
        self.answers, self.log = [], []
        self.seconds_per_block = 0
        self.url = f"http://127.0.0.1:{self.server_port}/lmd/file.tar.gz"

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # the client is gone
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, first = self.server, 0
        answer = server.answers.pop(0) if server.answers else len(server.content)
        if 400 <= answer < 600:
            server.log.append(answer)
            self.send_error(answer)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        is_same = not server.has_if_range or self.headers["If-Range"] in (None, server.etag)
        if wanted and server.has_ranges and is_same:
            first = int(wanted[1])
            if first >= len(server.content):
                server.log.append(416)
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.content)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        if server.has_length:
            self.send_header("Content-Length", str(len(server.content) - first))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        log = [first, 0]
        server.log.append(log)
        for at in range(first, first + answer, 10_000):
            block = server.content[at : min(at + 10_000, first + answer)]
            log[1] += len(block)  # first: nobody may see a file that is complete, and a log that is not
            self.wfile.write(block)
            time.sleep(server.seconds_per_block)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def get(server, folder, **expected):
    return fetch(server.url, folder, **{"expected_size": len(CONTENT), "expected_md5": MD5, **expected})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once(server, tmp_path):
    path = get(server, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "file.tar.gz"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["file.tar.gz"]
    assert get(server, path.parent) == path
    assert server.log == [[0, len(CONTENT)]]


def test_a_file_with_other_content_is_replaced(server, tmp_path):
    (tmp_path / "file.tar.gz").write_bytes(CONTENT[:-1] + b"?")
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.log) == 1


@pytest.mark.parametrize("has_length", [True, False])
def test_size_and_checksum_may_be_unknown(server, tmp_path, has_length):
    server.has_length = has_length
    assert fetch(server.url, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("etag", ['"one"', 'W/"weak"', None])
def test_dropped_connections_are_resumed(server, tmp_path, etag):
    server.etag = etag
    server.answers = [300_000, 0, 250_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.log == [[0, 300_000], [300_000, 0], [300_000, 250_000], [550_000, 450_003]]


def test_progress_makes_up_for_failures(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 1)
    server.answers = [100_000, 0] * 9
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.log) == 19


def test_a_server_without_ranges_sends_all_again(server, tmp_path, monkeypatch):
    server.has_ranges = False
    server.answers = [300_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.log == [[0, 300_000], [0, len(CONTENT)]]
    # One that always stops halfway is given up in the end.
    monkeypatch.setattr(download, "RETRIES", 3)
    server.answers = [300_000] * 99
    with pytest.raises(InputError, match="4 attempts failed, the last: the connection ended 700,003 bytes early"):
        get(server, tmp_path / "again")


@pytest.mark.parametrize("has_if_range", [True, False])
def test_a_file_that_has_changed_is_fetched_from_the_beginning(server, tmp_path, has_if_range):
    server.has_if_range = has_if_range
    server.answers = [300_000, 404]
    with pytest.raises(InputError, match="404"):
        get(server, tmp_path)
    assert names(tmp_path) == ["file.tar.gz.part", "file.tar.gz.part.version"]
    server.content, server.etag = CONTENT[::-1], '"two"'
    path = get(server, tmp_path, expected_md5=hashlib.md5(CONTENT[::-1]).hexdigest())
    assert path.read_bytes() == CONTENT[::-1]
    assert names(tmp_path) == ["file.tar.gz"]


def test_what_is_complete_is_only_verified(server, tmp_path):
    (tmp_path / "file.tar.gz.part").write_bytes(CONTENT)
    (tmp_path / "file.tar.gz.part.version").write_text('"one"', encoding="utf-8")
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.log == [416]


def test_what_is_too_long_is_fetched_again(server, tmp_path):
    (tmp_path / "file.tar.gz.part").write_bytes(CONTENT + b"more")
    (tmp_path / "file.tar.gz.part.version").write_text('"one"', encoding="utf-8")
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.log == [416, [0, len(CONTENT)]]


def test_errors_of_the_server_pass(server, tmp_path):
    server.answers = [500, 503]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.log == [500, 503, [0, len(CONTENT)]]


def test_errors_of_the_server_that_do_not_pass(server, tmp_path):
    server.answers = [500] * 99
    with pytest.raises(InputError, match="7 attempts failed, the last: the server answered 500") as caught:
        get(server, tmp_path)
    assert server.url in str(caught.value)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"expected_md5": "0" * 32}, f"the checksum {MD5} instead of 0+; it has been removed"),
        ({"expected_size": 999}, "another file now, of 1,000,003 bytes instead of 999"),
    ],
)
def test_what_is_not_as_expected_is_not_kept(server, tmp_path, expected, message):
    with pytest.raises(InputError, match=message) as caught:
        get(server, tmp_path, **expected)
    assert server.url in str(caught.value)
    assert names(tmp_path) == []


def test_truncated_content_of_unknown_length(server, tmp_path):
    server.has_length, server.content = False, CONTENT[:500_000]
    with pytest.raises(InputError, match="has 500,000 bytes instead of 1,000,003; it has been removed"):
        get(server, tmp_path)
    assert names(tmp_path) == []


def test_no_such_file_and_no_network(server, tmp_path):
    server.answers = [404]
    with pytest.raises(InputError, match="answered 404 Not Found; check the address"):
        get(server, tmp_path)
    assert server.log == [404]
    server.shutdown()
    server.server_close()
    with pytest.raises(InputError, match=r"no connection \(.*refused\)"):
        get(server, tmp_path)
    with pytest.raises(InputError, match="lmd_fall cannot be downloaded: unknown url type"):
        fetch("lmd_fall", tmp_path)


def test_a_full_disk(server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=900_000))
    with pytest.raises(InputError, match=r"cannot be stored in .* \(0.00 GB are to come.*free some space"):
        get(server, tmp_path)
    monkeypatch.undo()
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot be stored in .*\(Not a directory\)"):
        get(server, tmp_path / "file" / "folder")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no such device")  # noqa: PTH110 (no file)
def test_a_disk_that_fills_up(server, tmp_path):
    (tmp_path / "file.tar.gz.part").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"\(No space left on device\); free some space"):
        get(server, tmp_path)


def test_a_killed_download_goes_on(server, tmp_path):
    server.seconds_per_block = 0.005
    code = "import sys; from pathlib import Path; from dataset_script.download import fetch; "
    code += "fetch(sys.argv[1], Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, server.url, str(tmp_path)]
    part = tmp_path / "file.tar.gz.part"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not part.is_file() or not part.stat().st_size:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    size = part.stat().st_size
    assert 0 < size < len(CONTENT)
    server.seconds_per_block = 0
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.log[1:] == [[size, len(CONTENT) - size]]


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(LAKH_FILES, "lmd_full", RemoteFile(server.url, len(CONTENT), MD5))
    assert main(["--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'file.tar.gz'}\n"
    server.answers = [404]
    assert main(["lmd_full", "--output", str(tmp_path / "other")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: {server.url} cannot be downloaded: the server answered 404")


def test_the_real_files():
    assert list(LAKH_FILES) == ["lmd_full", "lmd_matched", "match_scores"]
    for remote in LAKH_FILES.values():
        assert remote.url.startswith("http://hog.ee.columbia.edu/craffel/lmd/")
        assert remote.md5 is None or re.fullmatch("[0-9a-f]{32}", remote.md5)
