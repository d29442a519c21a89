"""Where the MIDI files come from: a tar or ZIP archive, a folder, a glob, or one file."""

from __future__ import annotations

import glob
import hashlib
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from isal import igzip_threaded, isal_zlib

from command import UserError
from dataset_script.midi_repair import MIDI_SUFFIXES

GZIP_MAGIC = b"\x1f\x8b"
SUFFIXES = f"{', '.join(MIDI_SUFFIXES[:-1])} or {MIDI_SUFFIXES[-1]}"
INFLATE_ERRORS: tuple[type[Exception], ...] = (zlib.error, isal_zlib.error)  # pyright: ignore[reportAssignmentType]
MAX_FILE_BYTES = 32 << 20  # of a MIDI file; the largest of Lakh has 5 MiB
MAX_HEADER_BYTES = 1 << 20  # of a long name in an archive

MidiSource = tuple[str, "bytes | Path | Fault"]
"""Name of a MIDI file, and its content, the path to read it from, or why it is not read."""


class InputError(UserError, ValueError):
    """Bad input from the user; the message says in one line what and how to mend it."""


class Fault(str):
    """The reason for leaving a file out that is not even read."""

    __slots__ = ()


class UnreadableFileError(ValueError):
    """A file that is not read; the message is the reason under which the funnel counts it."""


TOO_LARGE = Fault(f"larger than {MAX_FILE_BYTES >> 20} MiB")


def read_content(content: bytes | Path | Fault) -> bytes:
    """Return the bytes of a MIDI file.

    Raises:
        UnreadableFileError: if it is too large or cannot be opened.
    """
    if isinstance(content, Fault):
        raise UnreadableFileError(content)
    if isinstance(content, bytes):
        return content
    try:
        if content.stat().st_size > MAX_FILE_BYTES:
            raise UnreadableFileError(TOO_LARGE)
        return content.read_bytes()
    except OSError as error:
        raise UnreadableFileError("cannot be opened") from error


def printable(name: str) -> str:
    """Return a file's name as UTF-8 can write it: bytes that are none, as in names of old archives, are spelled out."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


class CappedTarInfo(tarfile.TarInfo):
    """A member of an archive whose long name, which tarfile reads into memory at once, cannot fill it."""

    def _proc_member(self, tarfile_: tarfile.TarFile) -> Any:
        is_header = self.type in (*tarfile.GNU_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if is_header and self.type != tarfile.GNUTYPE_SPARSE and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(tarfile_)  # pyright: ignore[reportAttributeAccessIssue]


def is_midi_name(name: str) -> bool:
    """Tell by its ending whether a file is a MIDI file."""
    return name.lower().endswith(MIDI_SUFFIXES)


@dataclass
class Sources:
    """The MIDI files of one input, to be iterated over once.

    Attributes:
        name: what reports call the input.
        fingerprint: a hash that changes when files come, go or change.
        files: their number, None where only reading tells.
        stream: the files one after the other.
        share_read: the share of an archive that has been read so far.
    """

    name: str
    fingerprint: str
    files: int | None
    stream: Iterator[MidiSource]
    share_read: float = 0.0

    def __iter__(self) -> Iterator[MidiSource]:
        return self.stream


def open_sources(given: str) -> Sources:
    """Find the MIDI files that `--input` names; errors that can be seen at once are raised at once.

    Raises:
        InputError: if there is no such thing, if it holds no MIDI file, and, while iterating, if an archive is damaged.
    """
    path = Path(given)
    if path.is_dir():
        return listed(path.name, in_folder(path))
    if path.is_file():
        return listed(path.name, [(printable(path.name), path)]) if is_midi_name(path.name) else open_archive(path)
    if path.exists():
        raise InputError(f"{given} is neither a file nor a folder; give an archive, a folder, a glob or a .mid file")
    if glob.has_magic(given):
        matches = [Path(match) for match in sorted(glob.glob(given, recursive=True))]  # noqa: PTH207 (may be absolute)
        found = [(printable(str(match)), match) for match in matches if match.is_file() and is_midi_name(match.name)]
        if not found:
            raise InputError(f"no MIDI file matches {given}; put the glob in quotes and let it end in .mid")
        return listed(given, found)
    raise InputError(
        f"{given} does not exist; give an archive such as lmd_full.tar.gz, a folder, a glob or a .mid file"
    )


def open_all(given: Sequence[str]) -> Sources:
    """Make sources of one or several inputs, one after the other.

    Raises:
        InputError: as `open_sources`.
    """
    parts = [open_sources(one) for one in given]
    if len(parts) == 1:
        return parts[0]
    files = [part.files for part in parts]
    known = sum(count for count in files if count is not None) if None not in files else None
    name, fingerprint = (" + ".join(getattr(part, key) for part in parts) for key in ("name", "fingerprint"))
    sources = Sources(name, fingerprint, known, iter(()))

    def stream() -> Iterator[MidiSource]:
        for part in parts:
            for source in part:
                sources.share_read = sum(one.share_read for one in parts) / len(parts)
                yield source

    sources.stream = stream()
    return sources


def listed(name: str, files: list[tuple[str, Path]]) -> Sources:
    """Make sources of files on disk."""
    hashed = hashlib.blake2b(digest_size=16)
    for file, path in files:
        hashed.update(f"{file}\0{stamp(path)}\n".encode())
    return Sources(name, hashed.hexdigest(), len(files), iter(files))


def stamp(path: Path) -> str:
    """Return what changes with a file's content, as far as the file system tells: size and time of change."""
    try:
        status = path.stat()
    except OSError:
        return "gone"
    return f"{status.st_size}:{status.st_mtime_ns}"


