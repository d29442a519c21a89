"""MIDI to token ids and back: MidiTok's REMI, one word per bar, and a fast BPE tokenizer over those words.

A *line* is a dict with the columns of the data set's Parquet schema that describe notes: `pitch`, `start` and
`duration` (lists; grid steps from the line's first bar line), `time_signature`, `steps_per_beat`, `bars` and `tempo`.
A step is a `steps_per_beat`th of the beat, the beat being the note that the time signature's denominator names.
"""

from __future__ import annotations  # symusic's Score is a factory, no class

import json
from bisect import bisect_right
from collections.abc import Collection, Iterable
from functools import lru_cache
from itertools import pairwise
from operator import itemgetter
from pathlib import Path

import torch
from miditok import REMI, TokenizerConfig, TokSequence
from miditok.constants import MIDI_INSTRUMENTS
from symusic import KeySignature, Note, Score, Tempo, TimeSignature, Track, types
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.utils import logging

from .logits_process_melody_vae import SPECIAL_ROW, UNUSABLE, TokenColumn, encode_base_token, summarise_token
from .melody_line_melody_vae import PITCH_NAMES, TEMPO_CLASSES, key_of, steps_per_bar
from .melody_track_melody_vae import GridNotes, bar_grid, is_end, join_pick_ups, quantise, score_tracks, skyline

logger = logging.get_logger(f"transformers.{__name__}")  # under the name whose verbosity transformers sets

FIRST_CHARACTER = 33  # MidiTok writes the base token i as chr(i + 33)
WORD_PREFIX = "\u2581"  # what the fast tokenizer puts before each word, so before each bar
MIN_PITCH, MAX_PITCH = 21, 108  # the piano's range, MusicVAE's too
MAX_NOTE_BEATS = 16
TIME_SIGNATURES = {4: [2, 3, 4, 5, 6, 7], 8: [3, 5, 6, 7, 9, 12]}  # denominator: numerators
SPECIAL_TOKENS = ["PAD", "BOS", "EOS", "MASK"]
TICKS_PER_QUARTER = 480  # of the scores that are handed out


@lru_cache
def make_remi(steps_per_beat: int) -> REMI:
    """Build the MidiTok tokenizer whose base vocabulary this processor uses."""
    return REMI(
        TokenizerConfig(
            pitch_range=(MIN_PITCH, MAX_PITCH + 1),
            beat_res={(0, MAX_NOTE_BEATS): steps_per_beat},
            num_velocities=1,
            use_velocities=False,
            use_programs=False,
            use_tempos=False,
            use_time_signatures=True,
            time_signature_range=TIME_SIGNATURES,
            use_pitchdrum_tokens=False,
            special_tokens=SPECIAL_TOKENS,
            encode_ids_split="bar",
        )
    )


def is_supported(time_signature: str) -> bool:
    """Whether the vocabulary has a token for a time signature such as `6/8`."""
    numerator, denominator = map(int, time_signature.split("/"))
    return numerator in TIME_SIGNATURES.get(denominator, ())


