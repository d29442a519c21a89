"""Fit the weights of the lead score on files whose tracks tell by their names which of them is the tune.

The names are hidden from the fit; what they say is what the score has to find. Writes the weights, and a report of how
often the highest score is that track, on files that were fitted to and on files that were not.
"""

from __future__ import annotations

import argparse
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from command import run_command, write_json
from dataset_script import lead_calibration
from dataset_script.choice_model import calibrate, fit_choice, fit_names
from dataset_script.labelled_tracks import Tracks, read_tracks
from dataset_script.lead_score import (
    PROGRAM_FAMILIES,
    RELATIONS,
    TRACK_FEATURES,
    UTILITY_DECIMALS,
    WEIGHTS_PATH,
)
from dataset_script.midi_sources import InputError, open_sources
from dataset_script.parquet_files import split_of

POP909_WEIGHT = 1.5  # of one of its songs in the fit, where a group of near-duplicates of Lakh has 1
CALIBRATION_WEIGHT = 1.0  # the same in the calibration, where both sets have to come out right
HOW = (
    "conditional logit within files on names that say melody, lead, vocal or voice; one slope and bias for all tracks "
    "make it log-odds; what a name adds, by expectation maximisation; the probability of a file's likeliest track, by "
    "logistic regression on its log-odds and its rivals'. Written by dataset_script.fit_lead_score"
)
SIDES = {"train": ["train"], "test": ["validation", "test"]}  # the score has no use for three sides
RESAMPLES = 2_000

# The score that this one replaced: ramps of some features, and programs.
HAND_WEIGHTS = {"register": 2.4, "monophony": 2.7, "coverage": 1.8, "variety": 0.3, "density": 1.2, "program": 0.6}
HAND_PROGRAMS = (
    {(32, 40): -1.0, (47, 56): -0.5, (88, 104): -0.5, (112, 128): -1.0}
    | {(40, 42): 0.5, (64, 80): 1.0, (80, 88): 0.5, (22, 23): 0.5, (110, 112): 0.5}
)  # fmt: skip

EXAMPLES = """\
example:
  python -m dataset_script.fit_lead_score --lakh lmd_full.tar.gz --pop909 pop909.tar.gz --dataset melodies \\
      --output dataset_script/lead_score.json --report results/lead_score.json
"""


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset_script.fit_lead_score",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--lakh", required=True, nargs="+", help="MIDI files of the Lakh MIDI Dataset: its archives, or folders"
    )
    parser.add_argument("--pop909", required=True, help="the POP909 data set: its archive, or a folder")
    parser.add_argument(
        "--dataset",
        type=Path,
        help="the data set that dataset_script.build made of the Lakh files; it tells which files are near-duplicates, "
        "and so keeps them on one side of the split; left out: only equal files are",
    )
    parser.add_argument("--output", type=Path, default=WEIGHTS_PATH, help=f"the weights (default: {WEIGHTS_PATH})")
    parser.add_argument("--report", type=Path, help="a JSON file for the results; left out: they are only printed")
    return parser.parse_args(arguments)


def read_groups(dataset: Path | None) -> dict[str, str]:
    """Read the near-duplicate group of each file (by md5) from a data set that was built before.

    Raises:
        InputError: if there is none in the folder.
    """
    if dataset is None:
        return {}
    groups: dict[str, str] = {}
    try:
        for path in sorted((dataset / "data").glob("*.parquet")):
            table = pq.read_table(path, columns=["md5", "group"])
            groups.update(zip(table["md5"].to_pylist(), table["group"].to_pylist(), strict=True))
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise InputError(f"{dataset} cannot be read ({error}); build it again with dataset_script.build") from error
    if not groups:
        raise InputError(f"{dataset} holds no data set; give the folder that dataset_script.build wrote")
    return groups


