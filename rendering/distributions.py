"""Distributions of several sets over one another as a picture: small panels, a line for each set."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rendering.axes import style_axes
from rendering.palette import Palette, Theme, palette_of
from rendering.piano_roll import write_figure

WIDTH, PANEL_HEIGHT, HEAD, COLUMNS = 8.4, 1.75, 0.8, 3  # inches
LEFT, RIGHT, TOP, BOTTOM = 0.4, 0.14, 0.3, 0.3  # inches around each panel
STYLES = ("-", "--", ":", "-.")

Panels = Mapping[str, tuple[Sequence[float], Mapping[str, Sequence[int]]]]


def draw_distributions(panels: Panels, *, title: str = "", theme: Theme = "light") -> Figure:
    """Draw how values are distributed in several sets.

    Args:
        panels: By title the edges of the bins, and for each set the counts of its values in them. All panels have the
            same sets.
        title: Above all, literally.
        theme: "light" or "dark".

    Raises:
        ValueError: If there are no panels, there is not one edge more than counts, or the theme is unknown.
    """
    if not panels:
        raise ValueError("nothing to draw: got no panels")
    palette = palette_of(theme)
    rows = ceil(len(panels) / COLUMNS)
    height = HEAD + rows * PANEL_HEIGHT
    figure = Figure(figsize=(WIDTH, height), facecolor=palette.paper)
    names: list[str] = []
    # A panel for each figure, with steps for each set.
    for place, (name, (edges, sets)) in enumerate(panels.items()):
        row, column = divmod(place, COLUMNS)
        width = WIDTH / COLUMNS
        bottom = height - HEAD - (row + 1) * PANEL_HEIGHT + BOTTOM
        size = (width - LEFT - RIGHT) / WIDTH, (PANEL_HEIGHT - TOP - BOTTOM) / height
        axes = figure.add_axes(((column * width + LEFT) / WIDTH, bottom / height, *size))
        for index, (label, counts) in enumerate(sets.items()):
            if len(edges) != len(counts) + 1:
                raise ValueError(f"{name!r} has {len(edges)} edges and {len(counts)} counts, not one edge more")
            shares = np.asarray(counts, dtype=float) / max(sum(counts), 1)
            style, colour = STYLES[index % len(STYLES)], palette.series[index % len(palette.series)]
            axes.stairs(shares, edges, color=colour, linestyle=style, linewidth=1.6, baseline=None)
            if label not in names:
                names.append(label)
        axes.set_ylim(bottom=0)
        style_axes(axes, palette, is_small=True)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g}%"))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.set_title(name, loc="left", fontsize=9, fontweight="bold", color=palette.ink, pad=5, parse_math=False)
    figure.text(
        0.022, 1 - 0.12 / height, title, fontsize=11, fontweight="bold", color=palette.ink, va="top", parse_math=False
    )
    _draw_legend(figure, names, palette)
    return figure


def _draw_legend(figure: Figure, names: Sequence[str], palette: Palette) -> None:
    """Name the sets below the title, beside a piece of their lines."""
    handles = [
        Line2D(
            [], [], color=palette.series[index % len(palette.series)], linestyle=STYLES[index % len(STYLES)], label=name
        )
        for index, name in enumerate(names)
    ]
    legend = figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.01, 1 - 0.34 / figure.get_figheight()),
        ncols=len(names),
        frameon=False,
        fontsize=8.5,
        labelcolor=palette.ink,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def write_distributions(path: str | Path, panels: Panels, **look: Any) -> None:
    """Write `draw_distributions` of `panels`, with its keywords, as PNG; the folder must exist."""
    write_figure(path, draw_distributions(panels, **look))
