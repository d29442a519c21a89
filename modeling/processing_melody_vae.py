"""MIDI to token ids and back: MidiTok's REMI, one word per bar, and a fast BPE tokenizer over those words.

A *line* is a dict with the columns of the data set's Parquet schema that describe notes: `pitch`, `start` and
`duration` (lists; grid steps from the line's first bar line), `time_signature`, `steps_per_beat`, `bars` and `tempo`.
A step is a `steps_per_beat`th of the beat, the beat being the note that the time signature's denominator names.
"""

from __future__ import annotations  # symusic's Score is a factory, no class

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import torch
from miditok import REMI, TokenizerConfig, TokSequence
from symusic import Note, Score, Tempo, TimeSignature, Track, types
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from .attributes_melody_vae import steps_per_bar
from .constraints_melody_vae import BEFORE, HIGHEST_PITCH, SPECIAL_ROW, UNUSABLE, piece_of, summarise_token

FIRST_CHARACTER = 33  # MidiTok writes the base token i as chr(i + 33)
WORD_PREFIX = "\u2581"  # what the fast tokenizer puts before each word, so before each bar
MIN_PITCH, MAX_PITCH = 21, 108  # the piano's range, MusicVAE's too
MAX_NOTE_BEATS = 16
TIME_SIGNATURES = {4: [2, 3, 4, 5, 6, 7], 8: [3, 5, 6, 7, 9, 12]}  # denominator: numerators
SPECIAL_TOKENS = ["PAD", "BOS", "EOS", "MASK"]
TICKS_PER_QUARTER = 480  # of the scores that are handed out
NAMES_OF_TUNES = ("melod", "vocal", "voice", "lead", "vox", "sing", "tune", "solo")


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


def line_to_score(line: dict, ticks_per_quarter: int = TICKS_PER_QUARTER) -> types.Score:
    """Write a line as a score of one track.

    Args:
        line: See the module's docstring; `tempo` defaults to 120 quarter notes per minute, `program` to 0.
        ticks_per_quarter: Resolution; a grid step must be a whole number of ticks.

    Returns:
        The score. All velocities are 100.
    """
    numerator, denominator = map(int, line["time_signature"].split("/"))
    ticks_per_step = ticks_per_quarter * 4 // (denominator * line["steps_per_beat"])
    score = Score(ticks_per_quarter)
    score.time_signatures.append(TimeSignature(0, numerator, denominator))
    score.tempos.append(Tempo(0, qpm=float(line.get("tempo", 120.0))))
    track = Track(name="Melody", program=int(line.get("program", 0)))
    for pitch, start, duration in zip(line["pitch"], line["start"], line["duration"], strict=True):
        track.notes.append(Note(int(start) * ticks_per_step, int(duration) * ticks_per_step, int(pitch), 100))
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


def tune_likeness(track: types.Track) -> float:
    """Rate how much a track is the tune that one would hum: monophonic, singable, busy, and called so."""
    notes = track.notes.numpy()
    onsets = len(set(notes["time"].tolist()))
    monophony = onsets / len(notes["time"])
    singable = 1 - min(abs(float(notes["pitch"].mean()) - 72) / 36, 1)
    variety = min(len(set(notes["pitch"].tolist())) / 8, 1)
    busy = min(onsets / 64, 1)
    named = any(word in track.name.lower() for word in NAMES_OF_TUNES)
    return 2 * named + 1.5 * monophony + singable + variety + busy


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


