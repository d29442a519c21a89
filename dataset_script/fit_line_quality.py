"""Fit the quality of melody lines on files whose track names say tune or accompaniment, and report how well it tells.

The names are hidden from the fit. Lines of tunes and of accompaniments weigh the same in all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from command import run_command, write_json
from dataset_script.extraction import Lines, extract_lines
from dataset_script.fit_lead_score import read_groups
from dataset_script.labelled_tracks import CHUNK_FILES, STEPS_PER_BEAT, is_named_tune
from dataset_script.lead_calibration import calibration_error, cross_fitted, fit_logistic, fold_of, reliability
from dataset_script.lead_score import name_hint
from dataset_script.line_quality import FIGURES, WEIGHTS_PATH, quality_columns
from dataset_script.midi_notes import UnreadableMidiError, read_notes
from dataset_script.midi_sources import InputError, MidiSource, UnreadableFileError, open_sources, read_content


def columns_of(lines: Lines) -> np.ndarray:
    """Return what the quality is made from, shape (L, D)."""
    figures = {name: getattr(lines, name) for name in FIGURES}
    notes_per_bar = np.diff(lines.offsets) / lines.bars
    return np.stack(list(quality_columns(figures, lines.complexity, notes_per_bar).values()), axis=1)


def read_lines(sources: chain[MidiSource], groups: dict[str, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the lines of named tracks.

    Returns:
        Their columns, shape (L, D); whether their track is named as the tune, shape (L,); and their groups, shape (L,).

    Raises:
        InputError: if there are none of one kind.
    """
    columns, is_tune, group = [], [], []
    with tqdm(unit=" files", mininterval=0.5, delay=1) as progress:
        for chunk in iter(lambda: list(islice(sources, CHUNK_FILES)), []):
            files, md5 = [], []
            for _, content in chunk:
                try:
                    data = read_content(content)
                    files.append(read_notes(data, STEPS_PER_BEAT))
                except (UnreadableMidiError, UnreadableFileError):
                    continue
                md5.append(hashlib.md5(data, usedforsecurity=False).hexdigest())
            progress.update(len(chunk))
            if not files:
                continue
            lines = extract_lines(files, STEPS_PER_BEAT)
            names = [dict(zip(item.track, item.names, strict=True)) for item in files]
            name = [names[file][track] for file, track in zip(lines.file.tolist(), lines.track.tolist(), strict=True)]
            kind = np.array([1 if is_named_tune(one) else -1 if name_hint(one) < 0 else 0 for one in name], dtype=int)
            columns.append(columns_of(lines)[kind != 0])
            is_tune.append(kind[kind != 0] > 0)
            group += [groups.get(md5[file], md5[file]) for file in lines.file[kind != 0].tolist()]
    tunes = np.concatenate(is_tune) if is_tune else np.zeros(0, dtype=bool)
    if not 0 < tunes.sum() < len(tunes):
        raise InputError("no lines of tracks named as tune and as accompaniment; give more files")
    return np.concatenate(columns), tunes, np.array(group)


def fit_quality(columns: np.ndarray, is_tune: np.ndarray, group: np.ndarray) -> tuple[dict, dict]:
    """Return the content of the weights' file, and of the report."""
    # Fit a logistic regression of standardised figures and their squares, both kinds of equal weight.
    mean, scale = columns.mean(axis=0), columns.std(axis=0) + 1e-9
    standard = ((columns - mean) / scale).clip(-4, 4)
    design = np.concatenate([standard, standard**2, np.ones((len(columns), 1))], axis=1)
    weight = np.where(is_tune, 0.5 / is_tune.mean(), 0.5 / (1 - is_tune.mean()))
    fitted = fit_logistic(design, is_tune, weight)
    score = cross_fitted(design, is_tune, weight, fold_of(group))
    # Equally many of both kinds, as the quality is defined, for the error of its calibration.
    fewest = min(is_tune.sum(), (~is_tune).sum())
    random = np.random.default_rng(0)
    drawn = np.concatenate([random.choice(np.flatnonzero(kind), fewest, replace=False) for kind in (is_tune, ~is_tune)])
    # The area under the curve, from ranks.
    order = np.argsort(score[drawn], kind="stable")
    ranks = np.empty(len(drawn))
    ranks[order] = np.arange(1, len(drawn) + 1)
    auc = (ranks[:fewest].sum() - fewest * (fewest + 1) / 2) / fewest**2
    # The weights' file and the report.
    linear, square = np.split(fitted[:-1], 2)
    names = list(quality_columns(dict.fromkeys(FIGURES, np.ones(0)), np.ones(0), np.ones(0)))
    content = {
        "how": "logistic regression of lines of tracks named as the tune against those of tracks named as "
        "accompaniment, names hidden. Written by dataset_script.fit_line_quality",
        "lines": {"tune": int(is_tune.sum()), "accompaniment": int((~is_tune).sum())},
        "bias": round(float(fitted[-1]), 6),
        "figures": {
            name: {
                key: round(float(values[place]), 6)
                for key, values in (("mean", mean), ("scale", scale), ("linear", linear), ("square", square))
            }
            for place, name in enumerate(names)
        },
    }
    report = {
        "what": "cross-validated by group of near-duplicates, on equally many lines of both kinds",
        "lines": int(2 * fewest),
        "area_under_the_curve": round(float(auc), 4),
        "calibration_error": round(calibration_error(score[drawn], is_tune[drawn]), 4),
        "reliability": reliability(score[drawn], is_tune[drawn]),
    }
    return content, report


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line about bad input."""
    parser = argparse.ArgumentParser(prog="python -m dataset_script.fit_line_quality", description=__doc__)
    parser.add_argument("--input", required=True, nargs="+", help="MIDI files: archives, or folders")
    parser.add_argument("--dataset", type=Path, help="a data set built of them, for the groups of near-duplicates")
    parser.add_argument("--output", type=Path, default=WEIGHTS_PATH, help=f"the weights (default: {WEIGHTS_PATH})")
    parser.add_argument("--report", type=Path, help="a JSON file for the results; left out: they are only printed")
    return run_command(fit_weights, parser.parse_args(arguments), stopped="stopped; nothing was written")


def fit_weights(options: argparse.Namespace) -> None:
    """Fit the weights, write them and the report, and print the latter."""
    groups = read_groups(options.dataset)
    content, report = fit_quality(*read_lines(chain.from_iterable(map(open_sources, options.input)), groups))
    write_json(content, options.output)
    if options.report:
        write_json(report, options.report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    sys.exit(main())
