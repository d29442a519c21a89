"""The builder of `datasets`: rows as `dataset_script.build` makes them, from every source, and no stale cache."""

import hashlib
import http.server
import json
import os
import shutil
import tarfile
import threading
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import DownloadMode, load_dataset
from symusic import Note, Score, TimeSignature, Track

from dataset_script import build, parquet_files
from dataset_script.download import LAKH_FILES, RemoteFile
from dataset_script.lakh_melodies import LakhMelodies
from dataset_script.midi_sources import InputError
from dataset_script.schema import FEATURES, SPLITS
from dataset_script.windows import windows

pytestmark = pytest.mark.usefixtures("without_histograms")


def midi(seed, bars=17):
    """Return a tune in quarter notes as MIDI."""
    score, track = Score(4), Track("melody", 73)
    score.time_signatures.append(TimeSignature(0, 4, 4))
    for beat, pitch in enumerate(np.random.default_rng(seed).integers(60, 80, 4 * bars).tolist()):
        track.notes.append(Note(4 * beat, 4, pitch, 90))
    score.tracks.append(track)
    return score.dumps_midi()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of MIDI files: 30 tunes with a window of 16 bars each, and 7 that are too short for one."""
    folder = tmp_path_factory.mktemp("source") / "lmd_full"
    folder.mkdir()
    for number in range(37):
        (folder / f"{number:02d}.mid").write_bytes(midi(30 + number, bars=17 if number < 30 else 5))  # all splits
    return folder


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """What the command builds of them, in files of 7 lines."""
    folder = tmp_path_factory.mktemp("built") / "data set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet_files, "LINES_PER_ROW_GROUP", 7)  # a file holds whole groups
        patch.setattr(parquet_files, "LINES_PER_FILE", 7)
        assert build.main(["--input", str(source), "--output", str(folder)]) == 0
    assert len(list((folder / "data").glob("train-*"))) > 2
    return folder


@pytest.fixture(scope="module")
def lines(built):
    """Its rows by split."""
    found = {
        split: [row for path in sorted(built.glob(f"data/{split}-*")) for row in pq.read_table(path).to_pylist()]
        for split in SPLITS
    }
    assert all(found.values())
    return found


def rows(dataset):
    return {name: list(split) for name, split in dataset.items()}


def prepare(cache, name=None, num_proc=None, **arguments):
    """Return the data set of a new builder."""
    builder = LakhMelodies(cache_dir=str(cache), config_name=name, **arguments)
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset()


def cut(lines, **arguments):
    """Return the windows of all lines, their numbers as precise as the columns are."""
    cuts = {name: [window for line in part for window in windows(line, **arguments)] for name, part in lines.items()}
    return {name: pa.Table.from_pylist(part, FEATURES.arrow_schema).to_pylist() for name, part in cuts.items()}


@pytest.fixture
def archive(source, tmp_path):
    path = tmp_path / "served" / "lmd_full.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        tar.add(source, "lmd_full")
    return path


def test_lines_of_every_source_are_those_of_the_command(source, built, archive, lines, tmp_path):
    for number, data_dir in enumerate((source, str(built), archive, f"{source}/*.mid")):
        dataset = prepare(tmp_path / str(number), data_dir=data_dir)
        assert rows(dataset) == lines
        assert dataset["train"].features == FEATURES


def test_windows_of_16_bars(source, built, lines, tmp_path):
    expected = cut(lines, bars=16, stride=16)
    assert sum(map(len, expected.values())) == 30
    dataset = prepare(tmp_path, "16bar", data_dir=source)
    assert rows(dataset) == expected
    assert dataset["train"].features == FEATURES
    assert rows(prepare(tmp_path, "16bar", data_dir=built, bars=8, stride=3)) == cut(lines, bars=8, stride=3)
    assert rows(prepare(tmp_path, "lines", data_dir=built, bars=4)) == cut(lines, bars=4, stride=4)
    with pytest.raises(ValueError, match="at least 1, not 16 and 0"):
        prepare(tmp_path, "16bar", data_dir=built, stride=0)


def test_parquet(built, lines, tmp_path):
    builder = LakhMelodies(cache_dir=str(tmp_path / "cache"), data_dir=built)
    builder.download_and_prepare(str(tmp_path / "out"), file_format="parquet")
    loaded = load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert rows(loaded) == lines
    assert loaded["train"].features == FEATURES


@pytest.mark.parametrize("name", ["lines", "16bar"])
def test_several_processes_give_the_same_rows(source, built, lines, tmp_path, name):
    expected = lines if name == "lines" else cut(lines, bars=16, stride=16)
    assert rows(prepare(tmp_path, name, num_proc=2, data_dir=built)) == expected
    assert rows(prepare(tmp_path, name, num_proc=2, data_dir=source)) == expected


def test_streaming(source, built, lines, tmp_path):
    streams = LakhMelodies(cache_dir=str(tmp_path), data_dir=built).as_streaming_dataset()
    assert rows(streams) == lines
    assert streams["train"].features == FEATURES
    assert streams["train"].num_shards == len(list(built.glob("data/train-*")))
    test = LakhMelodies(cache_dir=str(tmp_path), data_dir=built, config_name="16bar").as_streaming_dataset("test")
    assert list(test) == cut(lines, bars=16, stride=16)["test"]
    # MIDI files are not read on the fly: groups and splits need all of them.
    with pytest.raises(InputError, match="call download_and_prepare first"):
        LakhMelodies(cache_dir=str(tmp_path), data_dir=source).as_streaming_dataset()
    prepare(tmp_path, data_dir=source)
    assert rows(LakhMelodies(cache_dir=str(tmp_path), data_dir=source).as_streaming_dataset()) == lines


@pytest.fixture
def count_builds(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "dataset_script.lakh_melodies.build_dataset", lambda *given: (calls.append(1), build.build_dataset(*given))
    )
    return calls


def test_the_cache_is_used_until_something_changes(source, tmp_path, count_builds, monkeypatch):
    folder, cache = shutil.copytree(source, tmp_path / "midi"), tmp_path / "cache"
    before = rows(prepare(cache, data_dir=folder))
    assert rows(prepare(cache, data_dir=folder)) == before
    prepare(cache, "16bar", data_dir=folder, num_proc=1)
    assert len(count_builds) == 1  # configurations share what is built

    (folder / "new.mid").write_bytes(midi(99))
    md5 = hashlib.md5(midi(99)).hexdigest()
    assert md5 in [row["md5"] for part in rows(prepare(cache, data_dir=folder)).values() for row in part]
    (folder / "new.mid").unlink()
    assert rows(prepare(cache, data_dir=folder)) == before
    assert len(count_builds) == 2

    content = (folder / "00.mid").read_bytes()
    (folder / "00.mid").write_bytes(content[:-1] + b"\x01")  # as long as before
    os.utime(folder / "00.mid", ns=(0, 0))
    prepare(cache, data_dir=folder)
    assert len(count_builds) == 3
    fine = prepare(cache, data_dir=folder, steps_per_beat=12)
    assert set(fine["train"]["steps_per_beat"]) == {12}
    assert len(count_builds) == 4
    monkeypatch.setattr("dataset_script.lakh_melodies.PROGRAM", "another version")
    prepare(cache, data_dir=folder)
    assert len(count_builds) == 5


def test_a_replaced_data_set_is_not_served_from_the_cache(source, tmp_path):
    def prepared(*names):
        for name in names:
            shutil.copy(source / name, tmp_path / "midi" / name)
        output = str(tmp_path / "out")
        assert build.main(["--input", str(tmp_path / "midi"), "--output", output, "--overwrite"]) == 0
        return prepare(tmp_path / "cache", data_dir=output)

    (tmp_path / "midi").mkdir()
    assert prepared("00.mid").num_rows != prepared("01.mid", "02.mid", "03.mid").num_rows


def test_genres(source, tmp_path):
    md5 = [hashlib.md5((source / name).read_bytes()).hexdigest() for name in ("00.mid", "01.mid")]
    (tmp_path / "m.csv").write_text(f"md5,masd\n{md5[0]},Folk\n", encoding="utf-8")
    (tmp_path / "scores.json").write_text(json.dumps({"TRAAAAK128F9318786": {md5[1]: 0.7}}), encoding="utf-8")
    (tmp_path / "list.cls").write_text("TRAAAAK128F9318786\tJazz\n", encoding="utf-8")
    options = {
        name: tmp_path / file
        for name, file in zip(("match_scores", "genres"), ("scores.json", "list.cls"), strict=True)
    }

    def genres(**given):
        dataset = prepare(tmp_path / "cache", data_dir=source, **given)
        return {row["md5"]: row["genre"] for part in dataset.values() for row in part if row["genre"]}

    assert genres() == {}
    assert genres(metadata=tmp_path / "m.csv", **options) == {md5[0]: "Folk", md5[1]: "Jazz"}
    (tmp_path / "list.cls").write_text("TRAAAAK128F9318786\tRap\n", encoding="utf-8")
    assert genres(**options) == {md5[1]: "Rap"}


def test_splits_without_rows_are_left_out(tmp_path):
    (tmp_path / "midi").mkdir()
    numbers = {parquet_files.split_of(hashlib.md5(midi(number)).hexdigest()): number for number in range(40)}
    for number in (numbers["train"], numbers["test"]):
        (tmp_path / "midi" / f"{number}.mid").write_bytes(midi(number))
    assert prepare(tmp_path / "cache", data_dir=tmp_path / "midi").num_rows == {"train": 1, "test": 1}
    # A short line in validation: the split has a file, but no window.
    short = next(n for n in range(99) if parquet_files.split_of(hashlib.md5(midi(n, 5)).hexdigest()) == "validation")
    (tmp_path / "midi" / "short.mid").write_bytes(midi(short, 5))
    assert prepare(tmp_path / "cache", data_dir=tmp_path / "midi").num_rows == dict.fromkeys(SPLITS, 1)
    assert prepare(tmp_path / "cache", "16bar", data_dir=tmp_path / "midi").num_rows == {"train": 1, "test": 1}
    with pytest.raises(InputError, match=r"no line in .* is 99 bars long"):
        prepare(tmp_path / "cache", "16bar", data_dir=tmp_path / "midi", bars=99)


@pytest.fixture
def served(archive, monkeypatch):
    """The archive on a server; the list of what is asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *arguments):
            asked.append(self.path)

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = partial(Handler, directory=str(archive.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        md5 = hashlib.md5(archive.read_bytes()).hexdigest()
        url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        monkeypatch.setitem(LAKH_FILES, "lmd_full", RemoteFile(url, archive.stat().st_size, md5))
        yield asked
        server.shutdown()


def test_without_data_dir_the_archive_is_downloaded(served, lines, tmp_path):
    assert rows(prepare(tmp_path / "cache")) == lines
    assert (tmp_path / "cache" / "downloads" / "lmd_full.tar.gz").is_file()
    assert rows(prepare(tmp_path / "cache", "16bar")) == cut(lines, bars=16, stride=16)
    assert rows(prepare(tmp_path / "cache", steps_per_beat=4)) == lines
    assert served == ["/lmd_full.tar.gz"]


def test_forced_to_download_it_builds_again_and_verifies_what_is_there(served, tmp_path, count_builds):
    prepare(tmp_path)
    builder = LakhMelodies(cache_dir=str(tmp_path))
    builder.download_and_prepare(download_mode=DownloadMode.FORCE_REDOWNLOAD)
    assert len(count_builds) == 2
    assert served == ["/lmd_full.tar.gz"]
    (tmp_path / "downloads" / "lmd_full.tar.gz").write_bytes(b"damaged")
    builder.download_and_prepare(download_mode=DownloadMode.FORCE_REDOWNLOAD)
    assert served == ["/lmd_full.tar.gz"] * 2


def test_a_build_that_failed_leaves_nothing_to_be_used(source, lines, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(build, "write_report", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(tmp_path, data_dir=source)
    assert not [path for path in tmp_path.rglob("built-*") if path.is_dir()]
    assert rows(prepare(tmp_path, data_dir=source)) == lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_dir": "{tmp}/none"}, "none does not exist"),
        ({"data_dir": "{tmp}"}, "no .mid, .midi, .kar, .rmi or .smf file"),
        ({"archive": "match_scores"}, "no archive 'match_scores'; take lmd_full or lmd_matched"),
        ({"data_dir": "{source}", "metadata": "{tmp}/none.csv"}, r"none.csv cannot be read \(No such file"),
        ({"data_dir": "{source}", "genres": __file__}, "--genres needs --match_scores"),
        ({"data_dir": "{built}", "metadata": __file__}, "is built already"),
        ({"data_dir": "{built}", "steps_per_beat": 12}, "is built already, with 4 steps per beat"),
    ],
)
def test_bad_arguments(source, built, tmp_path, arguments, message):
    places = {"tmp": tmp_path, "source": source, "built": built}
    given = {name: value.format(**places) if isinstance(value, str) else value for name, value in arguments.items()}
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / "cache", **given)
