"""Colours of every picture, in a light and a dark theme, from Okabe and Ito's colour-blind-safe set."""

from dataclasses import dataclass
from typing import Literal

Theme = Literal["light", "dark"]


@dataclass(frozen=True)
class Palette:
    """Colours of one theme; `series` is for lines, `stages` the two ends of an interpolation."""

    paper: str
    panel: str
    black_key: str
    beat: str
    bar: str
    ink: str
    faint_ink: str
    agree: str
    differ: str
    differ_fill: str
    series: tuple[str, ...]
    stages: tuple[str, str, str]


PALETTES: dict[str, Palette] = {
    "light": Palette(
        paper="#ffffff",
        panel="#fbfbfa",
        black_key="#f1f1ee",
        beat="#e9e8e4",
        bar="#c9c7c0",
        ink="#22252a",
        faint_ink="#6b6f76",
        agree="#0072b2",
        differ="#d55e00",
        differ_fill="#fbe3d2",
        series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07f00", "#3d8fc4"),
        stages=("#0072b2", "#8a6fb5", "#d55e00"),
    ),
    "dark": Palette(
        paper="#191c21",
        panel="#1f2329",
        black_key="#1a1d22",
        beat="#2a2e35",
        bar="#454b55",
        ink="#e9e8e4",
        faint_ink="#9ba1ab",
        agree="#56b4e9",
        differ="#f08a3c",
        differ_fill="#4d3020",
        series=("#56b4e9", "#f08a3c", "#2fc79b", "#dd94bd", "#e6b422", "#9ccdec"),
        stages=("#56b4e9", "#b39bdc", "#f08a3c"),
    ),
}


def palette_of(theme: Theme) -> Palette:
    """Look up a theme.

    Raises:
        ValueError: If there is no such theme.
    """
    if theme not in PALETTES:
        raise ValueError(f"theme must be one of {sorted(PALETTES)}, got {theme!r}")
    return PALETTES[theme]
