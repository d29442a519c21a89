"""Measure how well near-duplicate files are found: copies planted among real files, and mirror images that are none.

Copies: of files with a melody line, each kind of change by itself and all together. A copy counts as found if it lands
in the group of its original. Every kind is planted among all real files for itself, so that the copies of a file do not
help each other.

False links: the retrograde and the inversion of every file. They have the intervals of real music, but are no copies of
anything; what links one to another file's original links strangers. Clichés have no mirror image among the real
files, so that this is a lower bound: the links themselves have to be looked at as well.

With --datasketch, its MinHashLSH gets the same hashes and is measured in the same way.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from datasketch import MinHash, MinHashLSH
from symusic.core import ScoreTick
from tqdm import tqdm

from benchmarks.planted_changes import CHANGES
from benchmarks.reports import report_to, versions
from command import machine
from dataset_script.extraction import Batch, extract_lines
from dataset_script.grouping import components, groups, verified_pairs
from dataset_script.leak import measure_leak, share
from dataset_script.midi_notes import UnreadableMidiError, read_notes
from dataset_script.midi_repair import repair_midi
from dataset_script.midi_sources import InputError, MidiSource, UnreadableFileError, open_all, read_content
from dataset_script.near_duplicates import outlines, side_by_side, signatures, stretches

STEPS_PER_BEAT = 4
CHUNK_FILES = 64
LAKH_FILES = 178_561  # of LMD-full
PERMUTATIONS = 128
THRESHOLDS = (0.1, 0.2, 0.3, 0.5)  # of the Jaccard index, for datasketch
LARGEST_GROUPS = 10  # so many sizes are listed
LIBRARIES = ("datasketch", "numba", "numpy", "symusic")

LINKS = 200  # so many are looked at
STRETCHES = (16, 24)  # notes in common that they are asked for
EXAMPLES = 5  # of them are shown, with the most notes in common of
EXAMPLE_STRETCHES = (16, 24, 32, 48, 64, 96, 128)

Hashes = tuple[list[np.ndarray], list[np.ndarray]]
"""Signatures and stretches of files."""


# --- from files to hashes ---


@dataclass
class Corpus:
    """Hashes of files that have a melody line; one entry per file and field, in order of the md5 once sorted.

    Attributes:
        md5: of the file, or of a copy's original.
        hashes: what `signatures` and `stretches` gave for it.
        verbatim: what `verbatim_runs` gave for it.
        mirrored: the same for its retrograde, and for its inversion.
        seconds: spent in both for melody lines.
    """

    md5: list[str] = field(default_factory=list)
    hashes: Hashes = field(default_factory=lambda: ([], []))
    verbatim: list[np.ndarray] = field(default_factory=list)
    mirrored: tuple[Hashes, Hashes] = field(default_factory=lambda: (([], []), ([], [])))
    seconds: float = 0.0

    def add(self, md5: Sequence[str], contents: Sequence[bytes], with_mirrors: bool = False) -> None:
        """Read files and hash those that have a melody line."""
        names, notes = [], []
        for name, content in zip(md5, contents, strict=True):
            try:
                notes.append(read_notes(content, STEPS_PER_BEAT))
                names.append(name)
            except UnreadableMidiError:
                continue
        if not notes:
            return
        lines = extract_lines(notes, STEPS_PER_BEAT)
        melodic = np.unique(lines.file)
        began = time.perf_counter()
        for make in (signatures, stretches):
            make(lines.pitch, lines.offsets, lines.file)
        self.seconds += time.perf_counter() - began
        self.md5 += [names[file] for file in melodic]
        for hashes, found in zip(self.hashes, (lines.signatures, lines.stretches), strict=True):
            hashes.extend(by_file(found, melodic))
        self.verbatim += by_file(lines.verbatim, melodic)
        if with_mirrors:
            last = lines.offsets[-1] - lines.offsets[::-1]
            backwards = (lines.pitch[::-1].copy(), last, lines.file[::-1].copy())
            upside_down = (127 - lines.pitch, lines.offsets, lines.file)
            for of_mirror, music in zip(self.mirrored, (backwards, upside_down), strict=True):
                for hashes, make in zip(of_mirror, (signatures, stretches), strict=True):
                    hashes.extend(by_file(make(*music), melodic))

    def sort(self) -> None:
        """Bring the files into the order of their md5, each once."""
        order = [index for _, index in sorted({name: index for index, name in enumerate(self.md5)}.items())]
        self.md5 = [self.md5[index] for index in order]
        for hashes in (self.verbatim, *self.hashes, *self.mirrored[0], *self.mirrored[1]):
            if not hashes:  # without mirrors
                continue
            hashes[:] = [hashes[index] for index in order]


def joined(one: Hashes, other: Hashes) -> Hashes:
    """Put the hashes of some files after those of others."""
    return one[0] + other[0], one[1] + other[1]


def by_file(found: tuple[np.ndarray, np.ndarray], files: np.ndarray) -> list[np.ndarray]:
    """Split what `signatures` gave into one array for each of some files."""
    hashes, file = found
    order = np.argsort(file, kind="stable")
    bounds = np.searchsorted(file[order], files), np.searchsorted(file[order], files, side="right")
    return [hashes[order[begin:end]] for begin, end in zip(*bounds, strict=True)]


def contents_of(sources: Iterable[MidiSource]) -> Iterator[tuple[str, bytes]]:
    """Read the files and return md5 and content of each."""
    for _, content in sources:
        try:
            data = read_content(content)
        except UnreadableFileError:
            continue
        yield hashlib.md5(data, usedforsecurity=False).hexdigest(), data


def read_corpus(given: Sequence[str]) -> Corpus:
    """Read all files that `--input` names.

    Raises:
        InputError: if there are fewer than two with a melody line.
    """
    corpus = Corpus()
    stream = contents_of(open_all(given))
    with tqdm(desc="reading", unit=" files") as progress:
        while chunk := list(islice(stream, CHUNK_FILES)):
            corpus.add(*zip(*chunk, strict=True), with_mirrors=True)  # pyright: ignore[reportCallIssue]
            progress.update(len(chunk))
    corpus.sort()
    if len(corpus.md5) < 2:
        raise InputError(f"{' and '.join(given)} has fewer than two files with a melody line; give more files")
    return corpus


def plant(given: Sequence[str], chosen: Sequence[str], seed: int) -> dict[str, Corpus]:
    """Make a copy of each kind of the chosen files; `md5` is that of the original."""
    copies = {kind: Corpus() for kind in CHANGES}
    left = set(chosen)
    for md5, content in tqdm(contents_of(open_all(given)), desc="planting", unit=" files"):
        if md5 not in left:
            continue
        left.remove(md5)
        for number, (kind, change) in enumerate(CHANGES.items()):
            score = ScoreTick.from_midi(repair_midi(content)[0])
            change(score, np.random.default_rng([seed, number, int(md5, 16)]))
            copies[kind].add([md5], [score.dumps_midi()])
        if not left:
            break
    return copies


# --- what is measured ---


def describe_groups(group: Sequence[int]) -> dict[str, Any]:
    """Count groups, and the share of all pairs of files that are in one group."""
    sizes = Counter(group)
    together = sum(size * (size - 1) for size in sizes.values())
    return {
        "groups": len(sizes),
        "files_in_groups_of_two_or_more": sum(size for size in sizes.values() if size > 1),
        "largest_groups": [size for _, size in sizes.most_common(LARGEST_GROUPS)],
        "share_of_pairs_grouped": share(together, len(group) * (len(group) - 1)),
    }


def false_links(count: int, files: int) -> dict[str, Any]:
    """Describe links between files and the two mirror images of other files."""
    pairs = 2 * files * (files - 1)
    return {
        "links": count,
        "pairs": pairs,
        "share": count / pairs,
        "per_file_of_lakh": share(count * LAKH_FILES, pairs),
    }


def measure_ours(corpus: Corpus, copies: dict[str, Corpus]) -> dict[str, Any]:
    """Measure `groups`: recall for each kind of copy, links to mirror images, groups and time."""
    files = len(corpus.md5)
    index_of = {md5: index for index, md5 in enumerate(corpus.md5)}
    began = time.perf_counter()
    group = groups(*corpus.hashes, corpus.verbatim).tolist()
    seconds = time.perf_counter() - began
    recall = {}
    for kind, planted in tqdm(copies.items(), desc="grouping"):
        found = groups(*joined(corpus.hashes, planted.hashes), corpus.verbatim + planted.verbatim).tolist()
        hits = sum(found[files + number] == found[index_of[md5]] for number, md5 in enumerate(planted.md5))
        recall[kind] = {"copies": len(planted.md5), "found": hits, "recall": share(hits, len(planted.md5))}
    wrong = 0
    for mirrored in corpus.mirrored:
        for one, other in verified_pairs(*joined(corpus.hashes, mirrored)).tolist():
            wrong += one < files <= other != one + files
    return {
        "recall": recall,
        "lowest_recall": min(kind["recall"] for kind in recall.values()),
        "mirror_images": false_links(wrong, files),
        **describe_groups(group),
        "hashes_per_file": share(sum(len(item) for hashes in corpus.hashes for item in hashes), files),
        "signature_microseconds_per_file": round(corpus.seconds / files * 1e6, 1),
        "grouping_seconds": round(seconds, 3),
    }


def minhash(material: Sequence[np.ndarray], name: str) -> list[MinHash]:
    """Return datasketch's sketch of each file."""
    sketches = []
    for hashes in tqdm(material, desc=f"MinHash, {name}", unit=" files"):
        sketch = MinHash(num_perm=PERMUTATIONS, hashfunc=int, scheme="affine64")
        sketch.update_batch(hashes.tolist())
        sketches.append(sketch)
    return sketches


