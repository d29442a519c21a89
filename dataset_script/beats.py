"""Write MIDI files anew whose bars are not at the music's beats: by annotated beats, or by beats that are tracked.

`python -m dataset_script.beats --input pop909.tar.gz --output pop909_on_the_beat`: POP909 (Wang et al. 2020,
https://arxiv.org/abs/2008.07142) has its beats in a text file beside each MIDI file. The new files can be built into
a data set, or trained on straight away. With `--track` the beats are found in the music itself, for files that were
played freely (a low `file_grid_fit` in the data set shows them); their bars are guessed to be of four.
"""

import argparse
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np
import symusic
import symusic.types
from tqdm import tqdm

from command import run_command
from dataset_script.beat_tracking import track_beats
from dataset_script.midi_sources import SUFFIXES, InputError, is_midi_name

TICKS = 480  # of a beat
BEATS = "beat_midi.txt"
FEWEST_BEATS = 8
LONGEST_BAR = 4  # beats; where most bars are longer, they are bars of eighths


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, type=Path, help="an archive, or a folder that was unpacked from it")
    parser.add_argument("--output", required=True, type=Path, help="the new folder for the MIDI files")
    parser.add_argument(
        "--beats", default=BEATS, help="name of the text file beside each MIDI file: seconds first, last 1 at downbeats"
    )
    parser.add_argument("--track", action="store_true", help="find the beats in the music, and read no text file")
    return parser.parse_args(arguments)


def pairs(source: Path, beats: str) -> Iterator[tuple[str, bytes, str]]:
    """Find MIDI files that are called as their folder is, as POP909's songs are, and the beats beside them.

    Yields:
        Name, MIDI file and text of the beats.

    Raises:
        InputError: If the input is neither a folder nor an archive, or has no such pair.
    """
    found: dict[PurePosixPath, dict[str, bytes]] = {}
    for path, content in contents(source):
        if path.name == beats or (path.stem == path.parent.name and path.suffix.lower() == ".mid"):
            found.setdefault(path.parent, {})["beats" if path.name == beats else "midi"] = content
    whole = {folder: files for folder, files in found.items() if len(files) == 2}
    if not whole:
        raise InputError(f"{source}: no folder with a MIDI file of its name and a {beats} beside it")
    for folder, files in sorted(whole.items()):
        yield folder.name, files["midi"], files["beats"].decode(errors="replace")


def without_beats(source: Path) -> Iterator[tuple[str, bytes, None]]:
    """Find all MIDI files, whose beats are not known.

    Yields:
        Name, MIDI file and None.

    Raises:
        InputError: If there is none.
    """
    is_empty = True
    for path, content in contents(source):
        if is_midi_name(path.name):
            is_empty = False
            yield "_".join(path.with_suffix("").parts[-2:]), content, None
    if is_empty:
        raise InputError(f"{source}: no {SUFFIXES} file")