def file_weights(tracks: Tracks, of_group: float) -> np.ndarray:
    """Share the weight of each group among its files, shape (M,)."""
    _, group, files = np.unique(tracks.group, return_inverse=True, return_counts=True)
    return of_group / files[group]


def fit_both(lakh: Tracks, pop909: Tracks, weights: dict[str, np.ndarray], is_used: np.ndarray) -> np.ndarray:
    """Fit one set of weights to both data sets.

    Args:
        lakh: labelled files.
        pop909: labelled files.
        weights: the means and scales of the features.
        is_used: which columns may have a weight other than 0, shape (D,).

    Returns:
        The weights of the columns, shape (D,).
    """
    fitted = np.zeros(len(is_used))
    fitted[is_used] = fit_choice(
        np.concatenate([part.columns(weights)[:, is_used] for part in (lakh, pop909)]),
        np.concatenate([lakh.is_label, pop909.is_label]),
        np.concatenate([lakh.file, pop909.file + len(lakh.group)]),
        np.concatenate([file_weights(lakh, 1.0), file_weights(pop909, POP909_WEIGHT)]),
    )
    return fitted


def chance_of_finding(utility: np.ndarray, tracks: Tracks) -> np.ndarray:
    """Return 1 for each file whose highest utility is that of a labelled track, else 0, shape (M,).

    Of several tracks with the highest utility one is drawn, so the order of the tracks decides nothing.
    """
    utility = utility.round(UTILITY_DECIMALS)
    highest = np.full(len(tracks.group), -np.inf)
    np.maximum.at(highest, tracks.file, utility)
    is_highest = utility == highest[tracks.file]
    return tracks.count(is_highest & tracks.is_label) / tracks.count(is_highest)


