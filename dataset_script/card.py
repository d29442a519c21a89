"""Write a data set's card from its build's report: `python -m dataset_script.card --report FILE --output README.md`.

Every number in the card comes from the report (`build.json`, with `version` and `statistics`) or from the constants of
the program. The report may hold more: `near_duplicates`, `leak`, `lead_score` and `speed`, each a mapping of names to
numbers, texts or such mappings, which a section each shows, and `options`, for the command that rebuilds the data set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from datasets import List
from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError

from dataset_script import configs, features, grouping, line_quality, melody_rules, near_duplicates, parquet_files
from dataset_script.lead_score import read_weights
from dataset_script.schema import COLUMN_DESCRIPTIONS, FEATURES, FILE_COLUMN_DESCRIPTIONS, FILES_FEATURES
from rendering.curves import Series, write_curves
from rendering.histograms import Histogram, percent, write_histograms
from rendering.palette import PALETTES

TEMPLATE = "card.md.jinja"
CITATION, CHANGELOG = (Path(__file__).parents[1] / name for name in ("CITATION.cff", "CHANGELOG.md"))
PICTURE_FOLDER = "card"
TUNES = "embedded tunes"  # the builder's name for the tunes of the program
LAKH = re.compile(r"lmd_|lakh|clean_midi", re.I)  # how the archives of the Lakh MIDI Dataset are called
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
LARGEST_SIZE = "1M<n<10M"
LISTED = 16  # so many meters and genres have a row of their own
LENGTHS_BARS = (4, 8, 16, 32, 64, 128)  # where the rows of the table of lengths begin

OCTAVES = {12 * octave + 12: f"C{octave}" for octave in range(1, 9)}
LEAPS = {-24: "-24", -12: "-12", 0: "0", 12: "+12", 24: "+24"}


def _panel(title: str, x_label: str, y_label: str = "share of lines", **more: Any) -> Histogram:
    """Describe a panel whose edges and counts are still to come."""
    return Histogram(title, x_label, y_label, edges=(), counts=(), **more)


PICTURES = {
    "lines": {
        "bars": _panel("Length in bars", "bars", ticks={bars: f"{bars}" for bars in range(0, 161, 32)}),
        "notes": _panel("Length in notes", "notes"),
        "tempo": _panel("Tempo", "quarter notes per minute", is_centred=True),
        "notes_per_quarter": _panel("Density", "notes per quarter note"),
        "pitch_range": _panel(
            "Pitch range", "semitones", is_centred=True, ticks={pitch: f"{pitch}" for pitch in range(0, 49, 12)}
        ),
        "complexity": _panel("Complexity", "score"),
    },
    "notes": {
        "pitch": _panel("Pitch", "C4 is MIDI pitch 60", "share of notes", is_centred=True, ticks=OCTAVES),
        "interval": _panel("Interval", "semitones to the next note", "share of pairs", is_centred=True, ticks=LEAPS),
        "note_quarters": _panel("Note length", "quarter notes", "share of notes", is_centred=True),
        "onset_quarters": _panel("Time to the next onset", "quarter notes", "share of pairs", is_centred=True),
    },
    "guesses": {
        "lead_score": _panel("lead_score", "score"),
        "key_confidence": _panel("key_confidence", "correlation"),
        "grid_fit": _panel("grid_fit", "mean cosine of the onsets' phases"),
        "quality": _panel("quality", "probability"),
    },
}
"""The panels of each picture, by the name of their histogram in the statistics."""

COLUMNS = {"lines": 3, "notes": 2, "guesses": 2}
CALIBRATION = "calibration"  # the picture of it, where it was measured


def content_version(data: Path) -> str:
    """Make a version out of the content of a data set's Parquet files.

    `datasets` keeps what it has loaded from a folder in its cache under the folder's name and version, and would
    otherwise go on giving out a data set that has been replaced.
    """
    content = hashlib.blake2b(digest_size=4)
    for path in sorted(data.glob("*.parquet")):
        with path.open("rb") as file:
            content.update(hashlib.file_digest(file, "blake2b").digest())
    return f"1.0.{int.from_bytes(content.digest(), 'big')}"


def text(value: object) -> str:
    """Escape a text so that Markdown and HTML show it as it is, in one line."""
    return re.sub(r"([\\`*\[\]<>&|~$]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(str(value).split()))


def number(value: float) -> str:
    """Write a count with commas between thousands."""
    return f"{+value:,}"  # the sign makes a figure that the report lacks an UndefinedError


def fence(value: str, shortest: int) -> str:
    """Return backticks that do not occur in a text."""
    return "`" * max(shortest, 1 + max(map(len, re.findall("`+", value)), default=0))


def code(value: object) -> str:
    """Write a text as code in a line."""
    line = " ".join(str(value).split())
    ticks = fence(line, 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def figure(value: Any) -> str:
    """Write a value of a report: counts with commas, other numbers with 4 digits, texts escaped, lists in one line."""
    if isinstance(value, list):
        return ", ".join(map(figure, value))
    if isinstance(value, float):
        return f"{value:,.4g}"
    return number(value) if isinstance(value, int) and not isinstance(value, bool) else text(value)


def figures(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten named values, mappings in mappings and in lists included, to rows of name and value, both escaped."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        name = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            value = {str(place): one for place, one in enumerate(value, start=1)}
        if isinstance(value, Mapping):
            rows += figures(value, f"{name}, ")
        else:
            rows.append((text(name), figure(value)))
    return rows


def accuracies(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Arrange the accuracies of several scores on the test files of several populations as a table.

    Args:
        results: by score, then by population and split (`lakh, with_lines, test`): `accuracy`, `interval_95`, `files`.

    Returns:
        `header` (the populations), `files` and `rows` (score and accuracies), all texts.
    """
    tests = [name for name in next(iter(results.values())) if name.endswith(", test")]

    def cell(of: Mapping[str, Any]) -> str:
        low, high = of["interval_95"]
        return f"{of['accuracy']:.1%} ({100 * low:.1f} to {100 * high:.1f})"

    return {
        "header": [text(name.removesuffix(", test").replace("_", " ")) for name in tests],
        "files": [number(next(iter(results.values()))[name]["files"]) for name in tests],
        "rows": [[text(score), *(cell(of[name]) for name in tests)] for score, of in results.items()],
    }


