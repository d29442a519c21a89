"""A static page to hear, see and take home melodies: one HTML file beside its pictures, sounds and MIDI files.

The folder is self-contained: every link is relative and stays inside it, nothing is fetched from another host, and all
text is escaped. The page follows the reader's light or dark setting, and works by keyboard and without scripts (a few
lines only see to it that starting one sound pauses the others).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

PIXELS_PER_CSS_PIXEL = 1.75  # sharp on fine screens; a piano roll of 16 bars fills the page


@dataclass(frozen=True)
class Picture:
    """An image file; `dark` is its counterpart for dark pages. Wide pictures scroll sideways on narrow screens."""

    path: str | Path
    alt: str
    dark: str | Path | None = None
    caption: str = ""


@dataclass(frozen=True)
class Item:
    """One melody: what is not given is not shown; `versions` are melodies to hear under its picture."""

    title: str
    picture: Picture | None = None
    sound: str | Path | None = None
    midi: str | Path | None = None
    text: str = ""
    versions: Sequence["Item"] = ()


@dataclass(frozen=True)
class Table:
    """Rows of numbers under a header, every row as long as it; columns of numbers are set to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading, text (blank lines separate paragraphs), tables, full-width pictures and melodies, in this order."""

    title: str
    text: str = ""
    items: Sequence[Item] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def write_page(
    path: str | Path, title: str, introduction: str, sections: Sequence[Section], *, footer: str = ""
) -> None:
    """Write the page. Files are named relative to the page's folder, or absolutely within it, and must exist.

    Args:
        path: Of the HTML file; its folder must exist.
        title: Of the page.
        introduction: Below the title; blank lines separate paragraphs.
        sections: In reading order; with three or more, links to them stand on top.
        footer: At the end, e.g. how the page was made.

    Raises:
        ValueError: If a file is missing or outside the page's folder, or a table's row is not as long as its header.
    """
    page = Path(path)
    writer = _Writer(page.resolve().parent)
    body = [writer.section(section, number) for number, section in enumerate(sections, start=1)]
    links = "".join(
        f'<li><a href="#section-{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(sections, start=1)
    )
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(sections) > 2 else ""
    end = f"<footer>{_paragraphs(footer)}</footer>" if footer else ""
    page.write_text(
        f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>{escape(title)}</h1>
{_paragraphs(introduction)}
{contents}
</header>
<main id="content">
{"".join(body)}</main>
{end}
<script>{SCRIPT}</script>
</body>
</html>
""",
        encoding="utf-8",
    )


