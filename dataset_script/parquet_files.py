"""The finished data set on disk: which lines stay, their groups and splits, Parquet files and card."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_script.near_duplicates import groups
from dataset_script.schema import FEATURES, SPLITS

VALIDATION_FROM, TEST_FROM = 0.8, 0.9
LINES_PER_FILE = 50_000
LINES_PER_ROW_GROUP = 5_000

CARD = """\
---
license: cc-by-4.0
pretty_name: Melody lines
tags:
- music
- midi
- melody
configs:
- config_name: default
  version: {version}
  data_files:
{data_files}
---
# Melody lines

One row is one melody line: a monophonic run of notes on one track of a MIDI file. Built from `{source}` with
`python -m dataset_script.build`; the columns are described in `dataset_script/README.md` of the program, and
`build.json` beside this file counts what went in, what was left out and why.

The licence above is that of the Lakh MIDI Dataset (Colin Raffel, 2016). It covers the collection; the songs are
transcriptions by unknown third parties. A data set built from other files has the licence of those files.
"""


def split_of(group: str) -> str:
    """Return a near-duplicate group's split: 80/10/10 by a hash of its name alone, so new files move no old group."""
    place = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "big") / 2**64
    return SPLITS[int(place >= VALIDATION_FROM) + int(place >= TEST_FROM)]


def assign_groups(material: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return the near-duplicate group of each file: the smallest md5 of its cluster.

    Args:
        material: hashes of each file's lead, by md5.
    """
    md5 = sorted(material)
    return {one: md5[first] for one, first in zip(md5, groups([material[one] for one in md5]), strict=True)}


def choose_lines(table: pa.Table) -> tuple[np.ndarray, Counter[str]]:
    """Choose which lines stay: each melody once.

    Of equal lines (same notes, same time signature, anywhere in the input) one stays: a lead before others, then the
    one with the smallest `melody_id`.

    Returns:
        Rows that stay, in order of `melody_id`, and the number of those that go, by reason.
    """
    names = np.array(table["melody_id"].to_pylist(), dtype=object)
    digest = np.array(table["digest"].combine_chunks().dictionary_encode().indices)
    is_lead = np.array(table["is_lead"])
    order = np.argsort(names, kind="stable")
    is_again = np.append(False, names[order[1:]] == names[order[:-1]])  # the same file was there twice
    order = order[~is_again]
    by_digest = np.lexsort((np.arange(len(order)), ~is_lead[order], digest[order]))
    codes = digest[order[by_digest]]
    is_first = np.append(True, codes[1:] != codes[:-1])
    rows = order[np.sort(by_digest[is_first])]
    return rows, Counter({"file was there twice": int(is_again.sum()), "same as another line": int((~is_first).sum())})


def write_splits(
    table: pa.Table, rows: np.ndarray, group: Mapping[str, str], genre: Mapping[str, str], folder: Path
) -> dict[str, int]:
    """Write the Parquet files, sorted by `melody_id`; a split without lines gets no file, as `datasets` expects.

    Args:
        table: all lines.
        rows: those that stay, in order.
        group: near-duplicate group by md5.
        genre: genre by md5, where known.
        folder: where to write.

    Returns:
        Number of lines of each split.
    """
    schema = FEATURES.arrow_schema
    md5 = np.array(table["md5"].take(pa.array(rows)).to_pylist(), dtype=object)
    split = np.array([split_of(group[one]) for one in md5])
    folder.mkdir(parents=True)
    for name in SPLITS:
        chosen = np.flatnonzero(split == name)
        pieces = [chosen[at : at + LINES_PER_FILE] for at in range(0, len(chosen), LINES_PER_FILE)]
        for number, piece in enumerate(pieces):
            part = table.take(pa.array(rows[piece]))
            part = part.append_column("group", pa.array([group[one] for one in md5[piece]], pa.string()))
            part = part.append_column("genre", pa.array([genre.get(one) for one in md5[piece]], pa.string()))
            path = folder / f"{name}-{number:05d}-of-{len(pieces):05d}.parquet"
            pq.write_table(part.select(schema.names).cast(schema), path, row_group_size=LINES_PER_ROW_GROUP)
    return {name: int((split == name).sum()) for name in SPLITS}


def write_card(folder: Path, source: str, splits: Sequence[str]) -> None:
    """Write the README.md that tells `load_dataset` where each split lies.

    The version is made from the content of the Parquet files: `datasets` keeps what it has loaded from a folder in its
    cache under the folder's name and version, and would otherwise go on giving out a data set that has been replaced.
    """
    content = hashlib.blake2b(digest_size=4)
    for path in sorted((folder / "data").iterdir()):
        with path.open("rb") as file:
            content.update(hashlib.file_digest(file, "blake2b").digest())
    version = f"1.0.{int.from_bytes(content.digest(), 'big')}"
    files = "\n".join(f"  - split: {name}\n    path: data/{name}-*.parquet" for name in splits)
    card = CARD.format(data_files=files, source=source, version=version)
    (folder / "README.md").write_text(card, encoding="utf-8")