def measure_datasketch(corpus: Corpus, copies: dict[str, Corpus]) -> dict[str, Any]:
    """Measure datasketch's MinHashLSH for several thresholds; its candidates are checked by their estimated index."""
    # Sketch all files and copies once.
    files = len(corpus.md5)
    began = time.perf_counter()
    real = minhash(corpus.hashes[0], "files")
    sketching = time.perf_counter() - began
    planted = {kind: minhash(item.hashes[0], kind) for kind, item in copies.items()}
    mirrored = [minhash(item[0], "mirror images") for item in corpus.mirrored]
    index_of = {md5: index for index, md5 in enumerate(corpus.md5)}
    report = {}
    # For each threshold, groups of linked files and the copies that are found in them.
    for threshold in THRESHOLDS:
        began = time.perf_counter()
        index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
        for number, sketch in enumerate(real):
            if not sketch.is_empty():
                index.insert(number, sketch)

        def linked(sketch: MinHash, index: MinHashLSH = index, threshold: float = threshold) -> list[int]:
            if sketch.is_empty():
                return []
            candidates: list[Any] = index.query(sketch)
            return [other for other in candidates if sketch.jaccard(real[other]) >= threshold]

        pairs = []
        for one, sketch in enumerate(tqdm(real, desc=f"MinHashLSH, {threshold}", unit=" files")):
            pairs += [(one, other) for other in linked(sketch) if other > one]
        group = components(files, np.array(pairs, dtype=np.int64).reshape(-1, 2)).tolist()
        seconds = time.perf_counter() - began
        recall = {}
        for kind, sketches in planted.items():
            hits = sum(
                any(group[other] == group[index_of[md5]] for other in linked(sketch))
                for md5, sketch in zip(copies[kind].md5, sketches, strict=True)
            )
            recall[kind] = {"copies": len(sketches), "found": hits, "recall": share(hits, len(sketches))}
        wrong = sum(
            other != number
            for sketches in mirrored
            for number, sketch in enumerate(sketches)
            for other in linked(sketch)
        )
        report[str(threshold)] = {
            "recall": recall,
            "lowest_recall": min(kind["recall"] for kind in recall.values()),
            "mirror_images": false_links(wrong, files),
            **describe_groups(group),
            "grouping_seconds": round(seconds, 3),
        }
    return {
        "permutations": PERMUTATIONS,
        "signature_microseconds_per_file": round(sketching / files * 1e6, 1),
        "thresholds": report,
    }