def readable_time_signature(numerator: int, denominator: int) -> tuple[int, int]:
    """Find a time signature of the vocabulary for another one; itself where there is none, as for 11/8.

    Bars are split into equal ones (8/4 into 4/4, 9/4 into 3/4), four of one beat are joined (1/4 to 4/4, which is what
    most of POP909 is written in), and eighths are counted as quarters (4/8 as 2/4).
    """
    if equal := [each for each in TIME_SIGNATURES.get(denominator, ()) if numerator % each == 0]:
        return max(equal), denominator
    if numerator == 1:
        return readable_time_signature(4, denominator)
    if numerator % 2 == 0 and denominator > 4:
        return readable_time_signature(numerator // 2, denominator // 2)
    return numerator, denominator


def key_signature_of(key: str) -> types.KeySignature:
    """Write a key such as `D minor` as a key signature: sharps, flats if negative, six at most."""
    tonic, mode = key.split()
    is_minor = mode == "minor"
    fifths = 7 * (PITCH_NAMES.index(tonic) + 3 * is_minor) % 12  # from C major; a minor key is that of its third
    return KeySignature(0, fifths - 12 * (fifths > 6), int(is_minor))


def line_to_score(line: dict, ticks_per_quarter: int = TICKS_PER_QUARTER, first_bar: int = 0) -> types.Score:
    """Write a line as a score of one track.

    Args:
        line: See the module's docstring; `tempo` defaults to 120 quarter notes per minute, `program` to 0, and without
            a `key` there is no key signature.
        ticks_per_quarter: Resolution; a grid step must be a whole number of ticks.
        first_bar: Empty bars before the line.

    Returns:
        The score. All velocities are 100.
    """
    numerator, denominator = map(int, line["time_signature"].split("/"))
    ticks_per_step = ticks_per_quarter * 4 // (denominator * line["steps_per_beat"])
    score = Score(ticks_per_quarter)
    score.time_signatures.append(TimeSignature(0, numerator, denominator))
    score.tempos.append(Tempo(0, qpm=float(line.get("tempo", 120.0))))
    track = Track(name="Melody", program=int(line.get("program", 0)))
    if line.get("key"):
        score.key_signatures.append(key_signature_of(line["key"]))
    before = first_bar * steps_per_bar(line)
    for pitch, start, duration in zip(line["pitch"], line["start"], line["duration"], strict=True):
        onset = (before + int(start)) * ticks_per_step
        track.notes.append(Note(onset, int(duration) * ticks_per_step, int(pitch), 100))
    score.tracks.append(track)
    return score


def make_monophonic(notes: Iterable[tuple[int, int, int]], end: int) -> tuple[list[int], list[int], list[int]]:
    """Keep the highest note of each onset and cut each note at the next onset.

    Args:
        notes: (start, duration, pitch) in any order.
        end: Where the last note ends at the latest; notes that start there or later are dropped.

    Returns:
        Starts, durations and pitches, sorted by start.
    """
    highest: dict[int, tuple[int, int]] = {}
    for start, duration, pitch in notes:
        if 0 <= start < end and MIN_PITCH <= pitch <= MAX_PITCH:
            highest[start] = max(highest.get(start, (0, 0)), (pitch, duration))
    starts = sorted(highest)
    limits = dict(zip(starts, [*starts[1:], end], strict=False))  # where the next note begins
    durations = [max(1, min(highest[start][1], limits[start] - start)) for start in starts]
    return starts, durations, [highest[start][0] for start in starts]


def name_of(midi: str | Path | bytes | types.Score) -> str:
    """Name an input in an error message."""
    if isinstance(midi, str | Path):
        return str(midi)
    return f"{len(midi)} bytes" if isinstance(midi, bytes) else f"a score of {len(midi.tracks)} tracks"


def read_score(midi: str | Path | bytes | types.Score) -> types.Score:
    """Read a path, the bytes of a MIDI file, or a score.

    Raises:
        ValueError: If it is no MIDI file; names the file.
    """
    if isinstance(midi, Score):
        return midi.to("tick")  # pyright: ignore[reportReturnType] - a factory narrows nothing
    name = name_of(midi)
    try:
        content = midi if isinstance(midi, bytes) else Path(midi).read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror}); give the path of a MIDI file") from error
    try:
        return Score.from_midi(content)
    except Exception as error:  # symusic raises plain RuntimeError, and others, on what it cannot parse
        raise ValueError(f"{name}: not a MIDI file, or a broken one; export it again as standard MIDI") from error


