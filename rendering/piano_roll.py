"""Melody to picture: piano rolls, alone, compared, or as a strip.

Time runs in quarter notes, pitch in MIDI numbers with C4 = 60. Bar lines follow the score's time signatures (4/4 where
it has none). Figures are plain `matplotlib.figure.Figure` objects: no pyplot, no global state, no display.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from symusic.types import Score

from rendering.palette import Palette, Theme, palette_of

DPI = 200
EMPTY_BARS = 4  # what a score without notes shows
FEWEST_SEMITONES = 14
STEPS_PER_QUARTER = 12  # onsets are compared on this grid: it holds sixteenths and triplets alike
BLACK_KEYS = frozenset({1, 3, 6, 8, 10})
PITCH_CLASSES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")

# Lengths in inches
LEFT, RIGHT, TITLE, FOOT, GAP = 0.42, 0.12, 0.30, 0.26, 0.12
INCHES_PER_QUARTER, NARROWEST, WIDEST = 0.135, 4.2, 9.2
CORNER = 0.028
LEGEND = 0.26
CLOSEST_BEATS = 0.05  # closer beats are not drawn


@dataclass(frozen=True)
class Note:
    """A note as drawn, in quarter notes from the start of the score."""

    start: Fraction
    duration: Fraction
    pitch: int

    @property
    def end(self) -> Fraction:
        """Where it stops."""
        return self.start + self.duration

    @property
    def key(self) -> tuple[int, int]:
        """Onset on the comparison grid, and pitch: what must be equal for two notes to agree."""
        return round(self.start * STEPS_PER_QUARTER), self.pitch


def notes_of(score: Score) -> list[Note]:
    """List the notes of all tracks but drums, sorted by onset, then pitch."""
    ticks = cast(Any, score).to("tick")  # symusic's stubs do not know the method
    notes = (
        Note(Fraction(note.time, ticks.tpq), Fraction(note.duration, ticks.tpq), note.pitch)
        for track in ticks.tracks
        if not track.is_drum
        for note in track.notes
    )
    return sorted(notes, key=lambda note: (note.start, note.pitch, note.duration))


def agreement(original: Score, reconstruction: Score) -> tuple[list[bool], list[bool]]:
    """Say for each note of two scores whether the other has one of the same onset and pitch (note F1's rule).

    Onsets are compared on a grid of twelfths of a quarter, so scores of different resolutions may be compared; of
    several equal notes, as many agree as both scores have. Lengths do not count.

    Returns:
        One list for each score, in the order of `notes_of`.
    """
    both = [notes_of(original), notes_of(reconstruction)]
    shared = Counter(note.key for note in both[0]) & Counter(note.key for note in both[1])
    verdicts: list[list[bool]] = []
    for notes in both:
        left = Counter(shared)
        verdict = []
        for note in notes:
            verdict.append(left[note.key] > 0)
            left[note.key] -= 1
        verdicts.append(verdict)
    return verdicts[0], verdicts[1]


def bar_lines(score: Score, bars: int | None = None) -> list[Fraction]:
    """List the bar lines in quarter notes, the last one being the end of what is shown.

    A change of time signature starts a new bar wherever it stands.

    Args:
        score: Its time signatures count, 4/4 holds before the first.
        bars: How many; by default as many as the notes need, or `EMPTY_BARS` if there are none.

    Raises:
        ValueError: If `bars` is not positive.
    """
    if bars is not None and bars < 1:
        raise ValueError(f"bars must be at least 1, got {bars}")
    end = max((note.end for note in notes_of(score)), default=None)
    lines = []
    for line, _ in _bars(score):
        lines.append(line)
        shown = len(lines) - 1
        wanted = bars if bars is not None else EMPTY_BARS if end is None else None
        if shown >= 1 and (shown == wanted if wanted is not None else end is not None and line >= end):
            break
    return lines


def describe(score: Score) -> str:
    """Put a score into words for those who cannot see its picture: "16 bars, 54 notes from C4 to G5"."""
    notes, bars = notes_of(score), len(bar_lines(score)) - 1
    if not notes:
        return "an empty melody"
    lowest, highest = (pitch_name(extreme(note.pitch for note in notes)) for extreme in (min, max))
    span = f"all {lowest}" if lowest == highest else f"from {lowest} to {highest}"
    return f"{bars} bar{'s' * (bars != 1)}, {len(notes)} note{'s' * (len(notes) != 1)} {span}"


def pitch_name(pitch: int) -> str:
    """Name a MIDI pitch in scientific notation, 60 being C4."""
    return f"{PITCH_CLASSES[pitch % 12]}{pitch // 12 - 1}"


def draw_strip(
    scores: Sequence[Score], titles: Sequence[str] | None = None, bars: int | None = None, *, theme: Theme = "light"
) -> Figure:
    """Draw several scores below one another on the same axes, the colour moving from first to last.

    Args:
        scores: At least one.
        titles: One for each score; by default none.
        bars: How many bars to show, by default as many as the longest has.
        theme: "light" or "dark".

    Raises:
        ValueError: If there are no scores, or not as many titles.
    """
    palette = palette_of(theme)
    ramp = LinearSegmentedColormap.from_list("stages", palette.stages)
    colours = [to_hex(ramp(row / max(len(scores) - 1, 1))) for row in range(len(scores))]
    figure, panels = _draw_panels(scores, titles, bars, palette)
    for score, panel, colour in zip(scores, panels, colours, strict=True):
        for note in notes_of(score):
            _draw_note(panel, note, colour, colour)
    return figure


def draw_comparison(
    original: Score,
    reconstruction: Score,
    titles: Sequence[str] = ("Original", "Reconstruction"),
    bars: int | None = None,
    *,
    theme: Theme = "light",
) -> Figure:
    """Draw an original above its reconstruction; notes whose onset and pitch agree are filled, the others outlined.

    Colour is not the only sign: the two kinds differ in fill too. A legend gives both counts.

    Args:
        original: Above.
        reconstruction: Below, on the same axes.
        titles: Of the two.
        bars: How many bars to show, by default as many as the longer one has.
        theme: "light" or "dark".
    """
    palette = palette_of(theme)
    figure, panels = _draw_panels([original, reconstruction], titles, bars, palette, below=LEGEND)
    verdicts = agreement(original, reconstruction)
    for score, panel, verdict in zip((original, reconstruction), panels, verdicts, strict=True):
        for note, agrees in zip(notes_of(score), verdict, strict=True):
            if agrees:
                _draw_note(panel, note, palette.agree, palette.agree)
            else:
                _draw_note(panel, note, palette.differ_fill, palette.differ)
    _draw_legend(figure, palette, sum(verdicts[0]), [verdict.count(False) for verdict in verdicts])
    return figure


def write_piano_roll(
    path: str | Path,
    scores: Score | Sequence[Score],
    titles: Sequence[str] | None = None,
    bars: int | None = None,
    *,
    compare: bool = False,
    theme: Theme = "light",
) -> None:
    """Write a PNG of one score, of several as a strip, or of two compared.

    Args:
        path: Of the PNG; its folder must exist.
        scores: One score or several.
        titles: One for each score.
        bars: How many bars to show, by default all.
        compare: Whether to draw exactly two scores by `draw_comparison`.
        theme: "light" or "dark".

    Raises:
        ValueError: If there are no scores, as many titles as scores are not given, or other than two are compared.
    """
    listed = list(scores) if isinstance(scores, Sequence) else [scores]
    if compare:
        if len(listed) != 2:
            raise ValueError(f"a comparison needs two scores, got {len(listed)}")
        figure = draw_comparison(*listed, titles=titles or ("Original", "Reconstruction"), bars=bars, theme=theme)
    else:
        figure = draw_strip(listed, titles, bars, theme=theme)
    write_figure(path, figure)


def write_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as PNG, byte for byte the same for the same figure."""
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", dpi=DPI, facecolor=figure.get_facecolor(), metadata={"Software": None})


def _bars(score: Score) -> Iterator[tuple[Fraction, Fraction]]:
    """Yield each bar line and the length of the beats that follow it, without end."""
    ticks = cast(Any, score).to("tick")
    changes = {
        Fraction(sign.time, ticks.tpq): (sign.numerator, sign.denominator)
        for sign in ticks.time_signatures
        if sign.numerator > 0 and sign.denominator > 0  # files with 0/4 exist, and their bars would never end
    }
    numerator, denominator = changes.get(Fraction(0), (4, 4))
    later = sorted(time for time in changes if time > 0)
    line = Fraction(0)
    while True:
        is_compound = denominator >= 8 and numerator % 3 == 0 and numerator > 3
        yield line, Fraction(12 if is_compound else 4, denominator)
        next_line = line + Fraction(4 * numerator, denominator)
        if later and later[0] <= next_line:
            next_line = later.pop(0)
            numerator, denominator = changes[next_line]
        line = next_line


def _draw_panels(
    scores: Sequence[Score],
    titles: Sequence[str] | None,
    bars: int | None,
    palette: Palette,
    below: float = 0.0,
) -> tuple[Figure, list[Axes]]:
    """Lay out one panel for each score, all with the same axes, and draw everything but the notes."""
    if not scores:
        raise ValueError("nothing to draw: got no scores")
    titles = [""] * len(scores) if titles is None else list(titles)
    if len(titles) != len(scores):
        raise ValueError(f"need one title for each score, got {len(titles)} titles for {len(scores)} scores")
    end = max(bar_lines(score, bars)[-1] for score in scores)
    low, high = _pitch_range([note.pitch for score in scores for note in notes_of(score) if note.start < end])

    # As wide as the longest score, as high as the pitches ask for, within limits.
    title_height = TITLE if any(titles) else GAP
    width = min(max(float(end) * INCHES_PER_QUARTER, NARROWEST), WIDEST)
    row_height = 0.07 if len(scores) <= 2 else 0.048
    height = min(max((high - low) * row_height, 0.7), 2.6)
    figure_width = LEFT + width + RIGHT
    figure_height = len(scores) * (title_height + height) + FOOT + below
    figure = Figure(figsize=(figure_width, figure_height), facecolor=palette.paper)
    panels = []
    for row, (score, title) in enumerate(zip(scores, titles, strict=True)):
        bottom = figure_height - (row + 1) * (title_height + height)
        panel = figure.add_axes(
            (LEFT / figure_width, bottom / figure_height, width / figure_width, height / figure_height)
        )
        panel.set_xlim(0, float(end))
        panel.set_ylim(low - 0.5, high + 0.5)
        is_last = row == len(scores) - 1
        _draw_grid(panel, score, float(end), (low, high), palette, width, has_bar_numbers=is_last)
        if title:
            panel.annotate(
                title,
                (0, 1),
                xytext=(0, 5),
                xycoords="axes fraction",
                textcoords="offset points",
                fontsize=9.5,
                fontweight="bold",
                color=palette.ink,
                parse_math=False,
            )
        panels.append(panel)
    return figure, panels


def _pitch_range(pitches: list[int]) -> tuple[int, int]:
    """The lowest and highest row: two semitones around the notes, and never less than `FEWEST_SEMITONES` rows."""
    low, high = (min(pitches) - 2, max(pitches) + 2) if pitches else (60, 72)
    missing = max(FEWEST_SEMITONES - (high - low + 1), 0)
    return max(low - missing // 2, 0), min(high + (missing + 1) // 2, 127)


def _draw_grid(
    panel: Axes,
    score: Score,
    end: float,
    pitches: tuple[int, int],
    palette: Palette,
    width: float,
    *,
    has_bar_numbers: bool,
) -> None:
    """Draw keyboard rows, octave lines, beats, bars, and the labels."""
    low, high = pitches
    panel.set_facecolor(palette.panel)
    panel.set_axisbelow(True)
    # Rows of the keyboard.
    for pitch in range(low, high + 1):
        if pitch % 12 in BLACK_KEYS:
            panel.axhspan(pitch - 0.5, pitch + 0.5, color=palette.black_key, linewidth=0, zorder=0)
        if pitch % 12 == 0 and pitch > low:
            panel.axhline(pitch - 0.5, color=palette.bar, linewidth=0.5, zorder=1)
    # Bars, and beats where there is room for them.
    lines = []
    for line, beat in _bars(score):
        lines.append((float(line), float(beat)))
        if line >= end:
            break
    for (line, beat), (next_line, _) in pairwise(lines):
        panel.axvline(line, color=palette.bar, linewidth=0.8, zorder=1.5)
        if beat * width / end < CLOSEST_BEATS:
            continue
        x = line + beat
        while x < next_line - 1e-9:
            panel.axvline(x, color=palette.beat, linewidth=0.6, zorder=1)
            x += beat
    for spine in panel.spines.values():
        spine.set_color(palette.bar)
        spine.set_linewidth(0.8)
    # Labels: octaves at the left, bars at the bottom.
    panel.tick_params(length=0, labelsize=7.5, labelcolor=palette.faint_ink, pad=3)
    octaves = [pitch for pitch in range(low, high + 1) if pitch % 12 == 0]
    panel.set_yticks(octaves, [pitch_name(pitch) for pitch in octaves])
    starts = [line for line, _ in lines if line < end]
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, 10**9) if len(starts) / step * 0.24 <= width)
    numbers = [(line, str(bar)) for bar, line in enumerate(starts, start=1) if (bar - 1) % every == 0]
    panel.set_xticks([line for line, _ in numbers], [text if has_bar_numbers else "" for _, text in numbers])
    for label in panel.get_xticklabels():
        label.set_horizontalalignment("left")


