"""The work in pieces: chunks of MIDI files -> Arrow files, in processes that a bad file may bring down.

A chunk leaves two Arrow files: its melody lines, and a table of its files, which is written last and says that the
chunk is done. A build that was interrupted goes on from there.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from symusic import Note, Score, Track

from dataset_script.extraction import Lines, extract_lines
from dataset_script.features import KEY_NAMES
from dataset_script.grouping import Hashes, groups, scratch
from dataset_script.line_quality import FIGURES
from dataset_script.midi_notes import FileNotes, UnreadableMidiError, read_notes
from dataset_script.midi_sources import InputError, MidiSource, UnreadableFileError, read_content

CHUNK_FILES = 64
BATCH_NOTES = 1 << 17  # files are extracted together until they have more notes; bounds the memory
PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent ends
OUT_OF_MEMORY, NOT_WRITTEN = 3, 100  # exit codes; the latter plus the number of the system's error
NO_LINE = "no melody line"
SAME_CONTENT = "same content as another file"
FINGERPRINTS = ("signatures", "stretches", "verbatim")  # hashes of a file for the search for near-duplicates
FILE_FIGURES = {"lead_score": pa.float32, "has_lead": pa.bool_, "grid_fit": pa.float32, "has_time_signature": pa.bool_}
LINE_FIGURES = (*FIGURES, "quality")
MEBIBYTE = 1 << 20
# A forked process has the compiled loops (`load_kernels`); where forking is unsafe or unknown, each loads them anew.
PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
LINES_SUFFIX, FILES_SUFFIX = ".lines.arrow", ".files.arrow"


class InterruptedBuildError(InputError):
    """A build that stopped in the middle and can go on."""


@dataclass(frozen=True)
class Limits:
    """What one file may cost before it is given up; on systems other than Linux there are no limits.

    Attributes:
        seconds: time.
        memory: MiB that a process may have beyond what it had at its start.
    """

    seconds: float = 60.0
    memory: int = 1536


def lines_table(lines: Lines, md5: list[str], steps_per_beat: int) -> pa.Table:
    """Turn lines into an Arrow table: the columns that a file alone determines, and `digest`."""

    def notes(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(lines.offsets, pa.int32()), pa.array(values))

    # Strings for each line; all else is in columns already.
    file_md5 = [md5[index] for index in lines.file.tolist()]
    places = zip(file_md5, lines.track.tolist(), lines.first_bar.tolist(), strict=True)
    signatures = zip(lines.numerator.tolist(), lines.denominator.tolist(), strict=True)
    return pa.table(
        {
            "melody_id": pa.array([f"{of}:{track}:{bar}" for of, track, bar in places], pa.string()),
            "md5": pa.array(file_md5, pa.string()),
            "track": pa.array(lines.track, pa.int16()),
            "program": pa.array(lines.program, pa.uint8()),
            "lead_score": pa.array(lines.lead_score, pa.float32()),
            "is_lead": pa.array(lines.is_lead, pa.bool_()),
            "time_signature": pa.array([f"{above}/{below}" for above, below in signatures], pa.string()),
            "tempo": pa.array(lines.tempo, pa.float32()),
            "key": pa.array([KEY_NAMES[index] for index in lines.key.tolist()], pa.string()),
            "key_confidence": pa.array(lines.key_confidence, pa.float32()),
            "bars": pa.array(lines.bars, pa.uint16()),
            "pitch": notes(lines.pitch),
            "start": notes(lines.start),
            "duration": notes(lines.duration),
            "steps_per_beat": pa.array(np.full(len(file_md5), steps_per_beat), pa.uint8()),
            "complexity": pa.array(lines.complexity, pa.float32()),
            **{name: pa.array(getattr(lines, name), pa.float32()) for name in LINE_FIGURES},
            "file_grid_fit": pa.array(lines.file_grid_fit[lines.file], pa.float32()),
            "has_time_signature": pa.array(lines.has_time_signature, pa.bool_()),
            "digest": pa.Array.from_buffers(pa.binary(16), len(file_md5), [None, pa.py_buffer(lines.digest)]),
        }
    )


def write_arrow(table: pa.Table, path: Path) -> None:
    """Write a table to an Arrow file, whole or not at all."""
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")  # a worker of a killed build may be at the same table
    with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    unfinished.replace(path)


def process_chunk(
    sources: list[MidiSource], steps_per_beat: int, limits: Limits, given_up: Mapping[str, str], stem: Path
) -> None:
    """Extract the melody lines of a chunk of files and write its two Arrow files.

    The first holds the lines (see `lines_table`); it is not written if there are none. The second has name, md5, reason
    (why there are no notes, null where there are some), is_melodic, those of `FILE_FIGURES` and `FINGERPRINTS`
    (hashes for the search for near-duplicates) of each file, and the counts of tracks, lines and notes as JSON in its
    metadata.

    Args:
        sources: the files.
        steps_per_beat: grid steps in a beat.
        limits: time that one file, and then the extraction of a batch, may take.
        given_up: reason by name for files that are known to bring the process down.
        stem: path of the Arrow files without their suffixes.
    """
    md5, reasons, batches = read_files(sources, steps_per_beat, limits, given_up)
    # What is known of each file of the chunk, read or not.
    readable = [index for index, reason in enumerate(reasons) if reason is None]
    is_melodic = np.zeros(len(sources), dtype=bool)
    fingerprints = {
        name: ([np.empty(0, dtype=np.uint64)], np.zeros(len(sources), dtype=np.int32)) for name in FINGERPRINTS
    }
    about = {name: np.full(len(sources), np.nan) for name in FILE_FIGURES}
    tables = []
    tracks, dropped, displacement_steps = Counter(), Counter(), 0.0
    # Extract a batch of files at a time; `files` are the places of its files in the chunk.
    for batch in batches:
        set_alarm(limits.seconds)
        files, readable = np.array(readable[: len(batch)]), readable[len(batch) :]
        lines = extract_lines(batch, steps_per_beat)
        is_melodic[files[lines.file]] = True
        about["grid_fit"][files] = lines.file_grid_fit
        about["has_time_signature"][files] = [item.has_time_signature for item in batch]
        about["has_lead"][files] = np.bincount(lines.file, lines.is_lead, len(files)) > 0
        np.fmax.at(about["lead_score"], files[lines.file], lines.lead_score)
        for name, (hashes, lengths) in fingerprints.items():
            values, of_file = getattr(lines, name)
            hashes.append(values)
            lengths[files] = np.bincount(of_file, minlength=len(files))
        tables.append(lines_table(lines, [md5[file] or "" for file in files.tolist()], steps_per_beat))
        tracks += lines.tracks
        dropped += lines.dropped
        displacement_steps += lines.displacement_steps
    if is_melodic.any():
        write_arrow(pa.concat_tables(tables), stem.with_suffix(LINES_SUFFIX))
    # One row for each file, with its reason where it could not be read.
    columns = {
        "name": pa.array([name for name, _ in sources], pa.string()),
        "md5": pa.array(md5, pa.string()),
        "reason": pa.array(reasons, pa.string()),
        "is_melodic": pa.array(is_melodic),
    }
    for name, kind in FILE_FIGURES.items():
        columns[name] = pa.array(about[name], kind(), from_pandas=True)  # not a number where a file could not be read
    for name, (hashes, lengths) in fingerprints.items():
        offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
        columns[name] = pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(hashes)))
    notes = sum(len(file.notes) for batch in batches for file in batch)
    counts = {"tracks": tracks, "dropped": dropped, "notes": notes, "displacement_steps": displacement_steps}
    table = pa.table(columns, metadata={"counts": json.dumps(counts)})
    write_arrow(table, stem.with_suffix(FILES_SUFFIX))
    set_alarm(0)


def read_files(
    sources: list[MidiSource], steps_per_beat: int, limits: Limits, given_up: Mapping[str, str]
) -> tuple[list[str | None], list[str | None], list[list[FileNotes]]]:
    """Read the notes of a chunk of files, see `process_chunk`.

    Returns:
        For each file its md5, null where it could not be read, and the reason why there are no notes, null where there
        are some; and the notes of those that have some, in batches of about `BATCH_NOTES` or more.
    """
    md5: list[str | None] = []
    reasons: list[str | None] = []
    batches: list[list[FileNotes]] = []
    batch_notes = 0
    for name, content in sources:
        set_alarm(limits.seconds)
        reason, digest = given_up.get(name), None
        if reason is None:
            try:
                data = read_content(content)
                digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
                found = read_notes(data, steps_per_beat)
            except (UnreadableMidiError, UnreadableFileError) as error:
                reason = str(error)
            else:
                if not batches or batch_notes > BATCH_NOTES:
                    batches.append([])
                    batch_notes = 0
                batches[-1].append(found)
                batch_notes += len(found.notes)
        md5.append(digest)
        reasons.append(reason)
    return md5, reasons, batches


def set_alarm(seconds: float) -> None:
    """Let the kernel end this process unless it sets another alarm in time; 0 takes the alarm away."""
    if sys.platform == "linux":
        signal.setitimer(signal.ITIMER_REAL, seconds)


def end_with_parent() -> None:
    """End this process when its parent has ended, in whatever way."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def begin_worker(limits: Limits) -> None:
    """Prepare a process: it leaves Ctrl-C to its parent, ends with it, dies of alarms, and has a limit of memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if PROCESSES.get_start_method() == "fork":
        import resource  # not on Windows

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a thread would take some of the memory
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        resource.setrlimit(
            resource.RLIMIT_AS, (pages * resource.getpagesize() + limits.memory * MEBIBYTE, resource.RLIM_INFINITY)
        )
    else:
        threading.Thread(target=end_with_parent, daemon=True).start()


def process_all(
    sources: Iterable[MidiSource], steps_per_beat: int, num_proc: int, limits: Limits, work: Path
) -> Iterator[int]:
    """Process all files in chunks, at most twice as many at a time as there are processes.

    Args:
        sources: the files; the same ones in the same order when a build goes on.
        steps_per_beat: grid steps in a beat.
        num_proc: number of processes.
        limits: what one file may cost.
        work: folder for the Arrow files; chunks whose files lie there are not done again.

    Yields:
        Number of files of each chunk that is done.
    """
    stream = iter(sources)
    chunks = iter(lambda: list(islice(stream, CHUNK_FILES)), [])
    numbered = ((work / f"{number:06d}", chunk) for number, chunk in enumerate(chunks))
    pending: dict[Future[None], tuple[Path, list[MidiSource]]] = {}
    pool = new_pool(num_proc, limits)
    try:
        is_exhausted = False
        while pending or not is_exhausted:
            # Keep the pool busy, with chunks that no earlier run has finished.
            while not is_exhausted and len(pending) < 2 * num_proc:
                task = next(numbered, None)
                if task is None:
                    is_exhausted = True
                    continue
                stem, chunk = task
                if stem.with_suffix(FILES_SUFFIX).exists():
                    yield len(chunk)
                else:
                    pending[pool.submit(process_chunk, chunk, steps_per_beat, limits, {}, stem)] = task
            if not pending:
                continue
            done = wait(pending, return_when=FIRST_COMPLETED).done
            if any(isinstance(future.exception(), (BrokenProcessPool, MemoryError)) for future in done):
                # A file brought its process down, and the pool with it: it is found and left out.
                tasks, pending = list(pending.values()), {}
                pool.shutdown()
                pool = new_pool(num_proc, limits)
                for stem, chunk in tasks:
                    given_up = dict(find_killers(chunk, steps_per_beat, limits, stem))
                    process_again = pool.submit(process_chunk, chunk, steps_per_beat, limits, given_up, stem)
                    if isinstance(process_again.exception(), (BrokenProcessPool, MemoryError)):
                        raise InterruptedBuildError(
                            f"processes die while they read {chunk[0][0]} and those after it, though each alone can be "
                            "read; is there enough memory? Run the same command again with a smaller --num_proc: what "
                            "is done is kept"
                        )
                    process_again.result()
                    yield len(chunk)
                continue
            for future in done:
                future.result()
                yield len(pending.pop(future)[1])
    finally:
        pool.shutdown(cancel_futures=True)


def load_kernels(steps_per_beat: int) -> None:
    """Load the compiled loops (compile them, the first time on a machine), so that forked processes have them."""
    score = Score(480)
    track = Track(program=0)
    track.notes.extend([Note(240 * number, 240, 60 + number % 12, 90) for number in range(64)])
    score.tracks.append(track)
    with TemporaryDirectory() as folder:
        source = ("", score.dumps_midi())
        process_chunk([source], steps_per_beat, Limits(seconds=0), {}, Path(folder) / "kernels")
    groups(*[[np.empty(0, dtype=np.uint64)]] * len(FINGERPRINTS))


def new_pool(num_proc: int, limits: Limits) -> ProcessPoolExecutor:
    """Start processes for chunks."""
    return ProcessPoolExecutor(num_proc, PROCESSES, initializer=begin_worker, initargs=(limits,))


def find_killers(
    sources: list[MidiSource], steps_per_beat: int, limits: Limits, stem: Path
) -> Iterator[tuple[str, str]]:
    """Process each file in a process of its own, and name those that bring it down, with the reason.

    Raises:
        OSError: If what a file gives cannot be written, which says nothing of the file.
    """
    for source in sources:
        alone = stem.with_name(f"{stem.name}-alone")
        process = PROCESSES.Process(target=process_alone, args=(source, steps_per_beat, limits, alone))
        process.start()
        process.join()
        if sys.platform == "linux" and process.exitcode == -signal.SIGALRM:  # Windows has no such signal
            yield source[0], f"takes more than {limits.seconds:g} seconds"
        elif process.exitcode == OUT_OF_MEMORY:
            yield source[0], f"needs more than {limits.memory} MiB of memory"
        elif process.exitcode and process.exitcode > NOT_WRITTEN:
            number = process.exitcode - NOT_WRITTEN
            raise OSError(number, os.strerror(number))
        elif process.exitcode:
            yield source[0], "brings the parser down"
        for suffix in (LINES_SUFFIX, FILES_SUFFIX):
            alone.with_suffix(suffix).unlink(missing_ok=True)


def process_alone(source: MidiSource, steps_per_beat: int, limits: Limits, stem: Path) -> None:
    """Process one file as if it were a chunk."""
    begin_worker(limits)
    try:
        process_chunk([source], steps_per_beat, limits, {}, stem)
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)
    except OSError as error:
        sys.exit(NOT_WRITTEN + (error.errno or errno.EIO))


@dataclass
class Harvest:
    """What is known of the files of all chunks; files with the same content count once.

    Attributes:
        md5: of each file that has notes, in order.
        is_melodic: whether each of these has a melody line.
        places: number of the chunk of each, and its row there, shape (F, 2).
        unreadable: name and reason of each file without notes, in order of the names.
        files: number of files read.
        notes: number of pitched notes in them.
        displacement_steps: sum over these of how far quantisation moved their onsets.
        tracks: number of tracks by what became of them.
        dropped: number of lines left out, by reason.
    """

    md5: list[str]
    is_melodic: np.ndarray
    places: np.ndarray
    unreadable: list[tuple[str, str]]
    files: int
    notes: int
    displacement_steps: float
    tracks: Counter[str]
    dropped: Counter[str]


def read_arrow(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read an Arrow file into memory: mapped, thousands of them would be open at once."""
    content = path.read_bytes()
    if columns is None:
        return pa.ipc.open_file(content).read_all()
    schema = pa.ipc.open_file(content).schema
    fields = [schema.get_field_index(name) for name in columns]
    return pa.ipc.open_file(content, options=pa.ipc.IpcReadOptions(included_fields=fields)).read_all()