def find_melody(midi: str | Path | bytes | types.Score, steps_per_beat: int = 4) -> dict:
    """Find the tune of a MIDI file and lay it on the grid.

    Of the tracks that are not drums it takes the one most like a tune ([`tune_likeness`]), from the bar of its first
    note up to the first change of time signature after it.

    Args:
        midi: Path, bytes of a MIDI file, or score.
        steps_per_beat: Grid steps per beat.

    Returns:
        A line, with `tempo` and `program`.

    Raises:
        ValueError: If the file cannot be read, has no notes, or a time signature outside the vocabulary; names it.
    """
    score = read_score(midi)
    tracks = [track for track in score.tracks if not track.is_drum and len(track.notes)]
    if not tracks:
        raise ValueError(f"{name_of(midi)}: no notes outside the drums; give a MIDI file that has a melody")
    track = max(tracks, key=tune_likeness)
    first = min(note.start for note in track.notes)
    signatures = sorted(
        (signature.time, 2 * signature.numerator, 4)  # cut time: the same bar lines on the finer grid
        if signature.denominator == 2
        else (signature.time, signature.numerator, signature.denominator)
        for signature in score.time_signatures
    )
    signatures = [(0, 4, 4), *signatures]
    origin, numerator, denominator = [signature for signature in signatures if signature[0] <= first][-1]
    time_signature = f"{numerator}/{denominator}"
    if not is_supported(time_signature):
        raise ValueError(
            f"{name_of(midi)}: time signature {time_signature} is not in the vocabulary: {TIME_SIGNATURES}"
        )
    end = min(
        [time for time, *other in signatures if time > first and tuple(other) != (numerator, denominator)], default=None
    )
    step = score.ticks_per_quarter * 4 / (denominator * steps_per_beat)  # ticks
    bar = numerator * steps_per_beat  # steps
    first_bar = round((first - origin) / step) // bar
    notes = [
        (
            round((note.start - origin) / step) - first_bar * bar,
            round((note.end - origin) / step) - round((note.start - origin) / step),
            note.pitch,
        )
        for note in track.notes
        if end is None or note.start < end
    ]
    last = max(start + max(duration, 1) for start, duration, _ in notes)
    if end is not None:  # the last note may sound into the next time signature
        last = min(last, round((end - origin) / step) - first_bar * bar)
    bars = -(-last // bar)
    starts, durations, pitches = make_monophonic(notes, bars * bar)
    if not pitches:
        raise ValueError(f"{name_of(midi)}: no note between the MIDI pitches {MIN_PITCH} and {MAX_PITCH}")
    tempos = [tempo.qpm for tempo in score.tempos if tempo.time <= first]
    return {
        "pitch": pitches,
        "start": starts,
        "duration": durations,
        "time_signature": time_signature,
        "steps_per_beat": steps_per_beat,
        "bars": bars,
        "tempo": float(tempos[-1]) if tempos else 120.0,
        "program": int(track.program),
    }


def cut_bars(line: dict, first_bar: int, bars: int) -> dict:
    """Cut `bars` bars out of a line; notes that began earlier are dropped, the last one is cut at the end."""
    bar = steps_per_bar(line)
    bars = min(bars, line["bars"] - first_bar)
    low, high = first_bar * bar, (first_bar + bars) * bar
    kept = [index for index, start in enumerate(line["start"]) if low <= start < high]
    return {
        **line,
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
            as [`piece_of`] writes them, zeros after them; W is the most that a token has.
        """
        rows = [list(SPECIAL_ROW)] * len(self.tokenizer)
        pieces: list[list[int]] = [[]] * len(self.tokenizer)
        for token, index in self.tokenizer.get_vocab().items():
            if index not in self.tokenizer.all_special_ids:
                bases = [self.remi[ord(character) - FIRST_CHARACTER] for character in token.removeprefix(WORD_PREFIX)]
                rows[index] = summarise_token(bases, token.startswith(WORD_PREFIX), self.steps_per_beat)
                pieces[index] = [piece_of(base, self.steps_per_beat) for base in bases]
        longest = max(map(len, pieces))
        table = torch.tensor([row + own + [0] * (longest - len(own)) for row, own in zip(rows, pieces, strict=True)])
        table[table[:, HIGHEST_PITCH] > MAX_PITCH, BEFORE] = UNUSABLE
        return table

    def can_read(self, time_signature: str, steps_per_beat: int) -> bool:
        """Whether the vocabulary has the time signature and the grid of a line."""
        return is_supported(time_signature) and steps_per_beat == self.steps_per_beat

    def read(self, midi: str | Path | bytes | types.Score | list) -> list[dict]:
        """Find the tune of each MIDI file, as [`find_melody`] does; whole lines, not yet cut into windows."""
        files = midi if isinstance(midi, list | tuple) else [midi]
        return [find_melody(each, self.steps_per_beat) for each in files]

    def __call__(
        self,
        midi: str | Path | bytes | types.Score | list | None = None,
        lines: dict | list[dict] | None = None,
        first_bar: int = 0,
        bars: int | None = None,
        primer: bool = False,
        return_tensors: str | None = None,
        padding: bool | str = True,
        **kwargs,
    ) -> BatchFeature:
        """Prepare melodies for the model.

        Args:
            midi: Path, bytes of a MIDI file, score, or a list of them; the tune is found in each.
            lines: Melody lines instead, such as rows of the data set.
            first_bar: Where to cut the window.
            bars: Length of the window, at most and by default `max_bars`.
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
        if lines is None:
            lines = self.read(midi)
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
        pieces = self.tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True)
        characters = "".join(pieces).replace(WORD_PREFIX, "")
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

    def to_scores(self, ids, tempo: float = 120.0, program: int = 0) -> list[types.Score]:
        """Write generated ids `(B, T)` as scores.

        Args:
            ids: `(B, T)` or a list of lists.
            tempo: Quarter notes per minute.
            program: General MIDI program, 0 to 127.
        """
        return [line_to_score({**line, "tempo": tempo, "program": program}) for line in self.to_lines(ids)]

    def to_midi_bytes(self, ids, tempo: float = 120.0, program: int = 0) -> list[bytes]:
        """Write generated ids `(B, T)` as MIDI files."""
        return [score.dumps_midi() for score in self.to_scores(ids, tempo, program)]