def _draw_note(panel: Axes, note: Note, fill: str, edge: str) -> None:
    """Draw a note as a bar with corners that are round on paper, whatever the scales of the axes."""
    figure = panel.figure
    bounds = panel.get_position()
    figure_width, figure_height = figure.get_size_inches()  # pyright: ignore[reportAttributeAccessIssue]
    left, right = panel.get_xlim()
    low, high = panel.get_ylim()
    quarters_per_inch = (right - left) / (bounds.width * figure_width)
    semitones_per_inch = (high - low) / (bounds.height * figure_height)
    space = min(0.012 * quarters_per_inch, float(note.duration) / 4)  # so that repeated notes stay apart
    length = max(float(note.duration) - space, 0.03 * quarters_per_inch)
    corner = min(CORNER, length / quarters_per_inch / 2, 0.42 / semitones_per_inch)
    panel.add_patch(
        FancyBboxPatch(
            (float(note.start), note.pitch - 0.44),
            length,
            0.88,
            boxstyle=f"round,pad=0,rounding_size={corner * quarters_per_inch}",
            mutation_aspect=semitones_per_inch / quarters_per_inch,
            facecolor=fill,
            edgecolor=edge,
            linewidth=0 if fill == edge else 0.9,
            zorder=3,
        )
    )


def _draw_legend(figure: Figure, palette: Palette, agreeing: int, differing: list[int]) -> None:
    """Name the two kinds of note below a comparison."""
    width, height = figure.get_size_inches()
    centre = 0.15 / height
    texts = (
        (palette.agree, palette.agree, f"same onset and pitch ({agreeing})"),
        (palette.differ_fill, palette.differ, f"only above ({differing[0]}) or only below ({differing[1]})"),
    )
    for x, (fill, edge, text) in zip((LEFT, LEFT + 2.0), texts, strict=True):
        box = FancyBboxPatch(
            (x / width, centre - 0.032 / height),
            0.22 / width,
            0.064 / height,
            boxstyle=f"round,pad=0,rounding_size={CORNER / width}",
            mutation_aspect=width / height,
            facecolor=fill,
            edgecolor=edge,
            linewidth=0 if fill == edge else 0.9,
            transform=figure.transFigure,
        )
        figure.add_artist(box)
        figure.text((x + 0.29) / width, centre, text, fontsize=7.5, color=palette.faint_ink, va="center_baseline")
