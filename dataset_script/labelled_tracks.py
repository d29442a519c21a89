"""Files of which it is known which track is the tune: by its name, by the karaoke lyrics, or since POP909 says so."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
from symusic.core import ScoreTick
from tqdm import tqdm

from dataset_script.extraction import extract_lines
from dataset_script.lead_score import design, name_hint
from dataset_script.midi_notes import UnreadableMidiError, read_notes
from dataset_script.midi_reader import read_events
from dataset_script.midi_sources import InputError, MidiSource, UnreadableFileError, read_content
from dataset_script.voices import join_voices

STEPS_PER_BEAT = 4
CHUNK_FILES = 64
LABEL = re.compile(r"melod|vocal|\blead|voice|\bvox\b|singer|singing|\bvoc\b", re.I)
# Second voices, doublings, names of sounds ("Square Lead", "Synth Voice"), and guitars that lead a band, not the tune.
NO_LABEL = re.compile(
    r"back|\bbg|\bb[ -]?vox|harm|oo?h|aa?h|choir|syn|pad|bass|drum|\btom|string|doubl|echo|delay|counter|gu?it|gtr|2nd"
    r"|second|\bsub|square|saw|calliope|chiff|charang|fifths|voices|orch|copy|layer|clone|overdub|\b[2-9]\b",
    re.I,
)
MOST_LABELS = 2  # files with more tracks of such names do not say which one is the tune
POP909_NAME = re.compile(r"(\d{3})/\1\.mid$")  # POP909 has other versions of its songs in folders beside them
POP909_LABEL = "MELODY"
LYRIC_EVENT = b"\xff\x05"
MIN_SYLLABLES = 40  # fewer lyrics do not tell
SUNG, SUNG_MARGIN = 0.75, 0.05  # F1 of syllables and onsets


@dataclass
class Tracks:
    """The tracks of many files, one after the other (shape (K,)), and the files (shape (M,)).

    Attributes:
        features: of each track, shape (K, F).
        program: General MIDI program of each track.
        hint: what its name says.
        is_label: whether it is named as the tune, or doubles one that is.
        is_sung: whether its onsets are those of the file's lyrics.
        has_lines: whether it has a melody line.
        file: file of each track, rising; every file has one.
        group: name of each file's group of near-duplicates.
    """

    features: np.ndarray
    program: np.ndarray
    hint: np.ndarray
    is_label: np.ndarray
    is_sung: np.ndarray
    has_lines: np.ndarray
    file: np.ndarray
    group: np.ndarray

    def select(self, is_kept_file: np.ndarray, is_kept_track: np.ndarray | None = None) -> Tracks:
        """Keep some files, shape (M,), and some of their tracks, shape (K,); at least one track of each file."""
        is_kept = is_kept_file[self.file]
        if is_kept_track is not None:
            is_kept = is_kept & is_kept_track
        file = np.cumsum(is_kept_file) - 1
        of_tracks = (self.features, self.program, self.hint, self.is_label, self.is_sung, self.has_lines)
        return Tracks(
            *(values[is_kept] for values in of_tracks),
            file=file[self.file][is_kept],
            group=self.group[is_kept_file],
        )

    def count(self, is_counted: np.ndarray) -> np.ndarray:
        """Return the number of counted tracks (shape (K,)) of each file."""
        return np.bincount(self.file[is_counted], minlength=len(self.group))

    def labelled(self, candidates: str) -> Tracks:
        """Keep the files with one or two labels and a choice.

        Args:
            candidates: "with_lines" for the tracks with melody lines only, "pitched" for all.
        """
        is_candidate = self.has_lines if candidates == "with_lines" else np.ones_like(self.has_lines)
        labels = self.count(self.is_label & is_candidate)
        is_kept = (labels > 0) & (self.count(self.is_label) <= MOST_LABELS) & (labels < self.count(is_candidate))
        return self.select(is_kept, is_candidate)

    def sung(self) -> Tracks:
        """Keep the karaoke files with a choice among tracks with melody lines; the sung track is the label."""
        sung = self.count(self.is_sung & self.has_lines)
        kept = self.select((sung > 0) & (sung < self.count(self.has_lines)), self.has_lines)
        kept.is_label = kept.is_sung
        return kept

    def columns(self, weights: dict[str, np.ndarray]) -> np.ndarray:
        """Return what the utility is linear in, shape (K, D)."""
        return design(self.features, self.program, weights["mean"], weights["scale"])

    def file_tracks(self) -> np.ndarray:
        """Return where each file's tracks begin and the last ends, shape (M + 1,)."""
        return np.append(0, np.cumsum(np.bincount(self.file, minlength=len(self.group))))


def is_named_tune(name: str) -> bool:
    """Tell whether a track's author called it the melody, the lead or the voice (and not a second or a doubled one)."""
    return bool(LABEL.search(name)) and not NO_LABEL.search(name)


