"""Collect what was measured of the data set into results/dataset.json, from which its card and README are written.

    python -m dataset_script.build ... --output DIR
    python -m dataset_script.fit_lead_score ... --report results/lead_score.json
    python -m benchmarks.near_duplicates ... --dataset DIR --output results/near_duplicates.json
    python -m benchmarks.dataset ... --output results/dataset_speed.json
    python -m benchmarks.growth ... --output results/dataset_growth.json
    python -m benchmarks.collect --build DIR/build.json

`make dataset-results` runs them all.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from command import UserError, run_command, write_json

RESULTS = Path(__file__).parents[1] / "results"


def near_duplicates(measured: dict[str, Any]) -> dict[str, Any]:
    """Select what the card shows of results/near_duplicates.json."""
    ours = measured["ours"]
    datasketch = {
        f"at threshold {threshold}": {kind: found["recall"] for kind, found in of["recall"].items()}
        for threshold, of in measured.get("datasketch", {"thresholds": {}})["thresholds"].items()
    }
    return {
        "originals_planted": measured["planted"],
        "seed": measured["seed"],
        "copies_in_their_original's_group": {kind: found["recall"] for kind, found in ours["recall"].items()},
        **{f"the same by datasketch's MinHashLSH {name}": recall for name, recall in list(datasketch.items())[:1]},
        "random links without a stretch in common": measured["links"],
        "share_of_all_pairs_of_files_in_one_group": ours["share_of_pairs_grouped"],
        "files_in_groups_of_two_or_more": ours["files_in_groups_of_two_or_more"],
        "files_in_the_largest_groups": ours["largest_groups"],
        "links_between_a_file_and_mirror_images_of_others": ours["mirror_images"]["links"],
    }


def speed(measured: dict[str, Any], growth: dict[str, Any]) -> dict[str, Any]:
    """Select what the card shows of results/dataset_speed.json and results/dataset_growth.json."""
    ratios = measured["ratios"]
    speedups = {
        f"{count} processes to one{of}": ratios[f"speedup_of_{count}_processes"][name]
        for count in (2, 4)
        for of, name in (("", "ours"), (", symusic's parsing alone", "parsing"))
        if f"speedup_of_{count}_processes" in ratios
    }
    return {
        "to note_seq's melody extraction, one core": (ratios["ours_to_note_seq"] or {}).get("all_files"),
        "to symusic's parsing alone, one core": ratios["ours_to_parsing"]["all_files"],
        **speedups,
        "minutes for all of LMD-full": measured["lakh_minutes"],
        **{
            f"MiB at {int(files):,} files": {
                "main process": build["parent_private_mib"],
                "largest worker": max(build["workers_mib"]),
            }
            for files, build in growth["files"].items()
        },
        "measured on": measured["machine"]["processor"],
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0, or 2 after one line about bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.collect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", required=True, type=Path, help="build.json of the data set that was measured")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the other reports (default: results)")
    return run_command(collect, parser.parse_args(arguments))


def collect(options: argparse.Namespace) -> None:
    """Put the reports together.

    Raises:
        UserError: If one is missing, or lacks a figure.
    """
    try:
        report = json.loads(options.build.read_text(encoding="utf-8"))
        duplicates = json.loads((options.results / "near_duplicates.json").read_text(encoding="utf-8"))
        report |= {
            "near_duplicates": near_duplicates(duplicates),
            "leak": duplicates["leak"],
            "lead_score": json.loads((options.results / "lead_score.json").read_text(encoding="utf-8")),
            "speed": speed(
                *(
                    json.loads((options.results / f"dataset_{name}.json").read_text(encoding="utf-8"))
                    for name in ("speed", "growth")
                )
            ),
        }
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"a report is missing or lacks a figure ({error}); see --help for what makes it") from error
    write_json(report, options.results / "dataset.json")


if __name__ == "__main__":
    sys.exit(main())