def source_of(name: str) -> str:
    """Say where a data set comes from, by the name of its input: `lakh`, `tunes` (the program's own) or `files`."""
    if name == TUNES:
        return "tunes"
    return "lakh" if LAKH.search(name) else "files"


def size_category(lines: int) -> str:
    """Return the Hub's name of the order of magnitude."""
    return next((name for limit, name in SIZES.items() if lines < limit), LARGEST_SIZE)


def type_name(feature: Any) -> str:
    """Return the type of a column as `datasets` writes it."""
    return f"List({feature.feature.dtype})" if isinstance(feature, List) else feature.dtype


def rebuild_command(report: Mapping[str, Any]) -> str:
    """Return the command that builds the data set again, with the options of its build that are not None or False."""
    options = report.get("options") or {
        "input": None if report["input"] == TUNES else report["input"],
        "steps_per_beat": report["steps_per_beat"],
        "num_proc": report.get("num_proc"),
    }
    words = ["python", "-m", "dataset_script.build"]
    for name, value in (options | {"output": "melodies"}).items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def title_of(report: Mapping[str, Any]) -> str:
    """Return what the card calls the data set."""
    of = {"lakh": " of the Lakh MIDI Dataset", "tunes": " of public-domain tunes", "files": ""}
    return "Melody lines" + of[source_of(report["input"])]


def yaml_head(report: Mapping[str, Any]) -> str:
    """Write the card's head, which the Hub and `load_dataset` read: licence, tasks, configurations and their splits.

    `license` and `description` stand beside the features of each configuration too, so that its `info` has them.
    """
    # What holds for the whole data set.
    source = source_of(report["input"])
    licence = {"lakh": "cc-by-4.0", "tunes": "apache-2.0", "files": "other"}[source]
    about = {"license": licence} | ({"license_name": "that-of-the-input-files"} if source == "files" else {})
    head: dict[str, Any] = {
        "pretty_name": title_of(report),
        **about,
        "language": ["zxx"],  # no linguistic content
        "task_categories": ["other"],  # the Hub has no task for notes
        "task_ids": [],
        "annotations_creators": ["machine-generated"],
        "language_creators": ["found"],
        "multilinguality": ["other-music"],
        "source_datasets": ["extended|other-lakh-midi-dataset" if source == "lakh" else "original"],
        "size_categories": [size_category(report["statistics"]["all"]["lines"])],
        "tags": ["music", "midi", "symbolic-music", "melody"],
        "configs": [],
        "dataset_info": [],
    }
    # What each configuration holds, and how large it is.
    for name, splits in report["configs"].items():
        folder = configs.LINES_FOLDER if name == "lines" else name
        paths = [{"split": split, "path": f"{folder}/{split}-*.parquet"} for split in splits]
        config = {"config_name": name, "version": report["version"], "data_files": paths}
        head["configs"].append(config | ({"default": True} if name == "lines" else {}))
        columns = FILES_FEATURES if name == "files" else FEATURES
        head["dataset_info"].append(
            {
                "config_name": name,
                "description": f"{title_of(report)}: {configs.DESCRIPTIONS[name]}.",
                "license": licence,
                "features": columns._to_yaml_list(),  # as `push_to_hub` writes them
                "splits": [
                    {"name": split, "num_bytes": counts["bytes"], "num_examples": counts["rows"]}
                    for split, counts in splits.items()
                ],
                "download_size": sum(counts["file_bytes"] for counts in splits.values()),
                "dataset_size": sum(counts["bytes"] for counts in splits.values()),
            }
        )
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=120).rstrip()