def in_folder(folder: Path) -> list[tuple[str, Path]]:
    """List the MIDI files in a folder and all folders below it, in order of their names.

    Raises:
        InputError: if there is none.
    """
    found = sorted(path for path in folder.rglob("*") if is_midi_name(path.name) and path.is_file())
    if not found:
        raise InputError(f"no {SUFFIXES} file in {folder} or below; give the folder that holds the MIDI files")
    return [(printable(path.relative_to(folder).as_posix()), path) for path in found]


def open_archive(archive: Path) -> Sources:
    """Make sources of a tar (plain, gz, bz2 or xz) or ZIP archive, which is opened when they are iterated over."""
    sources = Sources(archive.name, f"{archive.resolve()}:{stamp(archive)}", None, iter(()))
    sources.stream = (in_zip if zipfile.is_zipfile(archive) else in_archive)(archive, sources)
    return sources


def in_archive(archive: Path, sources: Sources) -> Iterator[MidiSource]:
    """Read the MIDI files of a tar archive one after the other, without unpacking it to disk.

    Args:
        archive: the file.
        sources: where `share_read` is kept up to date.

    Raises:
        InputError: if it is no tar archive, ends early or is damaged, or holds no MIDI file.
    """
    found = is_open = False
    try:
        # Members are read as a stream; nothing is unpacked to disk.
        with ExitStack() as opened:
            raw = content = opened.enter_context(archive.open("rb"))
            size = max(raw.seek(0, os.SEEK_END), 1)
            raw.seek(0)
            is_gzip = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            raw.seek(0)
            if is_gzip:  # ISA-L inflates three times as fast as zlib, and in a thread of its own
                inflated: Any = igzip_threaded.open(cast("Any", raw), "rb", threads=1)  # its stubs know only paths
                content = opened.enter_context(inflated)
            stream = opened.enter_context(
                tarfile.open(fileobj=content, mode="r|" if is_gzip else "r|*", tarinfo=CappedTarInfo)
            )
            is_open = True
            for member in stream:
                if member.isfile() and is_midi_name(member.name):
                    found = True
                    if member.size > MAX_FILE_BYTES:  # passed over without being read into memory
                        yield printable(member.name), TOO_LARGE
                        continue
                    extracted = stream.extractfile(member)
                    assert extracted is not None  # a regular file has content
                    data = extracted.read()
                    sources.share_read = raw.tell() / size
                    yield printable(member.name), data
    # Faults of the archive itself end the reading.
    except (tarfile.TarError, EOFError, OSError, *INFLATE_ERRORS) as error:
        if not is_open and isinstance(error, tarfile.TarError):
            raise InputError(
                f"{archive} is no tar or ZIP archive; give a .tar.gz, a .zip, a folder or a .mid file"
            ) from error
        if isinstance(error, PermissionError):
            raise InputError(f"{archive} cannot be read; check its permissions") from error
        raise InputError(f"{archive} is damaged or ends early ({error}); download it again") from error
    if not found:
        raise InputError(f"no {SUFFIXES} file in {archive}; give an archive that holds MIDI files")


def in_zip(archive: Path, sources: Sources) -> Iterator[MidiSource]:
    """Read the MIDI files of a ZIP archive, as `in_archive` reads those of a tar archive.

    Raises:
        InputError: if it is damaged or locked, or holds no MIDI file.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [each for each in opened.infolist() if is_midi_name(each.filename)]
            members = [each for each in members if not each.filename.startswith("__MACOSX/")]  # notes of a file system
            for number, member in enumerate(members, start=1):
                with opened.open(member) as file:  # no more than the limit, whatever the archive says of its size
                    data = file.read(MAX_FILE_BYTES + 1)
                sources.share_read = number / len(members)
                yield printable(member.filename), TOO_LARGE if len(data) > MAX_FILE_BYTES else data
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"{archive} is damaged or locked ({error}); unpack it, and give the folder") from error
    if not members:
        raise InputError(f"no {SUFFIXES} file in {archive}; give an archive that holds MIDI files")
