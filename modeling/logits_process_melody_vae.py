"""What a generated melody must be, by construction: logits processors that enforce the grammar of its tokens.

The processor adds up rows of the grammar's table (`token_grammar_melody_vae`) into the state of each melody, and
compares all tokens' rows with it.

Dimension key: B batch (rows of generation), M melodies asked for (B is a multiple), T tokens, N bars, V vocabulary,
O some of its tokens.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import torch
from transformers import LogitsProcessor

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


class StateColumn(IntEnum):
    """Columns of the state of a melody that is being written. Steps count from the bar line of its last bar."""

    PHASE = 0
    BEGUN = 1  # bars
    COUNT = 2  # tokens of the last bar
    ONSET = 3  # of the latest note
    END = 4  # of it; below 0 where the bar has none and the rest began before it
    SIGNATURE = 5  # time signature as `time_signature_id` has it; 0 while it is open
    STEPS = 6  # of a bar; 0 likewise
    LENGTH = 7  # tokens
    SOURCE = 8  # place of the token to copy next, in a bar that repeats another; 0 in others
    LEFT = 9  # tokens left to copy


class BarColumn(IntEnum):
    """What is known of each bar of such a melody, where bars can be repeated."""

    START = 0  # place of its first token
    LENGTH = 1  # tokens
    RINGS = 2  # steps by which its last note is longer than the bar
    FIRST_ONSET = 3  # NO_ONSET if it has none


class Place(NamedTuple):
    """Where melodies that are being written stand, and what may come next, `(B,)` each."""

    melody: torch.Tensor  # of those asked for
    phase: torch.Tensor  # as the five that follow, in the order of `StateColumn`
    begun: torch.Tensor
    count: torch.Tensor
    onset: torch.Tensor
    end: torch.Tensor
    signature: torch.Tensor  # what was asked for, while the melody has none
    steps: torch.Tensor  # likewise
    source: torch.Tensor
    left: torch.Tensor
    here: torch.Tensor  # index of the last bar begun
    following: torch.Tensor  # index of the next bar
    bars_left: torch.Tensor  # bars, the last one begun included, until a bar that no note may ring into, or the end
    is_forced: torch.Tensor  # whether the next token is the template's, within a bar that is kept
    must_open: torch.Tensor  # whether a bar has to begin, or the melody to end
    is_resting: torch.Tensor  # whether a bar may begin
    must_end: torch.Tensor
    may_end: torch.Tensor


def fits(
    tokens: tuple[torch.Tensor, ...],
    phase: torch.Tensor,
    earliest: torch.Tensor,
    longest: torch.Tensor,
    steps: torch.Tensor,
    bars_left: torch.Tensor,
    signature: torch.Tensor,
    room: torch.Tensor,
    latest: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compare what O tokens ask of a melody with what B melodies offer.

    Args:
        tokens: What they ask, `(O,)` each, the first `(1, O)` or `(B, O)`; see `MelodyLogitsProcessor._block`.
        phase: `(B,)`, as all that follow.
        earliest: Onset of the open note, or the first step at which one may begin.
        longest: What the open note may last; 0 if none is open.
        steps: Of a bar; 0 if the tokens are to say.
        bars_left: Bars, the tokens' own included, until a bar that no note may ring into, or the end.
        signature: Time signature, 0 if the tokens are to say.
        room: Tokens left in the bar after this one.
        latest: Step at which the next note has to begin; any by default.

    Returns:
        `(B, O)` whether a token fits.
    """
    needs, slack, lead_duration, last_onset, last_end, own_signature, own_steps, to_rest, first_onset = tokens
    offers = torch.stack([phase, earliest, longest, steps, bars_left.clamp(1, 64), signature, room])  # (7, B)
    offers = offers.clamp(-NO_ONSET, NO_ONSET).to(torch.int16)[..., None]  # short integers are compared twice as fast
    phase, earliest, longest, steps, bars_left, signature, room = offers  # (B, 1) each
    steps = torch.maximum(own_steps, steps)  # (B, O)
    is_fit = needs == phase
    is_fit &= slack >= earliest
    is_fit &= lead_duration <= longest
    is_fit &= last_onset < steps
    is_fit &= last_end <= steps * bars_left
    is_fit &= (own_signature == signature) | ((own_signature == 0) | (signature == 0))
    is_fit &= to_rest <= room
    if latest is not None:
        is_fit &= first_onset <= latest.clamp(-NO_ONSET, NO_ONSET).to(torch.int16)[:, None]
    return is_fit


