"""Values with their confidence intervals as a picture: one row each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rendering.axes import style_axes
from rendering.palette import Theme, palette_of
from rendering.piano_roll import write_figure

WIDTH, ROW, TOP, BOTTOM, RIGHT = 8.4, 0.34, 0.72, 0.5, 0.75  # inches
LETTER = 0.085  # of a row's name


def draw_intervals(
    rows: Sequence[tuple[str, float, Sequence[float] | None]],
    *,
    title: str = "",
    x_label: str = "",
    reference: float | None = None,
    theme: Theme = "light",
) -> Figure:
    """Draw a dot for each value and a line for its interval, in the order given, from the top.

    Args:
        rows: Name, value, and the ends of its interval or None.
        title: Above, literally.
        x_label: Below the axis.
        reference: Where to draw a vertical line, such as that of no difference.
        theme: "light" or "dark".

    Raises:
        ValueError: If there are no rows, or the theme is unknown.
    """
    if not rows:
        raise ValueError("nothing to draw: got no rows")
    palette = palette_of(theme)
    height = TOP + BOTTOM + ROW * len(rows)
    left = 0.3 + LETTER * max(len(name) for name, _, _ in rows)
    figure = Figure(figsize=(WIDTH, height), facecolor=palette.paper)
    axes = figure.add_axes(
        (left / WIDTH, BOTTOM / height, (WIDTH - left - RIGHT) / WIDTH, (height - TOP - BOTTOM) / height)
    )
    # Rows from the top: interval, dot, number.
    if reference is not None:
        axes.axvline(reference, color=palette.bar, linewidth=1.2, linestyle="--", zorder=1)
    for row, (_, value, ends) in enumerate(rows):
        colour = palette.series[row % len(palette.series)]
        if ends is not None:
            axes.plot(ends, [row, row], color=colour, linewidth=2.2, solid_capstyle="round", zorder=2)
        axes.plot([value], [row], "o", color=colour, markersize=6.5, zorder=3)
        axes.annotate(
            f"{value:.3g}",
            (1, row),
            xytext=(8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            fontweight="bold",
            color=colour,
            parse_math=False,
        )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.margins(x=0.06)
    style_axes(axes, palette, grid="x")
    axes.tick_params(axis="y", labelsize=8.5, labelcolor=palette.ink)
    axes.set_xlabel(x_label, fontsize=8.5, color=palette.faint_ink, loc="right", parse_math=False)
    figure.text(
        0.022, 1 - 0.34 / height, title, fontsize=11, fontweight="bold", color=palette.ink, va="top", parse_math=False
    )
    return figure


def write_intervals(path: str | Path, rows: Sequence[tuple[str, float, Sequence[float] | None]], **look: Any) -> None:
    """Write `draw_intervals` of `rows`, with its keywords, as PNG; the folder must exist."""
    write_figure(path, draw_intervals(rows, **look))
