"""The block of docs/browser.md and results/README.md on speed in a browser, from `results/benchmark.json`."""

import json
from pathlib import Path
from typing import Any

from documents.compare import DASH, markdown

COLUMNS = {
    "melody_vae, 1 thread": "melody-vae",
    "melody_vae, 2 threads": "melody-vae, 2 threads",
    "magenta, cpu": "magenta.js, plain JavaScript",
    "magenta, webgl": "magenta.js, WebGL",
}
WORK = {
    "melody": "ms for a new melody of 16 bars",
    "one_candidate": "the same, one candidate",
    "decode": "ms to decode 16 bars from a latent",
    "map_step": "ms for a place on the map of blends",
}


def browser(results: Path) -> str:
    """Write the table of `browser` in `results/benchmark.json`: melody-vae and magenta.js in Chromium."""
    path = results / "benchmark.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("browser") if path.is_file() else None
    if not found:
        return "Not measured yet: `python -m benchmarks.browser`.\n"
    # Each column is a program with a number of threads.
    starts, work, megabytes = found["starts"], found["work"], found["megabytes"]
    sizes = [megabytes[name.split(",")[0]] for name in COLUMNS]
    rows = [
        [
            "MB before the first melody (gzipped)",
            *(f"{size['as_they_lie']:.1f} ({size['gzipped']:.1f})" for size in sizes),
        ],
        ["s until it can be asked", *(f"{starts[name]['interactive_seconds']:.1f}" for name in COLUMNS)],
        ["s until the first melody of 16 bars", *(f"{starts[name]['first_melody_seconds']:.1f}" for name in COLUMNS)],
        *([words, *(times(work[name].get(kind)) for name in COLUMNS)] for kind, words in WORK.items()),
        ["ms a token (of processors)", *(a_token(work[name]["decode"]) for name in COLUMNS)],
    ]
    targets, page, repeats = found["targets"], starts["page"], found["repeats"]
    return (
        markdown(["", *COLUMNS.values()], rows)
        + f"\nChromium {found['versions']['chromium']} without a GPU on {found['machine']['cores']} cores of "
        f"{found['machine']['processor']}; medians of {repeats['starts']} cold starts on the loopback and of "
        f"{repeats['turns']} turns that all took side by side; in brackets the time of processors. magenta.js is "
        "`mel_16bar_small` with random weights of its shape. Its token is a sixteenth, 256 a melody; melody-vae's is a "
        f"group of notes, {work['melody_vae, 1 thread']['decode']['tokens']:.0f} here. A place on the map has 8 bars, "
        "as in the page, magenta.js's 16. WebGL is computed by software here.\n"
        f"\nWanted of melody-vae with one thread: {targets['ms_a_token']} ms a token, the first melody within "
        f"{targets['first_melody_seconds']} s, a place on the map within {targets['map_step_ms']} ms. The static Space "
        f"can be used after {page['interactive_seconds']:.1f} s, and a press at once shows three melodies after "
        f"{page['melodies_seconds']:.1f} s.\n"
        "\nWritten by `make report` from `results/benchmark.json`.\n"
    )


def times(work: dict[str, Any] | None) -> str:
    """Write what one kind of work took, by the clock and of processors."""
    return f"{work['milliseconds']:.0f} ({work['processor_milliseconds']:.0f})" if work else DASH


def a_token(work: dict[str, Any]) -> str:
    """Write the same for a token."""
    return f"{work['milliseconds_a_token']:.1f} ({work['processor_milliseconds_a_token']:.1f})"