class _Writer:
    """Turns the parts of a page into HTML, resolving files against the page's folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def section(self, section: Section, number: int) -> str:
        tables = "".join(self.table(table) for table in section.tables)
        pictures = "".join(self.picture(picture) for picture in section.pictures)
        items = "".join(self.item(item) for item in section.items)
        narrow = "" if any(item.picture for item in section.items) else " narrow"
        grid = f'<div class="items{narrow}">{items}</div>\n' if items else ""
        heading = f'<h2 id="section-{number}">{escape(section.title)}</h2>'
        return (
            f'<section aria-labelledby="section-{number}">\n{heading}\n{_paragraphs(section.text)}\n'
            f"{tables}{pictures}{grid}</section>\n"
        )

    def item(self, item: Item) -> str:
        parts = [f"<h3>{escape(item.title)}</h3>"]
        if item.text:
            parts.append(_paragraphs(item.text))
        if item.picture is not None:
            parts.append(self.picture(item.picture))
        parts.append(self.controls(item))
        for version in item.versions:
            parts.append(f"<h4>{escape(version.title)}</h4>{self.controls(version)}")
        return f"<article>{''.join(parts)}</article>\n"

    def controls(self, item: Item) -> str:
        title = escape(item.title)
        controls = []
        if item.sound is not None:
            sound = self.link(item.sound)
            controls.append(f'<audio controls preload="none" src="{sound}" aria-label="Listen to {title}"></audio>')
            controls.append(f'<a href="{sound}" download aria-label="Download {title} as WAV">WAV</a>')
        if item.midi is not None:
            midi = self.link(item.midi)
            controls.append(f'<a href="{midi}" download aria-label="Download {title} as MIDI">MIDI</a>')
        return f'<div class="controls">{"".join(controls)}</div>' if controls else ""

    def picture(self, picture: Picture) -> str:
        dark = ""
        if picture.dark is not None:
            dark = f'<source srcset="{self.link(picture.dark)}" media="(prefers-color-scheme: dark)">'
        alt = escape(picture.alt)
        source = self.link(picture.path)
        image = f'<img src="{source}" alt="{alt}"{_width(self.folder / picture.path)}>'
        caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
        framed = "" if picture.dark is not None else " framed"
        return (
            f'<figure><div class="wide{framed}" tabindex="0" role="group" aria-label="Picture, scrolls sideways">'
            f"<picture>{dark}{image}</picture></div>{caption}</figure>\n"
        )

    def table(self, table: Table) -> str:
        for row in table.rows:
            if len(row) != len(table.header):
                raise ValueError(f"a row must have {len(table.header)} cells like its header, got {list(row)}")
        is_number = [
            bool(table.rows) and all(_is_numeric(row[column]) for row in table.rows)
            for column in range(len(table.header))
        ]
        head = "".join(
            f'<th scope="col"{_align(right)}>{escape(str(cell))}</th>'
            for cell, right in zip(table.header, is_number, strict=True)
        )
        rows = []
        for row in table.rows:
            cells = []
            for column, (cell, right) in enumerate(zip(row, is_number, strict=True)):
                tag, scope = ("th", ' scope="row"') if column == 0 else ("td", "")
                cells.append(f"<{tag}{scope}{_align(right)}>{escape(str(cell))}</{tag}>")
            rows.append(f"<tr>{''.join(cells)}</tr>")
        caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
        return (
            f'<div class="table" tabindex="0" role="group" aria-label="Table, scrolls sideways"><table>{caption}'
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>\n"
        )

    def link(self, file: str | Path) -> str:
        """Return the relative, percent-encoded link to a file in the page's folder."""
        absolute = (self.folder / file).resolve()
        if not absolute.is_relative_to(self.folder):
            raise ValueError(f"{str(file)!r} lies outside the page's folder {str(self.folder)!r}")
        if not absolute.is_file():
            raise ValueError(f"{str(file)!r} is not a file in the page's folder {str(self.folder)!r}")
        return quote(absolute.relative_to(self.folder).as_posix())


def _width(image: Path) -> str:
    """Give a PNG the width at which all pictures show letters of one size; others are as wide as the page."""
    header = image.read_bytes()[:24]
    is_png = header[:8] == b"\x89PNG\r\n\x1a\n" and len(header) == 24
    return f' width="{round(int.from_bytes(header[16:20], "big") / PIXELS_PER_CSS_PIXEL)}"' if is_png else ""


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _align(right: bool) -> str:
    return ' class="number"' if right else ""


def _is_numeric(cell: object) -> bool:
    """Say whether a cell is a number, reads as one ("1,234", "97.5 %") or stands for a missing one (empty, a dash)."""
    text = str(cell).strip().rstrip("%").replace(",", "").strip()
    if text in {"", "-", "\N{EN DASH}", "\N{EM DASH}"}:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f6f5f1; --card: #ffffff; --line: #e2e0d9; --ink: #22252a; --faint: #62666d; --accent: #0067a3;
  --tint: #e8f1f7; --shadow: 0 1px 2px rgb(30 30 20 / .05), 0 6px 20px rgb(30 30 20 / .05);
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #111317; --card: #191c21; --line: #2d3138; --ink: #e9e8e4; --faint: #a3a9b3; --accent: #6bbdec;
    --tint: #1d2b36; --shadow: none;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: clamp(1.5rem, 5vw, 4.5rem) clamp(1rem, 4vw, 2.5rem) 3rem; max-width: 68rem;
  background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1, h2, h3, h4 { line-height: 1.2; text-wrap: balance; margin: 0; overflow-wrap: anywhere; }
