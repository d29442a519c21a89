"""Melodies as notes: measured, small edits of them, and `shift`, a local search over edits.

Notes are tuples of onset, duration and pitch, in grid steps from the first bar line and MIDI pitches; they are sorted,
and a note has ended when the next begins. Dimension key: B batch, T tokens, N bars, Z latent size, A attributes,
K candidates.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy

from .arguments_melody_vae import check_bars, check_latent
from .melody_line_melody_vae import ATTRIBUTES, key_of, steps_per_bar
from .options_melody_vae import check_number
from .token_grammar_melody_vae import TokenWriter, scale_mask

Notes = list[tuple[int, int, int]]

NUM_CANDIDATES = 6  # searches for edits of a melody
OWN_WEIGHT = 5.0  # of the attribute that is asked for, against each other one
LIKELIHOOD_WEIGHT = 0.2  # of a bit per note, against a squared standard deviation
PROPOSALS = 24  # edits of which the best is made
MOST_EDITS = 48
LEAST_GAIN = 0.02  # of the error, by an edit; what brings less is not worth a change
ALIKE = 0.5  # how often an edit is made at the same place of several bars
FAILURES = 4  # rounds of proposals without a gain, after which the search ends


class EditContext(NamedTuple):
    """What edits of a melody leave as it is."""

    bars: int
    bar: int  # steps
    beat: int  # steps
    lowest: int  # pitch
    highest: int
    longest: int  # note, in steps
    scale: list[int]  # pitches of the melody's key from the lowest to the highest

    def step(self, pitch: int, steps: int) -> int:
        """Move a pitch along the scale; at its ends it stays."""
        at = bisect_left(self.scale, pitch)  # of the pitch itself, or else of the next one above
        if not steps:
            return pitch
        if steps > 0 and self.scale[at : at + 1] != [pitch]:
            steps -= 1
        return self.scale[max(0, min(at + steps, len(self.scale) - 1))]

    def nearest(self, pitch: float) -> int:
        """Return the scale's pitch that is nearest; of two as near, the lower one."""
        at = bisect_left(self.scale, pitch)
        return min(self.scale[max(0, at - 1) : at + 1], key=lambda each: abs(each - pitch))


def normalize_notes(notes: Notes, context: EditContext) -> Notes:
    """Sort notes, keep one at each onset, and let each end where the next begins and with the melody."""
    end, longest, lowest, highest = context.bars * context.bar, context.longest, context.lowest, context.highest
    by_onset = {start: (duration, pitch) for start, duration, pitch in notes if 0 <= start < end}
    onsets = sorted(by_onset)
    return [
        (start, max(1, min(duration, after - start, longest)), max(lowest, min(pitch, highest)))
        for start, after in zip(onsets, [*onsets[1:], end], strict=False)
        for duration, pitch in (by_onset[start],)
    ]


def run_of_bars(context: EditContext, draw: random.Random) -> tuple[int, int]:
    """Draw bars next to each other: the steps where they begin and end."""
    first, last = sorted((draw.randrange(context.bars), draw.randrange(context.bars)))
    first, last = draw.choice(((first, last), (0, last), (first, context.bars - 1)))
    return first * context.bar, (last + 1) * context.bar


def transpose(notes: Notes, context: EditContext, draw: random.Random) -> Notes:
    """Transpose the melody."""
    semitones = draw.choice((-12, -7, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 7, 12))
    pitches = [pitch + semitones for _, _, pitch in notes]
    if min(pitches) < context.lowest or max(pitches) > context.highest:
        return notes
    return [(start, duration, pitch + semitones) for start, duration, pitch in notes]


def move_bars(notes: Notes, context: EditContext, draw: random.Random) -> Notes:
    """Move some bars up or down within the key."""
    begin, end = run_of_bars(context, draw)
    steps = draw.choice((-7, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 7))
    return [
        (start, duration, context.step(pitch, steps) if begin <= start < end else pitch)
        for start, duration, pitch in notes
    ]


