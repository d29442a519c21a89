"""Measure melody-vae in Chromium, side by side with magenta.js's mel_16bar_small, for `results/benchmark.json`.

Both are served on the loopback. Starts have a cold cache: a browser context of their own, timed from the navigation.
Then the same work is done in turns by all: seconds by the clock, and processor seconds of all of Chromium's processes.
magenta's weights are random numbers in the shapes of mel_16bar_small, of the hosted file's size; npm brings its code
into a temporary folder.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from playwright.sync_api import Browser, Error, Page, sync_playwright
from tqdm import tqdm

from benchmarks.reports import report_to, rounded, versions
from benchmarks.timing import processor_seconds_of
from command import UserError, first_line, machine
from publishing.static_server import serving
from publishing.static_space import ROOT, WEB, export_and_gather

PAGES = Path(__file__).with_name("browser_pages")
MAGENTA, TFJS = "@magenta/music@1.23.1", "@tensorflow/tfjs@2.8.6"
MAGENTA_FILES = {"magenta-music": "package/es6/music_vae.js", "tensorflow-tfjs": "package/dist/tf.min.js"}
HOSTED_MEGABYTES = 23.5
"""Of mel_16bar_small_q2, as magenta-js's list of checkpoints says."""
PITCHES, Z, ENCODER, DECODER, BARS = 90, 256, 512, 256, 16
SHARD = 4 << 20  # bytes of a file, as the hosted ones
ENGINES = {  # pages, and their queries
    "melody_vae, 1 thread": ("melody_vae", "threads=1"),
    "melody_vae, 2 threads": ("melody_vae", "threads=2"),
    "magenta, cpu": ("magenta", "backend=cpu"),
    "magenta, webgl": ("magenta", "backend=webgl"),
}
TARGETS = {"ms_a_token": 10, "first_melody_seconds": 3, "map_step_ms": 150}
NOTES = {
    "starts": "seconds after the navigation, cold cache, loopback; processor seconds until the page is set up, a map "
    "of blends included; megabytes are those of the files until then, as they lie and gzipped",
    "work": "medians; milliseconds by the clock, and of processors, of all of Chromium's processes together",
    "melody": "16 bars, from the prior; melody-vae draws as many candidates as its page; one_candidate draws one",
    "decode": "16 bars, greedily from a latent; a token is magenta's sixteenth, and melody-vae's word of several notes",
    "map_step": "a point between four melodies that was not decoded before; of 8 bars, as in the page, magenta's of 16",
    "page": "the static Space: until Make can be pressed, and until the melodies are there that a press at once makes",
    "webgl": "by Chromium's software where the machine has no GPU",
}


def magenta_shapes() -> dict[str, list[int]]:
    """List the weights of mel_16bar_small: a bidirectional encoder of two levels, a conductor, a decoder of one bar."""

    def lstm(name: str, inputs: int, size: int) -> dict[str, list[int]]:
        return {f"{name}/lstm_cell/kernel": [inputs + size, 4 * size], f"{name}/lstm_cell/bias": [4 * size]}

    def dense(name: str, inputs: int, size: int) -> dict[str, list[int]]:
        return {f"{name}/kernel": [inputs, size], f"{name}/bias": [size]}

    shapes: dict[str, list[int]] = {}
    for level, inputs in enumerate((PITCHES, 2 * ENCODER)):
        for way in ("fw", "bw"):
            cell = f"encoder/hierarchical_level_{level}/cell_0/bidirectional_rnn/{way}/multi_rnn_cell/cell_0"
            shapes |= lstm(cell, inputs, ENCODER)
    shapes |= dense("encoder/mu", 2 * ENCODER, Z) | dense("encoder/sigma", 2 * ENCODER, Z)
    conductor, decoder = "decoder/hierarchical_level_0", "core_decoder/decoder"
    shapes |= dense(f"{conductor}/initial_state", Z, 4 * DECODER)
    shapes |= dense(f"{decoder}/z_to_initial_state", DECODER, 4 * DECODER)
    for layer, inputs in enumerate((1, DECODER)):
        shapes |= lstm(f"{conductor}/cell_{layer}", inputs, DECODER)
    for layer, inputs in enumerate((PITCHES + DECODER, DECODER)):
        shapes |= lstm(f"{decoder}/multi_rnn_cell/cell_{layer}", inputs, DECODER)
    return shapes | dense(f"{decoder}/output_projection", DECODER, PITCHES)


