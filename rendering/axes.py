"""How the axes of every chart look: the axis of the names as a line, a faint grid across the values, no tick marks."""

from typing import Literal

from matplotlib.axes import Axes

from rendering.palette import Palette


def style_axes(axes: Axes, palette: Palette, *, grid: Literal["x", "y"] = "y", is_small: bool = False) -> None:
    """Set background, spines, grid and ticks in the colours of a theme.

    Args:
        axes: To be styled in place.
        palette: Of the theme.
        grid: Of which axis the values have grid lines.
        is_small: For one of several panels in a row: smaller labels, nearer to the axes.
    """
    axes.set_facecolor(palette.paper)
    axes.grid(axis=grid, color=palette.beat, linewidth=0.7 if is_small else 0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(palette.bar)
    size, pad = (7.5, 3) if is_small else (8, 5)
    axes.tick_params(length=0, labelsize=size, labelcolor=palette.faint_ink, pad=pad)