def stretch(notes: Notes, context: EditContext, draw: random.Random) -> Notes:
    """Make some bars' intervals wider or narrower around their mean, within the key."""
    begin, end = run_of_bars(context, draw)
    inside = [pitch for start, _, pitch in notes if begin <= start < end]
    if not inside:
        return notes
    mean, factor = sum(inside) / len(inside), draw.choice((0.5, 0.7, 0.85, 1.2, 1.4, 1.8))
    return [
        (start, duration, context.nearest(mean + factor * (pitch - mean)) if begin <= start < end else pitch)
        for start, duration, pitch in notes
    ]


def repeat_bars(notes: Notes, context: EditContext, draw: random.Random) -> Notes:
    """Play one, two or four bars again, in place of as many others."""
    length = min(draw.choice((1, 2, 4)), context.bars)
    source, target = draw.randrange(context.bars - length + 1), draw.randrange(context.bars - length + 1)
    begin, end = target * context.bar, (target + length) * context.bar
    away = (target - source) * context.bar
    kept = [note for note in notes if not begin <= note[0] < end]
    again = [(start + away, duration, pitch) for start, duration, pitch in notes if begin <= start + away < end]
    return kept + again or notes


def some_notes(notes: Notes, context: EditContext, draw: random.Random) -> set[int]:
    """Draw a note, and often those at the same place of bars near it: what recurs is changed wherever it does."""
    index = draw.randrange(len(notes))
    chosen, place = {index}, notes[index][0] % context.bar
    if draw.random() < ALIKE:
        begin, end = run_of_bars(context, draw)
        starts = enumerate(start for start, _, _ in notes)
        chosen |= {at for at, start in starts if start % context.bar == place and begin <= start < end}
    return chosen


def move_notes_in_scale(notes: Notes, context: EditContext, draw: random.Random) -> Notes:
    """Move notes up or down within the key."""
    chosen, steps = some_notes(notes, context, draw), draw.choice((-5, -3, -2, -1, 1, 2, 3, 5))
    return [
        (start, duration, context.step(pitch, steps) if index in chosen else pitch)
        for index, (start, duration, pitch) in enumerate(notes)
    ]


def split(notes: Notes, context: EditContext, draw: random.Random) -> Notes:
    """Make two notes of one, the second one as high or a step towards the next."""
    chosen, moves = some_notes(notes, context, draw), draw.random() < 0.5
    edited = []
    for index, (start, duration, pitch) in enumerate(notes):
        if index not in chosen or duration < 2:
            edited.append((start, duration, pitch))
            continue
        half = duration // 2 if duration <= context.beat else -(-duration // 2 // context.beat) * context.beat
        after = notes[min(index + 1, len(notes) - 1)][2]
        second = context.step(pitch, moves * ((after > pitch) - (after < pitch)))
        edited += [(start, half, pitch), (start + half, duration - half, second)]
    return edited


def leave_out(notes: Notes, context: EditContext, draw: random.Random) -> Notes:
    """Leave notes out; those before them sound on."""
    chosen = some_notes(notes, context, draw)
    edited: Notes = []
    for index, (start, duration, pitch) in enumerate(notes):
        if index not in chosen:
            edited.append((start, duration, pitch))
        elif edited and sum(edited[-1][:2]) == start:
            before, length, below = edited[-1]
            edited[-1] = (before, length + duration, below)
    return edited or notes


