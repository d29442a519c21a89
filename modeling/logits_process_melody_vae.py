"""What a generated melody must be, by construction: logits processors that enforce the grammar of its tokens.

Dimension key: B batch (rows of generation), M melodies asked for (B is a multiple), T tokens, N bars, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from .grammar_state_melody_vae import GrammarState, Wanted, allowed_scores, token_table
from .token_grammar_melody_vae import GRAMMAR_COLUMNS, MAX_TOKENS_PER_BAR, UNCHANGED, TokenColumn


def as_values(value: Any) -> list:
    """Return an option as a list with one for each melody, or one alone for all."""
    return [value] if value is None or isinstance(value, str | int) else list(value)


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
        # What contradicts itself is refused.
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
        # One table of the vocabulary is shared by all processors of the same grammar.
        rows = np.ascontiguousarray(table[:, :GRAMMAR_COLUMNS].cpu().numpy(), np.int32)
        self.table = token_table(rows.tobytes(), eos_token_id, tuple((repeats or {}).items()), len(rows))
        # One value, or one for each melody.
        pitches = self._pitches(pitch_classes, lowest_pitch, highest_pitch)
        counts = [] if bars is None else bars.reshape(-1).tolist()
        names = as_values(time_signature)
        signatures = [(0, 0) if name is None else self.table.time_signature(name) for name in names]
        count = max(len(counts), len(names), len(pitches)) if template is None else len(template)
        for what, given in (
            ("numbers of bars", counts),
            ("scales or ranges", pitches),
            ("time signatures", signatures),
        ):
            if len(given) not in (0, 1, count):
                raise ValueError(f"{len(given)} {what} for {count} melodies")
        # What is wanted of each melody, and the states that follow its tokens.
        self.wanted = []  # M
        for row in range(count):
            signature, pitch = signatures[row % len(signatures)], pitches[row % len(pitches)]
            most = counts[row % len(counts)] if counts else max_bars
            self.wanted.append(Wanted(most, template is None and bars is None, signature, pitch, max_rest))
        if template is not None and regenerate is not None:
            self._keep_bars(template.tolist(), regenerate.tolist(), bars is None)
        self.rows: list[int] | None = None  # (B,) the melody of each row; in order by default
        self.seen: np.ndarray | None = None  # (B, T) the ids that `states` are of
        self.states: list[GrammarState] = []  # B

    def _pitches(self, classes: Any, lowest: Any, highest: Any) -> list[tuple[int, int, int]]:
        """Write the pitches of each melody as `TokenTable.usable_phases` has them; one for all where that is so."""
        asked = []
        for value, default in ((classes, 0xFFF), (lowest, 0), (highest, 127)):
            asked.append([default if one is None else int(one) for one in as_values(value)])
        counts = {len(each) for each in asked} - {1}
        if len(counts) > 1:
            raise ValueError(f"scales and ranges for {' and '.join(map(str, sorted(counts)))} melodies")
        pitches = [tuple(each[row % len(each)] for each in asked) for row in range(max(counts, default=1))]
        for each in set(pitches):
            self.table.usable_phases(each)
        return pitches

    def _keep_bars(self, template: list[list[int]], regenerate: list[list[bool]], has_own_count: bool) -> None:
        """Let melodies keep bars of the templates, whose time signatures they have."""
        rows, melodies = self.table.rows, []
        for ids in template:
            bars: list[list[int]] = []
            for token in ids:
                if rows[token][TokenColumn.AFTER] == UNCHANGED:
                    continue
                if rows[token][TokenColumn.OPENS_BAR]:
                    bars.append([])
                if bars:
                    bars[-1].append(token)
            melodies.append(bars)
        for wanted, ids, bars, is_new in zip(self.wanted, template, melodies, regenerate, strict=True):
            if has_own_count and any(melodies):
                wanted.bars = len(bars)
            wanted.kept = {at: bar for at, bar in enumerate(bars) if at >= len(is_new) or not is_new[at]}
            signed = (rows[token] for token in ids if rows[token][TokenColumn.TIME_SIGNATURE] > 0)
            row = next(signed, None)
            if row is not None:
                wanted.signature = row[TokenColumn.TIME_SIGNATURE], row[TokenColumn.BAR_STEPS]

    def _melody_of_rows(self, count: int) -> list[int]:
        """Give the index of the melody that each of `count` rows is of, B."""
        return [row // (count // len(self.wanted)) for row in range(count)] if self.rows is None else self.rows

    def states_of(self, input_ids: torch.Tensor) -> list[GrammarState]:
        """Read the states of `input_ids` `(B, T)`, from the last call's where they go on from there."""
        ids = input_ids.cpu().numpy()
        parents, new = self._parents(ids), ids[:, -1:]
        wanted = [self.wanted[melody] for melody in self._melody_of_rows(len(ids))]
        if parents is None:
            self.states, new = [GrammarState(self.table, each) for each in wanted], ids
        elif parents != list(range(len(ids))):  # beams, which may have the beginning of another melody's
            self.states = [self.states[parent].copy(each) for parent, each in zip(parents, wanted, strict=True)]
        for state, tokens in zip(self.states, new.tolist(), strict=True):
            for token in tokens:
                state.advance(token)
        self.seen = ids.copy()
        return self.states

    def _parents(self, ids: np.ndarray) -> list[int] | None:
        """Find the rows of the last call that `ids` `(B, T)` go on from, in this order or another (beams)."""
        if self.seen is None or ids.shape != (len(self.seen), self.seen.shape[1] + 1):
            return None
        before = np.ascontiguousarray(ids[:, :-1])
        if np.array_equal(before, self.seen):
            return list(range(len(ids)))
        known = {row.tobytes(): index for index, row in enumerate(self.seen)}
        parents = [known.get(row.tobytes(), -1) for row in before]
        return None if -1 in parents else parents

    def keep(self, rows: torch.Tensor, num_rows: int) -> None:
        """Go on with some of the last call's `num_rows` rows only."""
        melodies, kept = self._melody_of_rows(num_rows), rows.tolist()
        self.rows = [melodies[row] for row in kept]
        self.states = [self.states[row] for row in kept]
        self.seen = None if self.seen is None else self.seen[kept]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Rule out what is no melody: -inf in `scores` `(B, V)`, given `input_ids` `(B, T)`."""
        is_primer = self.seen is None
        states = self.states_of(input_ids)
        allowed = allowed_scores(scores.float().cpu().numpy(), states, is_primer)
        return torch.from_numpy(allowed).to(scores)


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
