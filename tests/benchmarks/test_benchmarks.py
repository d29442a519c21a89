"""The benchmarks: what is worked out from the seconds, what bad input says, and one small run from end to end."""

import json
import os
import re
import subprocess
import tarfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from symusic import Note, Score, Tempo, TimeSignature, Track
from tqdm import tqdm

from benchmarks import attention, beats, growth
from benchmarks.dataset import (
    LAKH_FILES,
    copied,
    derive,
    lakh_minutes,
    main,
    one_core,
    parse_chunk,
    parsing_seconds,
)
from benchmarks.near_duplicates import Corpus
from benchmarks.reports import report_to, rounded
from command import UserError
from dataset_script.grouping import groups

FILES = 13
TPQ = 120


def midi(seed, notes=88):
    """Return bars of eighth notes that no other seed gives."""
    score = Score(TPQ)
    score.time_signatures.append(TimeSignature(0, 4, 4))
    score.tempos.append(Tempo(0, 120))
    track = Track("tune", 0, False)
    for index, pitch in enumerate(np.random.default_rng(seed).integers(60, 73, size=notes)):
        track.notes.append(Note(index * TPQ // 2, TPQ // 2, int(pitch), 90))
    score.tracks.append(track)
    return score.dumps_midi()


@pytest.fixture
def folder(tmp_path):
    """Return a folder with 13 MIDI files, the last one broken."""
    (tmp_path / "midi" / "a").mkdir(parents=True)
    for seed in range(FILES - 1):
        (tmp_path / "midi" / "a" / f"{seed}.mid").write_bytes(midi(seed))
    (tmp_path / "midi" / "z.mid").write_bytes(b"MThd broken")
    return tmp_path / "midi"


def measured():
    """Return seconds by hand: powers of two, and medians that are not means."""
    ours = {"ours": [8.0, 100.0, 1.0], "ours_command": [16.0], "ours_extraction": [4.0]}
    ours |= {"ours_1": [8.0], "ours_1_command": [12.0], "ours_2": [4.0], "ours_2_command": [8.0]}
    ours |= {"ours_4": [2.0], "ours_4_command": [4.0], "ours_archive": [10.0]}
    ours |= {"ours_sample": [2.0], "ours_sample_command": [4.0], "ours_sample_extraction": [0.5]}
    parsing = {"parsing": [2.0, 4.0, 400.0], "parsing_sample": [0.5]}
    parsing |= {"parsing_1": [4.0], "parsing_2": [2.5], "parsing_4": [1.25]}
    return {"files": 1024, "sample_files": 64, "seconds": {"note_seq_sample": [64.0, 32.0, 99.0], **ours, **parsing}}


def test_rates_are_files_by_the_median():
    rate = derive(measured())["files_per_second"]
    assert (rate["ours"], rate["parsing"], rate["note_seq_sample"]) == (128.0, 256.0, 1.0)
    assert (rate["parsing_sample"], rate["ours_sample"], rate["ours_sample_extraction"]) == (128.0, 32.0, 128.0)
    assert rate["ours_archive"] == 102.4


def test_ratios():
    assert derive(measured())["ratios"] == {
        # Parsing does 256 files a second of all and 128 of the sample: note_seq would do 2 a second of all.
        "ours_to_note_seq": {
            "all_files": 64.0,
            "all_files_against_sample": 128.0,
            "sample": 32.0,
            "sample_extraction": 128.0,
        },
        "ours_to_parsing": {"all_files": 0.5, "all_files_command": 0.25, "all_files_extraction": 1.0},
        "speedup_of_2_processes": {"ours": 2.0, "ours_command": 1.5, "parsing": 1.6},
        "speedup_of_4_processes": {"ours": 4.0, "ours_command": 3.0, "parsing": 3.2},
        "efficiency_of_2_processes": {"ours": 1.0, "ours_command": 0.75, "parsing": 0.8},
        "efficiency_of_4_processes": {"ours": 1.0, "ours_command": 0.75, "parsing": 0.8},
    }


def test_time_for_lakh_counts_the_start_once():
    assert lakh_minutes(total=60.0, command=180.0, files=LAKH_FILES) == 3.0
    assert lakh_minutes(total=60.0, command=180.0, files=LAKH_FILES * 2) == 2.5
    minutes = derive(measured())["lakh_minutes"]
    assert minutes == {"1": lakh_minutes(8.0, 16.0, 1024), "4": lakh_minutes(2.0, 4.0, 1024)}


def test_on_one_core_alone_no_speedup_is_claimed():
    given = measured()
    given["seconds"] = {name: values for name, values in given["seconds"].items() if not re.search(r"_\d", name)}
    derived, whole = derive(given), derive(measured())
    assert derived["lakh_minutes"] == {"1": whole["lakh_minutes"]["1"]}
    assert derived["ratios"] == {name: whole["ratios"][name] for name in ("ours_to_note_seq", "ours_to_parsing")}


def test_without_note_seq_its_ratio_is_none():
    given = measured()
    given["seconds"] = {name: values for name, values in given["seconds"].items() if "sample" not in name}
    derived = derive({**given, "sample_files": 0})
    assert derived["ratios"]["ours_to_note_seq"] is None
    assert derived["ratios"]["ours_to_parsing"]["all_files"] == 0.5


def test_rounding_leaves_whole_numbers_and_text():
    assert rounded({"a": [123456.7, 0.00123456], "b": 178561, "c": None, "d": "x"}) == {
        "a": [123500.0, 0.001235],
        "b": 178561,
        "c": None,
        "d": "x",
    }


def test_one_core_is_given_back():
    before = os.sched_getaffinity(0)
    with one_core():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


def test_parsing_counts_broken_files_and_more_processes_than_chunks_do_no_harm(folder):
    seconds, broken = parsing_seconds(sorted(folder.rglob("*.mid")), num_proc=4)
    assert broken == 1
    assert 0 < seconds < 10


def test_copies_of_files_with_one_name_stay_apart(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.mid").write_text(name, encoding="utf-8")
    there = copied([tmp_path / "a" / "same.mid", tmp_path / "b" / "same.mid"], tmp_path / "copies")
    assert [path.read_text(encoding="utf-8") for path in there] == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", "does not exist"),
        ("empty", "no .mid, .midi, .kar, .rmi or .smf file"),
        ("text.tar.gz", "cannot be unpacked"),
        ("one", "only one MIDI file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(given, message, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.mid").write_bytes(midi(0))
    (tmp_path / "text.tar.gz").write_text("no archive", encoding="utf-8")
    assert main(["--input", str(tmp_path / given), "--output", str(tmp_path / "speed.json")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["missing", "midi/z.mid"])
def test_interpreter_without_note_seq(name, folder, tmp_path, capsys):
    options = ["--note_seq_python", str(tmp_path / name), "--output", str(tmp_path / "speed.json")]
    assert main(["--input", str(folder), *options]) == 2
    assert "is no Python with note_seq" in capsys.readouterr().err


@pytest.mark.parametrize(("output", "message"), [("midi", "is a folder"), ("midi/z.mid/speed.json", "cannot be made")])
def test_report_that_cannot_be_written(output, message, folder, tmp_path, capsys):
    assert main(["--input", str(folder), "--output", str(tmp_path / output), "--note_seq_files", "0"]) == 2
    assert message in capsys.readouterr().err


def test_report_is_not_lost_where_it_cannot_be_written(tmp_path, capsys):
    def disk_that_is_full(*_, **__):
        raise OSError(28, "No space left on device")

    def measure():
        return {"seconds": 2.0}

    with patch("pathlib.Path.write_text", disk_that_is_full):
        assert report_to(tmp_path / "report.json", measure, lambda report: f"{report['seconds']} s") == 2
    said = capsys.readouterr()
    assert json.loads(said.out) == measure()
    assert "report.json cannot be written (No space left on device); its content is printed above" in said.err
    assert report_to(tmp_path / "report.json", measure, lambda report: f"{report['seconds']} s") == 0
    assert capsys.readouterr().out.startswith("2.0 s\n")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == measure()


def test_stopped_while_it_measures_leaves_no_report(tmp_path, capsys):
    def stopped():
        raise KeyboardInterrupt

    assert report_to(tmp_path / "report.json", stopped, str) == 130
    assert capsys.readouterr().err == "stopped; nothing was measured\n"
    assert not (tmp_path / "report.json").exists()


def test_what_the_builder_says_is_handed_on(tmp_path, capsys):
    (tmp_path / "midi").mkdir()
    for name in "ab":
        (tmp_path / "midi" / f"{name}.mid").write_bytes(b"MThd broken")
    output = tmp_path / "speed.json"
    assert main(["--input", str(tmp_path / "midi"), "--output", str(output), "--note_seq_files", "0"]) == 2
    assert "no melody found" in capsys.readouterr().err


@pytest.mark.parametrize("is_archive", [False, True])
@pytest.mark.slow
def test_whole_run_without_note_seq(is_archive, folder, tmp_path):
    given = folder
    if is_archive:
        given = tmp_path / "midi.tar.gz"
        with tarfile.open(given, "w:gz") as archive:
            archive.add(folder, "midi")
    output = tmp_path / "reports" / "speed.json"
    options = ["--note_seq_files", "0", "--repeats", "2", *["--one_core"] * is_archive]
    assert main(["--input", str(given), "--output", str(output), *options]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert (report["input"], report["files"], report["sample_files"]) == (given.name, FILES, 0)
    assert report["unparsed_files"] == 1
    assert report["note_seq"] is None
    assert report["ratios"]["ours_to_note_seq"] is None
    counts = () if is_archive else (1, 2, 4)
    timed_runs = ["parsing", "ours"] + [f"{name}_{count}" for count in counts for name in ("parsing", "ours")]
    for name in timed_runs:
        assert len(report["seconds"][name]) == 2
    assert len(report["seconds"].get("ours_archive", [])) == is_archive
    assert all(value > 0 for values in report["seconds"].values() for value in values)
    assert all(report["seconds"]["ours_command"][turn] > report["seconds"]["ours"][turn] for turn in range(2))
    assert report["files_per_second"]["ours"] > 0
    assert 0 < report["processor_share"]["ours"][0] < 1.2  # one core


def test_processor_seconds_do_not_count_what_a_file_waits_for(folder, monkeypatch):
    paths = sorted(folder.rglob("*.mid"))
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: time.sleep(0.1) or read(path))
    began, ended, used, broken = parse_chunk(paths)
    assert ended - began >= 0.1 * FILES
    assert 0 < used < 0.1 * FILES
    assert broken == 1


@pytest.mark.slow
def test_memory_is_measured_for_each_number_of_files(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "PART_FILES", 5)
    output, work = tmp_path / "growth.json", tmp_path / "work"
    options = ["--input", str(folder), "--output", str(output), "--work", str(work), "--num_proc", "1"]
    assert growth.main([*options, "--files", "30", "10"]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert list(report["files"]) == ["10", "30"]
    for build in report["files"].values():
        assert 20 < build["parent_private_mib"] < build["parent_mib"] < 2048
    with pytest.raises(SystemExit):
        growth.main([*options, "--files", "7"])


def test_copies_of_a_file_are_other_files_of_its_group():
    content = midi(3, notes=700)
    copies = [growth.copy_of(3, content, copy) for copy in range(4)]
    assert copies[0] == content
    assert len(set(copies)) == 4
    assert growth.copy_of(3, content, 2) == copies[2]
    assert growth.copy_of(3, b"MThd broken", 1) != growth.copy_of(3, b"MThd broken", 2)
    corpus = Corpus()
    corpus.add([str(number) for number in range(4)], copies)
    assert groups(*corpus.hashes, corpus.verbatim).tolist() == [0] * 4


def test_beats_that_a_file_states_follow_its_tempos():
    score = Score(480)
    for beat, qpm in ((0, 120), (4, 60)):
        score.tempos.append(Tempo(480 * beat, qpm))
    score.tracks.append(Track())
    score.tracks[0].notes.append(Note(480 * 6, 480, 60, 90))
    assert beats.stated_beats(score.dumps_midi()).tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 5]


def test_tracked_beats_are_compared_with_annotated_ones(tmp_path, capsys):
    score = Score(480)
    score.tempos.append(Tempo(0, 100))
    score.tracks.append(Track())
    for beat in range(64):
        score.tracks[0].notes.append(Note(480 * beat, 400, 40 if beat % 4 == 0 else 60 + beat % 7, 90))
    score.tempos[0].mspq = 600_000
    song = tmp_path / "pop" / "001"
    song.mkdir(parents=True)
    (song / "001.mid").write_bytes(score.dumps_midi())
    annotated = "\n".join(f"{0.6 * beat} 0 {float(beat % 4 == 0)}" for beat in range(64))
    (song / "beat_midi.txt").write_text(annotated, encoding="utf-8")
    output = tmp_path / "beats.json"
    assert beats.main(["--input", str(tmp_path / "pop"), "--output", str(output)]) == 0
    found = json.loads(output.read_text(encoding="utf-8"))["results"]
    assert found["beats"]["f_measure"] > 0.9
    assert found["beats, any metrical level"]["f_measure"] >= found["beats"]["f_measure"]
    assert found["floor: beats of the stated tempo"]["f_measure"] == pytest.approx(1)
    (song / "beat_midi.txt").write_text("no beats", encoding="utf-8")
    assert beats.main(["--input", str(tmp_path / "pop"), "--output", str(output)]) == 2
    assert "no song's beats can be read" in capsys.readouterr().err


@pytest.mark.slow
def test_attention_report_and_what_bad_input_says(tmp_path, capsys):
    output = tmp_path / "reports" / "attention.json"
    sizes = ["--repeats", "2", "--batch_size", "2", "--step_lengths", "37", "--memory_lengths", "521"]
    assert attention.main(["--output", str(output), "--threads", "1", *sizes]) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert [(found["tokens"], found["is_padded"]) for found in report["step"]] == [(37, False), (37, True)]
    for found in report["step"]:
        assert 0 < found["ratio"]["lower_quartile"] <= found["ratio"]["median"] <= found["ratio"]["upper_quartile"]
    (memory,) = report["memory_mib"]
    for kind in attention.KINDS:
        assert memory[kind]["textbook"] > memory["one_tensor_l_l_d"] > memory[kind]["ours"]
    assert {found["tokens"] for found in report["exactness"]} == set(attention.EXACT_LENGTHS)
    assert 0 < report["largest_difference"] < attention.TARGET_DIFFERENCE
    capsys.readouterr()
    assert attention.main(["--output", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        attention.main(["--repeats", "1"])
    assert "--repeats must be at least 2, not 1" in capsys.readouterr().err
    failed = subprocess.CompletedProcess([], returncode=-9, stdout="", stderr="")
    with (
        patch.object(subprocess, "run", lambda *_, **__: failed),
        pytest.raises(UserError, match="ours at 512 tokens: exit code -9, no message; was there"),
    ):
        attention.measure_memory(512, 1, tqdm(disable=True))


def test_forms_of_attention_that_are_compared_differ_only_in_what_they_should():
    """The textbook form has the same gradients as ours; without the term they are others."""
    results = {}
    for form in attention.FORMS:
        torch.manual_seed(0)
        layer = attention.make_attention(is_causal=True, max_relative_distance=11, heads=2)
        hidden_states = torch.randn(3, 37, 2 * attention.HEAD_SIZE, requires_grad=True)
        with attention.attention_form(form):
            layer(hidden_states).square().sum().backward()
        results[form] = [hidden_states.grad, layer.distance_embedding.grad]
    for form in ("sdpa_with_bias", "textbook"):
        for ours, other in zip(results["ours"], results[form], strict=True):
            assert (ours - other).abs().max() < 1e-5 * ours.abs().max()
    assert (results["ours"][0] - results["none"][0]).abs().max() > 0.01 * results["ours"][0].abs().max()
    assert results["none"][1] is None