def write_checkpoint(folder: Path) -> dict[str, Path]:
    """Write random weights as magenta.js reads them, quantized to two bytes; returns the files by their names."""
    scale = 0.2 / 2**16
    shapes = magenta_shapes()
    quantization = {"dtype": "uint16", "min": -0.1, "scale": scale}
    weights = [
        {"name": name, "shape": shape, "dtype": "float32", "quantization": quantization}
        for name, shape in shapes.items()
    ]
    size = 2 * sum(map(prod, shapes.values()))
    assert round(size / 1e6, 1) == HOSTED_MEGABYTES, size
    content = np.random.default_rng(0).integers(2**16, size=size // 2, dtype=np.uint16).tobytes()
    shards = [content[at : at + SHARD] for at in range(0, size, SHARD)]
    names = [f"group1-shard{number}of{len(shards)}" for number in range(1, len(shards) + 1)]
    data = {"numSteps": 16 * BARS, "numSegments": BARS, "minPitch": 21, "maxPitch": 108}
    config = {"type": "MusicVAE", "dataConverter": {"type": "MelodyConverter", "args": data}}
    for name, shard in zip(names, shards, strict=True):
        (folder / name).write_bytes(shard)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "weights_manifest.json").write_text(json.dumps([{"paths": names, "weights": weights}]), encoding="utf-8")
    return {file.name: file for file in folder.iterdir()}


def magenta_files(folder: Path) -> dict[str, Path]:
    """Bring magenta.js, and give its page's files by their paths.

    Raises:
        UserError: If npm cannot bring it.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not there: install node")
    done = subprocess.run(
        [npm, "pack", "--silent", MAGENTA, TFJS], cwd=folder, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise UserError(f"npm pack {MAGENTA} {TFJS}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    files = {"magenta/magenta.html": PAGES / "magenta.html"}
    for name, member in MAGENTA_FILES.items():
        (archive,) = folder.glob(f"{name}-*.tgz")
        with tarfile.open(archive) as tar:
            tar.extract(member, folder / name, filter="data")
        files[f"magenta/{Path(member).name}"] = folder / name / member
    (folder / "checkpoint").mkdir()
    checkpoint = write_checkpoint(folder / "checkpoint")
    return files | {f"magenta/checkpoint/{name}": file for name, file in checkpoint.items()}


class Bench:
    """Chromium and the files that it is served."""

    def __init__(self, browser: Browser, files: dict[str, Path], address: str, sent: list[str]):
        self.browser, self.files, self.address, self.sent = browser, files, address, sent

    def open(self, path: str) -> Page:
        """Open a page whose cache is cold.

        Raises:
            UserError: If the page fails.
        """
        self.sent.clear()
        page = self.browser.new_context().new_page()
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: print(f"{path}: {error}", file=sys.stderr))
        page.goto(self.address + path)
        return page

    def megabytes(self) -> dict[str, float]:
        """Add up the files that the page opened last has asked for."""
        contents = [self.files[path].read_bytes() for path in set(self.sent) & set(self.files)]
        sizes = {"as_they_lie": map(len, contents), "gzipped": (len(gzip.compress(each, 6)) for each in contents)}
        return {name: sum(values) / 1e6 for name, values in sizes.items()}


def processor_seconds() -> float:
    """Add up what all processes below this one have used of processors: Chromium's, and the driver's, which waits."""
    return processor_seconds_of(psutil.Process().children(recursive=True))


def do_work(page: Page, name: str) -> dict[str, float]:
    """Do one kind of work; returns its milliseconds, by the clock and of processors, and its tokens."""
    before, begin = processor_seconds(), time.perf_counter()
    tokens = page.evaluate("name => speed.work[name]()", name)
    seconds, processors = time.perf_counter() - begin, processor_seconds() - before
    return {"milliseconds": 1000 * seconds, "processor_milliseconds": 1000 * processors, "tokens": tokens}


def middle(turns: Sequence[dict[str, float]]) -> dict[str, float]:
    """Take the median of each column, and with it of what a token took."""
    found = {name: median(turn[name] for turn in turns) for name in turns[0]}
    if "tokens" in found:
        for name in ("milliseconds", "processor_milliseconds"):
            found[f"{name}_a_token"] = median(turn[name] / turn["tokens"] for turn in turns)
    return found


def start(bench: Bench, name: str) -> tuple[Page, dict[str, Any]]:
    """Open an engine's page and wait for its first melody."""
    path, query = ENGINES[name]
    before = processor_seconds()
    page = bench.open(f"{path}/{path}.html?{query}")
    try:
        page.wait_for_function("window.speed")
    except Error as error:
        raise UserError(f"{name} does not start: {first_line(error)}") from error
    marks = page.evaluate("[speed.interactive, speed.firstMelody, speed.isIsolated]")
    assert marks[2], "threads need a page that is isolated"
    seconds = {"interactive_seconds": marks[0] / 1000, "first_melody_seconds": marks[1] / 1000}
    return page, seconds | {"processor_seconds": processor_seconds() - before}


