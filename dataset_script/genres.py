"""The genre and the song of each MIDI file: from a table, or from the Million Song Dataset tracks that match it."""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from dataset_script.midi_sources import InputError

GENRE_COLUMNS = ("topmagd", "masd", "tagtraum")  # of the metadata; the first that is not empty counts
MSD_TRACK_ID = re.compile(r"TR[0-9A-Z]+")
MD5 = re.compile(r"[0-9a-f]{32}")


class GenreOptions(Protocol):
    """What `genres_from` reads: parsed options, or anything else with the same three names."""

    metadata: str | Path | None
    match_scores: str | Path | None
    genres: str | Path | None


def add_genre_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where genres come from; `genres_from` reads them."""
    group = parser.add_argument_group("genres")
    group.add_argument(
        "--metadata", type=Path, help="a CSV file with the genres: columns md5, and topmagd, masd or tagtraum"
    )
    group.add_argument(
        "--match_scores",
        type=Path,
        help="the Lakh MIDI Dataset's match_scores.json, which says which song each file is; goes with --genres",
    )
    group.add_argument(
        "--genres",
        type=Path,
        help="a list of songs and genres for the Million Song Dataset, such as msd_tagtraum_cd2c.cls or "
        "msd-topMAGD-genreAssignment.cls; goes with --match_scores",
    )


def genres_from(options: GenreOptions) -> dict[str, str]:
    """Return the genre by md5 from what the options name; where both know a file, the metadata counts.

    Raises:
        InputError: if a file cannot be read, or one of `match_scores` and `genres` is given without the other.
    """
    if bool(options.match_scores) != bool(options.genres):
        given, missing = ("match_scores", "genres") if options.match_scores else ("genres", "match_scores")
        raise InputError(f"--{given} needs --{missing} as well: one has the songs of the files, the other their genres")
    found: dict[str, str] = {}
    if options.match_scores and options.genres:
        found |= read_match_scores(Path(options.match_scores), Path(options.genres))
    if options.metadata:
        found |= read_metadata(Path(options.metadata))
    return found


def metadata_from(options: GenreOptions) -> dict[str, dict[str, str]]:
    """Return what is known of each file, by md5: `genre`, `title`, `artist` and `msd_id`, those that there are.

    Raises:
        InputError: as `genres_from`.
    """
    found: dict[str, dict[str, str]] = {md5: {"genre": genre} for md5, genre in genres_from(options).items()}
    if options.match_scores:
        for md5, track in best_matches(Path(options.match_scores)).items():
            found.setdefault(md5, {})["msd_id"] = track
    if options.metadata:
        for md5, song in read_songs(Path(options.metadata)).items():
            found.setdefault(md5, {}).update(song)
    return found


def read_songs(metadata: Path) -> dict[str, dict[str, str]]:
    """Read title, artist and track of the Million Song Dataset of each file from a CSV file, where it has them.

    Raises:
        InputError: if the file cannot be read.
    """
    with reading(metadata, "a CSV file", "--metadata"), metadata.open(newline="", encoding="utf-8-sig") as lines:
        songs = {}
        for row in csv.DictReader(lines):
            tracks = MSD_TRACK_ID.findall(row.get("msd_ids") or row.get("msd_id") or "")
            song = {"title": row.get("title"), "artist": row.get("artist"), "msd_id": tracks[0] if tracks else None}
            songs[row["md5"]] = {name: value for name, value in song.items() if value}
    return songs


@contextmanager
def reading(path: Path, kind: str, option: str) -> Iterator[None]:
    """Turn what goes wrong when reading a file into an InputError that names the file and the option."""
    try:
        yield
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as {kind} ({error}); check {option}") from error


def read_metadata(metadata: Path) -> dict[str, str]:
    """Read the genre of each file from a CSV file: the first of topMAGD, MASD and tagtraum that is not empty.

    Raises:
        InputError: if the file cannot be read or lacks the columns.
    """
    with reading(metadata, "a CSV file", "--metadata"), metadata.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        columns = [name for name in GENRE_COLUMNS if name in (reader.fieldnames or ())]
        if "md5" not in (reader.fieldnames or ()) or not columns:
            raise InputError(f"{metadata} needs a column md5 and one of {', '.join(GENRE_COLUMNS)} in its first line")
        genres = {row["md5"]: next((row[name] for name in columns if row[name]), "") for row in reader}
    return {md5: genre for md5, genre in genres.items() if genre}


def read_genre_list(genre_list: Path) -> dict[str, str]:
    """Read the genre of each Million Song Dataset track from a list; of two genres the first, the majority's, counts.

    A row is a track id, a tab, a genre, and perhaps another tab and genre; lines that begin with `#` are comments.

    Raises:
        InputError: if the file cannot be read, has another kind of row, or none.
    """
    with reading(genre_list, "a list of genres", "--genres"):
        lines = genre_list.read_text(encoding="utf-8-sig").splitlines()
    genres: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            track, genre, *_ = [*line.split("\t"), ""]
            if not MSD_TRACK_ID.fullmatch(track) or not genre.strip():
                raise InputError(
                    f"line {number} of {genre_list} is no track id such as TRAAAAK128F9318786, tab and genre: "
                    f"{line[:60]!r}; check --genres"
                )
            genres[track] = genre.strip()
    if not genres:
        raise InputError(f"{genre_list} has no genre in it; --genres takes a list such as msd_tagtraum_cd2c.cls")
    return genres


def read_match_scores(match_scores: Path, genre_list: Path) -> dict[str, str]:
    """Join files and genres through the Million Song Dataset track that matches a file best.

    A file that matches several tracks is taken for the one with the highest score (equal ones: the smallest id). It
    has that track's genre, and none if the list lacks that track: a worse match would be more likely another song.

    Args:
        match_scores: the Lakh MIDI Dataset's file, `{track id: {md5: score}}`.
        genre_list: what `read_genre_list` reads.

    Returns:
        Genre by md5.

    Raises:
        InputError: if a file cannot be read or is built differently.
    """
    genres = read_genre_list(genre_list)
    return {md5: genres[track] for md5, track in best_matches(match_scores).items() if track in genres}


def best_matches(match_scores: Path) -> dict[str, str]:
    """Return the track of the Million Song Dataset that matches each file best, by md5, see `read_match_scores`."""
    with reading(match_scores, "JSON", "--match_scores"):
        tracks = json.loads(match_scores.read_bytes())
    if not isinstance(tracks, dict) or not tracks:
        raise InputError(f"{match_scores} is not built as {{track id: {{md5: score}}}}; check --match_scores")
    best: dict[str, tuple[float, str]] = {}
    for track in sorted(tracks):
        matches = tracks[track]
        if not MSD_TRACK_ID.fullmatch(track) or not isinstance(matches, dict):
            raise InputError(
                f"{match_scores} is not built as {{track id: {{md5: score}}}}: {track[:40]!r} is no track id such as "
                "TRAAAAK128F9318786, or has no matches; check --match_scores"
            )
        for md5, score in matches.items():
            if not MD5.fullmatch(md5) or type(score) not in (int, float):
                raise InputError(
                    f"{match_scores}: {md5[:40]!r} in {track} is no md5 of 32 hexadecimal digits, or its score is no "
                    "number; check --match_scores"
                )
            if md5 not in best or score > best[md5][0]:  # tracks come in order, so equal ones leave the smallest id
                best[md5] = score, track
    return {md5: track for md5, (_, track) in best.items()}
