"""Download the Lakh MIDI Dataset.

A download that was interrupted goes on where it stopped when the same command is run again.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from command import run_command
from dataset_script.midi_sources import InputError

BLOCK_BYTES = 1 << 18
TIMEOUT_SECONDS = 30
RETRIES = 6  # so many attempts in a row may fail without one new byte
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 30.0  # between them, doubled each time


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server, its size in bytes and its md5 where they are known."""

    url: str
    size: int | None = None
    md5: str | None = None


LAKH_URL = "http://hog.ee.columbia.edu/craffel/lmd"
LAKH_FILES = {
    "lmd_full": RemoteFile(f"{LAKH_URL}/lmd_full.tar.gz", 1_768_163_879, "2536ce3fd2cede53ddaa264f731859ab"),
    "lmd_matched": RemoteFile(f"{LAKH_URL}/lmd_matched.tar.gz", 1_407_072_670, "fb80d01c22020295bb3eeef31f1aa63a"),
    "match_scores": RemoteFile(f"{LAKH_URL}/match_scores.json"),
}
"""The files of the Lakh MIDI Dataset (Raffel 2016, https://colinraffel.com/projects/lmd/) that are of use here."""


class InterruptedTransferError(Exception):
    """A failure that may be gone at the next attempt."""


def fetch(name_or_url: str, folder: Path, *, expected_size: int | None = None, expected_md5: str | None = None) -> Path:
    """Download a file into a folder, unless it lies there already.

    What has arrived is kept in `NAME.part` until the file is complete and has been verified on disk; whatever
    interrupts a download, the next call goes on from there, unless the file on the server has changed since.

    Args:
        name_or_url: a name in `LAKH_FILES`, or a URL.
        folder: where to put the file, under the last part of its URL; made if there is none.
        expected_size: in bytes; left out: that of `LAKH_FILES`, else any.
        expected_md5: hexadecimal; left out: that of `LAKH_FILES`, else any.

    Returns:
        The path of the file.

    Raises:
        InputError: if it cannot be downloaded or written, or is not what was expected (then nothing of it is kept).
    """
    known = LAKH_FILES.get(name_or_url, RemoteFile(name_or_url))
    remote = RemoteFile(known.url, expected_size or known.size, expected_md5 or known.md5)
    path = folder / remote.url.rsplit("/", 1)[-1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or difference(path, remote):
            with tqdm(desc=path.name, unit="B", unit_scale=True, unit_divisor=1024, delay=1) as progress:
                transfer = Transfer(remote, path, progress)
                transfer.run()
            if wrong := difference(transfer.part, remote):
                transfer.part.unlink()
                transfer.version.unlink()
                raise InputError(
                    f"what came from {remote.url} {wrong}; it has been removed: run this again, and if that does not "
                    "help, download the file in another way"
                )
            transfer.part.replace(path)
            transfer.version.unlink()
    except OSError as error:
        raise InputError(
            f"{remote.url} cannot be stored in {folder} ({error.strerror or error}); free some space or give another "
            "folder, and run this again: it goes on where it stopped"
        ) from error
    return path


def difference(path: Path, remote: RemoteFile) -> str | None:
    """Say in what a file on disk differs from the one expected; None if in nothing."""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        return f"has {size:,} bytes instead of {remote.size:,}"
    if remote.md5 is not None:
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if md5 != remote.md5:
            return f"has the checksum {md5} instead of {remote.md5}"
    return None


class Transfer:
    """One file on its way from the server to `NAME.part`.

    Attributes:
        part: what has arrived.
        version: the file that holds the entity tag or date of the server's file that `part` is a part of.
    """

    def __init__(self, remote: RemoteFile, path: Path, progress: tqdm) -> None:
        self.remote = remote
        self.part = path.with_name(f"{path.name}.part")
        self.version = path.with_name(f"{path.name}.part.version")
        self.progress = progress
        self.has_answered = False

    def size(self) -> int:
        """Return how many bytes are there to go on from."""
        return self.part.stat().st_size if self.part.is_file() and self.version.is_file() else 0

    def run(self) -> None:
        """Fill `part`, attempt by attempt, until the server has sent all of the file.

        Raises:
            InputError: if it cannot be had.
            OSError: if it cannot be written.
        """
        failures, furthest = 0, self.size()
        while True:
            try:
                self.attempt()
                return
            except InterruptedTransferError as error:
                size = self.size()
                failures, furthest = (0 if size > furthest else failures + 1), max(size, furthest)
                if failures > RETRIES:
                    self.give_up(f"{failures} attempts failed, the last: {error}", error)
                seconds = min(FIRST_WAIT_SECONDS * 2**failures, LONGEST_WAIT_SECONDS)
                self.progress.set_postfix_str(f"{error}; trying again in {seconds:.0f} s")
                time.sleep(seconds)
                self.progress.set_postfix_str("")

    def attempt(self) -> None:
        """Ask for what `part` lacks, and write what comes.

        Raises:
            InterruptedTransferError: if another attempt may succeed.
            InputError: if none will.
            OSError: if it cannot be written.
        """
        size = self.size()
        known_version = self.version.read_text(encoding="utf-8") if size else ""
        with self.request(size, known_version) as response:
            content_range = response.headers["Content-Range"] or ""
            announced = content_range.rpartition("/")[2] or response.headers["Content-Length"] or ""
            total = int(announced) if announced.isdigit() else None
            if self.remote.size is not None and total not in (None, self.remote.size):
                self.give_up(f"it is another file now, of {total:,} bytes instead of {self.remote.size:,}")
            if response.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and size == total:
                return  # all of it was there
            version = response.headers["ETag"] or response.headers["Last-Modified"] or ""
            if response.status == http.HTTPStatus.OK:
                size = 0  # a server that knows no ranges, or has another file now
            elif not content_range.startswith(f"bytes {size}-") or version not in ("", known_version):
                self.part.unlink()
                raise InterruptedTransferError("the file on the server has changed")
            if total is not None and total - size > (free := shutil.disk_usage(self.part.parent).free):
                raise OSError(None, f"{(total - size) / 1e9:.2f} GB are to come, {free / 1e9:.2f} GB are free")
            self.progress.total = total
            self.progress.initial = self.progress.n = self.progress.last_print_n = size
            with self.part.open("ab" if size else "wb") as file:
                if not size:
                    self.version.write_text(version, encoding="utf-8")
                for block in blocks(response):
                    file.write(block)
                    self.progress.update(len(block))
        if total is not None and self.size() < total:
            raise InterruptedTransferError(f"the connection ended {total - self.size():,} bytes early")

    def request(self, first_byte: int, known_version: str) -> http.client.HTTPResponse | urllib.error.HTTPError:
        """Ask for the file from a byte on, or for all of it if it is no longer the known version; return the answer.

        The answer may be that there is nothing from that byte on (416). A server that is out of reach from the
        beginning is not tried again.
        """
        headers = {"User-Agent": "melody-vae", "Accept-Encoding": "identity"}
        if first_byte:
            headers["Range"] = f"bytes={first_byte}-"
            if known_version and not known_version.startswith("W/"):  # weak entity tags are not allowed there
                headers["If-Range"] = known_version
        try:
            request = urllib.request.Request(self.remote.url, headers=headers)
            response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            self.has_answered = True
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return error
            error.close()
            answer = f"the server answered {error.code} {error.reason}"
            if error.code >= 500 or error.code in (http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS):
                raise InterruptedTransferError(answer) from error
            self.give_up(answer, error)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.URLError) and not self.has_answered:
                self.give_up(f"no connection ({error.reason})", error)
            raise InterruptedTransferError(f"the connection broke ({error})") from error
        except ValueError as error:
            self.give_up(str(error), error)
        self.has_answered = True
        return response

    def give_up(self, why: str, cause: Exception | None = None) -> NoReturn:
        """Raise the error that ends the download."""
        raise InputError(
            f"{self.remote.url} cannot be downloaded: {why}; check the address and the connection and run this again "
            "(it goes on where it stopped), or download the file in another way"
        ) from cause


def blocks(response: http.client.HTTPResponse | urllib.error.HTTPError) -> Iterator[bytes]:
    """Read a response piece by piece."""
    try:
        while block := response.read(BLOCK_BYTES):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise InterruptedTransferError(f"the connection broke ({error})") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line about what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m dataset_script.download", description=__doc__)
    parser.add_argument(
        "name",
        nargs="?",
        choices=LAKH_FILES,
        default="lmd_full",
        help="lmd_full: all 178,561 MIDI files, 1.8 GB (default); lmd_matched: those that match a known song, 1.4 GB; "
        "match_scores: which song, for the genres",
    )
    parser.add_argument("--output", required=True, type=Path, help="the folder to put the file in")
    options = parser.parse_args(arguments)
    stopped = "stopped; run this again to go on from here"
    return run_command(lambda: print(fetch(options.name, options.output)), stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