class MelodyLogitsProcessor(LogitsProcessor):
    """Let only melodies be generated: every token sequence that it allows decodes to exactly the notes it names.

    Bars follow the grammar; onsets rise and lie in their bar; a note has ended when the next begins, also across bar
    lines, and ends with the last bar at the latest; all bars have the first one's time signature; pitches are in
    range, and in the scale if there is one; there are exactly so many bars.

    That a bar ends is one event, followed by a new bar or by the end of the melody; where only one of them is allowed
    the event's probability goes to it. A bar ends when another note could take it past `MAX_TOKENS_PER_BAR`.

    With a template, the bars that are not regenerated are its own, token by token. A note that is held over from them
    blocks the steps until it ends; a new note ends before the next of them begins.

    There is always a token to go on with, whatever came before, since each REMI token is a token by itself and so is
    the bar's prefix. Resting: the prefix or the end. After the prefix: `Bar`. After `Bar`: the melody's `TimeSig`.
    After a Position: any `Pitch` of the scale and range (`__init__` refuses a scale and range without one). After a
    Pitch: the shortest `Duration`, since an onset is at least one step before its bar's end, and that is the earliest
    end that a note can be held to. Each of them brings rest one token nearer, which is what a full bar demands. In a
    bar of the template: its next token, or after the last one, as when resting.

    Args:
        table: `(V, 12)` rows of [`summarise_token`], by token id; further columns are not looked at.
        eos_token_id: Token that ends a melody.
        bars: `(M,)` bars to reach. By default those of the template; without one the model decides.
        max_bars: Bars at most, where the model decides.
        time_signature: Such as `6/8`; the template's or the model's choice by default. One for all, or for each of the
            M melodies one or None, as the three that follow.
        pitch_classes: As [`scale_mask`] returns; all by default.
        lowest_pitch: MIDI pitch; the vocabulary's lowest by default.
        highest_pitch: Likewise.
        template: `(M, T)` ids of the melodies to keep bars of.
        regenerate: `(M, N)` whether to regenerate each of its bars; bars past N are kept.
        max_rest: Bars that a rest between notes may last; any by default.
        repeats: For bars back, the token that says "this bar is that one over again". The bar's tokens follow it, and
            nothing else may.

    Raises:
        ValueError: If no melody can be like this.
    """

    def __init__(
        self,
        table: torch.Tensor,
        eos_token_id: int,
        bars: torch.Tensor | None = None,
        max_bars: int = 16,
        time_signature: str | Sequence[str | None] | None = None,
        pitch_classes: int | Sequence[int | None] | None = None,
        lowest_pitch: int | Sequence[int | None] | None = None,
        highest_pitch: int | Sequence[int | None] | None = None,
        template: torch.Tensor | None = None,
        regenerate: torch.Tensor | None = None,
        max_rest: float | None = None,
        repeats: Mapping[int, int] | None = None,
    ):
        device = table.device
        if bars is not None and (bars < 1).any():
            raise ValueError(f"bars={bars.tolist()}: a melody has at least one bar")
        if (template is None) != (regenerate is None):
            raise ValueError("template and regenerate go together")
        if template is not None and (regenerate.dtype != torch.bool or regenerate.shape[:-1] != template.shape[:1]):
            raise ValueError(
                f"regenerate: {tuple(regenerate.shape)} of {regenerate.dtype} must say for each bar of "
                f"{len(template)} melodies whether to generate it, as booleans ({len(template)}, bars)"
            )
        if template is not None and time_signature is not None:
            raise ValueError(f"time_signature={time_signature!r}: the template has its own")

        # What each token asks of a melody.
        self.table = table[:, :GRAMMAR_COLUMNS].to(torch.int32)
        self.eos_token_id = eos_token_id
        self.max_rest = max_rest
        self.lags = torch.tensor(list(repeats or ()), dtype=torch.long, device=device)  # (R,) bars
        self.repeats = torch.tensor(list((repeats or {}).values()), dtype=torch.long, device=device)  # (R,) ids
        self.to_rest = torch.tensor(TOKENS_TO_REST, device=device)
        needs = self._usable_phases(pitch_classes, lowest_pitch, highest_pitch)  # (M, V), or (1, V) for all
        is_opening = self.table[:, TokenColumn.OPENS_BAR] == 1
        openings = is_opening.nonzero().squeeze(1)  # (O,) ids
        self.openings = torch.cat([openings, self.repeats])  # (O + R,)
        self.inner = self._block(self.table, needs.masked_fill(is_opening, UNUSABLE))
        self.opening = self._block(self.table[openings], needs[:, openings])

        # What is asked of each melody.
        self.has_template = template is not None
        self.model_ends = template is None and bars is None
        if template is None or regenerate is None:
            counts = [len(each) for each in (bars, time_signature) if each is not None and not isinstance(each, str)]
            counts.append(len(needs))
            template = torch.full((max(counts, default=1), 1), eos_token_id, device=device)
            regenerate = torch.zeros(len(template), 1, dtype=torch.bool, device=device)
        self.template = template.to(device)
        for name, count in (("numbers of bars", 1 if bars is None else len(bars)), ("scales or ranges", len(needs))):
            if count not in (1, len(self.template)):
                raise ValueError(f"{count} {name} for {len(self.template)} melodies")
        self._set_bars(bars, max_bars, regenerate.to(device))
        self._set_time_signatures(time_signature)

        self.rows: torch.Tensor | None = None  # (B,) the melody of each row; in order by default
        self.seen: torch.Tensor | None = None  # (B, T) the ids that `state` is of
        self.state = torch.empty(0)  # (B, 8 or more), see `StateColumn`

    def _set_bars(self, bars: torch.Tensor | None, max_bars: int, regenerate: torch.Tensor) -> None:
        """Find how many bars each melody has, and which of them are the template's own."""
        rows = self.table[self.template]  # (M, T, 12)
        is_music = rows[..., TokenColumn.AFTER] != UNCHANGED
        bar_ids = rows[..., TokenColumn.OPENS_BAR].cumsum(-1) - 1
        own_bars = (rows[..., TokenColumn.OPENS_BAR] * is_music).sum(-1)  # (M,)
        if bars is not None:
            self.bars = bars.to(self.table).expand(len(self.template))  # one number is for all
        else:
            self.bars = (own_bars if own_bars.any() else torch.full_like(own_bars, max_bars)).to(torch.int32)
        width = int(self.bars.max()) + 1
        index = torch.arange(width, device=self.table.device, dtype=torch.int32)
        is_in_bar = (bar_ids[..., None] == index) & is_music[..., None]  # (M, T, width)
        is_kept = is_in_bar.new_ones(len(self.template), width)
        is_kept[:, : regenerate.shape[1]] = ~regenerate[:, :width]
        self.kept_length = is_in_bar.sum(1) * is_kept  # (M, width) tokens; 0 for a bar that is free
        self.kept_start = is_in_bar.int().argmax(1)
        bound = torch.where(self.kept_length > 0, index, self.bars[:, None]).minimum(self.bars[:, None])
        self.next_kept = bound.flip(1).cummin(1).values.flip(1)  # (M, width): first kept bar from each on, or the end

    def _set_time_signatures(self, asked: str | Sequence[str | None] | None) -> None:
        """Find the time signature of each melody, and the steps of its bars: those asked for, or the template's."""
        if asked is None:
            rows = self.table[self.template]  # (M, T, 12)
            first = (rows[..., TokenColumn.TIME_SIGNATURE] > 0).int().argmax(-1, keepdim=True)  # (M, 1)
            self.signature = rows[..., TokenColumn.TIME_SIGNATURE].gather(1, first).squeeze(1)  # (M,); 0: the model's
            self.bar_steps = rows[..., TokenColumn.BAR_STEPS].gather(1, first).squeeze(1)
            return
        names = [asked] if isinstance(asked, str) else list(asked)
        if len(names) not in (1, len(self.bars)):
            raise ValueError(f"{len(names)} time signatures for {len(self.bars)} melodies")
        found = torch.tensor([self._signature(name) for name in names], dtype=torch.int32, device=self.table.device)
        self.signature, self.bar_steps = found.expand(len(self.bars), 2).T

    def _signature(self, name: str | None) -> tuple[int, int]:
        """Look up the number of a time signature and the steps of its bar; zeros for the model's choice."""
        if name is None:
            return 0, 0
        number = time_signature_id(name)
        chosen = self.table[:, TokenColumn.TIME_SIGNATURE] == number
        if not chosen.any():
            known = sorted({divmod(each, 64) for each in self.table[:, TokenColumn.TIME_SIGNATURE].tolist() if each})
            names = ", ".join(f"{numerator}/{denominator}" for numerator, denominator in known)
            raise ValueError(f"time signature {name} is not in the vocabulary: {names}")
        return number, int(self.table[chosen, TokenColumn.BAR_STEPS].max())

    def _usable_phases(
        self,
        pitch_classes: int | Sequence[int | None] | None,
        lowest: int | Sequence[int | None] | None,
        highest: int | Sequence[int | None] | None,
    ) -> torch.Tensor:
        """Give the phase before each token `(M, V)`, with `UNUSABLE` for those of other pitches than asked for.

        `(1, V)` where all melodies are asked for the same.
        """
        columns = self.table.T
        asked = []
        for value, default in ((pitch_classes, 0xFFF), (lowest, 0), (highest, 127)):
            each = [value] if value is None or isinstance(value, int) else list(value)
            asked.append(
                torch.tensor([default if one is None else one for one in each], device=columns.device)[:, None]
            )
        if len(counts := {len(each) for each in asked} - {1}) > 1:
            raise ValueError(f"scales and ranges for {' and '.join(map(str, sorted(counts)))} melodies")
        classes, low, high = torch.broadcast_tensors(*asked)  # (M, 1) each
        is_usable = (columns[TokenColumn.BEFORE] != UNUSABLE) & (columns[TokenColumn.PITCH_CLASSES] & ~classes == 0)
        is_usable &= (columns[TokenColumn.LOWEST_PITCH] >= low) & (columns[TokenColumn.HIGHEST_PITCH] <= high)
        is_pitch = (columns[TokenColumn.BEFORE] == AFTER_POSITION) & (columns[TokenColumn.AFTER] == AFTER_PITCH)
        has_pitch = (is_usable & is_pitch).any(-1)
        if not has_pitch.all():
            row = int(has_pitch.int().argmin())
            mask = int(classes[row])
            scale = "" if mask == 0xFFF else f" of the scale {mask:012b} (B down to C)"
            raise ValueError(f"no pitch{scale} from lowest_pitch={int(low[row])} to highest_pitch={int(high[row])}")
        return torch.where(is_usable, columns[TokenColumn.BEFORE], UNUSABLE)

    def _block(self, rows: torch.Tensor, needs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Lay out what [`fits`] compares for the tokens of `rows` `(O, 12)`, a short integer each, `(O,)`.

        `needs` is `(M, O)` or `(1, O)`, and so it stays.
        """
        columns = rows.T
        onset = columns[TokenColumn.FIRST_ONSET]
        has_onset = onset < NO_ONSET
        return tuple(
            column.to(torch.int16).contiguous()
            for column in (
                needs,
                onset - columns[TokenColumn.LEAD_DURATION],
                columns[TokenColumn.LEAD_DURATION],
                columns[TokenColumn.LAST_ONSET],
                columns[TokenColumn.LAST_END],
                columns[TokenColumn.TIME_SIGNATURE],
                columns[TokenColumn.BAR_STEPS],
                self.to_rest[columns[TokenColumn.AFTER].clamp_min(0).long()],
                # A bar that opens without a note still has to have room for one.
                torch.where(has_onset, onset, torch.where(columns[TokenColumn.OPENS_BAR] == 1, 0, -NO_ONSET)),
            )
        )

    def advance(self, state: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """Return the state `(B, S)` after one more token `(B,)`, allowed or not."""
        row = self.table[token]  # (B, 12)
        _, begun, count, onset, end, signature, steps, length, source, left = state[:, : len(StateColumn)].unbind(-1)
        opens = row[:, TokenColumn.OPENS_BAR]
        begun = begun + opens
        count = torch.where(opens == 1, 1, count + 1)
        end = torch.where(opens == 1, (end - steps).clamp_min(-NO_ONSET), end)
        is_first = (row[:, TokenColumn.TIME_SIGNATURE] > 0) & (signature == 0)
        steps = torch.where(is_first, row[:, TokenColumn.BAR_STEPS], steps)
        end = torch.where(row[:, TokenColumn.LEAD_DURATION] > 0, onset + row[:, TokenColumn.LEAD_DURATION], end)
        end = torch.where(row[:, TokenColumn.LAST_END] > 0, row[:, TokenColumn.LAST_END], end)
        after = torch.stack(
            [
                row[:, TokenColumn.AFTER],
                begun,
                count,
                torch.where(row[:, TokenColumn.LAST_ONSET] >= 0, row[:, TokenColumn.LAST_ONSET], onset),
                end,
                torch.where(is_first, row[:, TokenColumn.TIME_SIGNATURE], signature),
                steps,
                length,
                torch.where(left > 0, source + 1, source * (1 - opens)),
                (left - 1).clamp_min(0),
            ],
            dim=-1,
        )
        is_music = (row[:, TokenColumn.AFTER] != UNCHANGED)[:, None]
        after = torch.where(is_music, after, state[:, : len(StateColumn)])
        after[:, StateColumn.LENGTH] += 1
        if not len(self.repeats):
            return after
        # What is known of each bar, in its own column of the four.
        bars = state[:, len(StateColumn) :].unflatten(-1, (len(BarColumn), -1))  # (B, 4, W)
        slot = (begun - 1).clamp_min(0)[:, None] == torch.arange(bars.shape[-1], device=bars.device)  # (B, W)
        first = torch.where(opens == 1, NO_ONSET, (bars[:, BarColumn.FIRST_ONSET] * slot).sum(-1))
        start = torch.where(opens == 1, length, (bars[:, BarColumn.START] * slot).sum(-1))
        first = torch.minimum(first, row[:, TokenColumn.FIRST_ONSET])
        own = torch.stack([start, count, (end - steps).clamp_min(0), first], dim=-1)  # (B, 4)
        bars = torch.where((slot & is_music)[:, None], own[..., None], bars)
        repeat = token[:, None] == self.repeats  # (B, R)
        lag = (repeat * self.lags).sum(-1)
        place = (state[:, StateColumn.BEGUN] - lag).clamp(0, bars.shape[-1] - 1)[:, None, None].long()
        source, left = bars[:, : BarColumn.LENGTH + 1].gather(-1, place.expand(-1, 2, -1)).squeeze(-1).unbind(-1)
        after[:, StateColumn.SOURCE] = torch.where(lag > 0, source, after[:, StateColumn.SOURCE])
        after[:, StateColumn.LEFT] = torch.where(lag > 0, left, after[:, StateColumn.LEFT])
        return torch.cat([after, bars.flatten(1)], dim=-1).to(state.dtype)

    def state_of(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Read the states `(B, S)` of `input_ids` `(B, T)`, from the last call's where they go on from there."""
        state = self._known_state(input_ids)
        if state is None:
            columns = len(StateColumn) + bool(len(self.repeats)) * len(BarColumn) * (self.kept_length.shape[1] + 1)
            state = torch.zeros(len(input_ids), columns, dtype=torch.int32, device=input_ids.device)
            for token in input_ids.unbind(-1):
                state = self.advance(state, token)
        else:
            state = self.advance(state, input_ids[:, -1])
        self.seen, self.state = input_ids.clone(), state
        return state

    def _known_state(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """States of all but the last of `input_ids`, if the last call had them, in this order or another (beams)."""
        if self.seen is None or input_ids.shape != (len(self.seen), self.seen.shape[1] + 1):
            return None
        before = input_ids[:, :-1]
        if torch.equal(before, self.seen):
            return self.state
        # Candidates by a hash, O(B T + B B) instead of O(B B T); that they are right is checked exactly.
        weights = torch.arange(1, before.shape[1] + 1, device=before.device) * 0x9E3779B97F4A7C1 ^ 0x5DEECE66D
        hashes, own = (self.seen * weights).sum(-1), (before * weights).sum(-1)
        parent = (own[:, None] == hashes).int().argmax(-1)  # (B,)
        return self.state[parent] if torch.equal(before, self.seen[parent]) else None

    def _melody_of_rows(self, count: int) -> torch.Tensor:
        """Give the index of the melody that each of `count` rows is of, `(B,)`."""
        if self.rows is None:
            return torch.arange(count, device=self.bars.device) // (count // len(self.bars))
        return self.rows

    def keep(self, rows: torch.Tensor, num_rows: int) -> None:
        """Go on with some of the last call's `num_rows` rows only."""
        self.rows = self._melody_of_rows(num_rows)[rows]
        self.state = self.state[rows]
        self.seen = None if self.seen is None else self.seen[rows]

    def _can_repeat(self, state: torch.Tensor, bars_after: torch.Tensor, opens_by: torch.Tensor | None) -> torch.Tensor:
        """Whether the next bar can be each of those that tokens repeat over again, `(B, R)`.

        Args:
            state: `(B, S)`, at the end of a bar.
            bars_after: `(B,)` bars after the next into which its last note may ring.
            opens_by: `(B,)` step at which its first note has to begin; any by default.
        """
        bars = state[:, len(StateColumn) :].unflatten(-1, (len(BarColumn), -1))  # (B, 4, W)
        end, steps = state[:, StateColumn.END, None], state[:, StateColumn.STEPS, None]  # (B, 1)
        place = state[:, StateColumn.BEGUN, None] - self.lags  # (B, R)
        chosen = place.clamp(0, bars.shape[-1] - 1).long()[:, None].expand(-1, len(BarColumn), -1)
        bars = bars.gather(-1, chosen)  # (B, 4, R)
        onset = bars[:, BarColumn.FIRST_ONSET]
        can_repeat = (place >= 0) & (onset < NO_ONSET) & (onset >= end - steps)
        can_repeat &= bars[:, BarColumn.RINGS] <= bars_after[:, None] * steps
        return can_repeat if opens_by is None else can_repeat & (onset <= opens_by[:, None])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Rule out what is no melody: -inf in `scores` `(B, V)`, given `input_ids` `(B, T)`."""
        is_primer = self.seen is None
        state = self.state_of(input_ids)
        place = self._find_place(state)
        stays, opens = self._compare(state, place, is_primer)

        # The end of a bar, one event.
        end = scores[:, self.eos_token_id]  # (B,)
        openings = scores[:, self.openings]  # (B, O + R)
        new_bar = openings.masked_fill(~opens, -torch.inf).logsumexp(-1)  # (B,)
        bar_ends = torch.logaddexp(end, new_bar)
        gain = torch.where(place.may_end, 0.0, bar_ends - new_bar)[:, None]
        allowed = scores.masked_fill(~stays, -torch.inf)
        allowed[:, self.openings] = torch.where(opens & ~place.must_end[:, None], openings + gain, -torch.inf)
        allowed[:, self.eos_token_id] = torch.where(
            place.must_end, bar_ends, torch.where(place.may_end, end, -torch.inf)
        )
        if len(self.repeats):
            token = input_ids.gather(1, place.source.long()[:, None])  # (B, 1)
            copied = torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)
            allowed = torch.where((place.left > 0)[:, None], copied, allowed)
        return self._keep_bars(allowed, scores, bar_ends, place) if self.has_template else allowed

    def _find_place(self, state: torch.Tensor) -> Place:
        """Say of states `(B, S)` what has to come next, given what was asked for."""
        phase, begun, count, onset, end, signature, steps, _, source, left = state[:, : len(StateColumn)].unbind(-1)
        melody = self._melody_of_rows(len(state))
        bars = self.bars[melody]
        steps = torch.where(signature > 0, steps, self.bar_steps[melody])
        last = self.kept_length.shape[1] - 1
        here, following = (begun - 1).clamp(0, last).long(), begun.clamp_max(last).long()
        kept_length = self.kept_length[melody, here] * (begun > 0)
        is_complete = (count >= kept_length) & (kept_length > 0)  # after the last token of a kept bar
        must_open = is_complete | (begun == 0) | ((source > 0) & (left == 0))
        phase = torch.where(must_open, RESTING, phase)
        is_resting = phase == RESTING
        must_end = is_resting & (begun >= bars)
        may_end = must_end
        if self.model_ends:
            may_end = must_end | (is_resting & (begun > 0) & (end.clamp_min(0) <= steps))
        return Place(
            melody,
            phase,
            begun,
            count,
            onset,
            end,
            torch.where(signature > 0, signature, self.signature[melody]),
            steps,
            source,
            left,
            here,
            following,
            bars_left=self.next_kept[melody, following] - begun + 1,
            is_forced=(count < kept_length) & (begun <= bars),
            must_open=must_open,
            is_resting=is_resting,
            must_end=must_end,
            may_end=may_end,
        )

    def _compare(self, state: torch.Tensor, place: Place, is_primer: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Say which tokens may go on with the bar `(B, V)`, and which may open the next, `(B, O + R)`."""
        free, steps = place.end.clamp_min(0), place.steps
        latest = opens_by = None
        if self.max_rest is not None:
            room_to_rest = (self.max_rest * steps).int()
            latest, opens_by = place.end + room_to_rest, place.end + room_to_rest - steps
            # Bars that were there may have rested too long already; the next one begins with a note then.
            opens_by = torch.where(place.must_open | is_primer, opens_by.clamp_min(0), opens_by)
            latest = latest.clamp_min(0)
        is_open = (place.phase == AFTER_POSITION) | (place.phase == AFTER_PITCH)
        inner, opening = (
            (needs if len(needs) == 1 else needs[place.melody], *others)
            for needs, *others in (self.inner, self.opening)
        )
        stays = fits(
            inner,
            phase=place.phase.masked_fill(place.must_open, UNCHANGED - 1),  # of no token
            earliest=torch.where(is_open, place.onset, free),
            longest=torch.where(is_open, (place.bars_left * steps - place.onset).clamp_min(1), 0),
            steps=steps,
            bars_left=place.bars_left,
            signature=place.signature,
            room=torch.maximum(MAX_TOKENS_PER_BAR - 1 - place.count, self.to_rest[place.phase.long()] - 1),
            latest=latest,
        )
        opens = fits(
            opening,
            phase=place.phase,
            earliest=(free - steps).clamp_min(0),
            longest=torch.zeros_like(steps),
            steps=steps,
            bars_left=place.bars_left - 1,
            signature=place.signature,
            room=torch.full_like(steps, MAX_TOKENS_PER_BAR - 1),
            latest=opens_by,
        )
        if len(self.repeats):
            can_repeat = self._can_repeat(state, place.bars_left - 2, opens_by)
            opens = torch.cat([opens, can_repeat & (place.is_resting & ~place.must_end)[:, None]], dim=-1)
        return stays, opens

    def _keep_bars(
        self, allowed: torch.Tensor, scores: torch.Tensor, bar_ends: torch.Tensor, place: Place
    ) -> torch.Tensor:
        """Put in the template's bars: their tokens, and their first one where a free bar ends."""
        is_copying = (place.source > 0) & (place.left > 0)
        next_is_kept = (self.kept_length[place.melody, place.following] > 0) & place.is_resting
        next_is_kept &= ~place.must_end & ~is_copying
        within = self.kept_start[place.melody, place.here] + place.count
        source = torch.where(place.is_forced, within, self.kept_start[place.melody, place.following])
        token = self.template[place.melody, source.clamp_max(self.template.shape[1] - 1).long()][:, None]  # (B, 1)
        forced = torch.where(place.is_forced, scores.gather(1, token).squeeze(1), bar_ends)
        kept = allowed.masked_fill(place.is_forced[:, None], -torch.inf)
        kept[:, self.openings] = -torch.inf
        kept.scatter_(1, token, forced.nan_to_num(neginf=0.0)[:, None])
        return torch.where((place.is_forced | next_is_kept)[:, None], kept, allowed)


class BarCountLogitsProcessor(LogitsProcessor):
    """Make every melody exactly so many bars long; for models that do not know the tokens' grammar.

    That a bar ends is one event, followed by a new bar or by the end of the melody; its probability goes to the one
    that the number of bars calls for. A bar that reaches `MAX_TOKENS_PER_BAR` has to end, so greedy decoding cannot
    turn in circles.

    Args:
        bars: `(B,)` bars to reach.
        is_bar_token: `(V,)` whether a token opens a bar.
        eos_token_id: Token that ends a melody.
    """

    def __init__(self, bars: torch.Tensor, is_bar_token: torch.Tensor, eos_token_id: int):
        self.bars = bars
        self.is_bar_token = is_bar_token
        self.eos_token_id = eos_token_id

    def keep(self, rows: torch.Tensor, num_rows: int) -> None:
        """Go on with some of the last call's `num_rows` rows only."""
        self.bars = self.bars.repeat_interleave(num_rows // len(self.bars))[rows]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Move the end's score to the bar tokens before the last bar, and theirs to the end in it."""
        opens_bar = self.is_bar_token[input_ids]  # (B, T)
        begun = opens_bar.sum(-1)
        is_last = (begun >= self.bars.repeat_interleave(len(begun) // len(self.bars)))[:, None]  # (B, 1)
        end = scores[:, self.eos_token_id, None]
        new_bar = scores.masked_fill(~self.is_bar_token, -torch.inf).logsumexp(-1, keepdim=True)  # (B, 1)
        bar_ends = torch.logaddexp(end, new_bar)
        place = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        length = input_ids.shape[1] - (opens_bar * place).amax(-1, keepdim=True)  # of the bar so far, its opening aside
        within = scores.masked_fill((length >= MAX_TOKENS_PER_BAR - 1) & (begun > 0)[:, None], -torch.inf)
        scores = torch.where(self.is_bar_token, torch.where(is_last, -torch.inf, scores + (bar_ends - new_bar)), within)
        scores[:, self.eos_token_id] = torch.where(is_last, bar_ends, -torch.inf).squeeze(-1)
        return scores
