"""A folder of MIDI files as a data set: built when it is first trained on, found again by its content afterwards."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import datasets

from command import UserError
from dataset_script.build import Settings, build_dataset, program_fingerprint
from dataset_script.midi_sources import InputError, Sources, in_folder, is_midi_name, listed, open_sources

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")
FEW_SONGS = 1000  # for a new model
HELD_OUT_SONGS = 5  # at least, to tell when to stop; of fewer than 20 songs a quarter
HELD_OUT_SHARE = 0.1  # at least, where the splits by hash hold out too few


@dataclass(frozen=True)
class OwnMidi:
    """A data set that was built from MIDI files.

    Attributes:
        folder: Of the data set, for `load_dataset`.
        summary: What was found and held out, in one line.
        is_small: Whether these are few songs for a new model.
    """

    folder: Path
    summary: str
    is_small: bool = False


def is_midi(dataset: str) -> bool:
    """Whether `--dataset` names MIDI files: one, a folder with some below it and no Parquet, or an archive."""
    path = Path(dataset)
    if path.is_dir():
        return not any(path.rglob("*.parquet")) and any(is_midi_name(each.name) for each in path.rglob("*"))
    return path.is_file() and (is_midi_name(path.name) or path.name.lower().endswith(ARCHIVES))


def build_own(dataset: str, steps_per_beat: int, num_proc: int) -> OwnMidi:
    """Build a data set of MIDI files, or find the one that was built of the same files before.

    It lies in the cache of `datasets`, under a hash of the files' content and of the program.

    Args:
        dataset: As [`is_midi`] accepts it.
        steps_per_beat: Of the grid.
        num_proc: Processes.

    Raises:
        UserError: If there is no melody in the files, or too few songs to hold one out.
    """
    sources, key = find_sources(dataset)
    key = hashlib.blake2b(f"{key} {steps_per_beat} {program_fingerprint()}".encode(), digest_size=12).hexdigest()
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "melodies_of_midi" / key
    try:
        if not (folder / "build.json").is_file():
            build_dataset(sources, folder, Settings(steps_per_beat, num_proc), metadata={}, is_overwriting=True)
    except InputError as error:
        raise UserError(str(error)) from error
    return with_validation(folder, dataset)


def find_sources(dataset: str) -> tuple[Sources, str]:
    """Find the MIDI files, and hash their content (of an archive: its name, size and time)."""
    try:
        path = Path(dataset)
        if not path.is_dir():
            sources = open_sources(dataset)
            return sources, sources.fingerprint
        files = in_folder(path)
        hashed = hashlib.blake2b(digest_size=16)
        for name, file in files:
            hashed.update(f"{name}\0".encode(errors="surrogateescape") + hashlib.md5(file.read_bytes()).digest())
        return listed(path.name, files), hashed.hexdigest()
    except (InputError, OSError) as error:
        raise UserError(str(error)) from error


def with_validation(folder: Path, dataset: str) -> OwnMidi:
    """See to it that there is something to train on, and several songs to validate on.

    Splits go by a hash of each song, 80/10/10, so of a few songs one or none may fall to validation. Then others are
    held out for it, and the rest is trained on.
    """
    splits = datasets.load_dataset(str(folder), cache_dir=str(folder / "cache"))
    lines = datasets.concatenate_datasets(list(splits.values()))
    songs = sorted(set(lines["group"][:]), key=lambda group: hashlib.blake2b(group.encode()).digest())
    fewest = max(1, min(HELD_OUT_SONGS, len(songs) // 4))
    if "train" in splits and "validation" in splits and len(set(splits["validation"]["group"][:])) >= fewest:
        return OwnMidi(folder, f"{dataset}: {describe(splits)}, by a hash of each song", len(songs) < FEW_SONGS)
    if len(songs) < 2:
        raise UserError(
            f"{dataset}: melodies of one song only; give two or more, to train on one and validate on another"
        )
    held_out = set(songs[: max(fewest, math.ceil(HELD_OUT_SHARE * len(songs)))])
    target = folder / f"{len(held_out)}_held_out"
    is_held_out = [group in held_out for group in lines["group"][:]]
    parts = {
        split: lines.select([index for index, out in enumerate(is_held_out) if out == (split == "validation")])
        for split in ("train", "validation")
    }
    if not (target / "validation.parquet").is_file():
        target.mkdir(exist_ok=True)
        for split, part in parts.items():  # validation last: it says that both are there
            partial = target / f"{split}.partial"
            part.to_parquet(partial)
            partial.replace(target / f"{split}.parquet")
    why = "too few for splits by hash, so these are held out for validation and none for a test"
    return OwnMidi(target, f"{dataset}: {describe(parts)} ({why})", is_small=True)


def describe(splits) -> str:
    """Count the melody lines and songs of each split."""
    counts = [f"{name} {len(part)} lines of {len(set(part['group'][:]))} songs" for name, part in splits.items()]
    return ", ".join(counts)
