"""How much of validation and test stands in train again: near-duplicates of lines, and notes in a row in any key."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit
from tqdm import tqdm

from dataset_script.midi_sources import InputError
from dataset_script.near_duplicates import VERBATIM_DISTINCT, hash_runs, intervals, line_runs, near_duplicate_lines
from dataset_script.schema import SPLITS

VERBATIM = (32, 24)  # notes in a row, in any key, whose occurrence in train is a leak


def share(part: float, whole: float) -> float:
    """Return a rounded quotient, 0 for nothing of nothing."""
    return round(part / whole, 6) if whole else 0.0


def measure_leak(dataset: Path) -> dict[str, Any]:
    """Measure the share of validation and test lines that have a near-duplicate line in the training split.

    Raises:
        InputError: if the folder holds no data set with a training and another split.
    """
    # The notes of each split.
    columns = ["pitch", "start", "is_lead"]
    splits = {}
    try:
        for name in SPLITS:
            if paths := sorted((dataset / "data").glob(f"{name}-*.parquet")):
                splits[name] = pq.ParquetDataset(paths).read(columns=columns).combine_chunks()
    except (OSError, ValueError) as error:
        raise InputError(f"{dataset} cannot be read ({error}); build it again with dataset_script.build") from error
    if "train" not in splits or len(splits) < 2:
        raise InputError(f"{dataset} has no training split and another; give a folder that dataset_script.build made")

    def runs_of(name: str) -> tuple[np.ndarray, np.ndarray]:
        pitch, start = (splits[name][column].combine_chunks() for column in ("pitch", "start"))
        return line_runs(pitch.flatten().to_numpy(), start.flatten().to_numpy(), np.asarray(pitch.offsets))

    train = runs_of("train")
    # Of each other split, the lines that have a near-duplicate in training; those too plain to tell are left out.
    report: dict[str, Any] = {"verbatim": verbatim_leak(splits)}
    for name in tqdm([name for name in splits if name != "train"], desc="leak"):
        match, is_plain = near_duplicate_lines(runs_of(name), train)
        is_lead = splits[name]["is_lead"].to_numpy()
        report[name] = {}
        for which, chosen in (("all_lines", np.ones(len(match), dtype=bool)), ("lead_lines", is_lead)):
            tested = chosen & ~is_plain
            report[name][which] = {
                "lines": int(chosen.sum()),
                "too_plain": int((chosen & is_plain).sum()),
                "with_near_duplicate_in_train": int((match[tested] >= 0).sum()),
                "leak": share((match[tested] >= 0).sum(), tested.sum()),
            }
    return report


@njit(cache=True)
def verbatim_hashes(pitch: np.ndarray, offsets: np.ndarray, notes: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Hash the runs of so many notes of each line, in any key, that have at least so many different intervals.

    Returns:
        Hash and line of each, shape (M,).
    """
    codes, seen = np.empty(len(pitch), dtype=np.uint8), np.zeros(256, dtype=np.int32)
    hashes, line_of = np.empty(len(pitch), dtype=np.uint64), np.empty(len(pitch), dtype=np.int64)
    count = 0
    for line in range(len(offsets) - 1):
        steps = intervals(pitch[offsets[line] : offsets[line + 1]], codes)
        end = hash_runs(steps, notes - 1, seen, hashes, count, least)
        line_of[count:end] = line
        count = end
    return hashes[:count], line_of[:count]


def verbatim_leak(splits: dict[str, pa.Table]) -> dict[str, Any]:
    """Measure the share of leads outside train with so many notes in a row that occur in train, in any key.

    Runs of one or two different intervals are a note repeated or a trill, and nobody's tune: they count apart.
    """

    def music(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        pitch = table["pitch"].combine_chunks()
        return pitch.flatten().to_numpy(), np.append(0, np.cumsum(pitch.value_lengths().to_numpy()))

    report: dict[str, Any] = {}
    leads = {name: table.filter(table["is_lead"]) for name, table in splits.items()}
    counted = (("", VERBATIM_DISTINCT), ("_with_repeated_notes_and_trills", 1))
    for notes, (which, train), (added, least) in product(
        VERBATIM, (("lines", splits["train"]), ("leads", leads["train"])), counted
    ):
        known = np.unique(verbatim_hashes(*music(train), notes, least)[0])
        for name, table in leads.items():
            if name != "train":
                hashes, line = verbatim_hashes(*music(table), notes, least)
                leaking = np.unique(line[np.isin(hashes, known)])
                key = f"{name}_leads_with_{notes}_notes_of_{which}_in_train{added}"
                report[key] = share(len(leaking), table.num_rows)
    return report