def stretches_of(content: bytes, notes: int) -> set[bytes]:
    """Return every stretch of so many notes in the melody lines, the top and the bottom line of a file, in any key."""
    files = [read_notes(content, STEPS_PER_BEAT)]
    lines, batch = extract_lines(files, STEPS_PER_BEAT), Batch(files)
    edges = outlines(batch.packed, batch.file_notes, batch.stretches)
    pitch, offsets, _ = side_by_side([(lines.pitch, lines.offsets, lines.file), edges])
    found = set()
    for line in np.split(pitch.astype(np.int16), offsets[1:-1]):
        steps = np.diff(line).tobytes()  # two bytes a step
        found |= {steps[at : at + 2 * (notes - 1)] for at in range(0, len(steps) - 2 * (notes - 2), 2)}
    return found


def check_links(given: Sequence[str], corpus: Corpus, seed: int) -> dict[str, Any]:
    """Look at random links: which pairs have a stretch of notes in one piece in common, by a search of all of them."""
    pairs = verified_pairs(*corpus.hashes).tolist()
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:LINKS]
    looked_at = [tuple(corpus.md5[file] for file in pairs[index]) for index in chosen]
    wanted, contents = set(chain.from_iterable(looked_at)), {}
    for md5, content in tqdm(contents_of(open_all(given)), desc="looking at links", unit=" files"):
        if md5 in wanted:
            contents[md5] = content

    def have_common(notes: int, one: str, other: str) -> bool:
        return not stretches_of(contents[one], notes).isdisjoint(stretches_of(contents[other], notes))

    report: dict[str, Any] = {"links": len(pairs), "looked_at": len(looked_at)}
    for notes in STRETCHES:
        without = sum(not have_common(notes, *pair) for pair in looked_at)
        report[f"without_{notes}_notes_in_common"] = share(without, len(looked_at))
    report["examples"] = [
        {
            "md5": list(pair),
            "notes_in_common": max((notes for notes in EXAMPLE_STRETCHES if have_common(notes, *pair)), default=0),
        }
        for pair in looked_at[:EXAMPLES]
    ]
    return report