h1 { font-size: clamp(2rem, 1.4rem + 2.6vw, 3.2rem); font-weight: 700; letter-spacing: -.02em; }
h1 { margin-bottom: 1.25rem; }
h2 { font-size: clamp(1.4rem, 1.2rem + .8vw, 1.8rem); font-weight: 650; letter-spacing: -.015em; }
h2 { scroll-margin-top: 1.5rem; }
h3 { font-size: 1.0625rem; font-weight: 600; }
h4 { margin-top: 1.1rem; font-size: .9375rem; font-weight: 600; }
h4 + .controls { margin-top: .4rem; }
p { margin: .75rem 0 0; max-width: 42rem; overflow-wrap: anywhere; text-wrap: pretty; }
header p { font-size: 1.1875rem; color: var(--faint); }
header::before {
  content: ""; display: block; width: 5.5rem; height: 1.5rem; margin-bottom: 1.75rem;
  background:
    linear-gradient(var(--accent) 0 0) 0 100% / 1.4rem .4rem,
    linear-gradient(var(--accent) 0 0) 1.6rem 50% / .7rem .4rem,
    linear-gradient(#d55e00 0 0) 2.5rem 0 / 1.4rem .4rem,
    linear-gradient(var(--accent) 0 0) 4.1rem 50% / 1.4rem .4rem;
  background-repeat: no-repeat;
}
nav ul { display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; margin: 1.75rem 0 0; padding: 0; }
nav a {
  display: block; padding: .35rem .9rem; border: 1px solid var(--line); border-radius: 2rem; background: var(--card);
  color: var(--ink); font-size: .9375rem; text-decoration: none;
}
nav a:hover { border-color: var(--accent); color: var(--accent); }
section { margin-top: clamp(2.75rem, 6vw, 4.5rem); }
.items { display: grid; gap: 1.25rem; margin-top: 1.5rem; }
.items.narrow { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
article, section > figure, .table {
  background: var(--card); border: 1px solid var(--line); border-radius: .9rem; box-shadow: var(--shadow);
}
article { padding: clamp(1rem, 2.5vw, 1.5rem); min-width: 0; }
article p { margin-top: .3rem; color: var(--faint); font-size: .9688rem; }
figure { margin: .9rem 0 0; min-width: 0; }
section > figure { margin-top: 1.5rem; padding: clamp(.75rem, 2vw, 1.25rem); }
.wide { overflow-x: auto; border-radius: .4rem; scrollbar-width: thin; }
.wide img:not([width]) { width: 100%; }
.wide img { display: block; max-width: 100%; min-width: min(40rem, 180vw); height: auto; border-radius: .4rem; }
@media (prefers-color-scheme: dark) { .wide.framed img { background: #ffffff; } }
figcaption { margin-top: .6rem; color: var(--faint); font-size: .9063rem; max-width: 42rem; }
.controls { display: flex; flex-wrap: wrap; align-items: center; gap: .6rem; margin-top: 1rem; }
audio { flex: 1 1 16rem; min-width: 0; height: 2.75rem; }
.controls a {
  padding: .5rem 1rem; border-radius: 2rem; background: var(--tint); color: var(--accent);
  font-size: .875rem; font-weight: 600; letter-spacing: .02em; text-decoration: none;
}
.controls a:hover { background: var(--accent); color: var(--card); }
.table { margin-top: 1.5rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9688rem; font-variant-numeric: tabular-nums; }
caption { padding: 1rem 1.25rem .25rem; text-align: left; color: var(--faint); font-size: .9063rem; }
th, td { padding: .65rem 1.25rem; text-align: left; border-top: 1px solid var(--line); }
@media (max-width: 40rem) { th, td { padding: .6rem .75rem; } caption { padding-inline: .75rem; } }
thead th { border-top: 0; color: var(--faint); font-size: .8438rem; font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
footer { margin-top: 4.5rem; padding-top: .5rem; border-top: 1px solid var(--line); }
footer p { color: var(--faint); font-size: .9063rem; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: 1rem; padding: .5rem 1rem; background: var(--card); color: var(--accent); }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print { .controls, nav { display: none; } article { break-inside: avoid; } }
"""

SCRIPT = """
document.addEventListener("play", (event) => {
  for (const audio of document.querySelectorAll("audio")) if (audio !== event.target) audio.pause();
}, true);
"""