def find_tunes(midi: str | Path | bytes | types.Score, steps_per_beat: int = 4) -> list[dict]:
    """List what could be the tune of a MIDI file, best first, laid on the grid.

    Each track that is not drums gives a line for each of its stretches of constant time signature. The tracks are in
    the order of their lead scores ([`score_tracks`]), those in which the data set finds no melody last; of one track
    the stretch with the most notes comes first. Grid, skyline and choice are the data set's. Unlike there, a line goes
    on through silence, it may be short or of chords, notes out of range are left out of it, it begins with its pick-up
    ([`join_pick_ups`]), and time signatures outside the vocabulary are read in others ([`readable_time_signature`]).

    Args:
        midi: Path, bytes of a MIDI file, or score.
        steps_per_beat: Grid steps per beat.

    Returns:
        Lines with more of the data set's columns, `track` (index in the file), `program`, `lead_score`, `tempo` and
        `key`; and with `file`, `tracks` (how many the file has), `track_name`, `track_notes` (before any is left out),
        `written_time_signature` (in the file) and `first_bar` (bars of the file before the line).

    Raises:
        ValueError: If the file cannot be read, has no notes, or a time signature outside the vocabulary; names it.
    """
    score, file = read_score(midi), name_of(midi)
    tracks = {index: track for index, track in enumerate(score.tracks) if not track.is_drum and len(track.notes)}
    if not tracks:
        raise ValueError(f"{file}: no notes outside the drums; give a MIDI file that has a melody")
    if score.ticks_per_quarter < 1:
        raise ValueError(f"{file}: its time is in frames per second; export it in ticks per quarter note")
    units = (score.ticks_per_quarter, steps_per_beat)
    signatures = [(each.time, each.numerator, each.denominator) for each in score.time_signatures]
    written = bar_grid(signatures, score.ticks_per_quarter)
    played = played_notes(tracks.values())
    try:
        notes = quantise(*played, written, *units)
    except ValueError as error:
        raise ValueError(f"{file}: {error}; cut it in an editor and export it again") from error
    programs, names = [track.program for track in tracks.values()], [track.name for track in tracks.values()]
    lead_scores, is_melody = score_tracks(notes, written, programs, names, steps_per_beat)

    readable = [(each.start_ticks, *readable_time_signature(each.numerator, each.denominator)) for each in written]
    grid = bar_grid(readable, score.ticks_per_quarter)
    signature_at = {each.start_ticks: f"{each.numerator}/{each.denominator}" for each in written}
    written_signatures = [signature_at[each.start_ticks] for each in grid]
    if grid != written:
        notes = quantise(*played, grid, *units)
    notes, grid = join_pick_ups(notes, played, grid, *units)
    is_in_range = (notes.pitch >= MIN_PITCH) & (notes.pitch <= MAX_PITCH)
    if not is_in_range.any():
        raise ValueError(f"{file}: no note between the MIDI pitches {MIN_PITCH} and {MAX_PITCH}")
    sky = skyline(GridNotes(*(column[is_in_range] for column in notes)), len(grid))
    ends = (is_end(sky.track, sky.stretch).nonzero().flatten() + 1).tolist()
    owners, stretches, steps, pitches, durations = (column.tolist() for column in sky[:5])

    def rank(passage: tuple[int, int]) -> tuple:
        own = owners[passage[0]]
        return not is_melody[own], -lead_scores[own], own, passage[0] - passage[1]

    tempos = sorted(((tempo.time, tempo.mspq) for tempo in score.tempos), key=itemgetter(0))
    lines = []
    for begin, end in sorted(pairwise([0, *ends]), key=rank):
        own, place = owners[begin], grid[stretches[begin]]
        bar, ticks_per_step = place.numerator * steps_per_beat, 4 * units[0] / (place.denominator * steps_per_beat)
        first_bar = steps[begin] // bar
        line = {
            "pitch": pitches[begin:end],
            "start": [step - first_bar * bar for step in steps[begin:end]],
            "duration": durations[begin:end],
            "time_signature": f"{place.numerator}/{place.denominator}",
            "steps_per_beat": steps_per_beat,
            "bars": -(-(steps[end - 1] + durations[end - 1]) // bar) - first_bar,
            # Half a step of grace: a note quantised backwards still begins in the tempo that it was played in.
            "tempo": tempo_at(place.start_ticks + (steps[begin] + 0.5) * ticks_per_step, tempos),
            "program": programs[own],
            "file": file,
            "tracks": len(score.tracks),
            "track": list(tracks)[own],
            "track_name": names[own],
            "track_notes": len(list(tracks.values())[own].notes),
            "lead_score": lead_scores[own],
            "written_time_signature": written_signatures[stretches[begin]],
            "first_bar": place.first_bar + first_bar,
        }
        lines.append({**line, "key": key_of(line)})
    if not (readable_lines := [line for line in lines if is_supported(line["time_signature"])]):
        signature = lines[0]["time_signature"]
        raise ValueError(f"{file}: time signature {signature} is not in the vocabulary: {TIME_SIGNATURES}")
    return readable_lines


def played_notes(tracks: Collection[types.Track]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return track (counted from 0), onset and length in ticks, and pitch of all notes, int64 `(N,)` each."""
    columns = [track.notes.numpy() for track in tracks]
    counts = torch.tensor([len(each["time"]) for each in columns])
    time, duration, pitch = (
        torch.cat([torch.as_tensor(each[name]).long() for each in columns]) for name in ("time", "duration", "pitch")
    )
    return torch.arange(len(columns)).repeat_interleave(counts), time, duration, pitch


def tempo_at(ticks: float, tempos: list[tuple[int, int]]) -> float:
    """Return the quarter notes per minute at a time, of sorted (ticks, microseconds per quarter); 120 before them."""
    place = bisect_right(tempos, ticks, key=itemgetter(0))
    return 60e6 / max(tempos[place - 1][1], 1) if place else 120.0


def choose_tune(tunes: list[dict], track: int | None = None) -> dict:
    """Take the best of a file's lines ([`find_tunes`]), of all or of one track.

    Raises:
        ValueError: If the track has none; says which have.
    """
    own = [line for line in tunes if track in (None, line["track"])]
    if not own:
        others = ", ".join(map(str, sorted({line["track"] for line in tunes})))
        raise ValueError(f"{tunes[0]['file']}: track={track} has no melody to read; these have: {others}")
    return own[0]


def find_melody(midi: str | Path | bytes | types.Score, steps_per_beat: int = 4, track: int | None = None) -> dict:
    """Find the tune of a MIDI file and lay it on the grid: the first that [`find_tunes`] lists.

    Args:
        midi: Path, bytes of a MIDI file, or score.
        steps_per_beat: Grid steps per beat.
        track: Index of the track to take, instead of the best.

    Raises:
        ValueError: If nothing can be read, or not from this track; names the file.
    """
    return choose_tune(find_tunes(midi, steps_per_beat), track)


def label_of(line: dict) -> str:
    """Name a line's track by its index and its name, or the instrument where it has none."""
    name = line.get("track_name", "").strip()
    return f"track={line['track']} " + (f'"{name}"' if name else f"({MIDI_INSTRUMENTS[line['program']]['name']})")


def describe_line(line: dict, max_bars: int, tunes: Iterable[dict] = ()) -> str:
    """Say in one sentence what a line is, where it comes from and how many windows it makes.

    Args:
        line: As [`find_tunes`] gives it; a row of the data set or any other line has less to say.
        max_bars: Bars of one window.
        tunes: The file's lines, of which the best of another track is named.
    """
    parts = []
    if "track" in line:
        of = f" of {line['tracks']}" if "tracks" in line else ""
        other = next((each for each in tunes if each["track"] != line["track"]), None)
        beside = f", next {label_of(other)} {other['lead_score']:.2f}" if other else ""
        parts.append(f"the tune is {label_of(line)}{of} (lead score {line['lead_score']:.2f}{beside})")
    place, written = f"in {line['time_signature']}", line.get("written_time_signature", line["time_signature"])
    place += f" (written as {written})" if written != line["time_signature"] else ""
    if "first_bar" in line:
        place = f"bars {line['first_bar'] + 1} to {line['first_bar'] + line['bars']} {place}"
    parts.append(place + (f" at {line['tempo']:.4g} quarter notes a minute" if "tempo" in line else ""))
    parts += [line["key"]] if line.get("key") else []
    notes, all_notes = len(line["pitch"]), line.get("track_notes", len(line["pitch"]))
    parts.append(f"{notes} notes" if notes == all_notes else f"{notes} of its {all_notes} notes")
    windows = -(-line["bars"] // max_bars)
    parts.append(f"{line['bars']} bars: {windows} window{'s' * (windows != 1)} of up to {max_bars}")
    return (f"{line['file']}: " if "file" in line else "") + "; ".join(parts)


def cut_bars(line: dict, first_bar: int, bars: int) -> dict:
    """Cut `bars` bars out of a line; notes that began earlier are dropped, the last one is cut at the end."""
    bar = steps_per_bar(line)
    bars = min(bars, line["bars"] - first_bar)
    low, high = first_bar * bar, (first_bar + bars) * bar
    kept = [index for index, start in enumerate(line["start"]) if low <= start < high]
    place = {"first_bar": line["first_bar"] + first_bar} if "first_bar" in line else {}
    return {
        **line,
        **place,
        "pitch": [line["pitch"][index] for index in kept],
        "start": [line["start"][index] - low for index in kept],
        "duration": [min(line["duration"][index], high - line["start"][index]) for index in kept],
        "bars": bars,
    }


def character_of(remi: REMI, token: str) -> str:
    """Return the character that stands for a REMI token such as `Pitch_60`."""
    return chr(FIRST_CHARACTER + remi[token])  # pyright: ignore[reportOperatorIssue] - one vocabulary, so an int


def line_to_words(line: dict) -> list[str]:
    """Write each bar of a line as one word, a character per REMI token.

    Args:
        line: See the module's docstring.

    Returns:
        `line["bars"]` words.

    Raises:
        ValueError: If the vocabulary does not have the line's time signature.
    """
    if not is_supported(line["time_signature"]):
        raise ValueError(f"time signature {line['time_signature']} is not in the vocabulary: {TIME_SIGNATURES}")
    remi = make_remi(line["steps_per_beat"])
    ids: list[int] = []
    if len(line["pitch"]):
        sequence = remi.encode(line_to_score(line, remi.time_division), encode_ids=False)[0]
        ids = sequence.ids  # pyright: ignore[reportAssignmentType] - one vocabulary, so a flat list
    bar = character_of(remi, "Bar_None")
    words: list[str] = []
    for character in (chr(FIRST_CHARACTER + index) for index in ids):
        if character == bar:
            words.append("")
        words[-1] += character
    silent = bar + character_of(remi, f"TimeSig_{line['time_signature']}")
    return words + [silent] * (line["bars"] - len(words))  # MidiTok writes no bars after the last onset


@lru_cache
def transposition_table(steps_per_beat: int, semitones: int) -> dict[int, str]:
    """Make the table with which `str.translate` transposes words.

    Args:
        steps_per_beat: Of the words' lines.
        semitones: Up if positive.

    Returns:
        Code point to character, for the pitches that stay in range; the others are not translated.
    """
    remi = make_remi(steps_per_beat)
    return {
        ord(character_of(remi, f"Pitch_{pitch}")): character_of(remi, f"Pitch_{pitch + semitones}")
        for pitch in range(max(MIN_PITCH, MIN_PITCH - semitones), min(MAX_PITCH, MAX_PITCH - semitones) + 1)
    }


class MelodyProcessor(ProcessorMixin):
    """Turns MIDI files and melody lines into model inputs, and generated ids into scores.

    Args:
        tokenizer: The fast tokenizer, [`train`] makes one.
        steps_per_beat: Grid steps per beat (4: sixteenths in 4/4).
        max_bars: Bars of one window.
    """

    attributes = ["tokenizer"]  # noqa: RUF012 - the base class's own form
    tokenizer_class = "AutoTokenizer"

    def __init__(self, tokenizer=None, steps_per_beat: int = 4, max_bars: int = 16, **kwargs):
        self.steps_per_beat = steps_per_beat
        self.max_bars = max_bars
        super().__init__(tokenizer, **kwargs)

    @property
    def remi(self) -> REMI:
        """The MidiTok tokenizer under the BPE."""
        return make_remi(self.steps_per_beat)

    @classmethod
    def train(
        cls, words: list[list[str]], vocab_size: int = 1024, steps_per_beat: int = 4, max_bars: int = 16
    ) -> MelodyProcessor:
        """Train the BPE and build a processor around it.

        Args:
            words: For each melody its bars, as [`line_to_words`] writes them.
            vocab_size: Size of the vocabulary to reach.
            steps_per_beat: Grid steps per beat.
            max_bars: Bars of one window.

        Raises:
            ValueError: If there is nothing to train on.
        """
        if not any(words):
            raise ValueError("no bars to train the tokenizer on")
        remi = make_remi.__wrapped__(steps_per_beat)  # a copy of its own, since training changes it
        remi.train(vocab_size=vocab_size, iterator=words)
        state = json.loads(remi._model.to_str())
        names = {chr(FIRST_CHARACTER + index): f"<{token.lower()}>" for index, token in enumerate(SPECIAL_TOKENS)}
        state["model"]["vocab"] = {names.get(token, token): index for token, index in state["model"]["vocab"].items()}
        for token in state["added_tokens"]:
            token["content"] = names[token["content"]]
            token["special"] = True
        bpe = Tokenizer.from_str(json.dumps(state))
        bpe.post_processor = TemplateProcessing(
            single="<bos> $A <eos>",
            special_tokens=[("<bos>", bpe.token_to_id("<bos>")), ("<eos>", bpe.token_to_id("<eos>"))],
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe,
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            mask_token="<mask>",
            clean_up_tokenization_spaces=False,
        )
        return cls(tokenizer, steps_per_beat=steps_per_beat, max_bars=max_bars)

    @property
    def bar_token_ids(self) -> list[int]:
        """Ids of the tokens that open a bar, for [`MelodyVAEConfig`]."""
        return sorted(index for token, index in self.tokenizer.get_vocab().items() if token.startswith(WORD_PREFIX))

    def grammar_table(self) -> torch.Tensor:
        """Summarise each token, for [`MelodyVAEModel.set_grammar`].

        Tokens with a pitch above the range are unusable: MidiTok's vocabulary has one pitch more.

        Returns:
            `(V, 12 + W)`: the columns that the module of [`MelodyLogitsProcessor`] names, and the token's REMI tokens
            as [`encode_base_token`] writes them, zeros after them; W is the most that a token has.
        """
        rows = [list(SPECIAL_ROW)] * len(self.tokenizer)
        base_tokens: list[list[int]] = [[]] * len(self.tokenizer)
        for token, index in self.tokenizer.get_vocab().items():
            if index not in self.tokenizer.all_special_ids:
                bases = [self.remi[ord(character) - FIRST_CHARACTER] for character in token.removeprefix(WORD_PREFIX)]
                rows[index] = summarise_token(bases, token.startswith(WORD_PREFIX), self.steps_per_beat)
                base_tokens[index] = [encode_base_token(base, self.steps_per_beat) for base in bases]
        longest = max(map(len, base_tokens))
        table = torch.tensor(
            [row + own + [0] * (longest - len(own)) for row, own in zip(rows, base_tokens, strict=True)]
        )
        table[table[:, TokenColumn.HIGHEST_PITCH] > MAX_PITCH, TokenColumn.BEFORE] = UNUSABLE
        return table

    def can_read(self, time_signature: str, steps_per_beat: int) -> bool:
        """Whether the vocabulary has the time signature and the grid of a line."""
        return is_supported(time_signature) and steps_per_beat == self.steps_per_beat

    def tunes(self, midi: str | Path | bytes | types.Score) -> list[dict]:
        """List what could be the tune of a MIDI file, best first: whole lines, as [`find_tunes`] describes them."""
        return find_tunes(midi, self.steps_per_beat)

    def read(self, midi: str | Path | bytes | types.Score | list, track: int | None = None) -> list[dict]:
        """Find the tune of each MIDI file; whole lines, not yet cut into windows.

        What was found is logged, see [`MelodyProcessor.describe`], after `transformers.logging.set_verbosity_info()`.

        Args:
            midi: Path, bytes of a MIDI file, score, or a list of them.
            track: Index of the track to take, instead of the best.

        Raises:
            ValueError: If a file has no tune to read; names it and says why.
        """
        lines = []
        for each in midi if isinstance(midi, list | tuple) else [midi]:
            tunes = self.tunes(each)
            lines.append(choose_tune(tunes, track))
            logger.info(describe_line(lines[-1], self.max_bars, tunes))
        return lines

    def windows(self, line: dict) -> list[dict]:
        """Cut a line into windows of up to `max_bars` bars, one after the other, the last of which may be shorter."""
        return [cut_bars(line, first, self.max_bars) for first in range(0, line["bars"], self.max_bars)]

    def describe(self, midi: str | Path | bytes | types.Score | dict, track: int | None = None) -> str:
        """Say in one sentence what was found in a MIDI file, or where a line comes from.

        Args:
            midi: Path, bytes of a MIDI file, score, or a line.
            track: Index of the track to take, instead of the best.
        """
        if isinstance(midi, dict):
            return describe_line(midi, self.max_bars)
        tunes = self.tunes(midi)
        return describe_line(choose_tune(tunes, track), self.max_bars, tunes)

    def __call__(
        self,
        midi: str | Path | bytes | types.Score | list | None = None,
        lines: dict | list[dict] | None = None,
        first_bar: int = 0,
        bars: int | None = None,
        track: int | None = None,
        primer: bool = False,
        return_tensors: str | None = None,
        padding: bool | str = True,
        **kwargs,
    ) -> BatchFeature:
        """Prepare melodies for the model.

        Args:
            midi: Path, bytes of a MIDI file, score, or a list of them; the tune is found in each.
            lines: Melody lines instead, such as rows of the data set.
            first_bar: Where to cut the window; bars of the line before it.
            bars: Length of the window, at most and by default `max_bars`.
            track: Index of the track that has the tune, in a MIDI file; by default it is found.
            primer: Leave the end open and pad on the left, for continuation.
            return_tensors: `pt` for tensors.
            padding: As in tokenizers.
            kwargs: Passed to the tokenizer.

        Returns:
            `input_ids` and `attention_mask`, `(B, T)`.

        Raises:
            ValueError: If an input is no melody; says which and why.
        """
        if (midi is None) == (lines is None):
            raise ValueError("give either midi= or lines=")
        if first_bar < 0:
            raise ValueError(f"first_bar={first_bar}: bars count from 0, the line's first")
        if bars is not None and bars < 1:
            raise ValueError(f"bars={bars}: a window has 1 bar or more")
        if lines is None:
            lines = self.read(midi, track)
        lines = [lines] if isinstance(lines, dict) else lines
        windows = [cut_bars(line, first_bar, min(bars or self.max_bars, self.max_bars)) for line in lines]
        if empty := [index for index, window in enumerate(windows) if window["bars"] < 1]:
            raise ValueError(f"melody {empty[0]} has {lines[empty[0]]['bars']} bars, so none from bar {first_bar} on")
        for line in lines:
            if line["steps_per_beat"] != self.steps_per_beat:
                raise ValueError(f"{line['steps_per_beat']} steps per beat; this processor has {self.steps_per_beat}")
        texts = [" ".join(line_to_words(window)) for window in windows]
        if primer:
            kwargs["padding_side"] = "left"
            texts = [self.tokenizer.bos_token + text for text in texts]
        encoded = self.tokenizer(
            texts,
            add_special_tokens=not primer,
            padding=padding,
            return_tensors=return_tensors,
            return_token_type_ids=False,
            **kwargs,
        )
        return BatchFeature(dict(encoded))

    def map_rows(self, rows: dict[str, list]) -> dict[str, list]:
        """Tokenise rows of the data set: `dataset.map(processor.map_rows, batched=True)`.

        Args:
            rows: A batch as `datasets` gives it, a list for each column; lines or windows, cut after `max_bars`.

        Returns:
            `input_ids` and `attention_mask`, a list for each row, not padded.

        Raises:
            ValueError: If a row is no melody for this processor; filter by [`MelodyProcessor.can_read`].
        """
        lines = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        return dict(self(lines=lines, padding=False))

    def to_lines(self, ids) -> list[dict]:
        """Read generated ids as lines, whatever they are: what is no note is left out, what overlaps is cut.

        Args:
            ids: `(B, T)` or a list of lists.

        Returns:
            One line per melody; the time signature is that of its first bar.
        """
        return [self._to_line(each) for each in (ids.tolist() if hasattr(ids, "tolist") else ids)]

    def _to_line(self, ids: list[int]) -> dict:
        remi = self.remi
        base_tokens = self.tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True)
        characters = "".join(base_tokens).replace(WORD_PREFIX, "")
        tokens = [remi[ord(character) - FIRST_CHARACTER] for character in characters]
        signature = next((token for token in tokens if token.startswith("TimeSig")), "TimeSig_4/4")
        tokens = [signature if token.startswith("TimeSig") else token for token in tokens]
        numerator, denominator = map(int, signature.split("_")[1].split("/"))
        bars = tokens.count("Bar_None")
        end = bars * numerator * self.steps_per_beat
        decoded = remi.decode([TokSequence(tokens=tokens)]) if tokens else Score(remi.time_division)
        ticks_per_step = remi.time_division * 4 // (denominator * self.steps_per_beat)
        notes = [
            (note.start // ticks_per_step, note.duration // ticks_per_step, note.pitch)
            for track in decoded.tracks
            for note in track.notes
        ]
        starts, durations, pitches = make_monophonic(notes, end)
        return {
            "pitch": pitches,
            "start": starts,
            "duration": durations,
            "time_signature": f"{numerator}/{denominator}",
            "steps_per_beat": self.steps_per_beat,
            "bars": bars,
        }

    def to_scores(
        self, ids, tempo: float | str | None = None, program: int | None = None, like: dict | list[dict] | None = None
    ) -> list[types.Score]:
        """Write generated ids `(B, T)` as scores.

        Args:
            ids: `(B, T)` or a list of lists.
            tempo: Quarter notes per minute, or a class of tempos that samples can be asked for (`slow`, `medium`,
                `fast`); that of `like`, or 120.
            program: General MIDI program, 0 to 127; that of `like`, or 0.
            like: A line, or one for each melody, from which the tempo, the program, the key signature and the first bar
                are taken: beside the file where [`read`] or [`windows`] found it, the melody is in its own place.

        Raises:
            ValueError: If there are not as many lines as melodies, or no such class.
        """
        if isinstance(tempo, str):
            if tempo not in TEMPO_CLASSES:
                raise ValueError(f"tempo={tempo!r} is neither a number nor one of {', '.join(TEMPO_CLASSES)}")
            tempo = TEMPO_CLASSES[tempo][-1]
        lines = self.to_lines(ids)
        sources = [like or {}] * len(lines) if like is None or isinstance(like, dict) else like
        if len(sources) != len(lines):
            raise ValueError(f"like= has {len(sources)} lines for {len(lines)} melodies")
        given = {name: value for name, value in (("tempo", tempo), ("program", program)) if value is not None}
        scores = []
        for line, source in zip(lines, sources, strict=True):
            sound = {name: source[name] for name in ("tempo", "program", "key") if name in source}
            scores.append(line_to_score({**line, **sound, **given}, first_bar=source.get("first_bar", 0)))
        return scores

    def to_midi_bytes(
        self, ids, tempo: float | str | None = None, program: int | None = None, like: dict | list[dict] | None = None
    ) -> list[bytes]:
        """Write generated ids `(B, T)` as MIDI files; see [`MelodyProcessor.to_scores`]."""
        return [score.dumps_midi() for score in self.to_scores(ids, tempo, program, like)]
