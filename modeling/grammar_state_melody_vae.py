"""What a generated melody must be, token by token, by a state for each melody.

The torch model and the ONNX graphs both use it. Which tokens fit depends on a few numbers of the state; what was found
for them is remembered, so that most tokens cost one lookup.

Dimension key: A melodies being written, V vocabulary, R of those melodies, O tokens that open a bar.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .token_grammar_melody_vae import (
    AFTER_PITCH,
    AFTER_POSITION,
    GRAMMAR_COLUMNS,
    MAX_TOKENS_PER_BAR,
    NO_ONSET,
    RESTING,
    TOKENS_TO_REST,
    UNCHANGED,
    UNUSABLE,
    TokenColumn,
    time_signature_id,
)

MOST_REMEMBERED = 8192  # masks, of V bytes each, and phases, of 2 V


class TokenTable:
    """The grammar's table, with what is looked up in it.

    Args:
        table: `(V, 12 + W)`, see `token_grammar_melody_vae`.
        eos_token_id: Token that ends a melody.
        repeats: For bars back, the token that says "this bar is that one over again".
    """

    def __init__(self, table: np.ndarray, eos_token_id: int, repeats: Mapping[int, int]):
        self.table, self.eos_token_id, self.repeats = table, eos_token_id, repeats
        self.rows = [tuple(row) for row in table[:, :GRAMMAR_COLUMNS].tolist()]
        self.lag_of = {token: lag for lag, token in repeats.items()}
        columns = table[:, :GRAMMAR_COLUMNS].T
        self.opens_bar = columns[TokenColumn.OPENS_BAR] == 1  # (V,)
        self.has_note = columns[TokenColumn.FIRST_ONSET] < NO_ONSET
        self.bar_ends = np.concatenate([np.flatnonzero(self.opens_bar), list(repeats.values())]).astype(np.int64)
        self.longest_lead = int(columns[TokenColumn.LEAD_DURATION].max())
        onset = columns[TokenColumn.FIRST_ONSET]
        self.columns = tuple(
            column.astype(np.int16)
            for column in (
                onset - columns[TokenColumn.LEAD_DURATION],
                columns[TokenColumn.LEAD_DURATION],
                columns[TokenColumn.LAST_ONSET],
                columns[TokenColumn.LAST_END],
                columns[TokenColumn.TIME_SIGNATURE],
                columns[TokenColumn.BAR_STEPS],
                np.array(TOKENS_TO_REST)[np.maximum(columns[TokenColumn.AFTER], 0)],
                # A bar that opens without a note still has to have room for one.
                np.where(onset < NO_ONSET, onset, np.where(self.opens_bar, 0, -NO_ONSET)),
            )
        )
        self.needs: dict[tuple[int, int, int], np.ndarray] = {}  # phase before each token, by pitches
        self.found: dict[tuple, np.ndarray] = {}

    def usable_phases(self, pitches: tuple[int, int, int]) -> np.ndarray:
        """Give the phase before each token `(V,)`, `UNUSABLE` for those of other pitches than asked for.

        Args:
            pitches: Pitch classes (12 bits), the lowest pitch, the highest.

        Raises:
            ValueError: If no pitch is left.
        """
        if pitches not in self.needs:
            (classes, low, high), columns = pitches, self.table[:, :GRAMMAR_COLUMNS].T
            before = columns[TokenColumn.BEFORE]
            is_usable = (before != UNUSABLE) & (columns[TokenColumn.PITCH_CLASSES] & ~classes == 0)
            is_usable &= (columns[TokenColumn.LOWEST_PITCH] >= low) & (columns[TokenColumn.HIGHEST_PITCH] <= high)
            is_pitch = (before == AFTER_POSITION) & (columns[TokenColumn.AFTER] == AFTER_PITCH)
            if not (is_usable & is_pitch).any():
                scale = "" if classes == 0xFFF else f" of the scale {classes:012b} (B down to C)"
                raise ValueError(f"no pitch{scale} from lowest_pitch={low} to highest_pitch={high}")
            if len(self.needs) >= MOST_REMEMBERED:
                self.needs.clear()
            self.needs[pitches] = np.where(is_usable, before, UNUSABLE).astype(np.int16)
        return self.needs[pitches]

    def time_signature(self, name: str) -> tuple[int, int]:
        """Look up the number of a time signature and the steps of its bar.

        Raises:
            ValueError: If the vocabulary lacks it.
        """
        number, column = time_signature_id(name), self.table[:, TokenColumn.TIME_SIGNATURE]
        chosen = column == number
        if not chosen.any():
            known = sorted({divmod(int(each), 64) for each in column if each})
            names = ", ".join(f"{numerator}/{denominator}" for numerator, denominator in known)
            raise ValueError(f"time signature {name} is not in the vocabulary: {names}")
        return number, int(self.table[chosen, TokenColumn.BAR_STEPS].max())

    def fits(
        self,
        pitches: tuple[int, int, int],
        opens_bar: bool,
        phase: int,
        earliest: int,
        longest: int,
        steps: int,
        bars_left: int,
        signature: int,
        room: int,
        latest: int,
    ) -> np.ndarray:
        """Compare what tokens ask of a melody with what it offers; those that open bars, or the others.

        Args:
            pitches: As in `usable_phases`.
            opens_bar: Whether to look at tokens that open a bar.
            phase: Of the melody.
            earliest: Onset of the open note, or the first step at which one may begin.
            longest: What the open note may last; 0 if none is open.
            steps: Of a bar; 0 if the tokens are to say.
            bars_left: Bars, the tokens' own included, until a bar that no note may ring into, or the end.
            signature: Time signature, 0 if the tokens are to say.
            room: Tokens left in the bar after this one.
            latest: Step at which the next note has to begin.

        Returns:
            `(V,)` whether a token fits.
        """
        # Limits that make no difference are brought to one value: fewer keys to remember.
        longest, bars_left = min(longest, self.longest_lead), min(max(bars_left, 1), 64)
        room, latest = min(room, max(TOKENS_TO_REST)), min(max(latest, -NO_ONSET), NO_ONSET)
        key = (pitches, opens_bar, phase, earliest, longest, steps, bars_left, signature, room, latest)
        if (known := self.found.get(key)) is not None:
            return known
        # Each limit rules out tokens; int16 columns of the whole vocabulary at once.
        slack, lead_duration, last_onset, last_end, own_signature, own_steps, to_rest, first_onset = self.columns
        of_bar = np.maximum(own_steps, np.int16(steps))
        is_fit = (self.usable_phases(pitches) == phase) & (self.opens_bar == opens_bar)
        is_fit &= (slack >= earliest) & (lead_duration <= longest) & (last_onset < of_bar)
        is_fit &= last_end <= of_bar * np.int16(bars_left)
        if signature:
            is_fit &= (own_signature == signature) | (own_signature == 0)
        is_fit &= (to_rest <= room) & (first_onset <= latest)
        # Forgetting all at times bounds the memory.
        if len(self.found) >= MOST_REMEMBERED:
            self.found.clear()
        self.found[key] = is_fit
        return is_fit


@lru_cache(maxsize=4)
def token_table(content: bytes, eos_token_id: int, repeats: tuple[tuple[int, int], ...], num_tokens: int) -> TokenTable:
    """Return the table of a vocabulary, the same object each time, so that it goes on remembering.

    Args:
        content: Of its rows, whole numbers of 32 bits.
        eos_token_id: As in `TokenTable`.
        repeats: Likewise, pairs.
        num_tokens: V.
    """
    return TokenTable(np.frombuffer(content, np.int32).reshape(num_tokens, -1), eos_token_id, dict(repeats))


class Offer(NamedTuple):
    """What may come next in a melody.

    Attributes:
        allowed: `(V,)` whether each token may, the end aside; of those that open a bar, also where the end has to come.
        bar_may_end: Whether the melody rests, so that a new bar or the end may follow.
        must_end: Whether the end has to come instead of a new bar.
        may_end: Whether it may.
        only: The one token that may, if there is one.
        is_copy: Whether that is a token of a bar that is repeated: certain, whatever its score.
        next_kept: Token of the template that a new bar begins with, if there is one.
    """

    allowed: np.ndarray
    bar_may_end: bool = False
    must_end: bool = False
    may_end: bool = False
    only: int | None = None
    is_copy: bool = False
    next_kept: int | None = None


@dataclass
class Wanted:
    """What a melody is to be.

    Args:
        bars: To reach, or where the model decides the most.
        model_ends: Whether the model decides where it ends.
        signature: Number of the time signature and steps of its bar; zeros for the model's choice.
        pitches: As in `TokenTable.usable_phases`.
        max_rest: Bars that a rest may last; any by default.
        kept: Tokens of the bars that are to be as they are, by the bar's index.
    """

    bars: int
    model_ends: bool = False
    signature: tuple[int, int] = (0, 0)
    pitches: tuple[int, int, int] = (0xFFF, 0, 127)
    max_rest: float | None = None
    kept: Mapping[int, Sequence[int]] = field(default_factory=dict)


class GrammarState:
    """What a melody is so far, and from it what may come next. Steps count from the bar line of its last bar.

    Args:
        table: Of the vocabulary.
        wanted: What the melody is to be.
    """

    def __init__(self, table: TokenTable, wanted: Wanted):
        self.table, self.wanted = table, wanted
        self.phase, self.begun, self.count = RESTING, 0, 0  # bars begun, tokens of the last one
        self.onset = self.end = 0  # of the latest note; the end is below 0 where the bar has none
        self.signature = self.steps = 0  # 0 while they are open
        self.source, self.left = 0, 0  # place of the token to copy next, and tokens left to copy
        self.tokens: list[int] = []
        self.bars: list[list[int]] = []  # place of the first token, tokens, steps that the last note rings, first onset

    def advance(self, token: int) -> None:
        """Go on by one token, allowed or not."""
        place = len(self.tokens)
        self.tokens.append(token)
        row = self.table.rows[token]
        # A token without notes changes nothing, but one that repeats a bar says what is copied next.
        if row[TokenColumn.AFTER] == UNCHANGED:
            lag = self.table.lag_of.get(token, 0)
            if lag and self.bars:
                self.source, self.left = self.bars[max(self.begun - lag, 0)][:2]
            return
        # In a new bar, what still sounds is counted from its bar line.
        opens = row[TokenColumn.OPENS_BAR]
        if opens:
            self.begun, self.count = self.begun + 1, 0
            self.end = max(self.end - self.steps, -NO_ONSET)
            self.bars.append([place, 0, 0, NO_ONSET])
        self.count += 1
        # What the token says last is what holds after it.
        if row[TokenColumn.TIME_SIGNATURE] and not self.signature:
            self.signature, self.steps = row[TokenColumn.TIME_SIGNATURE], row[TokenColumn.BAR_STEPS]
        if row[TokenColumn.LEAD_DURATION]:
            self.end = self.onset + row[TokenColumn.LEAD_DURATION]
        if row[TokenColumn.LAST_END]:
            self.end = row[TokenColumn.LAST_END]
        if row[TokenColumn.LAST_ONSET] >= 0:
            self.onset = row[TokenColumn.LAST_ONSET]
        self.phase = row[TokenColumn.AFTER]
        # What is copied moves on with each token.
        if self.left:
            self.source, self.left = self.source + 1, self.left - 1
        elif opens:
            self.source = 0
        if self.bars:
            bar = self.bars[-1]
            bar[1:] = self.count, max(self.end - self.steps, 0), min(bar[3], row[TokenColumn.FIRST_ONSET])

    def copy(self, wanted: Wanted) -> "GrammarState":
        """Return another one that goes on from here by itself, as a melody that may be wanted otherwise."""
        other = copy.copy(self)
        other.wanted = wanted
        other.tokens, other.bars = list(self.tokens), [list(bar) for bar in self.bars]
        return other

    def offer(self, is_primer: bool) -> Offer:
        """Tell what may come next; `is_primer` says that what came so far was given."""
        table, wanted = self.table, self.wanted
        kept = wanted.kept.get(self.begun - 1, ())
        # A bar that is copied or kept leaves no choice.
        if self.left:
            return Offer(table.opens_bar, only=self.tokens[self.source], is_copy=True)
        if self.count < len(kept) and self.begun <= wanted.bars:
            return Offer(table.opens_bar, only=kept[self.count])
        must_open = bool(kept) or not self.begun or self.source > 0  # or end
        phase = RESTING if must_open else self.phase
        is_resting, free = phase == RESTING, max(self.end, 0)
        signature, steps = (self.signature, self.steps) if self.signature else wanted.signature
        # Whether the melody may end here, and by when a note has to begin.
        must_end = is_resting and self.begun >= wanted.bars
        may_end = must_end or (wanted.model_ends and is_resting and self.begun > 0 and free <= steps)
        latest = opens_by = NO_ONSET
        if wanted.max_rest is not None:
            room_to_rest = int(wanted.max_rest * steps)
            latest, opens_by = max(self.end + room_to_rest, 0), self.end + room_to_rest - steps
            # Bars that were there may have rested too long already; the next one begins with a note then.
            opens_by = max(opens_by, 0) if must_open or is_primer else opens_by
        next_kept = min((bar for bar in wanted.kept if bar >= self.begun), default=wanted.bars)
        bars_left = min(next_kept, wanted.bars) - self.begun + 1
        # Tokens that go on in this bar.
        allowed = np.zeros(len(table.rows), dtype=bool)
        if not must_open:
            is_open = phase in (AFTER_POSITION, AFTER_PITCH)
            longest = max(bars_left * steps - self.onset, 1) if is_open else 0
            room = max(MAX_TOKENS_PER_BAR - 1 - self.count, TOKENS_TO_REST[phase] - 1)
            earliest = self.onset if is_open else free
            ring = (longest, steps, bars_left, signature, room, latest)
            allowed = table.fits(wanted.pitches, False, phase, earliest, *ring)
        if not is_resting:
            return Offer(allowed)
        # Tokens that open the next one, with notes of their own or as an earlier bar over again.
        allowed = allowed | self._opens(free, steps, bars_left, signature, opens_by)
        if must_end:
            return Offer(allowed, True, must_end, may_end)
        for lag, token in table.repeats.items():
            allowed[token] = self._can_repeat(lag, steps, bars_left - 2, opens_by)
        return Offer(allowed, True, must_end, may_end, next_kept=next(iter(wanted.kept.get(self.begun, ())), None))

    def _opens(self, free: int, steps: int, bars_left: int, signature: int, opens_by: int) -> np.ndarray:
        """Whether each token may open the next bar, `(V,)`."""
        room = MAX_TOKENS_PER_BAR - 1
        ring = (max(free - steps, 0), 0, steps, bars_left - 1, signature, room, opens_by)
        return self.table.fits(self.wanted.pitches, True, RESTING, *ring)

    def _can_repeat(self, lag: int, steps: int, bars_after: int, opens_by: int) -> bool:
        """Whether the next bar can be the one `lag` before it over again; its last note may ring into `bars_after`."""
        if lag > self.begun:
            return False
        _, _, rings, onset = self.bars[self.begun - lag]
        if onset >= NO_ONSET or onset < self.end - self.steps:
            return False
        return rings <= bars_after * steps and onset <= opens_by


def log_sum_exp(values: np.ndarray) -> np.ndarray:
    """Compute log(sum(exp(values))) over the last axis; -inf where all are."""
    highest = values.max(-1, keepdims=True)
    highest = np.where(np.isfinite(highest), highest, 0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(values - highest).sum(-1)) + highest[..., 0]


def allowed_scores(logits: np.ndarray, states: Sequence[GrammarState], is_primer: bool) -> np.ndarray:
    """Rule out what is no melody, -inf in `(A, V)`, and give the end of a bar what belongs to it.

    That a bar ends is one event, followed by a new bar or by the end of the melody; where only one of them is allowed
    the event's probability goes to it.
    """
    offers, table = [state.offer(is_primer) for state in states], states[0].table
    scores = np.where(np.stack([offer.allowed for offer in offers]), logits, np.float32(-np.inf))
    scores[:, table.eos_token_id] = -np.inf
    rows = np.array([row for row, offer in enumerate(offers) if offer.bar_may_end], dtype=np.int64)
    if len(rows):
        resting = [offers[row] for row in rows]
        must_end, may_end = np.array([(offer.must_end, offer.may_end) for offer in resting]).T
        end, openings = logits[rows, table.eos_token_id], scores[rows[:, None], table.bar_ends]  # (R,), (R, O)
        new_bar = log_sum_exp(openings)
        bar_ends = np.logaddexp(end, new_bar)
        gain = np.where(may_end | np.isinf(new_bar), 0, bar_ends - np.where(np.isinf(new_bar), 0, new_bar))
        has_to_close = must_end | [offer.next_kept is not None for offer in resting]
        scores[rows[:, None], table.bar_ends] = np.where(has_to_close[:, None], -np.inf, openings + gain[:, None])
        scores[rows, table.eos_token_id] = np.where(must_end, bar_ends, np.where(may_end, end, -np.inf))
        for row, offer, score in zip(rows, resting, bar_ends, strict=True):
            if offer.next_kept is not None:
                scores[row, offer.next_kept] = score if np.isfinite(score) else 0
    for row, offer in enumerate(offers):
        if offer.only is not None:
            own = logits[row, offer.only]
            scores[row] = -np.inf
            scores[row, offer.only] = 0 if offer.is_copy or not np.isfinite(own) else own
    return scores