def bibtex() -> str:
    """Return the entry for the program, from CITATION.cff."""
    citation = yaml.safe_load(CITATION.read_text(encoding="utf-8"))
    authors = " and ".join(
        f"{{{one['name']}}}" if "name" in one else f"{one['family-names']}, {one['given-names']}"
        for one in citation["authors"]
    )
    fields = {
        "title": f"{{{citation['title']}}}",
        "author": authors,
        "version": citation["version"],
        "year": str(citation["date-released"])[:4],
    } | ({"url": citation["url"]} if "url" in citation else {})
    return "@software{melody_lines,\n" + "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items()) + "}"


def changes() -> list[tuple[str, list[str]]]:
    """Return what CHANGELOG.md says of the data, by the names of its releases."""
    found: list[tuple[str, list[str]]] = []
    for release in re.split(r"^## ", CHANGELOG.read_text(encoding="utf-8"), flags=re.M)[1:]:
        name = re.sub(r"[\[\]]", "", release.splitlines()[0])
        items = [" ".join(item.split()) for item in re.findall(r"^- Data: (.+(?:\n  .+)*)", release, flags=re.M)]
        if items:
            found.append((name, items))
    return found


def lengths(histogram: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the number of lines of each range of bars, which end where the next begins."""
    counts = dict(zip(histogram["edges"], histogram["counts"], strict=False))
    rows = [
        (f"{low} to {high - 1}", sum(count for edge, count in counts.items() if low <= edge < high))
        for low, high in pairwise(LENGTHS_BARS)
    ]
    last = LENGTHS_BARS[-1]
    longest = sum(count for edge, count in counts.items() if edge >= last) + histogram["above"]
    return [*rows, (f"{last} or more", longest)]


def histograms(report: Mapping[str, Any]) -> dict[str, list[Histogram]]:
    """Return the panels of each picture with the report's counts."""
    found = report["statistics"]["histograms"]
    return {
        picture: [replace(panel, **found[name]) for name, panel in panels.items()]
        for picture, panels in PICTURES.items()
    }


def calibrations(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what was measured of the leads of each set of files whose tune is known, by name; nothing if nothing."""
    measured = (report.get("lead_score") or {}).get("calibration", {})
    return {name: of for name, of in measured.items() if isinstance(of, Mapping) and "reliability" in of}


def calibration_curves(report: Mapping[str, Any]) -> Series:
    """Return for each set of files how often leads of a score are the tune, both in percent, and where both agree."""
    curves = {
        name: (
            [100 * one["mean_score"] for one in of["reliability"]],
            [100 * one["is_tune"] for one in of["reliability"]],
        )
        for name, of in calibrations(report).items()
    }
    return {"score": ([0, 100], [0, 100]), **curves}


def alternative(panels: Sequence[Histogram]) -> str:
    """Describe a picture in words: each panel's highest bar."""
    sentences = []
    for panel in panels:
        peak = max(range(len(panel.counts)), key=panel.counts.__getitem__)
        low, high = panel.edges[peak : peak + 2]
        where = f"{(low + high) / 2:g}" if panel.is_centred else f"{low:g} to {high:g}"
        share = percent(panel.counts[peak] / panel.total) if panel.total else "none"
        sentences.append(f"{panel.title}, {panel.y_label}: most at {where} ({share}).")
    return "Histograms. " + " ".join(sentences)


def render_card(report: Mapping[str, Any]) -> str:
    """Fill the template with the figures of a build.

    Args:
        report: what `build.json` holds, `version` and `statistics` among it.

    Raises:
        KeyError: if the report lacks what the card needs.
        jinja2.UndefinedError: likewise.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=False,  # Markdown; `text` and `code` escape what comes from outside
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "text": text,
        "code": code,
        "figures": figures,
        "accuracies": accuracies,
        "number": number,
        "percent": percent,
        "whole_percent": lambda share: f"{share:.0%}",
    }
    # The template asks for what it needs by these names; one that is missing ends it.
    command = rebuild_command(report)
    return environment.get_template(TEMPLATE).render(
        **{name: report.get(name) for name in ("near_duplicates", "leak", "lead_score", "speed")},
        report=report,
        statistics=report["statistics"],
        source=source_of(report["input"]),
        head=yaml_head(report),
        title=title_of(report),
        configs=report["configs"],
        config_descriptions=configs.DESCRIPTIONS,
        floor=read_weights()["floor"],
        line_quality=line_quality,
        file_columns=[(name, type_name(kind), FILE_COLUMN_DESCRIPTIONS[name]) for name, kind in FILES_FEATURES.items()],
        columns=[(name, type_name(kind), COLUMN_DESCRIPTIONS[name]) for name, kind in FEATURES.items()],
        lengths=lengths(report["statistics"]["histograms"]["bars"]),
        listed=LISTED,
        pictures={name: alternative(panels) for name, panels in histograms(report).items()}
        | {CALIBRATION: "Curves: how often the lead of a file is its tune, by its score."},
        calibrations=calibrations(report),
        changes=changes(),
        picture_folder=PICTURE_FOLDER,
        command=command,
        command_fence=fence(command, 3),
        bibtex=bibtex(),
        rules=melody_rules,
        features=features,
        similarity=near_duplicates,
        grouping=grouping,
        parquet_files=parquet_files,
    )


def picture_paths(report: Mapping[str, Any], folder: Path) -> dict[tuple[str, Any], Path]:
    """Return where the pictures of a card in a folder lie, by name and theme."""
    names = [*PICTURES, *([CALIBRATION] if calibrations(report) else [])]
    return {(name, theme): folder / PICTURE_FOLDER / f"{name}-{theme}.png" for name in names for theme in PALETTES}


def write(report: Mapping[str, Any], path: Path) -> None:
    """Write a card, and its pictures into a folder beside it."""
    card, panels = render_card(report), histograms(report)
    (path.parent / PICTURE_FOLDER).mkdir(parents=True, exist_ok=True)
    for (name, theme), picture in picture_paths(report, path.parent).items():
        if name == CALIBRATION:
            labels = {"x_label": "lead_score, %", "y_label": "% of the leads with that score that are the tune"}
            write_curves(picture, calibration_curves(report), title="Calibration", theme=theme, **labels)
        else:
            write_histograms(picture, panels[name], columns=COLUMNS[name], theme=theme)
    path.write_text(card, encoding="utf-8")


def write_card(folder: Path) -> None:
    """Write the card of the data set in a folder from its `build.json`.

    The card is the README.md that tells `load_dataset` where each split lies, hence the data set's last file.
    """
    write(json.loads((folder / "build.json").read_text(encoding="utf-8")), folder / "README.md")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0, 1 where --check finds a card out of date, or 2 after one line about bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset_script.card", description="Write a data set's card from the report of its build."
    )
    parser.add_argument("--report", required=True, type=Path, help="the build's report, such as melodies/build.json")
    parser.add_argument(
        "--output", required=True, type=Path, help="the README.md to write; pictures go to card/ beside it"
    )
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the card is out of date")
    options = parser.parse_args(arguments)
    # A report that cannot be read, or is of an older version, is the user's to replace.
    try:
        report = json.loads(options.report.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"error: {options.report} cannot be read as a report ({error})", file=sys.stderr)
        return 2
    try:
        rendered = render_card(report)
    except (KeyError, UndefinedError) as error:
        print(f"error: {options.report} lacks a figure ({error}); build the data set again", file=sys.stderr)
        return 2
    # Write the card, or compare it with the one that is there.
    if not options.check:
        write(report, options.output)
        return 0
    is_current = options.output.is_file() and options.output.read_text(encoding="utf-8") == rendered
    missing = [str(path) for path in picture_paths(report, options.output.parent).values() if not path.is_file()]
    if not is_current:
        print(f"{options.output} does not say what {options.report} says; run this without --check", file=sys.stderr)
    if missing:
        print(f"missing: {', '.join(missing)}; run this without --check", file=sys.stderr)
    return 0 if is_current and not missing else 1


if __name__ == "__main__":
    sys.exit(main())