def accuracy(chance: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    """Return the share of files, its 95 % bootstrap interval over groups, and the numbers of files and groups."""
    names, place = np.unique(group, return_inverse=True)
    right, files = np.bincount(place, chance), np.bincount(place)
    drawn = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    interval = np.quantile(right[drawn].sum(axis=1) / files[drawn].sum(axis=1), [0.025, 0.975])
    return {
        "accuracy": round(float(chance.mean()), 4),
        "interval_95": [round(float(bound), 4) for bound in interval],
        "files": len(group),
        "groups": len(names),
    }


def hand_utility(tracks: Tracks) -> np.ndarray:
    """Rate the tracks by the weights that were set by hand, shape (K,)."""
    feature = dict(zip(TRACK_FEATURES, tracks.features.T, strict=True))
    programs = np.zeros(128)
    for (begin, end), value in HAND_PROGRAMS.items():
        programs[begin:end] = value

    def ramp(value: np.ndarray, zero: float, one: float) -> np.ndarray:
        return ((value - zero) / (one - zero)).clip(0.0, 1.0)

    density = np.exp(feature["log_density"])
    terms = {
        "register": np.minimum(ramp(feature["mean_pitch"], 43, 62), ramp(feature["mean_pitch"], 98, 82)),
        "monophony": feature["monophony"],
        "coverage": ramp(feature["coverage"], 0.0, 0.6),
        "variety": ramp(np.exp(feature["log_pitches"]), 2, 6),
        "density": np.minimum(ramp(density, 0.1, 0.7), ramp(density, 5.0, 2.5)),
        "program": programs[tracks.program],
    }
    return np.sum([HAND_WEIGHTS[name] * term for name, term in terms.items()], axis=0)


def cross_validate(lakh: Tracks, pop909: Tracks, weights: dict[str, np.ndarray], is_used: np.ndarray) -> dict[str, Any]:
    """Fit to all groups but a fifth, five times, and return the accuracies on the files left out."""
    folds = [lead_calibration.fold_of(part.group) for part in (lakh, pop909)]
    right = [np.zeros(len(part.group)) for part in (lakh, pop909)]
    for fold in range(lead_calibration.FOLDS):
        fitted = fit_both(lakh.select(folds[0] != fold), pop909.select(folds[1] != fold), weights, is_used)
        for part, of, found in zip((lakh, pop909), folds, right, strict=True):
            outside = part.select(of == fold)
            found[of == fold] = chance_of_finding(outside.columns(weights) @ fitted, outside)
    return {
        name: accuracy(found, part.group)
        for name, found, part in zip(("lakh", "pop909"), right, (lakh, pop909), strict=True)
    }


def split_files(tracks: Tracks) -> np.ndarray:
    """Return the split of each file, shape (M,): that of the data set for its group."""
    return np.array([split_of(group) for group in tracks.group])


def competitions(lakh: Tracks, pop909: Tracks) -> dict[str, dict[str, Tracks]]:
    """Return the labelled files by side ("train", "test") and by what competes, such as "lakh, with_lines".

    Raises:
        InputError: if one has no file.
    """
    sides: dict[str, dict[str, Tracks]] = {}
    for side, splits in SIDES.items():
        sides[side] = {}
        for name, tracks in (("lakh", lakh), ("pop909", pop909)):
            for candidates in ("with_lines", "pitched"):
                part = tracks.labelled(candidates)
                part = part.select(np.isin(split_files(part), splits))
                if not len(part.group):
                    raise InputError(f"--{name} has no file with a named tune for the {side} side; give more files")
                sides[side][f"{name}, {candidates}"] = part
    return sides


def measure(
    sides: dict[str, dict[str, Tracks]], weights: dict[str, np.ndarray], fitted: np.ndarray
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the accuracies of the score, of what is left of it without some columns, and of simpler ones."""
    train = sides["train"]["lakh, with_lines"], sides["train"]["pop909, with_lines"]
    has_program = np.arange(len(fitted)) >= 2 * len(TRACK_FEATURES)
    is_relation = np.append(np.tile(np.isin(TRACK_FEATURES, RELATIONS), 2), np.zeros(len(PROGRAM_FAMILIES), dtype=bool))
    # The score itself, the score without some columns, and much simpler ones.
    of_columns = {
        "lead_score": fitted,
        "lead_score, programs hidden": fitted * ~has_program,
        "fitted without programs": fit_both(*train, weights, ~has_program),
        "fitted without relations": fit_both(*train, weights, ~is_relation),
    }
    simpler = {
        "weights set by hand": hand_utility,
        "highest mean pitch": lambda tracks: tracks.features[:, TRACK_FEATURES.index("mean_pitch")],
        "most onsets": lambda tracks: tracks.features[:, TRACK_FEATURES.index("log_notes")],
    }
    results: dict[str, dict[str, dict[str, Any]]] = {rater: {} for rater in (*of_columns, *simpler)}
    # Rate each of them on each part, trained on or not.
    for side, parts in sides.items():
        for name, part in parts.items():
            columns = part.columns(weights)
            utilities = {rater: columns @ values for rater, values in of_columns.items()}
            utilities |= {rater: rate(part) for rater, rate in simpler.items()}
            for rater, utility in utilities.items():
                results[rater][f"{name}, {side}"] = accuracy(chance_of_finding(utility, part), part.group)
    # What is only asked of the score itself.
    held_out = sides["test"]["lakh, with_lines"]
    for name, is_kept in (
        ("lakh, with_lines, test, one labelled track", held_out.count(held_out.is_label) == 1),
        ("lakh, with_lines, split test alone", split_files(held_out) == "test"),
    ):
        if is_kept.any():
            part = held_out.select(is_kept)
            results["lead_score"][name] = accuracy(chance_of_finding(part.columns(weights) @ fitted, part), part.group)
    return results


def out_of_fold(lakh: Tracks, pop909: Tracks, weights: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the utilities of the tracks of both by weights that were fitted to the files of the other folds."""
    parts, folds = (lakh, pop909), [lead_calibration.fold_of(part.group) for part in (lakh, pop909)]
    found = [np.zeros(len(part.file)) for part in parts]
    everything = np.ones(2 * len(TRACK_FEATURES) + len(PROGRAM_FAMILIES), dtype=bool)
    for fold in range(lead_calibration.FOLDS):
        rest = [part.select(of != fold) for part, of in zip(parts, folds, strict=True)]
        fitted = fit_both(rest[0], rest[1], weights, everything)
        for part, of, utility in zip(parts, folds, found, strict=True):
            is_out = (of == fold)[part.file]
            utility[is_out] = part.columns(weights)[is_out] @ fitted
    return found


def calibrate_leads(
    lakh: Tracks, pop909: Tracks, sung: Tracks, utilities: list[np.ndarray], sung_utility: np.ndarray
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit the probability that the likeliest track of a file is the tune, and choose the floor.

    Args:
        lakh: files whose tune is named.
        pop909: likewise.
        sung: karaoke files, which nothing is fitted to.
        utilities: of the tracks of the first two, each fitted without the file's group.
        sung_utility: of the tracks of the karaoke files, names included.

    Returns:
        What the weights' file holds of it, and the report.
    """
    (lakh_columns, lakh_true), (pop_columns, pop_true) = (
        lead_calibration.evidence(utility, part) for utility, part in zip(utilities, (lakh, pop909), strict=True)
    )
    columns, is_true = np.concatenate([lakh_columns, pop_columns]), np.concatenate([lakh_true, pop_true])
    weight = np.concatenate([file_weights(lakh, 1.0), file_weights(pop909, CALIBRATION_WEIGHT)])
    fold = lead_calibration.fold_of(np.concatenate([lakh.group, pop909.group]))
    score = lead_calibration.cross_fitted(columns, is_true, weight, fold)
    lakh_score, pop_score = score[: len(lakh_true)], score[len(lakh_true) :]
    floor = lead_calibration.choose_floor(lakh_score, lakh_true)
    fitted = lead_calibration.fit_logistic(columns, is_true, weight)
    sung_columns, sung_true = lead_calibration.evidence(sung_utility, sung)
    report = {
        "what": "the lead is the track with the highest score of those with melody lines; names hidden, weights and "
        "calibration fitted without the file's group, but in karaoke files, whose lyrics tell the tune and nothing "
        "is fitted to, with names",
        "floor": floor,
        "lakh": lead_calibration.describe(lakh_score, lakh_true, floor),
        "pop909": lead_calibration.describe(pop_score, pop_true, floor),
        "karaoke": lead_calibration.describe(lead_calibration.probability(sung_columns, fitted), sung_true, floor),
    }
    names = ("utility", "rivals", "bias")
    return {
        "calibration": {name: round(float(value), 6) for name, value in zip(names, fitted, strict=True)},
        "floor": floor,
    }, report


def fit_and_report(lakh: Tracks, pop909: Tracks) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit the weights and measure them.

    The accuracies of the report are of weights that were fitted to the train files alone, of features standardised over
    all files; the weights' file has those fitted to all files, whose accuracy and calibration are cross-validated.

    Returns:
        The content of the weights' file, and of the report.

    Raises:
        InputError: if a side of the split has no labelled file.
    """
    # Fit the weights on files whose tune is named or known.
    sides = competitions(lakh, pop909)
    train = sides["train"]["lakh, with_lines"], sides["train"]["pop909, with_lines"]
    parts = lakh.labelled("with_lines"), pop909.labelled("with_lines")
    weights = {"mean": parts[0].features.mean(axis=0), "scale": parts[0].features.std(axis=0) + 1e-9}
    everything = np.ones(2 * len(TRACK_FEATURES) + len(PROGRAM_FAMILIES), dtype=bool)
    fitted = fit_both(*parts, weights, everything)

    # Utilities become log-odds of each track by itself, and names add theirs.
    shares = [file_weights(part, of)[part.file] for part, of in zip(parts, (1.0, POP909_WEIGHT), strict=True)]
    slope, bias = calibrate(
        np.concatenate([part.columns(weights) @ fitted for part in parts]),
        np.concatenate([part.is_label for part in parts]),
        np.concatenate(shares),
    )
    named = lakh.select(lakh.count(lakh.has_lines) > 1, lakh.has_lines)
    named = named.select(named.count(named.hint != 0) > 0)
    tune_name, other_name = fit_names(named.columns(weights) @ fitted, named)

    # Of the likeliest track of a file, given its rivals, they become a probability.
    sung = lakh.sung()
    sung_utility = sung.columns(weights) @ fitted + np.where(sung.hint > 0, tune_name, -other_name) * sung.hint
    utilities = [slope * utility + bias for utility in out_of_fold(*parts, weights)]
    calibrated, calibration_report = calibrate_leads(*parts, sung, utilities, slope * sung_utility + bias)
    report = {
        "what": "share of files in which the highest score, names hidden, is that of a track named as the tune; of "
        "equal scores one is drawn. with_lines: the tracks with melody lines compete; pitched: all that are "
        "no drums. train: the split of this name; test: the splits validation and test",
        "files": {"lakh": len(lakh.group), "pop909": len(pop909.group)},
        "results": measure(sides, weights, fit_both(*train, weights, everything)),
        "cross_validation": cross_validate(*parts, weights, everything),
        "calibration": calibration_report,
        "names": {
            "files": len(named.group),
            "tune_log_odds": round(tune_name, 3),
            "accompaniment_log_odds": round(other_name, 3),
        },
    }
    names = {"tune_name": round(slope * tune_name, 6), "other_name": round(-slope * other_name, 6)}
    content = {"files": {"lakh": len(parts[0].group), "pop909": len(parts[1].group)}, "bias": round(bias, 6), **names}
    return {"how": HOW, **content, **calibrated, **columns_of_content(weights, slope * fitted)}, report


def columns_of_content(weights: dict[str, np.ndarray], fitted: np.ndarray) -> dict[str, Any]:
    """Return what the weights' file says of programs and features."""
    linear, square, program = np.split(fitted, [len(TRACK_FEATURES), 2 * len(TRACK_FEATURES)])
    return {
        "program": {family: round(float(value), 6) for family, value in zip(PROGRAM_FAMILIES, program, strict=True)},
        "features": {
            name: {
                key: round(float(values[place]), 6)
                for key, values in {**weights, "linear": linear, "square": square}.items()
            }
            for place, name in enumerate(TRACK_FEATURES)
        },
    }


def table(report: dict[str, Any]) -> str:
    """Draw the accuracies as a small table."""
    rows = [(rater, name, result) for rater, results in report["results"].items() for name, result in results.items()]
    rows += [
        (f"{lead_calibration.FOLDS}-fold cross-validation", name, result)
        for name, result in report["cross_validation"].items()
    ]
    return "\n".join(
        f"{rater:<28} {name:<44} {100 * result['accuracy']:5.1f} % "
        f"({100 * result['interval_95'][0]:.1f} to {100 * result['interval_95'][1]:.1f}) of {result['files']:,} files"
        for rater, name, result in rows
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line about bad input."""
    return run_command(fit_weights, parse_arguments(arguments), stopped="stopped; nothing was written")


def fit_weights(options: argparse.Namespace) -> None:
    """Fit the weights, write them and the report, and print a table of it."""
    groups = read_groups(options.dataset)
    lakh_sources, pop909_sources = map(open_sources, options.lakh), open_sources(options.pop909)
    lakh = read_tracks(chain.from_iterable(lakh_sources), "Lakh", groups)
    content, report = fit_and_report(lakh, read_tracks(pop909_sources, "POP909", {}))
    write_json(content, options.output)
    if options.report:
        write_json(report, options.report)
    print(table(report))


if __name__ == "__main__":
    sys.exit(main())