def file_files(work: Path) -> list[Path]:
    """Return the Arrow files about the files of all chunks that `process_all` left in a folder and those below it."""
    return sorted(work.rglob(f"*{FILES_SUFFIX}"))


def line_files(work: Path) -> list[Path]:
    """Return the Arrow files with the lines of all chunks that `process_all` left in a folder and those below it."""
    return sorted(work.rglob(f"*{LINES_SUFFIX}"))


def harvest(work: Path) -> Harvest:
    """Put together what `process_all` wrote about files in a folder and those below it."""
    # Files of the same content count once.
    readable: dict[str, tuple[bool, int, int]] = {}  # its chunk, and its row there
    unreadable: list[tuple[str, str]] = []
    tracks, dropped = Counter(), Counter()
    files = notes = displacement_steps = 0
    for number, path in enumerate(file_files(work)):
        chunk = read_arrow(path, columns := ["name", "md5", "reason", "is_melodic"])
        count = json.loads((chunk.schema.metadata or {})[b"counts"])
        tracks.update(count["tracks"])
        dropped.update(count["dropped"])
        files, notes = files + chunk.num_rows, notes + count["notes"]
        displacement_steps += count["displacement_steps"]
        rows = zip(*(chunk[name].to_pylist() for name in columns), strict=True)
        for row, (name, md5, reason, is_melodic) in enumerate(rows):
            if reason is None:
                readable[md5] = is_melodic, number, row
            else:
                unreadable.append((name, reason))
    md5 = sorted(readable)
    return Harvest(
        md5=md5,
        is_melodic=np.array([readable[one][0] for one in md5]),
        places=np.array([readable[one][1:] for one in md5], dtype=np.int64).reshape(-1, 2),
        unreadable=sorted(unreadable),
        files=files,
        notes=notes,
        displacement_steps=displacement_steps,
        tracks=tracks,
        dropped=dropped,
    )


