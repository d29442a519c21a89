"""A line as words of tokens, one for each bar, and as a score.

Words are MidiTok's REMI, a character for each token; what the processor's tokenizer reads. A *line* is a dict as
`processing_melody_vae` has it.
"""

from __future__ import annotations  # symusic's Score is a factory, no class

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import chain

from miditok import REMI, TokenizerConfig
from symusic import KeySignature, Note, Score, Tempo, TimeSignature, Track, types
from transformers import PreTrainedTokenizerFast

from .melody_line_melody_vae import (
    BASE_TOKEN_KINDS,
    BASE_TOKEN_VALUES,
    MAX_NOTE_BEATS,
    MAX_PITCH,
    MIN_PITCH,
    TIME_SIGNATURES,
    is_supported,
    major_tonic,
    steps_per_bar,
    write_line,
)
from .options_melody_vae import check_count, check_number
from .token_grammar_melody_vae import encode_base_token, mark_repeats
from .tune_finding_melody_vae import FASTEST, SLOWEST

FIRST_CHARACTER = 33  # MidiTok writes the base token i as chr(i + 33)
WORD_PREFIX = "\u2581"  # what the fast tokenizer puts before each word, so before each bar
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


def key_signature_of(key: str) -> types.KeySignature:
    """Write a key such as `D minor` as a key signature: sharps, flats if negative, six at most."""
    fifths = 7 * major_tonic(key) % 12  # from C major
    return KeySignature(0, fifths - 12 * (fifths > 6), int(key.endswith("minor")))


def line_to_score(line: dict, ticks_per_quarter: int = TICKS_PER_QUARTER, first_bar: int = 0) -> types.Score:
    """Write a line as a score of one track.

    Args:
        line: See the module's docstring; `tempo` defaults to 120 quarter notes per minute, `program` to 0, and without
            a `key` there is no key signature.
        ticks_per_quarter: Resolution; a grid step must be a whole number of ticks.
        first_bar: Empty bars before the line.

    Returns:
        The score. All velocities are 100.

    Raises:
        ValueError: If tempo or program are such as MIDI cannot hold.
    """
    numerator, denominator = map(int, line["time_signature"].split("/"))
    ticks_per_step = ticks_per_quarter * 4 // (denominator * line["steps_per_beat"])
    score = Score(ticks_per_quarter)
    score.time_signatures.append(TimeSignature(0, numerator, denominator))
    score.tempos.append(Tempo(0, qpm=check_number("tempo", line.get("tempo", 120.0), SLOWEST, FASTEST)))
    program = check_count("program", line.get("program", 0))
    if program > 127:
        raise ValueError(f"program={program}: General MIDI has 0 to 127")
    track = Track(name="Melody", program=program)
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


@lru_cache
def characters_of(steps_per_beat: int) -> dict[int, str]:
    """Return the character that stands for each REMI token, by the integer that [`write_line`] has for it."""
    vocabulary: dict[str, int] = make_remi(steps_per_beat).vocab  # pyright: ignore[reportAssignmentType] - only one
    return {
        encode_base_token(token, steps_per_beat): chr(FIRST_CHARACTER + index)
        for token, index in vocabulary.items()
        if token.split("_")[0] in BASE_TOKEN_KINDS
    }


def line_to_words(line: dict) -> list[str]:
    """Write each bar of a line as one word, a character per REMI token, as MidiTok does.

    Args:
        line: See the module's docstring.

    Returns:
        `line["bars"]` words.

    Raises:
        ValueError: If the vocabulary does not have the line's time signature.
    """
    if not is_supported(line["time_signature"]):
        raise ValueError(f"time signature {line['time_signature']} is not in the vocabulary: {TIME_SIGNATURES}")
    characters, longest = characters_of(line["steps_per_beat"]), MAX_NOTE_BEATS * line["steps_per_beat"]
    clipped = {**line, "duration": [min(duration, longest) for duration in line["duration"]]}
    return ["".join(map(characters.__getitem__, bar)) for bar in write_line(clipped)]


def bar_tokens(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Look up the ids of a tokenizer's tokens that open a bar, ascending."""
    return sorted(index for token, index in tokenizer.get_vocab().items() if token.startswith(WORD_PREFIX))


def repeat_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    """Look up a tokenizer's tokens for "this bar is an earlier one over again", by how many bars earlier."""
    found = (re.fullmatch(r"<repeat_(\d+)>", token) for token in tokenizer.all_special_tokens)
    return dict(sorted((int(match[1]), match[0]) for match in found if match))


def words_to_text(words: list[str], repeats: Mapping[int, str]) -> str:
    """Join the words of a line's bars as text for the tokenizer.

    Args:
        words: As [`line_to_words`] writes them.
        repeats: As [`repeat_tokens`] returns them; the one that applies goes before a bar that is an earlier one.
    """
    return " ".join(chain.from_iterable(mark_repeats([[word] for word in words], repeats, has_notes)))


def has_notes(bar: list[str]) -> bool:
    """Whether a bar, as a list of its one word, has more than its opening and its time signature."""
    return len(bar[0]) > 2


@lru_cache
def transposition_table(steps_per_beat: int, semitones: int) -> dict[int, str]:
    """Make the table with which `str.translate` transposes words.

    Args:
        steps_per_beat: Of the words' lines.
        semitones: Up if positive.

    Returns:
        Code point to character, for the pitches that stay in range; the others are not translated.
    """
    characters, first_pitch = characters_of(steps_per_beat), BASE_TOKEN_KINDS["Pitch"] * BASE_TOKEN_VALUES
    return {
        ord(characters[first_pitch + pitch]): characters[first_pitch + pitch + semitones]
        for pitch in range(max(MIN_PITCH, MIN_PITCH - semitones), min(MAX_PITCH, MAX_PITCH - semitones) + 1)
    }