def contents(source: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Read all files of a folder or of an archive.

    Raises:
        InputError: If it is neither, or damaged.
    """
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.is_file():
                yield PurePosixPath(path.relative_to(source.parent).as_posix()), path.read_bytes()
        return
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                if member.isfile() and (file := archive.extractfile(member)):
                    yield PurePosixPath(member.name), file.read()
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(f"{source}: neither a folder nor a tar archive that can be read ({error})") from error


def read_beats(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Read annotated beats.

    Returns:
        `(K,)` seconds of the beats, rising, and `(K,)` which of them begin a bar.

    Raises:
        ValueError: If there are too few beats or no downbeat, or a line does not say numbers.
    """
    rows = [[float(word) for word in line.split()] for line in text.splitlines() if line.strip()]
    seconds = np.array([row[0] for row in rows])
    is_first = np.array([row[-1] == 1 for row in rows], dtype=bool)
    if len(rows) < FEWEST_BEATS or not is_first.any() or (np.diff(seconds) <= 0).any():
        raise ValueError(f"{len(rows)} beats, {is_first.sum()} of them downbeats: fewer than needed, or not in order")
    return seconds, is_first


def bars_of(is_first: np.ndarray) -> tuple[list[int], int, int]:
    """Say where the bars are.

    Args:
        is_first: `(K,)` which beats begin a bar.

    Returns:
        Beats of each bar, beginning with the bar of the first downbeat; a bar that is longer than most is two.
        The denominator of the time signature, 4, or 8 where the beats of most bars can only be eighths. The number
        of beats from the start of the first bar to the first beat, where the music has begun before a downbeat.
    """
    places = np.flatnonzero(is_first)
    lengths = [int(length) for length in np.diff(places)]
    usual = Counter(lengths or [LONGEST_BAR]).most_common(1)[0][0]
    bars: list[int] = []
    for length in [*lengths, usual]:
        bars += [usual] * (length // usual) + [length % usual] * (length % usual > 0)
    before = int(places[0])
    filled = -(-before // usual)  # bars before the first downbeat
    return [usual] * filled + bars, 8 if usual > LONGEST_BAR else 4, filled * usual - before


def on_the_beat(midi: bytes, text: str | None) -> symusic.types.Score:
    """Write a score whose beats are where the annotation has them.

    Args:
        midi: A MIDI file.
        text: Its beats, see [`read_beats`]; None: they are found by [`track_beats`].

    Raises:
        ValueError: If one of them cannot be read.
    """
    # The beats: annotated, or found in the notes.
    try:
        score = symusic.Score.from_midi(midi).to("second")
    except Exception as error:  # symusic's errors have no class in common
        raise ValueError(f"no MIDI file ({error})") from error
    seconds, is_first = find_beats(score) if text is None else read_beats(text)
    bars, denominator, offset = bars_of(is_first)
    # Time in seconds becomes time in ticks, beat by beat.
    ticks = TICKS * 4 // denominator
    beat = float(np.median(np.diff(seconds)))

    def tick(time: np.ndarray) -> np.ndarray:
        """Interpolate between beats; before the first and after the last one they go on evenly."""
        place = np.interp(time, seconds, np.arange(len(seconds)))
        place += np.minimum(time - seconds[0], 0) / beat + np.maximum(time - seconds[-1], 0) / beat
        return np.rint((place + offset) * ticks).astype(int)

    # Write tempo, time signatures and notes anew.
    new = symusic.Score(TICKS)
    new.tempos.append(symusic.Tempo(0, 60 / beat * 4 / denominator))
    start = 0
    for length, same in groupby(bars):
        new.time_signatures.append(symusic.TimeSignature(start, length, denominator))
        start += sum(same) * ticks
    for track in score.tracks:
        begins = np.array([note.start for note in track.notes])
        ends = np.array([note.start + note.duration for note in track.notes])
        part = symusic.Track(track.name, track.program, track.is_drum)
        for note, begin, end in zip(track.notes, tick(begins), tick(ends), strict=True):
            if begin >= 0:
                part.notes.append(symusic.Note(int(begin), max(1, int(end - begin)), note.pitch, note.velocity))
        new.tracks.append(part)
    return new


def find_beats(score: symusic.types.Score) -> tuple[np.ndarray, np.ndarray]:
    """Track the beats of a score in seconds, drums included; returns what `read_beats` does."""
    notes = [track.notes.numpy() for track in score.tracks if len(track.notes)]
    columns = (np.concatenate([np.empty(0), *(note[name] for note in notes)]) for name in ("time", "duration", "pitch"))
    return track_beats(*columns)


def run(source: Path, output: Path, beats: str | None) -> None:
    """Write the files.

    Raises:
        InputError: If the output is there already, or nothing can be read.
    """
    if output.exists():
        raise InputError(f"{output} exists; give a new folder")
    written, failed = 0, []
    files = without_beats(source) if beats is None else pairs(source, beats)
    for name, midi, text in tqdm(list(files), desc="on the beat", unit="file"):
        try:
            score = on_the_beat(midi, text)
        except ValueError as error:
            failed.append(f"{name}: {error}")
            continue
        output.mkdir(parents=True, exist_ok=True)
        score.dump_midi(str(output / f"{name}.mid"))
        written += 1
    for line in failed:
        print(line, file=sys.stderr)
    print(f"{output}: {written} MIDI files with bars as annotated, {len(failed)} left out")
    if not written:
        raise InputError(f"{source}: no file could be read")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line about bad input."""
    options = parse_args(arguments)
    return run_command(run, options.input, options.output, None if options.track else options.beats)


if __name__ == "__main__":
    sys.exit(main())
