"""Training curves as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rendering.axes import style_axes
from rendering.palette import Theme, palette_of
from rendering.piano_roll import write_figure

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]

WIDTH, HEIGHT, LEFT, LETTER = 8.4, 3.5, 0.63, 0.078  # inches; LETTER is the width of one in a curve's name
STYLES = ("-", "--", "-.", ":")
MARKED_UP_TO = 30  # points: a shorter curve shows where it was measured


def draw_curves(
    series: Series, *, title: str = "", x_label: str = "step", y_label: str = "", theme: Theme = "light"
) -> Figure:
    """Draw curves that carry their names at their right ends, in colours and dash patterns that differ.

    Args:
        series: Name to (steps, values), equally long; values that are not finite leave a gap.
        title: Above, literally.
        x_label: Below the axis.
        y_label: Above the axis, on the left.
        theme: "light" or "dark".

    Raises:
        ValueError: If a curve has not as many values as steps, or the theme is unknown.
    """
    palette = palette_of(theme)
    # The names at the right ends take the room that they need.
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor=palette.paper)
    longest = max((len(name) for name in series), default=0) + len("  0.1234")
    names = min(longest * LETTER + 0.12, WIDTH / 2)
    axes = figure.add_axes((LEFT / WIDTH, 0.145, (WIDTH - LEFT - names) / WIDTH, 0.68))
    ends: list[tuple[float, float, str, str]] = []
    for row, (name, (steps, values)) in enumerate(series.items()):
        if len(steps) != len(values):
            raise ValueError(f"{name!r} has {len(steps)} steps but {len(values)} values")
        x, y = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
        y = np.where(np.isfinite(y), y, np.nan)
        colour = palette.series[row % len(palette.series)]
        style = STYLES[(row // len(palette.series)) % len(STYLES)]
        is_short = len(x) <= MARKED_UP_TO
        axes.plot(x, y, style, color=colour, linewidth=1.7, marker="o" if is_short else "", markersize=3.2, label=name)
        if np.isfinite(y).any():
            last = np.flatnonzero(np.isfinite(y))[-1]
            ends.append((float(x[last]), float(y[last]), name, colour))

    # Axes, labels and titles.
    axes.margins(x=0.01, y=0.08)
    style_axes(axes, palette)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel(x_label, fontsize=8.5, color=palette.faint_ink, loc="right", parse_math=False)
    figure.text(0.022, 0.915, title, fontsize=11, fontweight="bold", color=palette.ink, parse_math=False)
    figure.text(0.022, 0.855, y_label, fontsize=8.5, color=palette.faint_ink, parse_math=False)
    if not ends:
        axes.text(0.5, 0.5, "nothing measured yet", ha="center", color=palette.faint_ink, transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
    _name_ends(axes, ends)
    return figure


def _name_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write names and last values beside the ends (x, y, name, colour) of curves, none over another."""
    low, high = axes.get_ylim()
    right = axes.get_xlim()[1]
    places = _spread([(y - low) / (high - low) for _, y, _, _ in ends], 0.068)
    for (_, y, name, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            f"{name}  {y:.3g}",
            (right, low + place * (high - low)),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            fontweight="bold",
            color=colour,
            annotation_clip=False,
            parse_math=False,
        )


def write_curves(path: str | Path, series: Series, **look: Any) -> None:
    """Write `draw_curves` of `series`, with its keywords, as PNG; the folder must exist."""
    write_figure(path, draw_curves(series, **look))


def _spread(places: list[float], space: float) -> list[float]:
    """Move labels apart until neighbours are `space` from each other, as little as possible (pooling neighbours)."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    clusters: list[tuple[float, list[int]]] = []  # (centre, members from below)
    for index in order:
        centre, members = places[index], [index]
        while clusters and centre - clusters[-1][0] < space * (len(members) + len(clusters[-1][1])) / 2:
            below_centre, below = clusters.pop()
            centre = (centre * len(members) + below_centre * len(below)) / (len(members) + len(below))
            members = below + members
        clusters.append((centre, members))
    spread = list(places)
    for centre, members in clusters:
        for rank, index in enumerate(members):
            spread[index] = centre + space * (rank - (len(members) - 1) / 2)
    return spread
