"""What tokens stand for: a grammar over them, as a table of integers, and what is written and read by it.

A token stands for a run of REMI tokens: `Bar TimeSig (Position Pitch Duration)*` for each bar, cut anywhere by BPE, and
"\u2581" before each bar. [`summarise_token`] writes such a run as a row of integers, so that generation needs no
tokenizer. Nothing here needs torch: the ONNX graphs are run with this file too.

Dimension key: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations  # torch is there for its types alone

import re
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .melody_line_melody_vae import BASE_TOKEN_KINDS, BASE_TOKEN_VALUES, tonic_of

if TYPE_CHECKING:
    import torch

Token = TypeVar("Token")

# Phases: what a melody waits for. An onset is a Position, an open note a Position with or without its Pitch.
RESTING, AFTER_POSITION, AFTER_PITCH, AFTER_PREFIX, AFTER_BAR = range(5)
TOKENS_TO_REST = (0, 2, 1, 2, 1)  # of each phase, in tokens of one REMI token each
PHASES = {  # of each kind of REMI token: the phase it needs, the phase it leaves
    "Bar": (AFTER_PREFIX, AFTER_BAR),
    "TimeSig": (AFTER_BAR, RESTING),
    "Position": (RESTING, AFTER_POSITION),
    "Pitch": (AFTER_POSITION, AFTER_PITCH),
    "Duration": (AFTER_PITCH, RESTING),
}
UNUSABLE = -1  # as the phase before: never generated
UNCHANGED = -1  # as the phase after: a special token, which leaves the melody as it is


class TokenColumn(IntEnum):
    """Columns of the grammar table. Onsets, ends and lengths are grid steps, from the bar line of the token's bar."""

    BEFORE = 0  # phase that the token needs
    AFTER = 1  # phase that it leaves
    OPENS_BAR = 2  # 1 or 0
    LEAD_DURATION = 3  # of the note that was open before it; 0 if it closes none
    FIRST_ONSET = 4  # NO_ONSET if it has none
    LAST_ONSET = 5  # -1 if it has none
    LAST_END = 6  # of the last note that lies whole in it; 0 if it has none
    LOWEST_PITCH = 7  # 127 if it has none
    HIGHEST_PITCH = 8  # 0 if it has none
    PITCH_CLASSES = 9  # 12 bits, bit 0 is C
    TIME_SIGNATURE = 10  # as `time_signature_id` has it; 0 if it has none
    BAR_STEPS = 11  # of that time signature


GRAMMAR_COLUMNS = len(TokenColumn)
NO_ONSET = 1 << 14
MAX_TOKENS_PER_BAR = 64  # in generation; 16 notes are 50 tokens before any BPE
SPECIAL_ROW: tuple[int, ...] = (UNUSABLE, UNCHANGED, 0, 0, NO_ONSET, -1, 0, 127, 0, 0, 0, 0)

MODES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "ionian": (0, 2, 4, 5, 7, 9, 11),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "lydian": (0, 2, 4, 6, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "aeolian": (0, 2, 3, 5, 7, 8, 10),
    "locrian": (0, 1, 3, 5, 6, 8, 10),
    "harmonic minor": (0, 2, 3, 5, 7, 8, 11),
    "melodic minor": (0, 2, 3, 5, 7, 9, 11),
    "major pentatonic": (0, 2, 4, 7, 9),
    "minor pentatonic": (0, 3, 5, 7, 10),
    "blues": (0, 3, 5, 6, 7, 10),
    "chromatic": tuple(range(12)),
}


@overload
def scale_mask(scale: str) -> int: ...
@overload
def scale_mask(scale: Sequence[str | None]) -> list[int | None]: ...
def scale_mask(scale: str | Sequence[str | None]) -> int | list[int | None]:
    """Look up the pitch classes of a scale such as `D dorian`, `F# harmonic minor` or `Bb major`.

    Args:
        scale: One, or several; None stays None.

    Returns:
        12 bits; bit 0 is C. A list of them for several.

    Raises:
        ValueError: If the tonic or the mode is unknown; names those that are known.
    """
    if not isinstance(scale, str):
        return [None if name is None else scale_mask(name) for name in scale]
    name, _, mode = scale.strip().partition(" ")
    tonic, mode = tonic_of(name), " ".join(mode.lower().split())
    if tonic is None or mode not in MODES:
        raise ValueError(
            f"unknown scale {scale!r}: give a tonic (C, F#, Bb) and a mode, as in 'D dorian'; modes: {', '.join(MODES)}"
        )
    return sum(1 << (tonic + interval) % 12 for interval in MODES[mode])