def sung_tracks(data: bytes) -> np.ndarray | None:
    """Tell which voices of a file begin their notes where its lyrics have a syllable; None without such lyrics.

    Voices count by the F1 of syllables and onsets, a sixteenth note being near enough: the best one, if it reaches
    `SUNG`, and those that come near it, which double it.
    """
    if data.count(LYRIC_EVENT) < MIN_SYLLABLES or (events := read_events(data)) is None or not events.track:
        return None
    syllables = {
        lyric.time for track in ScoreTick.from_midi(data).tracks for lyric in track.lyrics if lyric.text.strip()
    }
    if len(syllables) < MIN_SYLLABLES:
        return None
    events, lyrics = join_voices(events), np.array(sorted(syllables))
    near = events.ticks_per_quarter // 8
    scores = []
    for onsets in np.split(events.time, np.cumsum(events.track_notes)[:-1]):
        onsets = np.unique(onsets)
        hits = [count_near(lyrics, onsets, near) / len(lyrics), count_near(onsets, lyrics, near) / len(onsets)]
        scores.append(2 * hits[0] * hits[1] / max(sum(hits), 1e-9))
    best = max(scores)
    return np.array(scores) >= best - SUNG_MARGIN if best >= SUNG else None


def count_near(times: np.ndarray, others: np.ndarray, near: int) -> int:
    """Count the times, in order, that have another time so near."""
    place = np.searchsorted(others, times)
    before, after = others[np.maximum(place - 1, 0)], others[np.minimum(place, len(others) - 1)]
    return int((np.minimum(abs(times - before), abs(after - times)) <= near).sum())


def read_tracks(sources: Iterable[MidiSource], name: str, groups: dict[str, str]) -> Tracks:
    """Read MIDI files, each content once, and describe their tracks.

    Args:
        sources: the files.
        name: "Lakh", or "POP909", of which the songs are found by the names of the files.
        groups: near-duplicate group by md5; a file that is not there is a group of its own.

    Raises:
        InputError: if no file has notes.
    """
    parts: list[Tracks] = []
    seen: set[str] = set()
    stream = iter(sources)
    chunks = iter(lambda: list(islice(stream, CHUNK_FILES)), [])
    with tqdm(unit=" files", desc=name, mininterval=0.5, delay=1) as progress:
        for chunk in chunks:
            if part := read_chunk(chunk, name, groups, seen):
                parts.append(part)
            progress.update(len(chunk))
    if not parts:
        raise InputError(f"no {name} file with notes; check --{name.lower()}")
    first = np.cumsum([0, *(len(part.group) for part in parts)])
    for part, of in zip(parts, first, strict=False):
        part.file = part.file + of
    return Tracks(**{key: np.concatenate([getattr(part, key) for part in parts]) for key in vars(parts[0])})


def read_chunk(chunk: list[MidiSource], name: str, groups: dict[str, str], seen: set[str]) -> Tracks | None:
    """Read a few files, see `read_tracks`; `seen` has the md5 of those read before. None if none has notes."""
    files, group, sung = [], [], []
    # Read each file once; what a build would refuse is left out.
    for path, content in chunk:
        song = POP909_NAME.search(path)
        if name == "POP909" and not song:
            continue
        try:
            data = read_content(content)
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if md5 in seen:
                continue
            file = read_notes(data, STEPS_PER_BEAT)
        except (UnreadableMidiError, UnreadableFileError):
            continue  # the report of dataset_script.build lists them
        seen.add(md5)
        files.append(file)
        group.append(f"POP909/{song[1]}" if name == "POP909" and song else groups.get(md5, md5))
        is_sung = sung_tracks(data)
        fits = is_sung is not None and len(is_sung) == len(file.track)
        sung.append(is_sung if fits else np.zeros(len(file.track), dtype=bool))
    if not files:
        return None
    # Labels: tracks named as the tune, or sung.
    lines = extract_lines(files, STEPS_PER_BEAT)
    names = [track for item in files for track in item.names]
    is_named = np.array([track == POP909_LABEL if name == "POP909" else is_named_tune(track) for track in names])
    # A track that doubles the tune is the tune; of the two only one has lines.
    is_label, is_sung = is_named.copy(), np.concatenate(sung)
    for labels in (is_label, is_sung):
        np.logical_or.at(labels, lines.double_of, labels.copy())
    return Tracks(
        features=lines.track_features,
        # POP909's programs are all pianos: neutral, as they are where nobody knows them.
        program=np.array([program for item in files for program in item.program]) * (name != "POP909"),
        hint=np.array([name_hint(track) for track in names]),
        is_label=is_label,
        is_sung=is_sung,
        has_lines=lines.track_has_lines,
        file=np.repeat(np.arange(len(files)), [len(item.track) for item in files]),
        group=np.array(group),
    )