def start_page(bench: Bench) -> dict[str, float]:
    """Open the static Space, press Make at once, and wait for its melodies."""
    page = bench.open("index.html")
    page.wait_for_selector("#tab-make .mv-do:enabled")
    interactive = page.evaluate("performance.now()")
    page.evaluate("window.shown = document.querySelector('#tab-make .mv-card')")
    page.click("#tab-make .mv-do")
    page.wait_for_function("document.querySelector('#tab-make .mv-card') !== shown")
    melodies = page.evaluate("performance.now()")
    page.context.close()
    return {"interactive_seconds": interactive / 1000, "melodies_seconds": melodies / 1000}


def measure_in(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all engines in turns."""
    starts: dict[str, list] = {name: [] for name in (*ENGINES, "page")}
    megabytes, pages = {}, {}
    kinds = len(ENGINES)
    with tqdm(total=options.starts * (kinds + 1) + options.turns * kinds, desc="Measuring", unit="turn") as bar:
        for _ in range(options.starts):
            for name in ENGINES:
                if name in pages:
                    pages.pop(name).context.close()
                pages[name], found = start(bench, name)
                megabytes[ENGINES[name][0]] = bench.megabytes()
                starts[name].append(found)
                bar.update()
            starts["page"].append(start_page(bench))
            bar.update()
        work: dict[str, dict[str, list]] = {name: {} for name in pages}
        for _ in range(options.turns):
            for name, page in pages.items():
                for kind in page.evaluate("Object.keys(speed.work)"):
                    work[name].setdefault(kind, []).append(do_work(page, kind))
                bar.update()
    return {
        "starts": {name: middle(turns) for name, turns in starts.items()},
        "megabytes": megabytes,
        "work": {name: {kind: middle(turns) for kind, turns in kinds.items()} for name, kinds in work.items()},
    }


def set_up(options: argparse.Namespace, stack: ExitStack) -> Bench:
    """Lay out all files, serve them, start Chromium.

    Raises:
        UserError: If something is missing.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        raise UserError("chromium is not there: apt-get install chromium")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    files = magenta_files(folder) | export_and_gather(options.model, options.staging)
    files["melody_vae/melody_vae.html"] = PAGES / "melody_vae.html"
    sent: list[str] = []
    address = stack.enter_context(serving(files, sent))
    playwright = stack.enter_context(sync_playwright())
    browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    stack.callback(browser.close)
    return Bench(browser, files, address, sent)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything and return the report."""
    with ExitStack() as stack:
        bench = set_up(options, stack)
        found = measure_in(bench, options)
        chromium = bench.browser.version
    lock = json.loads((WEB / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    runtime = lock["node_modules/onnxruntime-web"]["version"]
    return {
        **found,
        "targets": TARGETS,
        "repeats": {"starts": options.starts, "turns": options.turns},
        "notes": NOTES,
        "machine": machine(),
        "versions": versions(()) | {"chromium": chromium, "onnxruntime-web": runtime, "magenta": MAGENTA, "tfjs": TFJS},
    }


def summary(report: dict[str, Any]) -> str:
    """Put the main figures into lines."""
    lines = []
    for name, found in report["starts"].items():
        lines.append(f"{name:<24} " + ", ".join(f"{key} {value:.2f}" for key, value in found.items()))
    for name, kinds in report["work"].items():
        for kind, found in kinds.items():
            columns = ", ".join(f"{key} {value:.1f}" for key, value in found.items())
            lines.append(f"{name:<24} {kind:<14} {columns}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.browser", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "results/benchmark.json", help="the report, of which `browser` is written"
    )
    parser.add_argument("--model", type=Path, default=ROOT / "release/melody-vae-16bar", help="trained (the release)")
    parser.add_argument("--staging", type=Path, default=Path("outputs/publish/static_space"), help="keeps the graphs")
    parser.add_argument("--starts", type=int, default=3, help="of each page with a cold cache (%(default)s)")
    parser.add_argument("--turns", type=int, default=10, help="of each kind of work (%(default)s)")
    options = parser.parse_args(argv)

    def others() -> dict[str, Any]:
        try:
            return {**json.loads(options.output.read_text(encoding="utf-8"))} if options.output.is_file() else {}
        except (ValueError, TypeError) as error:
            raise UserError(f"{options.output}: no report in JSON ({first_line(error)}); move it away") from error

    def report() -> dict[str, Any]:
        others()  # seen before anything is measured
        measured = rounded(measure(options))
        return {**others(), "browser": measured}

    return report_to(options.output, report, lambda found: summary(found["browser"]))


if __name__ == "__main__":
    sys.exit(main())