def time_signature_id(time_signature: str) -> int:
    """Number that stands for a time signature such as `6/8` in the grammar table.

    Raises:
        ValueError: If it is not of that form.
    """
    match = re.fullmatch(r"(\d{1,3})/(\d{1,2})", time_signature)
    if match is None or not 1 <= int(match[2]) < 64:
        raise ValueError(f"time signature {time_signature!r} is not of the form 6/8")
    return 64 * int(match[1]) + int(match[2])


def encode_base_token(token: str, steps_per_beat: int) -> int:
    """Write a REMI token such as `Pitch_60` as an integer, see `melody_line_melody_vae.BASE_TOKEN_VALUES`."""
    kind, value = token.split("_")
    if kind == "Bar":
        number = 0
    elif kind == "TimeSig":
        number = time_signature_id(value)
    elif kind == "Duration":
        number = duration_steps(value, steps_per_beat)
    else:
        number = int(value)
    return BASE_TOKEN_KINDS[kind] * BASE_TOKEN_VALUES + number


def duration_steps(value: str, steps_per_beat: int) -> int:
    """Read a duration as MidiTok writes it, `beats.steps.steps per beat`, in grid steps."""
    beats, steps, resolution = map(int, value.split("."))
    return (beats * resolution + steps) * steps_per_beat // resolution


def summarise_token(tokens: list[str], opens_bar: bool, steps_per_beat: int) -> list[int]:
    """Summarise a run of REMI tokens as a row of the grammar table.

    Args:
        tokens: Such as `["Position_4", "Pitch_60"]`.
        opens_bar: Whether the bar's prefix goes before them.
        steps_per_beat: Grid steps per beat.

    Returns:
        The columns; `BEFORE` is `UNUSABLE` where no melody can have the run: it is not of the grammar, its onsets do
        not rise, its notes overlap, or it leaves its own time signature's bar.
    """
    # A token is usable where its words follow each other as REMI has them.
    row = list(SPECIAL_ROW)
    phase = RESTING if opens_bar or not tokens else PHASES[tokens[0].split("_")[0]][0]
    row[TokenColumn.BEFORE], row[TokenColumn.OPENS_BAR] = phase, int(opens_bar)
    is_legal = opens_bar or bool(tokens)
    if opens_bar:
        phase = AFTER_PREFIX
    for token in tokens:
        kind, value = token.split("_")
        is_legal &= phase == PHASES[kind][0]
        phase = PHASES[kind][1]
        if kind == "TimeSig":
            row[TokenColumn.TIME_SIGNATURE] = time_signature_id(value)
            row[TokenColumn.BAR_STEPS] = int(value.split("/")[0]) * steps_per_beat
        elif kind == "Position":
            is_legal &= row[TokenColumn.LAST_ONSET] < int(value) and row[TokenColumn.LAST_END] <= int(value)
            row[TokenColumn.FIRST_ONSET] = min(row[TokenColumn.FIRST_ONSET], int(value))
            row[TokenColumn.LAST_ONSET] = int(value)
        elif kind == "Pitch":
            row[TokenColumn.LOWEST_PITCH] = min(row[TokenColumn.LOWEST_PITCH], int(value))
            row[TokenColumn.HIGHEST_PITCH] = max(row[TokenColumn.HIGHEST_PITCH], int(value))
            row[TokenColumn.PITCH_CLASSES] |= 1 << int(value) % 12
        elif kind == "Duration":
            duration = duration_steps(value, steps_per_beat)
            if row[TokenColumn.LAST_ONSET] < 0:
                row[TokenColumn.LEAD_DURATION] = duration
            else:
                row[TokenColumn.LAST_END] = row[TokenColumn.LAST_ONSET] + duration
    row[TokenColumn.AFTER] = phase
    # Onsets must lie within the bar that the token itself opens with a time signature.
    if row[TokenColumn.TIME_SIGNATURE]:
        is_legal &= row[TokenColumn.LAST_ONSET] < row[TokenColumn.BAR_STEPS]
    if not is_legal:
        row[TokenColumn.BEFORE] = UNUSABLE
    return row


# Columns of the state of a melody: a function of its tokens alone, whichever row of the batch they are in.
(
    PHASE,
    BEGUN,  # bars so far
    COUNT,  # tokens of the current bar, its opening included
    ONSET,  # of the open note
    FREE,  # first step at which the next note may begin: the last one has ended
    SIGNATURE,  # of the first bar; 0 before
    STEPS,  # of a bar; 0 before
) = range(7)


