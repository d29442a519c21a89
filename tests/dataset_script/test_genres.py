"""Reading genres: the metadata table, and the join of match scores with a genre list."""

import argparse
import json
import random
import re

import pytest

from dataset_script.genres import add_genre_options, genres_from, read_genre_list, read_match_scores, read_metadata
from dataset_script.midi_sources import InputError
from tests.builders.clock import processor_seconds

A, B, C, D = (letter * 32 for letter in "abcd")
ONE, TWO, THREE = "TRAAAAK128F9318786", "TRBBBBK128F9318786", "TRCCCCK128F9318786"

TAGTRAUM = f"""\
# MSD ID\tmajority genre\tminority genre
# Hendrik Schreiber, 2015
#

{TWO}\tPop_Rock\tFolk
{ONE}\tJazz
"""


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_metadata_takes_the_first_that_is_not_empty(tmp_path):
    table = write(tmp_path / "m.csv", f"md5,topmagd,tagtraum\n{A},,Folk\n{B},Rock,Folk\n{C},,\n{D}\n")
    assert read_metadata(table) == {A: "Folk", B: "Rock"}


def test_genre_lists(tmp_path):
    assert read_genre_list(write(tmp_path / "cd2c.cls", TAGTRAUM)) == {TWO: "Pop_Rock", ONE: "Jazz"}
    # topMAGD's has no comments and Windows' line ends.
    path = tmp_path / "msd-topMAGD-genreAssignment.cls"
    path.write_bytes(f"{ONE}\tVocal\r\n{TWO}\tRnB\r\n".encode())
    assert read_genre_list(path) == {ONE: "Vocal", TWO: "RnB"}


def test_the_best_match_counts_and_of_equal_ones_the_smallest_id(tmp_path):
    scores = write(
        tmp_path / "match_scores.json",
        {
            THREE: {C: 0.9, D: 0.7},
            TWO: {A: 0.7, B: 0.8, C: 0.6},
            ONE: {A: 0.5, B: 0.8, D: 0.7},
        },
    )
    genres = write(tmp_path / "cd2c.cls", TAGTRAUM)
    # A: TWO is better than ONE; B, D: ONE and another are equal; C: THREE is best, and has no genre.
    assert read_match_scores(scores, genres) == {A: "Pop_Rock", B: "Jazz", D: "Jazz"}


def options(*arguments):
    parser = argparse.ArgumentParser()
    add_genre_options(parser)
    return parser.parse_args(list(map(str, arguments)))


def test_metadata_counts_before_matches(tmp_path):
    scores = write(tmp_path / "match_scores.json", {ONE: {A: 0.5, B: 1}})
    genres = write(tmp_path / "cd2c.cls", TAGTRAUM)
    metadata = write(tmp_path / "m.csv", f"md5,masd\n{A},Folk\n")
    assert genres_from(options()) == {}
    assert genres_from(options("--metadata", metadata)) == {A: "Folk"}
    matched = ["--match_scores", scores, "--genres", genres]
    assert genres_from(options(*matched)) == {A: "Jazz", B: "Jazz"}
    assert genres_from(options(*matched, "--metadata", metadata)) == {A: "Folk", B: "Jazz"}


@pytest.mark.parametrize(("given", "missing"), [("--match_scores", "--genres"), ("--genres", "--match_scores")])
def test_one_option_without_the_other(given, missing):
    with pytest.raises(InputError, match=f"^{given} needs {missing}"):
        genres_from(options(given, "x"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores", None, "scores cannot be read as JSON .*check --match_scores"),
        ("scores", "{", "scores cannot be read as JSON"),
        ("scores", "[" * 100_000, "scores cannot be read as JSON"),
        ("scores", {}, "scores is not built as"),
        ("scores", [ONE], "scores is not built as"),
        ("scores", {"SOAAAAK128F9318786": {A: 1}}, "'SOAAAAK128F9318786' is no track id"),
        ("scores", {ONE: 0.5}, "or has no matches"),
        ("scores", {ONE: {"a.mid": 0.5}}, "'a.mid' in TR.* is no md5"),
        ("scores", {ONE: {A: "0.5"}}, "its score is no number"),
        ("scores", {ONE: {A: True}}, "its score is no number"),
        ("genres", None, "genres cannot be read as a list of genres .*check --genres"),
        ("genres", "# only\n\n# comments\n", "has no genre in it"),
        ("genres", f"#\n{ONE} Jazz\n", "line 2 of .* is no track id"),
        ("genres", f"{ONE}\t \n", "line 1 of .* is no track id"),
        ("genres", f"Jazz\t{ONE}\n", "line 1 of .*: 'Jazz"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    files = {"scores": {ONE: {A: 0.5}}, "genres": TAGTRAUM, name: content}
    for each, its_content in files.items():
        if its_content is not None:
            write(tmp_path / each, its_content)
    with pytest.raises(InputError, match=message) as caught:
        read_match_scores(tmp_path / "scores", tmp_path / "genres")
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_that_is_no_text(tmp_path):
    (tmp_path / "cd2c.cls.zip").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(InputError, match=re.escape("cd2c.cls.zip cannot be read")):
        read_genre_list(tmp_path / "cd2c.cls.zip")


def test_files_as_large_as_the_real_ones_are_read_in_two_seconds(tmp_path):
    draw = random.Random(0)
    ids = [f"TR{draw.getrandbits(72):018X}" for _ in range(31_034)]
    scores = {one: {f"{draw.getrandbits(128):032x}": draw.random() for _ in range(4)} for one in ids}
    write(tmp_path / "match_scores.json", scores)
    write(tmp_path / "cd2c.cls", "".join(f"TR{number:016d}\tPop\n" for number in range(50_000)) + f"{ids[0]}\tRap\n")
    files = tmp_path / "match_scores.json", tmp_path / "cd2c.cls"
    assert read_match_scores(*files) == dict.fromkeys(scores[ids[0]], "Rap")
    assert processor_seconds(lambda: read_match_scores(*files)) < 2