def shift_onset(notes: Notes, context: EditContext, draw: random.Random) -> Notes:
    """Let notes come earlier or later by up to a beat; they end when they ended."""
    chosen = some_notes(notes, context, draw)
    steps = draw.choice((-1, 1)) * draw.choice((1, context.beat // 4, context.beat // 2, context.beat))
    edited = []
    for index, (start, duration, pitch) in enumerate(notes):
        earliest = notes[index - 1][0] + 1 if index else 0
        moved = steps if index in chosen and steps < duration and start + steps >= earliest else 0
        edited.append((start + moved, duration - moved, pitch))
    return edited


def fill_rest(notes: Notes, context: EditContext, draw: random.Random) -> Notes:
    """Put a note of a beat at most into a rest, as high as the one before it."""
    start = draw.randrange(0, context.bars * context.bar, max(1, context.beat // 2))
    before = [note for note in notes if note[0] <= start]
    if before and sum(before[-1][:2]) > start:
        return notes
    return [*notes, (start, context.beat, before[-1][2] if before else notes[0][2])]


EDITS = (transpose, move_bars, stretch, repeat_bars, move_notes_in_scale, split, leave_out, shift_onset, fill_rest)


def edit_line(
    line: Mapping[str, Any],
    writer: TokenWriter,
    errors_of: Callable[[Sequence[Mapping[str, Any]]], Sequence[float]],
    seed: int,
) -> dict[str, Any]:
    """Edit a line, see `melody_line_melody_vae`, as [`search`] edits notes; it stays one that `writer` can write."""
    pitches, classes = writer.values("Pitch"), scale_mask(key_of(line))
    context = EditContext(
        bars=line["bars"],
        bar=steps_per_bar(line),
        beat=line["steps_per_beat"],
        lowest=pitches[0],
        highest=pitches[-1],
        longest=writer.values("Duration")[-1],
        scale=[pitch for pitch in pitches if classes >> pitch % 12 & 1],
    )

    def line_of(notes: Notes) -> dict[str, Any]:
        start, duration, pitch = zip(*notes, strict=True) if notes else ((), (), ())
        return {**line, "start": start, "duration": duration, "pitch": pitch}

    notes = list(zip(line["start"], line["duration"], line["pitch"], strict=True))
    return line_of(search(notes, context, lambda proposals: errors_of(list(map(line_of, proposals))), seed))


def search(
    notes: Notes, context: EditContext, errors_of: Callable[[Sequence[Notes]], Sequence[float]], seed: int
) -> Notes:
    """Edit notes, each time by the best of several proposals, until no edit brings them nearer to the target.

    Args:
        notes: To begin with; none come back as they are.
        context: What stays as it is.
        errors_of: How far proposals are from the target; it is asked about the same notes once.
        seed: Draws the edits that are proposed.

    Returns:
        The notes with the least error that were found.
    """
    draw = random.Random(seed)
    known: dict[tuple[tuple[int, int, int], ...], float] = {}

    def measured(proposals: Sequence[Notes]) -> list[float]:
        keys = [tuple(each) for each in proposals]
        new = [key for key in dict.fromkeys(keys) if key not in known]
        known.update(zip(new, errors_of([list(key) for key in new]) if new else (), strict=True))
        return [known[key] for key in keys]

    error = measured([notes])[0] if notes else 0.0
    failures = edits = 0
    while notes and failures < FAILURES and edits < MOST_EDITS:
        proposals = [normalize_notes(draw.choice(EDITS)(notes, context, draw), context) for _ in range(PROPOSALS)]
        errors = measured(proposals)
        best = min(range(PROPOSALS), key=errors.__getitem__)
        if errors[best] < error - LEAST_GAIN:
            notes, error, failures, edits = proposals[best], errors[best], 0, edits + 1
        else:
            failures += 1
    return notes


def measure(lines: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    """Measure the attributes of melodies, `(M, A)` in the order of `ATTRIBUTES`."""
    return torch.tensor([[function(line) for function in ATTRIBUTES.values()] for line in lines]).view(
        len(lines), len(ATTRIBUTES)
    )


class NoteEditingMixin:
    """What [`MelodyVAEModel`] does with melodies as notes."""

    @torch.no_grad()
    def shift(
        self, latent: torch.Tensor, attribute: str, amount: float = 1.0, bars: int | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Move latents so that their melodies have more or less of an attribute, and as much of the others.

        Local search over note edits ([`search`]); of `NUM_CANDIDATES` results the one is kept whose latent measures
        nearest to the target and that the melody decoder, as a language model, finds likeliest; refined ([`refine`])
        where that brings it nearer. The search has fixed seeds: the same latent always moves to the same place.

        Args:
            latent: `(B, Z)` or `(Z,)`.
            attribute: One of `config.attributes`.
            amount: Standard deviations of the training data; negative for less.
            bars: Bars of the melodies, a number or `(B,)`; `max_bars` by default.

        Returns:
            Latents of the same shape.

        Raises:
            ValueError: If the model does not know the attribute.
        """
        known = self.config.attributes or []
        if attribute not in known:
            raise ValueError(f"unknown attribute {attribute!r}; this model has {', '.join(known) or 'none'}")
        amount = check_number("amount", amount)
        start = check_latent(latent, self.config.latent_size).to(self.device, self.dtype)
        if not len(start):
            return latent
        num_bars = check_bars(self.config.max_bars if bars is None else bars, len(start), self.config.max_bars)
        bars = torch.as_tensor(num_bars).expand(len(start))
        # The target: the melody's own attributes, one of them moved.
        lines = self.read_lines(self.decode(start, bars=bars))
        has = self.attributes_of(lines)  # (B, A)
        target, weight = has.clone(), torch.ones_like(has[0])
        target[:, known.index(attribute)] += amount
        weight[known.index(attribute)] = OWN_WEIGHT

        def errors_of(lines: Sequence[Mapping[str, Any]], target: torch.Tensor) -> torch.Tensor:
            return (weight * (self.attributes_of(lines) - target).square()).sum(-1)

        # Edit the notes towards it, from several seeds.
        writer = TokenWriter(self.token_grammar.cpu())
        edited = [
            edit_line(line, writer, lambda each, target=target[row]: errors_of(each, target).tolist(), seed)
            for seed in range(NUM_CANDIDATES)
            for row, line in enumerate(lines)
        ]
        ids = self.write_lines(edited, writer)
        # What counts is what comes back through the latent.
        candidates = self._latent_mean(ids)  # (K B, Z)
        measured = self.read_lines(self.decode(candidates, bars=bars.repeat(NUM_CANDIDATES)))
        errors = errors_of(measured, target.repeat(NUM_CANDIDATES, 1)).view(NUM_CANDIDATES, -1)
        price = errors
        if self.config.noise_probability:
            price = errors + LIKELIHOOD_WEIGHT * self.unconditional_bits_per_note(ids, edited).view_as(errors)
        # The best candidate, refined; neither where the melody as it is lies nearer.
        chosen, rows = price.argmin(0), torch.arange(len(start), device=self.device)
        best, ids = (each.unflatten(0, (NUM_CANDIDATES, -1))[chosen, rows] for each in (candidates, ids))
        refined, least = self.refine(best, ids), errors_of(lines, target)
        refined_errors = errors_of(self.read_lines(self.decode(refined, bars=bars)), target)
        for latents, each in ((best, errors[chosen, rows]), (refined, refined_errors)):
            start, least = torch.where((each < least)[:, None], latents, start), torch.minimum(each, least)
        return start.view_as(latent)

    def unconditional_bits_per_note(self, ids: torch.Tensor, lines: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Bits per note of melodies, `(B,)`, for the melody decoder without a latent, see `config.noise_probability`.

        Args:
            ids: `(B, T)`.
            lines: The same melodies.
        """
        notes = torch.tensor([max(1, len(line["pitch"])) for line in lines], device=self.device)
        return self._unconditional_nats(ids).sum(-1) / math.log(2) / notes

    @torch.no_grad()
    def _unconditional_nats(self, ids: torch.Tensor) -> torch.Tensor:
        """Nats of each token of `(B, T)` after the first, `(B, T - 1)`, for the melody decoder without a latent."""
        latent = torch.zeros(len(ids), self.config.latent_size, device=self.device, dtype=self.dtype)
        level = torch.ones(len(ids), self.config.max_bars, device=self.device)
        logits = self(ids, latent=latent, noise_level=level).logits  # pyright: ignore[reportCallIssue] - of the model
        padding = self.config.pad_token_id
        labels = ids.masked_fill(self._copied_tokens(ids), padding)[:, 1:]
        return cross_entropy(logits[:, :-1].mT.float(), labels, ignore_index=padding, reduction="none")