def mark_repeats(
    bars: Sequence[Sequence[Token]], repeats: Mapping[int, Token], has_notes: Callable[[Sequence[Token]], bool]
) -> list[list[Token]]:
    """Put before each bar that is an earlier one over again the token that says so.

    Args:
        bars: Of a melody, each a list of tokens.
        repeats: For bars back, nearest first, the token.
        has_notes: Whether a bar has notes; a silent one repeats none.

    Returns:
        The bars, with at most one token more each; of several equal bars the nearest in `repeats` is named.
    """
    marked = []
    for index, bar in enumerate(bars):
        lag = next((lag for lag in repeats if lag <= index and bars[index - lag] == bar), None)
        marked.append([*bar] if lag is None or not has_notes(bar) else [repeats[lag], *bar])
    return marked


def copied_tokens(
    input_ids: torch.Tensor, opens_bar: torch.Tensor, is_repeat: torch.Tensor, eos_token_id: int
) -> torch.Tensor:
    """Find the tokens of bars that are earlier ones over again: the token before such a bar says so.

    Args:
        input_ids: `(B, T)`.
        opens_bar: `(V,)` whether a token opens a bar.
        is_repeat: `(B, T)` whether a token says so.
        eos_token_id: Ends the last bar.

    Returns:
        `(B, T)`.
    """
    opens = opens_bar[input_ids]
    place = input_ids.new_ones(input_ids.shape[1]).cumsum(-1) - 1
    follows = is_repeat.roll(1, -1) & (place > 0) & opens
    latest = place.where(opens | is_repeat | (input_ids == eos_token_id), 0).cummax(-1).values
    return follows.gather(-1, latest)


def runs_of_tokens(table: Any) -> list[list[int]]:
    """Return the REMI tokens that each token stands for, as integers, see `BASE_TOKEN_VALUES`."""
    return [[base_token for base_token in row if base_token] for row in table[:, GRAMMAR_COLUMNS:].tolist()]


class TokenWriter:
    """Writes REMI tokens with a vocabulary's tokens, as its tokenizer does, from the grammar table alone.

    BPE numbers its tokens in the order in which it learned them, so what a token was made of is how the tokens before
    it write its run.

    Args:
        table: `(V, 12 + W)`, as [`MelodyProcessor.grammar_table`] has it; a tensor or an array.
    """

    PREFIX = 0  # stands before each bar; no REMI token

    def __init__(self, table: Any):
        self.single: dict[int, int] = {}  # of a REMI token, or the prefix
        self.merged: dict[tuple[int, int], int] = {}  # of two tokens next to each other
        rows = zip(table[:, :GRAMMAR_COLUMNS].tolist(), runs_of_tokens(table), strict=True)
        for token, (row, run) in enumerate(rows):
            run = [self.PREFIX] * row[TokenColumn.OPENS_BAR] + run
            if row[TokenColumn.BEFORE] == UNUSABLE:
                continue
            if len(run) == 1:
                self.single[run[0]] = token
            else:
                first, *others = self.merge(run)
                if len(others) == 1:
                    self.merged[first, others[0]] = token

    def values(self, kind: str) -> list[int]:
        """Return the values of a kind of REMI token (`Pitch`, ...) that there are, ascending."""
        first = BASE_TOKEN_KINDS[kind] * BASE_TOKEN_VALUES
        return sorted(base - first for base in self.single if first <= base < first + BASE_TOKEN_VALUES)

    def merge(self, run: list[int]) -> list[int]:
        """Write a run of REMI tokens, merging what was learned first first."""
        tokens = [self.single[base_token] for base_token in run]
        unknown = len(self.merged) + max(self.single.values()) + 1
        while len(tokens) > 1:
            pairs = [self.merged.get(pair, unknown) for pair in pairwise(tokens)]
            if (first := min(pairs)) == unknown:
                break
            at = pairs.index(first)
            tokens[at : at + 2] = [first]
        return tokens

    def write(self, bars: Sequence[list[int]]) -> list[list[int]]:
        """Write each bar, a list of REMI tokens.

        Raises:
            ValueError: If the vocabulary lacks one of them.
        """
        try:
            return [self.merge([self.PREFIX, *bar]) for bar in bars]
        except KeyError as error:
            kind, value = divmod(error.args[0], BASE_TOKEN_VALUES)
            name = next((name for name, number in BASE_TOKEN_KINDS.items() if number == kind), kind)
            raise ValueError(f"the vocabulary has no {name} of {value}") from error