# --- the command ---


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.near_duplicates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--input", required=True, nargs="+", help="archives, folders or patterns of MIDI files")
    parser.add_argument("--output", required=True, type=Path, help="the JSON file to write")
    parser.add_argument("--planted", type=int, default=500, help="how many files are copied (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of files and of the changes (default: 0)")
    parser.add_argument(
        "--dataset", type=Path, help="a data set built by dataset_script.build: its leak is measured too"
    )
    parser.add_argument(
        "--datasketch", action="store_true", help="measure datasketch's MinHashLSH on the same hashes too"
    )
    options = parser.parse_args(arguments)
    if options.planted < 1:
        parser.error(f"--planted must be at least 1, not {options.planted}")
    if options.seed < 0:
        parser.error(f"--seed must not be negative, but is {options.seed}")
    return options


def measure(
    given: Sequence[str], planted: int, seed: int, dataset: Path | None, with_datasketch: bool
) -> dict[str, Any]:
    """Run the whole benchmark and return its report.

    Raises:
        InputError: for bad input.
    """
    leak = measure_leak(dataset) if dataset else None  # first: bad input shows at once
    signatures(*(np.zeros(size, dtype=kind) for size, kind in ((2, "u1"), (1, "i8"), (0, "i8"))))  # compile
    corpus = read_corpus(given)
    chosen = np.random.default_rng(seed).permutation(len(corpus.md5))[:planted]
    copies = plant(given, [corpus.md5[index] for index in chosen], seed)
    report: dict[str, Any] = {
        "input": " + ".join(Path(one).name for one in given),
        "files_with_melody": len(corpus.md5),
        "planted": len(chosen),
        "seed": seed,
        "ours": measure_ours(corpus, copies),
        "links": check_links(given, corpus, seed),
    }
    if with_datasketch:
        report["datasketch"] = measure_datasketch(corpus, copies)
    if leak is not None:
        report["leak"] = leak
    report["peak_memory_mebibytes"] = peak_memory()
    report["machine"] = machine()
    report["versions"] = versions(LIBRARIES)
    return report


def peak_memory() -> int | None:
    """Return the most MiB that this process has held; None on Windows, where Python does not know it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)


def summary(report: dict[str, Any]) -> str:
    """Put the main figures into lines."""
    ours = report["ours"]
    lines = [
        f"{kind:<17} {counts['found']:>5} of {counts['copies']:>5} found {counts['recall']:>8.1%}"
        for kind, counts in ours["recall"].items()
    ]
    lines.append(
        f"mirror images linked: {ours['mirror_images']['links']}; largest group: {ours['largest_groups'][0]} files"
    )
    lines.append(f"links: {report['links']}")
    for split, counts in report.get("leak", {}).items():
        if split == "verbatim":
            lines += [f"{name}: {value:.2%}" for name, value in counts.items()]
            continue
        lines.append(f"{split}: {counts['all_lines']['leak']:.2%} of the lines have a near-duplicate in train")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line about bad input."""
    options = parse_arguments(arguments)
    return report_to(
        options.output,
        lambda: measure(options.input, options.planted, options.seed, options.dataset, options.datasketch),
        summary,
    )


if __name__ == "__main__":
    sys.exit(main())
