"""The work of one process: a chunk of MIDI files -> their melody lines as an Arrow file, and a report."""

from __future__ import annotations

import hashlib
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataset_script.extraction import Lines, extract_lines
from dataset_script.features import KEY_NAMES
from dataset_script.midi_notes import FileNotes, UnreadableMidiError, read_notes
from dataset_script.midi_sources import MidiSource

CHUNK_FILES = 64
NO_LINE = "no melody line"


@dataclass
class ChunkReport:
    """What came of one chunk.

    Attributes:
        files: number of files read.
        unreadable: name and reason of each file without notes.
        md5: of each file that has notes.
        is_melodic: whether each of these has a melody line.
        material: hashes of the lead of each, for the search for near-duplicates.
        tracks: number of tracks by what became of them.
        dropped: number of lines left out, by reason.
        table: the Arrow file with the lines, none if there are none.
    """

    files: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    md5: list[str] = field(default_factory=list)
    is_melodic: list[bool] = field(default_factory=list)
    material: list[np.ndarray] = field(default_factory=list)
    tracks: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    table: Path | None = None


def lines_table(lines: Lines, md5: list[str], steps_per_beat: int) -> pa.Table:
    """Turn lines into an Arrow table: the columns that a file alone determines, and `digest`."""

    def notes(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(lines.offsets, pa.int32()), pa.array(values))

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
            "digest": pa.array(lines.digest, pa.binary(16)),
        }
    )


def process_chunk(sources: list[MidiSource], steps_per_beat: int, table: Path) -> ChunkReport:
    """Extract the melody lines of a chunk of files and write them to an Arrow file.

    Args:
        sources: the files.
        steps_per_beat: grid steps in a beat.
        table: the Arrow file to write; not written if there is no line.
    """
    report = ChunkReport(files=len(sources))
    readable: list[FileNotes] = []
    for name, content in sources:
        try:
            data = content if isinstance(content, bytes) else content.read_bytes()
            readable.append(read_notes(data, steps_per_beat))
        except UnreadableMidiError as error:
            report.unreadable.append((name, str(error)))
        except OSError:
            report.unreadable.append((name, "cannot be opened"))
        else:
            report.md5.append(hashlib.md5(data, usedforsecurity=False).hexdigest())
    if not readable:
        return report
    lines = extract_lines(readable, steps_per_beat)
    files = range(len(readable))
    report.is_melodic = np.isin(files, lines.file).tolist()
    report.material = [np.unique(lines.hashes[lines.hash_file == index]) for index in files]
    report.tracks, report.dropped = lines.tracks, lines.dropped
    if len(lines.file):
        content = lines_table(lines, report.md5, steps_per_beat)
        with pa.OSFile(str(table), "wb") as sink, pa.ipc.new_file(sink, content.schema) as writer:
            writer.write_table(content)
        report.table = table
    return report


def new_pool(num_proc: int) -> ProcessPoolExecutor:
    """Start processes that leave Ctrl-C to this one, which then stops them."""
    return ProcessPoolExecutor(num_proc, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))


def process_all(sources: Iterable[MidiSource], steps_per_beat: int, num_proc: int, work: Path) -> Iterator[ChunkReport]:
    """Process all files in chunks, at most twice as many at a time as there are processes; reports come in any order.

    Args:
        sources: the files.
        steps_per_beat: grid steps in a beat.
        num_proc: number of processes; with 1 the work is done in this one.
        work: folder for the Arrow files.
    """
    stream = iter(sources)
    chunks = iter(lambda: list(islice(stream, CHUNK_FILES)), [])
    numbered = ((chunk, work / f"{number:06d}.arrow") for number, chunk in enumerate(chunks))
    if num_proc == 1:
        for chunk, table in numbered:
            yield process_chunk(chunk, steps_per_beat, table)
        return
    pool = new_pool(num_proc)
    pending: dict[Future[ChunkReport], tuple[list[MidiSource], Path]] = {}
    try:
        is_exhausted = False
        while pending or not is_exhausted:
            while not is_exhausted and len(pending) < 2 * num_proc:
                task = next(numbered, None)
                if task is None:
                    is_exhausted = True
                else:
                    pending[pool.submit(process_chunk, task[0], steps_per_beat, task[1])] = task
            done = wait(pending, return_when=FIRST_COMPLETED).done
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                # A file brought the parser down, and the pool with it: those under way are done again one by one.
                tasks, pending = list(pending.values()), {}
                pool.shutdown()
                pool = new_pool(num_proc)
                for chunk, table in tasks:
                    yield from process_singly(chunk, steps_per_beat, table)
                continue
            for future in done:
                del pending[future]
                yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def process_singly(sources: list[MidiSource], steps_per_beat: int, table: Path) -> Iterator[ChunkReport]:
    """Process each file of a chunk in a process of its own, and count those that bring it down as broken."""
    for number, source in enumerate(sources):
        with new_pool(1) as pool:
            try:
                yield pool.submit(
                    process_chunk, [source], steps_per_beat, table.with_suffix(f".{number}.arrow")
                ).result()
            except BrokenProcessPool:
                yield ChunkReport(files=1, unreadable=[(source[0], "brings the parser down")])
