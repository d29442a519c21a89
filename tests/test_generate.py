import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import datasets
import pytest
import soundfile
from matplotlib.image import imread
from symusic import Note, Score, Tempo, TimeSignature, Track

import export_onnx
import generate
from generation.sections import LOG_NAME
from generation.session import Options, Session
from modeling.line_writing_melody_vae import line_to_score
from modeling.tune_finding_melody_vae import find_melody
from tests.builders.generation import BARS, LINES, STEPS, make_line, save_model

pytestmark = pytest.mark.usefixtures("small_pictures")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny_model"), steps=120)


@pytest.fixture(scope="module")
def music_transformer(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("music_transformer"), steps=20, latent_size=0)


@pytest.fixture(scope="module")
def exported(model, music_transformer, tmp_path_factory):
    """Folders of both models with their graphs."""
    folders = {}
    for name, source in (("model", model), ("music_transformer", music_transformer)):
        folders[name] = tmp_path_factory.mktemp("exported") / name
        shutil.copytree(source, folders[name])
        assert export_onnx.main(["--model", str(source), "--output", str(folders[name] / "onnx")]) == 0
    return folders


@pytest.fixture(params=["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def using(request):
    """Give the options for a model by its name that have the runtime compute."""

    def options(name="model"):
        folder = request.getfixturevalue("exported")[name] if request.param == "onnx" else request.getfixturevalue(name)
        return ("--model", folder, "--runtime", request.param)

    return options


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("melodies")
    datasets.Dataset.from_list(LINES).to_parquet(folder / "validation-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def midi(tmp_path_factory):
    """Two MIDI files: the tune of `make_line` under a drum track, beginning in the second bar."""
    folder = tmp_path_factory.mktemp("midi")
    for number in (1, 2):
        score = line_to_score(make_line(number))
        score = score.shift_time(4 * score.ticks_per_quarter)
        score.time_signatures, score.tempos = [TimeSignature(0, 4, 4)], [Tempo(0, 100.0 + number)]
        score.tracks.append(Track(is_drum=True, notes=[Note(0, 99, 36, 90)]))
        score.dump_midi(str(folder / f"tune{number}.mid"))
    return folder


def run(capsys, *argv):
    """Run a command that must succeed; returns the output folder."""
    argv = [str(each) for each in argv]
    assert generate.main(argv) == 0, capsys.readouterr().err
    output = Path(argv[argv.index("--output") + 1])
    assert capsys.readouterr().out.splitlines()[-1] == f"Listen and look: {output / 'index.html'}"
    return output


def melodies(folder):
    """Check every melody and every link of an output folder; returns name to MIDI notes (start in steps, pitch)."""
    found = {}
    for path in sorted(folder.glob("*.mid")):
        score = Score(path)
        notes = [(note.start, note.pitch) for track in score.tracks for note in track.notes]
        end = max((note.end for track in score.tracks for note in track.notes), default=0) / score.ticks_per_quarter
        assert end <= 4 * BARS
        with wave.open(str(path.with_suffix(".wav"))) as sound:
            seconds = sound.getnframes() / sound.getframerate()
        assert seconds == pytest.approx(end * 60 / score.tempos[0].qpm + 0.25, abs=0.01)
        for picture in (path.with_suffix(".png"), path.with_name(f"{path.stem}-dark.png")):
            assert imread(picture).std() > 0.01  # neither empty nor of one colour
        found[path.stem] = [(start * 4 // score.ticks_per_quarter, pitch) for start, pitch in notes]
    html = (folder / "index.html").read_text(encoding="utf-8")
    links = set(re.findall(r'(?:src|href|srcset)="([^"#]+)"', html))
    assert links
    assert all((folder / link).is_file() for link in links)
    assert {f"{name}{ending}" for name in found for ending in (".mid", ".wav")} <= links
    return found


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def notes_of(line, bars):
    end = bars * STEPS
    return [(start, pitch) for start, pitch in zip(line["start"], line["pitch"], strict=True) if start < end]


class TestSample:
    def test_melodies(self, using, tmp_path, capsys):
        options = ("--num", 3, "--seed", 5, "--tempo", 97, "--program", 40)
        folder = run(capsys, "sample", *using(), "--output", tmp_path / "new" / "folder", *options)
        found = melodies(folder)
        assert list(found) == ["sample-seed5", "sample-seed6", "sample-seed7"]
        assert len({tuple(notes) for notes in found.values()}) == 3
        assert all(len(notes) > 4 for notes in found.values())
        score = Score(folder / "sample-seed5.mid")
        assert score.tempos[0].qpm == pytest.approx(97, abs=0.01)
        assert score.tracks[0].program == 40

    def test_each_seed_has_its_melody(self, using, tmp_path, capsys):
        some = hashes(run(capsys, "sample", *using(), "--output", tmp_path / "some", "--num", 3, "--seed", 5))
        one = hashes(run(capsys, "sample", *using(), "--output", tmp_path / "one", "--num", 1, "--seed", 6))
        assert one["sample-seed6.mid"] == some["sample-seed6.mid"]

    def test_bars(self, model, tmp_path, capsys):
        found = melodies(run(capsys, "sample", "--model", model, "--output", tmp_path, "--bars", 2))
        lasts = [start for notes in found.values() for start, _ in notes]
        assert STEPS <= max(lasts) < 2 * STEPS

    def test_mp3_lasts_as_long(self, model, tmp_path, capsys):
        folder = run(capsys, "sample", "--model", model, "--output", tmp_path, "--num", 1, "--audio", "mp3")
        sound, rate = soundfile.read(folder / "sample-seed0.mp3")
        end = Score(folder / "sample-seed0.mid").to("second").end()
        assert len(sound) / rate == pytest.approx(end + 0.25, abs=0.1)  # an encoder pads to whole frames
        assert 0.5 < abs(sound).max() <= 1.0
        assert 'src="sample-seed0.mp3"' in (folder / "index.html").read_text(encoding="utf-8")
        assert not list(folder.glob("*.wav"))

    def test_same_seed_same_bytes(self, using, tmp_path, capsys):
        def sample(name, seed):
            options = ("--num", 1, "--bars", 2, "--seed", seed)
            return hashes(run(capsys, "sample", *using(), "--output", tmp_path / name, *options))

        first, again, other = sample("a", 1), sample("b", 1), sample("c", 2)
        assert first == again
        assert first["sample-seed1.mid"] != other["sample-seed2.mid"]

    def test_temperature(self, model, tmp_path, capsys):
        def sample(name, temperature):
            options = ("--num", 1, "--temperature", temperature)
            return melodies(run(capsys, "sample", "--model", model, "--output", tmp_path / name, *options))

        assert sample("tame", 0.1) != sample("bold", 1.5)

    def test_model_without_latent(self, music_transformer, tmp_path, capsys):
        assert len(melodies(run(capsys, "sample", "--model", music_transformer, "--output", tmp_path, "--num", 2))) == 2


class TestReconstruct:
    def test_midi(self, using, midi, tmp_path, capsys):
        files = [midi / "tune1.mid", midi / "tune2.mid"]
        folder = run(capsys, "reconstruct", *using(), "--output", tmp_path, "--midi", *files)
        found = melodies(folder)
        assert len(found) == 4
        for number in (1, 2):
            original, rebuilt = found[f"reconstruction-{number}-original"], found[f"reconstruction-{number}-rebuilt"]
            assert original == notes_of(make_line(number), BARS)
            agreeing = len(set(original) & set(rebuilt))
            html = (folder / "index.html").read_text(encoding="utf-8")
            assert f"tune{number}.mid: {agreeing} of {len(original)} notes came back" in html
            assert (folder / f"reconstruction-{number}-comparison.png").is_file()
            for take in ("original", "rebuilt"):
                score = Score(folder / f"reconstruction-{number}-{take}.mid")
                assert score.tempos[0].qpm == pytest.approx(100 + number, abs=0.01)

    def test_dataset(self, model, dataset, tmp_path, capsys):
        options = ("--dataset", dataset, "--num", 1, "--bars", 3)
        found = melodies(run(capsys, "reconstruct", "--model", model, "--output", tmp_path, *options))
        originals = [notes_of(line, 3) for line in LINES if line["is_lead"]]
        assert found["reconstruction-1-original"] in originals

    def test_lines_are_leads_of_enough_bars(self, model, dataset, tmp_path):
        def chosen(num, seed):
            options = ("--dataset", str(dataset), "--seed", str(seed))
            argv = ["reconstruct", "--model", str(model), "--output", str(tmp_path), *options]
            session = Session(Options(**vars(generate.make_parser().parse_args(argv))))
            return [line["name"] for line in session.lines(num)]

        leads = [line["melody_id"] for line in LINES if line["is_lead"] and line["bars"] >= BARS]
        assert len(leads) == 8
        assert sorted(chosen(8, 0)) == sorted(leads)
        assert chosen(8, 0) == chosen(8, 0) != chosen(8, 1)
        assert chosen(3, 0) == chosen(8, 0)[:3]


class TestContinue:
    def test_keeps_the_primer(self, using, midi, tmp_path, capsys):
        options = ("--midi", midi / "tune1.mid", "--primer_bars", 3, "--num", 3)
        folder = run(capsys, "continue", *using(), "--output", tmp_path, *options)
        found = melodies(folder)
        primer = notes_of(make_line(1), 3)
        assert found.pop("continuation-primer") == primer
        assert set(found) == {f"continuation-{number}" for number in (1, 2, 3)}
        for notes in found.values():
            assert [note for note in notes if note[0] < 3 * STEPS] == primer
            assert max(notes)[0] >= 3 * STEPS
        assert len({tuple(notes) for notes in found.values()}) > 1

    def test_same_seed_same_bytes(self, model, midi, tmp_path, capsys):
        def continued(name, seed):
            options = ("--midi", midi / "tune2.mid", "--primer_bars", 1, "--bars", 2, "--num", 1, "--seed", seed)
            return hashes(run(capsys, "continue", "--model", model, "--output", tmp_path / name, *options))

        first, again, other = continued("a", 1), continued("b", 1), continued("c", 2)
        assert first == again
        assert first["continuation-1.mid"] != other["continuation-1.mid"]
        assert first["continuation-primer.mid"] == other["continuation-primer.mid"]

    def test_model_without_latent(self, music_transformer, midi, tmp_path, capsys):
        options = ("--midi", midi / "tune1.mid", "--primer_bars", 2, "--bars", 3, "--num", 1)
        found = melodies(run(capsys, "continue", "--model", music_transformer, "--output", tmp_path, *options))
        assert [note for note in found["continuation-1"] if note[0] < 2 * STEPS] == notes_of(make_line(1), 2)


class TestVary:
    def test_similarity(self, using, midi, tmp_path, capsys):
        def varied(similarity):
            options = ("--midi", midi / "tune1.mid", "--num", 2, "--bars", 3, "--similarity", similarity)
            return melodies(run(capsys, "vary", *using(), "--output", tmp_path / str(similarity), *options))

        options = ("--output", tmp_path / "same", "--bars", 3, "--midi", midi / "tune1.mid")
        rebuilt = melodies(run(capsys, "reconstruct", *using(), *options))["reconstruction-1-rebuilt"]
        alike, other = varied(1), varied(0)
        assert alike.pop("original") == other.pop("original") == notes_of(make_line(1), 3)
        assert alike == {"variation-1": rebuilt, "variation-2": rebuilt}
        assert other["variation-1"] != other["variation-2"] != rebuilt


class TestShift:
    def test_more_and_less(self, midi, tmp_path, capsys):
        release = ROOT / "release" / "melody-vae-16bar"
        options = ("--midi", midi / "tune1.mid", "--bars", BARS, "--attribute", "note_density", "--amounts", -1, 1)
        found = melodies(run(capsys, "shift", "--model", release, "--output", tmp_path, *options))
        page = (tmp_path / "index.html").read_text(encoding="utf-8")
        assert found["original"] == notes_of(make_line(1), BARS)
        assert len(found["shift-1"]) < len(found["original"]) < len(found["shift-2"])
        assert "Note density -1" in page
        assert "Note density +1" in page
        rows = re.findall(r"<tr><th[^>]*>([^<]*)</th>((?:<td[^>]*>[^<]*</td>)+)</tr>", page)
        table = {title: re.findall(r">([^<]*)</td>", cells) for title, cells in rows}
        for title, name in (("Note density -1", "shift-1"), ("Note density +1", "shift-2")):
            kept = len(set(found["original"]) & set(found[name]))
            assert table[title][:3] == [str(len(found[name])), str(kept), f"{len(found[name]) / BARS:.1f}"]
        assert table["The melody"][:2] == [str(len(found["original"]))] * 2


class TestConditions:
    def test_a_sample_is_as_it_was_asked_for(self, tmp_path, capsys):
        release = ROOT / "release" / "melody-vae-16bar"
        options = ("--num", 2, "--bars", 4, "--scale", "A minor", "--key", "A minor", "--time_signature", "3/4")
        options += ("--tempo", "slow", "--attributes", "note_density=1", "mean_pitch=-1")
        folder = run(capsys, "sample", "--model", release, "--output", tmp_path, *options)
        for path in folder.glob("*.mid"):
            score = Score(path)
            assert (score.time_signatures[0].numerator, score.time_signatures[0].denominator) == (3, 4)
            assert round(score.tempos[0].qpm) == 76
            assert {note.pitch % 12 for note in score.tracks[0].notes} <= {9, 11, 0, 2, 4, 5, 7}
        page = (folder / "index.html").read_text(encoding="utf-8")
        assert "Asked for: A minor, only pitches of A minor, 3/4, note density +1, mean pitch -1." in page

    def test_what_the_model_does_not_know_is_one_line(self, model, tmp_path, capsys):
        for option, value in (("--key", "A minor"), ("--scale", "H dorian"), ("--time_signature", "4/5")):
            arguments = ["sample", "--model", str(model), "--output", str(tmp_path), option, value]
            assert generate.main(arguments) == 2
            (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
            assert "ask for another, or for nothing of this kind" in line

    def test_what_was_read_is_said_and_doubt_too(self, model, tmp_path, capsys):
        path = tmp_path / "bass.mid"
        score = Score(480)
        notes = [Note(480 * index, 480, (36, 43, 36, 38)[index % 4], 90) for index in range(40)]
        score.tracks = [Track("Bass", 33, notes=notes), Track("Drums", is_drum=True, notes=[Note(0, 99, 36, 90)])]
        score.dump_midi(str(path))
        arguments = ["continue", "--model", str(model), "--output", str(tmp_path / "out"), "--midi", str(path)]
        assert generate.main(arguments) == 0
        out, err = capsys.readouterr()
        assert 'bass.mid: the tune is track=0 "Bass" of 2 (lead score 0.' in out
        assert f"bars 1 to {BARS} are taken" in out
        assert "no track is surely the tune; choose one by --track" in err
        assert "the tune is track=0" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        assert generate.main([*arguments, "--track", "0"]) == 0
        assert "surely" not in capsys.readouterr().err
        assert generate.main([*arguments, "--track", "7"]) == 2

    def test_attributes_that_a_model_has_not(self, model, midi, tmp_path, capsys):
        options = ("--output", str(tmp_path), "--midi", str(midi / "tune1.mid"), "--attribute", "mood")
        assert generate.main(["shift", "--model", str(model), *options]) == 2
        assert "knows no attributes; train its prior with train_prior.py" in capsys.readouterr().err


class TestRuntime:
    @pytest.mark.slow
    def test_onnxruntime_is_used_where_it_does_as_well(self, exported, midi, tmp_path, capsys):
        options = ("--model", exported["model"], "--num", 1, "--bars", 2)
        sampled = run(capsys, "sample", "--output", tmp_path / "a", *options)
        again = run(capsys, "sample", "--output", tmp_path / "b", "--runtime", "torch", *options)
        rebuilt = run(capsys, "reconstruct", "--output", tmp_path / "c", "--midi", midi / "tune1.mid", *options)
        pages = [(folder / "index.html").read_text(encoding="utf-8") for folder in (sampled, again, rebuilt)]
        used = [re.findall(r"--runtime (\w+), seed", page)[0] for page in pages]
        assert used == ["onnx", "torch", "torch"]
        assert len({tuple(re.findall(r"of [\d.]+ million parameters", page)) for page in pages}) == 1

    def test_torch_takes_over_and_says_so(self, model, tmp_path, capsys, monkeypatch):
        folder = tmp_path / "model"
        shutil.copytree(model, folder)
        options = ("--model", folder, "--num", 1, "--bars", 1)
        assert generate.main([*map(str, ("sample", "--output", tmp_path / "a", "--runtime", "onnx", *options))]) == 2
        assert f"--runtime onnx: {folder / 'onnx'}: no graphs there" in capsys.readouterr().err
        (folder / "onnx" / "onnx_melody_vae").mkdir(parents=True)
        monkeypatch.setattr("generation.exported.find_spec", lambda name: None)
        assert generate.main([*map(str, ("sample", "--output", tmp_path / "b", *options))]) == 0
        assert "With torch: onnxruntime is not installed" in capsys.readouterr().out
        monkeypatch.undo()
        arguments = ("shift", "--output", tmp_path / "c", "--midi", "x", "--attribute", "y", "--runtime", "onnx")
        assert generate.main([*map(str, arguments), *map(str, options[:2])]) == 2
        assert "shift takes torch's gradients" in capsys.readouterr().err


class TestInfill:
    @pytest.mark.parametrize("kind", ["model", "music_transformer"])
    def test_other_bars_stay(self, kind, using, midi, tmp_path, capsys):
        options = ("--midi", midi / "tune2.mid", "--fill_bars", "2,4-5", "--num", 3)
        found = melodies(run(capsys, "infill", *using(kind), "--output", tmp_path, *options))
        original = found.pop("original")
        assert original == notes_of(make_line(2), BARS)
        assert set(found) == {"filling-1", "filling-2", "filling-3"}
        kept = [note for note in original if note[0] // STEPS in (0, 2)]
        for notes in found.values():
            assert [note for note in notes if note[0] // STEPS in (0, 2)] == kept
        assert len({tuple(notes) for notes in found.values()}) > 1

    def test_bars_that_are_not_there(self, model, midi, tmp_path, capsys):
        options = ["--model", str(model), "--midi", str(midi / "tune1.mid"), "--output", str(tmp_path)]
        assert generate.main(["infill", *options, "--bars", "3", "--fill_bars", "4"]) == 2
        assert "tune1.mid has 3 bars and no bar 4; name others" in capsys.readouterr().err
        for wrong in ("0", "3-2", "one", "", "1,,2"):
            with pytest.raises(SystemExit) as end:
                generate.main(["infill", *options, "--fill_bars", wrong])
            assert end.value.code == 2
            assert "name bars as in 5-8" in capsys.readouterr().err


class TestInterpolate:
    def test_between_samples(self, using, tmp_path, capsys):
        def interpolate(name, seed):
            options = ("--steps", 2, "--bars", 2, "--seed", seed)
            return run(capsys, "interpolate", *using(), "--output", tmp_path / name, *options)

        first = interpolate("a", 1)
        assert list(melodies(first)) == ["interpolation-1", "interpolation-2"]
        assert (first / "interpolation.png").is_file()
        again, other = hashes(interpolate("b", 1)), hashes(interpolate("c", 2))
        assert hashes(first) == again
        assert again["interpolation.png"] != other["interpolation.png"]

    def test_between_files_ends_are_reconstructions(self, using, midi, tmp_path, capsys):
        files = [midi / "tune1.mid", midi / "tune2.mid"]
        options = (*using(), "--bars", 2, "--midi", *files)
        folder = run(capsys, "interpolate", "--output", tmp_path / "a", "--steps", 3, *options)
        found = melodies(folder)
        rebuilt = melodies(run(capsys, "reconstruct", "--output", tmp_path / "b", *options))
        for step, letter, number in ((1, "a", 1), (3, "b", 2)):
            assert found[f"interpolation-{letter}-original"] == notes_of(make_line(number), 2)
            assert found[f"interpolation-{step}"] == rebuilt[f"reconstruction-{number}-rebuilt"]
        tempos = [Score(folder / f"interpolation-{step}.mid").tempos[0].qpm for step in (1, 2, 3)]
        assert tempos == pytest.approx([101, 101.5, 102], abs=0.01)


class TestTour:
    def test_everything_on_one_page(self, model, dataset, tmp_path, capsys):
        history = [
            {"step": step, "bits_per_note": 9 / step, "reconstruction_nats": 80 / step, "kl_nats": 3.0 * step}
            for step in (1, 2, 3)
        ]
        log = model / LOG_NAME
        options = ("--model", model, "--dataset", dataset, "--num", 1, "--primer_bars", 2, "--steps", 2)
        try:
            log.write_text(json.dumps({"history": history}), encoding="utf-8")
            folder = run(capsys, "tour", "--output", tmp_path / "with", *options)
            log.write_text(json.dumps({"history": [{"step": 1}]}), encoding="utf-8")
            assert generate.main(["tour", "--output", str(tmp_path / "broken"), *map(str, options)]) == 2
            assert "not a log of train.py" in capsys.readouterr().err
        finally:
            log.unlink()
        names = {"sample-seed0", "reconstruction-1-original", "reconstruction-1-rebuilt", "continuation-primer"}
        names |= {"continuation-1", "interpolation-a-original", "interpolation-b-original"}
        assert set(melodies(folder)) == names | {"interpolation-1", "interpolation-2"}
        html = (folder / "index.html").read_text(encoding="utf-8")
        headings = re.findall(r"<h2[^>]*>([^<]+)</h2>", html)
        assert headings == ["Samples", "Reconstructions", "Continuations", "Interpolation", "Training"]
        assert "training-bits.png" in html
        assert "training-nats-dark.png" in html
        assert str(tmp_path) not in html
        assert "bits per note over training steps, ending at 3" in html
        assert "ending at 26.7 nats per melody of reconstruction and 9 of KL" in html


def without(source, target, name):
    """Copy a folder but for one file."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_file() and path.name != name:
            (target / path.name).write_bytes(path.read_bytes())
    return target


class TestBadInput:
    def fails(self, capsys, *argv):
        """Run a command that must fail; returns its one line."""
        assert generate.main([str(each) for each in argv]) == 2
        error = capsys.readouterr().err
        lines = [line for line in re.split(r"[\r\n]+", error) if line and not re.search(r"(examples|ba)/s\]$", line)]
        assert len(lines) == 1, error
        assert lines[0].startswith("error: ")
        return lines[0]

    @pytest.mark.parametrize(
        ("missing", "named"),
        [
            ("config.json", "config.json is missing"),
            ("model.safetensors", "model.safetensors is missing"),
            ("tokenizer.json", "tokenizer.json is missing"),
            ("modeling_melody_vae.py", "modeling_melody_vae.py"),
        ],
    )
    def test_model_without_a_file(self, model, tmp_path, capsys, missing, named):
        # A name of its own: code of a folder of that name, loaded before in this process, would serve as its code.
        folder = without(model, tmp_path / f"without_{missing}", missing)
        line = self.fails(capsys, "sample", "--model", folder, "--output", tmp_path / "out")
        assert str(folder) in line
        assert named in line
        assert not (tmp_path / "out").exists()

    def test_model_with_broken_weights(self, model, tmp_path, capsys):
        folder = without(model, tmp_path / "model", "model.safetensors")
        (folder / "model.safetensors").write_bytes(b"<html>")
        line = self.fails(capsys, "sample", "--model", folder, "--output", tmp_path / "out")
        assert f"{folder}: broken" in line

    def test_another_kind_of_model(self, model, tmp_path, capsys):
        folder = without(model, tmp_path / "model", "config.json")
        (folder / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
        line = self.fails(capsys, "sample", "--model", folder, "--output", tmp_path / "out")
        assert "a model of the kind gpt2" in line

    def test_no_model(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(ROOT)
        folder = tmp_path / "nothing"
        assert f"{folder}: no such folder" in self.fails(capsys, "sample", "--model", folder, "--output", tmp_path)
        (tmp_path / "file").touch()
        line = self.fails(capsys, "sample", "--model", tmp_path / "file", "--output", tmp_path)
        assert "no such folder" in line
        line = self.fails(capsys, "sample", "--model", "tests/nothing", "--output", tmp_path)
        assert "tests/nothing: no such folder" in line  # could be an id on the Hub, but for the folder tests
        line = self.fails(capsys, "sample", "--model", "nobody/nothing-at-all", "--output", tmp_path)
        assert "nobody/nothing-at-all: neither a folder nor a model on the Hub" in line

    @pytest.mark.parametrize("command", ["reconstruct", "interpolate"])
    def test_model_without_latent(self, music_transformer, midi, tmp_path, capsys, command):
        files = [midi / "tune1.mid", midi / "tune2.mid"]
        options = ("--output", tmp_path, "--midi", *files)
        assert "has no latent" in self.fails(capsys, command, "--model", music_transformer, *options)

    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("page.mid", b"<!DOCTYPE html><html></html>", "not a MIDI file"),
            ("empty.mid", b"", "not a MIDI file"),
            ("missing.mid", None, "cannot be read"),
            ("silent.mid", "score", "no notes"),
            ("drums.mid", "drums", "no notes outside the drums"),
            ("shrill.mid", "shrill", "no note between the MIDI pitches"),
        ],
    )
    def test_midi(self, model, midi, tmp_path, capsys, name, content, reason):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content:
            score = Score(480)
            notes = {"score": [], "drums": [Note(0, 480, 36, 90)], "shrill": [Note(0, 480, 120, 90)]}[content]
            score.tracks.append(Track(is_drum=content == "drums", notes=notes))
            score.dump_midi(str(path))
        files = {
            "reconstruct": [midi / "tune1.mid", path],
            "continue": [path],
            "interpolate": [path, midi / "tune1.mid"],
        }
        for command in files if content is None else ["reconstruct"]:
            options = ("--model", model, "--output", tmp_path, "--midi", *files[command])
            options += ("--primer_bars", 2) if command == "continue" else ()
            line = self.fails(capsys, command, *options)
            assert line.startswith(f"error: {path}: ")
            assert line.count(str(path)) == 1
            assert reason in line

    def test_output_is_a_file(self, model, tmp_path, capsys):
        (tmp_path / "file").write_text("mine", encoding="utf-8")
        for output in (tmp_path / "file", tmp_path / "file" / "folder"):
            line = self.fails(capsys, "sample", "--model", model, "--output", output)
            assert f"{output}: not a folder" in line
        assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"

    @pytest.mark.parametrize(
        "options",
        [
            ("sample", "--num", "0"),
            ("sample", "--bars", "0"),
            ("sample", "--bars", str(BARS + 1)),
            ("sample", "--temperature", "-1"),
            ("sample", "--temperature", "nan"),
            ("sample", "--tempo", "0"),
            ("sample", "--program", "128"),
            ("vary", "--similarity", "1.5"),
            ("shift", "--amounts", "nan"),
            ("sample", "--seed", "-1"),
            ("interpolate", "--steps", "0"),
            ("continue", "--primer_bars", "0"),
            ("continue", "--primer_bars", str(BARS)),
        ],
        ids=lambda options: "".join(options),
    )
    def test_numbers(self, model, midi, tmp_path, capsys, options):
        command, name, value = options
        source = ("--midi", midi / "tune1.mid") if command in ("continue", "vary", "shift") else ()
        source += ("--attribute", "contour") if command == "shift" else ()
        line = self.fails(capsys, command, "--model", model, "--output", tmp_path, *source, name, value)
        assert re.match(rf"error: {name} {float(value):g}(\.0)?: ", line)

    def test_primer_longer_than_the_melody(self, model, tmp_path, capsys):
        path = tmp_path / "short.mid"
        line_to_score(make_line(1, bars=2)).dump_midi(str(path))
        assert find_melody(str(path))["bars"] == 2
        options = ("--output", tmp_path, "--midi", path, "--primer_bars", 3)
        assert "short.mid has only 2 bars" in self.fails(capsys, "continue", "--model", model, *options)

    def test_dataset(self, model, dataset, tmp_path, capsys):
        def reconstruct(folder, *options):
            return self.fails(
                capsys, "reconstruct", "--model", model, "--output", tmp_path / "out", "--dataset", folder, *options
            )

        assert "no data set there" in reconstruct(tmp_path / "nothing")
        assert "no data set there" in reconstruct(dataset, "--split", "test")
        assert "9 lead melodies of 5 bars or more are needed, and it has 8" in reconstruct(dataset, "--num", 9)
        poor = tmp_path / "poor"
        poor.mkdir()
        datasets.Dataset.from_list(LINES).remove_columns("pitch").to_parquet(poor / "validation-0-of-1.parquet")
        assert "the column pitch is missing" in reconstruct(poor)

    @pytest.mark.parametrize(
        "options",
        [[], ["sing"], ["sample"], ["continue", "--model", "m", "--output", "o"], ["sample", "--num", "many"]],
        ids=" ".join,
    )
    def test_argparse(self, capsys, options):
        with pytest.raises(SystemExit) as exit_:
            generate.main(options)
        assert exit_.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def test_help_imports_nothing_heavy():
    """A subprocess, for here all is imported already."""
    code = (
        "import sys, generate\n"
        "try: generate.main(['continue', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'matplotlib', 'numpy', 'symusic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert "--primer_bars" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_as_a_command(model, tmp_path):
    """From a shell, with nothing patched: exit codes and the last lines."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": ""}

    def shell(folder):
        command = [sys.executable, "generate.py", "sample", "--model", str(folder), "--output", str(tmp_path / "out")]
        command += ["--num", "1", "--bars", "2"]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False)

    good, bad = shell(model), shell(tmp_path / "missing")
    assert good.returncode == 0, good.stderr
    assert good.stdout.splitlines()[-1] == f"Listen and look: {tmp_path / 'out' / 'index.html'}"
    assert bad.returncode == 2
    reason = "no such folder; give a folder that train.py wrote, or an id on the Hub"
    assert bad.stderr.splitlines() == [f"error: {tmp_path / 'missing'}: {reason}"]
