"""Histograms as a picture: small panels side by side, each with its own axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from rendering.axes import style_axes
from rendering.palette import Palette, Theme, palette_of
from rendering.piano_roll import DPI

WIDTH, PANEL_HEIGHT = 8.4, 2.05  # inches
LEFT, RIGHT, TOP, BOTTOM = 0.42, 0.14, 0.48, 0.5  # inches around each panel
COLOURS = 48  # in the file: a few flat ones, and what lies between them at the edges of letters
BAR_WIDTH = 0.86  # of its bin


@dataclass(frozen=True)
class Histogram:
    """What one panel shows.

    Attributes:
        title: above the panel, literally.
        x_label: what the axis below shows, and its unit.
        y_label: what the bars are shares of.
        edges: of the bins, rising, one more than bins.
        counts: of each bin.
        below: how many lie below the first edge; told in a note, like those above the last.
        above: how many lie above the last edge.
        is_centred: the bins lie around the values that they count, such as -0.5 to 0.5 around 0.
        ticks: texts by place on the axis; none: chosen from the edges.
    """

    title: str
    x_label: str
    y_label: str
    edges: Sequence[float]
    counts: Sequence[int]
    below: int = 0
    above: int = 0
    is_centred: bool = False
    ticks: Mapping[float, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """How many there are, inside and outside of the bins."""
        return sum(self.counts) + self.below + self.above

    def outside(self) -> str:
        """Say what share lies outside of the bins; nothing where all are inside."""
        margin = (self.edges[1] - self.edges[0]) / 2 if self.is_centred else 0
        low, high = self.edges[0] + margin, self.edges[-1] - margin
        parts = [(self.below, f"below {low:g}"), (self.above, f"above {high:g}")]
        return ", ".join(f"{percent(count / self.total)} {where}" for count, where in parts if count)


def percent(share: float) -> str:
    """Write a share to a tenth of a percent; what is less and not nothing does not become nothing."""
    return f"{share:.1%}" if share >= 0.0005 else "< 0.1%" if share > 0 else "0%"


def draw_histograms(histograms: Sequence[Histogram], *, columns: int = 3, theme: Theme = "light") -> Figure:
    """Draw histograms in rows of `columns` panels; bars are shares of all, including what lies outside of the bins.

    Raises:
        ValueError: If a histogram has not one edge more than counts, or the theme is unknown.
    """
    palette = palette_of(theme)
    rows = ceil(len(histograms) / columns)
    height = rows * PANEL_HEIGHT
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=palette.paper)
    panel_width = WIDTH / columns
    for place, histogram in enumerate(histograms):
        if len(histogram.edges) != len(histogram.counts) + 1:
            edges, counts = len(histogram.edges), len(histogram.counts)
            raise ValueError(f"{histogram.title!r} has {edges} edges and {counts} counts, not one edge more")
        row, column = divmod(place, columns)
        left = (column * panel_width + LEFT) / WIDTH
        bottom = ((rows - 1 - row) * PANEL_HEIGHT + BOTTOM) / height
        size = (panel_width - LEFT - RIGHT) / WIDTH, (PANEL_HEIGHT - TOP - BOTTOM) / height
        _draw_panel(figure.add_axes((left, bottom, *size)), histogram, palette)
    return figure


def write_histograms(
    path: str | Path, histograms: Sequence[Histogram], *, columns: int = 3, theme: Theme = "light"
) -> None:
    """Write `draw_histograms` as a small PNG, the same bytes for the same histograms; the folder must exist."""
    canvas = FigureCanvasAgg(draw_histograms(histograms, columns=columns, theme=theme))
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    few = picture.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(path, format="png")


def _draw_panel(axes: Axes, histogram: Histogram, palette: Palette) -> None:
    """Draw one histogram on its axes."""
    edges = np.asarray(histogram.edges, dtype=float)
    share = np.asarray(histogram.counts, dtype=float) / max(histogram.total, 1)
    width = np.diff(edges)
    gap = (1 - BAR_WIDTH) / 2 * width
    sides = np.stack([edges[:-1] + gap, edges[1:] - gap], axis=1).ravel()
    heights = np.stack([share, np.zeros_like(share)], axis=1).ravel()[:-1]  # between two bars there is nothing
    axes.stairs(heights, sides, fill=True, color=palette.agree, linewidth=0)
    axes.set_xlim(edges[0] - width[0] / 2, edges[-1] + width[-1] / 2)
    axes.set_ylim(0, 1.06 * share.max(initial=0) or 1)
    style_axes(axes, palette, is_small=True)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g}%"))
    if histogram.ticks:
        axes.set_xticks(list(histogram.ticks), list(histogram.ticks.values()))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel(histogram.x_label, fontsize=7.5, color=palette.faint_ink, loc="right", parse_math=False)
    style = {"textcoords": "offset points", "xycoords": "axes fraction", "va": "bottom", "parse_math": False}
    axes.annotate(histogram.title, (0, 1), (0, 15), fontsize=9, fontweight="bold", color=palette.ink, **style)
    axes.annotate(histogram.y_label, (0, 1), (0, 5), fontsize=7, color=palette.faint_ink, **style)
    axes.annotate(histogram.outside(), (1, 1), (0, 5), fontsize=7, color=palette.faint_ink, ha="right", **style)
