"""Where the MIDI files come from: a tar archive read as a stream, a folder, a glob, or one file."""

from __future__ import annotations

import glob
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

MIDI_SUFFIXES = (".mid", ".midi", ".kar")

MidiSource = tuple[str, "bytes | Path"]
"""Name of a MIDI file, and its content or the path to read it from."""


class InputError(ValueError):
    """Bad input from the user; the message says in one line what and how to mend it."""


def is_midi_name(name: str) -> bool:
    """Tell by its ending whether a file is a MIDI file."""
    return name.lower().endswith(MIDI_SUFFIXES)


def open_sources(given: str) -> Iterator[MidiSource]:
    """Find the MIDI files that `--input` names; errors that can be seen at once are raised at once.

    Raises:
        InputError: if there is no such thing, if it holds no MIDI file, and, while iterating, if an archive is damaged.
    """
    path = Path(given)
    if path.is_dir():
        return iter(in_folder(path))
    if path.is_file():
        return iter([(path.name, path)]) if is_midi_name(path.name) else in_archive(path)
    if path.exists():
        raise InputError(f"{given} is neither a file nor a folder; give an archive, a folder, a glob or a .mid file")
    if glob.has_magic(given):
        matches = [Path(match) for match in sorted(glob.glob(given, recursive=True))]  # noqa: PTH207 (may be absolute)
        found = [(str(match), match) for match in matches if match.is_file() and is_midi_name(match.name)]
        if not found:
            raise InputError(f"no MIDI file matches {given}; put the glob in quotes and let it end in .mid")
        return iter(found)
    raise InputError(
        f"{given} does not exist; give an archive such as lmd_full.tar.gz, a folder, a glob or a .mid file"
    )


def in_folder(folder: Path) -> list[MidiSource]:
    """List the MIDI files in a folder and all folders below it, in order of their names.

    Raises:
        InputError: if there is none.
    """
    found = sorted(path for path in folder.rglob("*") if is_midi_name(path.name) and path.is_file())
    if not found:
        raise InputError(f"no .mid, .midi or .kar file in {folder} or below; give the folder that holds the MIDI files")
    return [(path.relative_to(folder).as_posix(), path) for path in found]


def in_archive(archive: Path) -> Iterator[MidiSource]:
    """Read the MIDI files of a tar archive (plain, gz, bz2 or xz) one after the other, without unpacking it to disk.

    Raises:
        InputError: if it is no tar archive, ends early or is damaged, or holds no MIDI file.
    """
    found = is_open = False
    try:
        with tarfile.open(archive, mode="r|*") as stream:
            is_open = True
            for member in stream:
                if member.isfile() and is_midi_name(member.name):
                    content = stream.extractfile(member)
                    assert content is not None  # a regular file has content
                    data = content.read()
                    found = True
                    yield member.name, data
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if not is_open and isinstance(error, tarfile.TarError):
            raise InputError(f"{archive} is no tar archive; give a .tar.gz, a folder or a .mid file") from error
        if isinstance(error, PermissionError):
            raise InputError(f"{archive} cannot be read; check its permissions") from error
        raise InputError(f"{archive} is damaged or ends early ({error}); download it again") from error
    if not found:
        raise InputError(f"no .mid, .midi or .kar file in {archive}; give an archive that holds MIDI files")