def hashes_of_files(work: Path, places: np.ndarray) -> dict[str, Hashes]:
    """Put the hashes of all files together, on disk where they are many, see `scratch`.

    Args:
        work: where `process_all` wrote.
        places: number of the chunk of each file, and its row there, shape (F, 2).

    Returns:
        The hashes of each file by the names in `FINGERPRINTS`.
    """
    paths = file_files(work)
    by_chunk = np.lexsort(places.T[::-1])
    begins = np.searchsorted(places[by_chunk, 0], np.arange(len(paths) + 1))

    def lists() -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        for path, begin, end in zip(paths, begins[:-1], begins[1:], strict=True):
            files, table = by_chunk[begin:end], read_arrow(path, FINGERPRINTS)
            for name in FINGERPRINTS:
                column: pa.ListArray = table[name].combine_chunks()
                yield name, files, places[files, 1], column.offsets.to_numpy(), column.values.to_numpy()

    lengths = {name: np.zeros(len(places), dtype=np.int64) for name in FINGERPRINTS}
    for name, files, rows, offsets, _ in lists():
        lengths[name][files] = np.diff(offsets)[rows]
    found = {}
    for name, sizes in lengths.items():
        bounds = np.append(0, np.cumsum(sizes))
        found[name] = Hashes(scratch(int(bounds[-1]), np.uint64, work), bounds)
    for name, files, rows, offsets, values in lists():
        for file, row in zip(files.tolist(), rows.tolist(), strict=True):
            found[name][file][:] = values[offsets[row] : offsets[row + 1]]
    return found
