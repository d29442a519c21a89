import re
import struct
import wave
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import FancyBboxPatch
from symusic import Note, Score, Tempo, TimeSignature, Track

from rendering.curves import draw_curves, write_curves
from rendering.page import Item, Picture, Section, Table, write_page
from rendering.palette import PALETTES
from rendering.piano_roll import (
    agreement,
    bar_lines,
    describe,
    draw_comparison,
    draw_strip,
    notes_of,
    write_piano_roll,
)
from rendering.sound import ATTACK_SECONDS, PEAK, RELEASE_SECONDS, play, synthesise, write_wav

RATE = 22050


def make_score(notes, tpq=480, tempos=(), signatures=(), is_drum=False):
    """A score of (start, duration, pitch) in quarters."""
    score = Score(tpq)
    for start, qpm in tempos:
        score.tempos.append(Tempo(round(start * tpq), qpm))
    for start, numerator, denominator in signatures:
        score.time_signatures.append(TimeSignature(round(start * tpq), numerator, denominator))
    track = Track(is_drum=is_drum)
    for start, duration, pitch in notes:
        track.notes.append(Note(round(start * tpq), round(duration * tpq), pitch, 90))
    score.tracks.append(track)
    return score


TUNE = make_score([(0, 1, 60), (1, 0.5, 62), (2, 2, 67), (4, 4, 72)], tempos=[(0, 120)])


def strongest_hertz(audio):
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), n=2**19))
    return np.argmax(spectrum) * RATE / 2**19


class TestSound:
    @pytest.mark.parametrize("pitch", [21, 45, 60, 69, 76, 96, 108])
    def test_pitch(self, pitch):
        audio = synthesise(make_score([(0, 4, pitch)]), RATE)
        expected = 440 * 2 ** ((pitch - 69) / 12)
        assert 12 * abs(np.log2(strongest_hertz(audio) / expected)) < 0.05  # semitones

    @pytest.mark.parametrize("pitch", [97, 103, 107])
    def test_nothing_folds_back_from_above_nyquist(self, pitch):
        rate = 8000
        audio = synthesise(make_score([(0, 4, pitch)]), rate)
        spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
        hertz = np.fft.rfftfreq(len(audio), 1 / rate)
        fundamental = 440 * 2 ** ((pitch - 69) / 12)
        is_near_harmonic = np.abs(hertz / fundamental - np.round(hertz / fundamental)) * fundamental < 40
        assert spectrum[~is_near_harmonic].max() < 0.01 * spectrum.max()

    def test_a_pitch_above_nyquist_is_silent(self):
        assert synthesise(make_score([(0, 1, 107)]), 8000).any()  # 3,951 Hz
        assert not synthesise(make_score([(0, 1, 108)]), 8000).any()  # 4,186 Hz

    @pytest.mark.parametrize("rate", [11025, 22050, 44100])
    def test_length_is_the_score_and_the_release(self, rate):
        assert len(synthesise(TUNE, rate)) == 4 * rate + round(RELEASE_SECONDS * rate)

    def test_resolution_does_not_matter(self):
        coarse = make_score([(0, 1, 60), (1, 0.5, 62)], tpq=4)
        fine = make_score([(0, 1, 60), (1, 0.5, 62)], tpq=960)
        np.testing.assert_allclose(synthesise(coarse), synthesise(fine), atol=1e-6)

    def test_tempo_changes(self):
        # two quarters at 60, then four at 240: 2 s + 1 s
        score = make_score([(0, 1, 60), (5, 1, 72)], tempos=[(0, 60), (2, 240)])
        audio = synthesise(score, RATE)
        assert len(audio) == 3 * RATE + round(RELEASE_SECONDS * RATE)
        onset = 2 * RATE + 3 * RATE // 4  # of the second note; the first is long gone
        assert not audio[2 * RATE : onset].any()
        assert np.abs(audio[onset : onset + RATE // 10]).max() > 0.3

    def test_level(self):
        chord = make_score([(0, 2, pitch) for pitch in (48, 60, 64, 67, 72, 76)])
        for score in (TUNE, chord, make_score([(0, 0.25, 108)])):
            assert np.abs(synthesise(score)).max() == pytest.approx(PEAK, abs=1e-6)

    def test_polyphony_is_a_sum(self):
        low, high, both = (synthesise(make_score([(0, 2, p) for p in pitches])) for pitches in ([50], [77], [50, 77]))
        weights, residual, *_ = np.linalg.lstsq(np.stack([low, high], axis=1), both)
        assert (weights > 0.1).all()
        assert residual[0] < 1e-6 * np.square(both).sum()

    def test_no_clicks(self):
        audio = synthesise(make_score([(0, 1, 40), (1, 1, 40), (2.01, 0.02, 43)]), RATE)
        assert audio[0] == 0
        assert abs(audio[-1]) < 1e-6
        step = np.abs(np.diff(audio)).max()
        # all partials of G2 lie below 1 kHz: a full-scale sine of 1 kHz moves by 0.28 a sample, a click by more
        assert step < 2 * np.pi * 1000 / RATE
        assert np.abs(audio[: round(ATTACK_SECONDS * RATE / 4)]).max() < 0.1

    def test_a_note_fades_and_its_partials_fade_faster(self):
        audio = synthesise(make_score([(0, 8, 57)]), RATE)  # 220 Hz
        early, late = audio[RATE // 10 :][: RATE // 2], audio[3 * RATE :][: RATE // 2]
        assert np.square(late).sum() < 0.2 * np.square(early).sum()
        brightness = [np.abs(np.fft.rfft(part))[[110, 330]] for part in (early, late)]  # 220 and 660 Hz, 2 Hz a bin
        assert brightness[1][1] / brightness[1][0] < 0.5 * brightness[0][1] / brightness[0][0]

    def test_velocity(self):
        score = make_score([(0, 1, 60), (2, 1, 60)])
        score.tracks[0].notes[1].velocity = 30
        audio = synthesise(score, RATE)
        assert np.abs(audio[RATE:]).max() < 0.5 * np.abs(audio[:RATE]).max()

    @pytest.mark.parametrize("score", [Score(480), make_score([]), make_score([(0, 4, 40)], is_drum=True)])
    def test_nothing_to_hear(self, score, tmp_path):
        audio = synthesise(score, RATE)
        assert audio.dtype == np.float32
        assert len(audio) == round(RELEASE_SECONDS * RATE)
        assert not audio.any()
        write_wav(tmp_path / "silence.wav", audio, RATE)
        with wave.open(str(tmp_path / "silence.wav")) as file:
            assert file.getnframes() == len(audio)

    def test_bad_sample_rate(self):
        with pytest.raises(ValueError, match="got 0"):
            synthesise(TUNE, 0)


class TestWav:
    def test_reads_back(self, tmp_path):
        audio = synthesise(TUNE, 11025)
        write_wav(tmp_path / "a.wav", audio, 11025)
        with wave.open(str(tmp_path / "a.wav")) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 11025)
            assert file.getnframes() == len(audio)
            samples = np.frombuffer(file.readframes(len(audio)), dtype="<i2")
        np.testing.assert_allclose(samples / 32767, audio, atol=1 / 32767)

    def test_full_scale_does_not_wrap(self, tmp_path):
        write_wav(tmp_path / "a.wav", np.array([1.0, -1.0, 0.0], dtype=np.float32))
        with wave.open(str(tmp_path / "a.wav")) as file:
            assert struct.unpack("<3h", file.readframes(3)) == (32767, -32767, 0)

    @pytest.mark.parametrize(
        ("audio", "message"),
        [(np.zeros((3, 2)), r"got \(3, 2\)"), (np.array([0.0, 1.5]), "of 1.5"), (np.array([np.nan]), "of nan")],
    )
    def test_refusals(self, audio, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            write_wav(tmp_path / "a.wav", audio)
        assert not (tmp_path / "a.wav").exists()


class TestBars:
    def test_common_time(self):
        assert bar_lines(TUNE) == [0, 4, 8]
        assert bar_lines(TUNE, bars=5) == [0, 4, 8, 12, 16, 20]
        assert bar_lines(TUNE, bars=1) == [0, 4]

    def test_changes_of_time_signature(self):
        score = make_score([(0, 10, 60)], signatures=[(0, 3, 4), (6, 6, 8), (10.5, 2, 4)])
        assert bar_lines(score) == [0, 3, 6, 9, 10.5]  # the third bar of 6/8 is cut by the change
        assert bar_lines(score, bars=6) == [0, 3, 6, 9, 10.5, 12.5, 14.5]

    def test_first_time_signature_later_than_the_start(self):
        assert bar_lines(make_score([(0, 7, 60)], signatures=[(4, 3, 4)])) == [0, 4, 7]

    def test_impossible_time_signature_is_passed_over(self):
        assert bar_lines(make_score([(0, 7, 60)], signatures=[(0, 3, 4), (3, 0, 4)])) == [0, 3, 6, 9]

    def test_empty(self):
        assert bar_lines(Score(480)) == [0, 4, 8, 12, 16]

    def test_no_bars(self):
        with pytest.raises(ValueError, match="got 0"):
            bar_lines(TUNE, bars=0)

    def test_describe(self):
        assert describe(TUNE) == "2 bars, 4 notes from C4 to C5"
        assert describe(make_score([(0, 1, 66)])) == "1 bar, 1 note all F♯4"
        assert describe(Score(480)) == "an empty melody"


def drawn_notes(panel):
    """(start, pitch, fill, edge) of every note in a panel."""
    return [
        (patch.get_x(), round(patch.get_y() + 0.44, 6), to_hex(patch.get_facecolor()), to_hex(patch.get_edgecolor()))
        for patch in panel.patches
        if isinstance(patch, FancyBboxPatch)
    ]


class TestPianoRoll:
    original = make_score([(0, 1, 60), (1, 1, 62), (2, 1, 64), (3, 1, 65)])
    # the second note has another pitch, the third comes later, the fourth is shorter only
    changed = make_score([(0, 1, 60), (1, 1, 63), (2.25, 0.75, 64), (3, 0.5, 65)], tpq=96)

    def test_agreement(self):
        assert agreement(self.original, self.changed) == ([True, False, False, True], [True, False, False, True])
        assert agreement(self.original, Score(480)) == ([False] * 4, [])

    def test_agreement_counts_doubled_notes_once_each(self):
        twice = make_score([(0, 1, 60), (0, 2, 60)])
        once = make_score([(0, 1, 60)])
        assert agreement(twice, once) == ([True, False], [True])

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_colours_say_what_agrees(self, theme):
        palette = PALETTES[theme]
        figure = draw_comparison(self.original, self.changed, theme=theme)
        same, other = (palette.agree, palette.agree), (palette.differ_fill, palette.differ)
        above, below = (drawn_notes(panel) for panel in figure.axes)
        assert above == [(0, 60, *same), (1, 62, *other), (2, 64, *other), (3, 65, *same)]
        assert below == [(0, 60, *same), (1, 63, *other), (2.25, 64, *other), (3, 65, *same)]
        assert palette.agree != palette.differ
        texts = [text.get_text() for text in figure.texts]
        assert texts == ["same onset and pitch (2)", "only above (2) or only below (2)"]

    def test_comparison_shares_axes(self):
        figure = draw_comparison(self.original, make_score([(0, 16, 90)]))
        limits = [(panel.get_xlim(), panel.get_ylim()) for panel in figure.axes]
        assert limits[0] == limits[1]
        assert limits[0][0] == (0, 16)

    def test_every_note_lies_inside_its_panel(self):
        score = make_score([(0, 1, 0), (1, 1, 127), (2, 5.5, 60)])
        (panel,) = draw_strip([score]).axes
        (left, right), (low, high) = panel.get_xlim(), panel.get_ylim()
        boxes = [patch.get_window_extent() for patch in panel.patches if isinstance(patch, FancyBboxPatch)]
        assert len(boxes) == 3
        assert (left, right) == (0, 8)
        assert low <= 0
        assert high >= 127
        for start, pitch, *_ in drawn_notes(panel):
            assert left <= start < right
            assert low <= pitch <= high

    def test_corners_are_round_on_paper(self):
        figure = draw_strip([make_score([(0, 4, 60)])])
        (panel,) = figure.axes
        (note,) = [patch for patch in panel.patches if isinstance(patch, FancyBboxPatch)]
        figure.draw_without_rendering()
        corners = note.get_transform().transform_path(note.get_path()).vertices
        box = corners.max(axis=0) - corners.min(axis=0)
        assert box[0] > box[1]  # four quarters are longer than a semitone is high
        inset = [np.unique(np.round(np.sort(corners[:, axis]), 3)) for axis in (0, 1)]
        assert inset[0][1] - inset[0][0] == pytest.approx(inset[1][1] - inset[1][0], rel=0.05)

    def test_bars_beats_and_labels(self):
        (panel,) = draw_strip([make_score([(0, 6, 60)], signatures=[(0, 6, 8)])]).axes
        verticals = sorted(line.get_xdata()[0] for line in panel.lines if line.get_xdata()[0] == line.get_xdata()[1])
        assert verticals == [0, 1.5, 3, 4.5]  # bars at 0 and 3; 6/8 has two beats
        assert [label.get_text() for label in panel.get_xticklabels()] == ["1", "2"]
        assert [label.get_text() for label in panel.get_yticklabels()] == ["C4"]

    def test_strip_moves_from_the_first_colour_to_the_last(self):
        figure = draw_strip([TUNE] * 5, [f"{step}/4" for step in range(5)])
        colours = [{edge for *_, edge in drawn_notes(panel)} for panel in figure.axes]
        assert [len(colour) for colour in colours] == [1] * 5
        assert colours[0] == {PALETTES["light"].stages[0]}
        assert colours[4] == {PALETTES["light"].stages[-1]}
        assert len(set.union(*colours)) == 5
        assert [panel.texts[0].get_text() for panel in figure.axes] == ["0/4", "1/4", "2/4", "3/4", "4/4"]

    def test_polyphony_is_drawn_whole(self):
        chord = make_score([(0, 4, pitch) for pitch in (60, 64, 67)])
        assert [pitch for _, pitch, *_ in drawn_notes(draw_strip([chord]).axes[0])] == [60, 64, 67]
        assert len(notes_of(chord)) == 3

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_file(self, theme, tmp_path):
        path = tmp_path / "roll.png"
        write_piano_roll(path, [self.original, self.changed], compare=True, theme=theme)
        pixels = imread(path)
        height, width, _ = pixels.shape
        assert width > 800
        assert height > 300
        palette = PALETTES[theme]
        np.testing.assert_allclose(pixels[0, 0], to_rgba(palette.paper), atol=1 / 255)
        for colour in (palette.agree, palette.differ, palette.differ_fill):
            is_painted = np.abs(pixels - to_rgba(colour)).max(axis=2) < 2 / 255
            assert is_painted.sum() > 50

    def test_same_bytes_again(self, tmp_path):
        for name in ("a.png", "b.png"):
            write_piano_roll(tmp_path / name, TUNE, ["Tune"])
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    def test_title_is_literal(self, tmp_path):
        write_piano_roll(tmp_path / "a.png", TUNE, [r"$\frac{$ 5 & <b>"])
        assert imread(tmp_path / "a.png").std() > 0.01

    def test_empty_scores(self, tmp_path):
        write_piano_roll(tmp_path / "one.png", Score(480))
        write_piano_roll(tmp_path / "two.png", [Score(480), TUNE], compare=True)
        assert drawn_notes(draw_strip([Score(480)]).axes[0]) == []
        colours = {fill for *_, fill, _ in drawn_notes(draw_comparison(Score(480), TUNE).axes[1])}
        assert colours == {PALETTES["light"].differ_fill}

    @pytest.mark.parametrize(
        ("scores", "titles", "compare", "message"),
        [
            ([], None, False, "got no scores"),
            ([TUNE], ["a", "b"], False, "2 titles for 1 scores"),
            ([TUNE], None, True, "needs two scores, got 1"),
        ],
    )
    def test_refusals(self, scores, titles, compare, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            write_piano_roll(tmp_path / "a.png", scores, titles, compare=compare)

    def test_unknown_theme(self):
        with pytest.raises(ValueError, match="got 'sepia'"):
            draw_strip([TUNE], theme="sepia")


class TestCurves:
    def test_values_are_drawn_with_their_names_and_last_values(self):
        figure = draw_curves({"train": ([0, 10, 20], [3.0, 2.0, 1.5]), "validation": ([0, 20], [3.1, float("nan")])})
        assert isinstance(figure, Figure)
        (axes,) = figure.axes
        assert [line.get_xydata()[:, 1].tolist()[0] for line in axes.lines] == [3.0, 3.1]
        assert axes.lines[0].get_xydata().tolist() == [[0, 3.0], [10, 2.0], [20, 1.5]]
        assert [text.get_text() for text in axes.texts] == ["train  1.5", "validation  3.1"]

    def test_names_do_not_overlap_and_stay_on_the_paper(self):
        names = ["a rather long name of a curve", "b", "c", "d"]
        figure = draw_curves({name: ([0, 1], [1.0, 0.5 + row / 1000]) for row, name in enumerate(names)})
        figure.draw_without_rendering()
        boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
        assert len(boxes) == 4
        for lower, upper in pairwise(boxes):
            assert lower.y1 <= upper.y0 + 1
        assert all(box.x1 <= figure.bbox.x1 for box in boxes)

    def test_file(self, tmp_path):
        write_curves(
            tmp_path / "loss.png", {"train": ([0, 1], [1.0, 0.5])}, title="Loss $", y_label="nats", theme="dark"
        )
        pixels = imread(tmp_path / "loss.png")
        assert (np.abs(pixels - to_rgba(PALETTES["dark"].series[0])).max(axis=2) < 2 / 255).sum() > 500

    @pytest.mark.parametrize("series", [{}, {"train": ([], [])}])
    def test_nothing_measured(self, series):
        texts = [text.get_text() for text in draw_curves(series).axes[0].texts]
        assert texts == ["nothing measured yet"]

    def test_unequal_lengths(self):
        with pytest.raises(ValueError, match="'train' has 2 steps but 1 values"):
            draw_curves({"train": ([0, 1], [1.0])})


class Outline(HTMLParser):
    """What a page holds; asserts that every element is closed in order."""

    VOID = frozenset({"meta", "img", "source", "br"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


HOSTILE = """<script>alert(1)</script>" onload='x' & </style>"""


class TestPage:
    @pytest.fixture
    def folder(self, tmp_path):
        for name in ("a.png", "a_dark.png", "a tune #1?.wav", "a.mid", "deeper/b.wav"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"content")
        return tmp_path

    def sections(self, text="Text"):
        picture = Picture("a.png", f"{text} seen", dark="a_dark.png", caption=text)
        table = Table([text, "Accuracy", "Note"], [[text, 0.5, text], ["Floor", "12.5 %", "b"]], caption=text)
        return [
            Section(
                f"First {text}", f"{text}\n\nSecond paragraph", [Item(text, picture, "a tune #1?.wav", "a.mid", text)]
            ),
            Section("Second", items=[Item("Only sound", sound="deeper/b.wav"), Item("Nothing")]),
            Section("Third", tables=[table], pictures=[picture, Picture("a.png", "plain")]),
        ]

    def outline(self, folder, text="Text", **options):
        write_page(folder / "index.html", f"Title {text}", f"Intro {text}", self.sections(text), **options)
        return Outline((folder / "index.html").read_text(encoding="utf-8"))

    def test_structure(self, folder):
        page = self.outline(folder, footer="The end")
        assert (folder / "index.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>\n<html lang=")
        assert [len(page.all(tag)) for tag in ("html", "head", "title", "body", "main", "h1", "footer", "nav")] == [
            1
        ] * 8
        assert [len(page.all(tag)) for tag in ("h2", "article", "audio", "table", "img")] == [3, 3, 2, 1, 3]
        identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(identifiers) == len(set(identifiers))
        for tag, attributes in page.elements:
            if tag == "section":
                assert attributes["aria-labelledby"] in identifiers
        text = " ".join(page.text)
        for words in ("Title Text", "Intro Text", "Second paragraph", "Only sound", "12.5 %", "The end"):
            assert words in text

    def test_hostile_text_stays_text(self, folder):
        harmless, hostile = self.outline(folder), self.outline(folder, HOSTILE, footer=HOSTILE)
        assert len(hostile.all("script")) == len(harmless.all("script")) == 1
        assert len(hostile.all("style")) == 1
        for _, attributes in hostile.elements:
            assert not [name for name in attributes if name.startswith("on")]
        assert any(HOSTILE in text for text in hostile.text)
        assert [image["alt"] for image in hostile.all("img")] == [f"{HOSTILE} seen", f"{HOSTILE} seen", "plain"]

    def test_every_link_is_relative_and_leads_to_a_file(self, folder):
        page = self.outline(folder)
        targets = [
            attributes[name]
            for _, attributes in page.elements
            for name in ("src", "href", "srcset")
            if name in attributes
        ]
        files = set()
        for target in targets:
            parts = urlparse(target)
            assert (parts.scheme, parts.netloc, parts.query) == ("", "", "")
            assert not target.startswith("/")
            if target.startswith("#"):
                assert target[1:] in [attributes.get("id") for _, attributes in page.elements]
            else:
                assert (folder / unquote(parts.path)).is_file()
                files.add(unquote(parts.path))
        assert files == {"a.png", "a_dark.png", "a tune #1?.wav", "a.mid", "deeper/b.wav"}
        assert not re.search(r"https?:|//[a-z]|@import", (folder / "index.html").read_text(encoding="utf-8"))

    def test_accessible(self, folder):
        page = self.outline(folder)
        for audio in page.all("audio"):
            assert audio["preload"] == "none"
            assert "controls" in audio
            assert audio["aria-label"].startswith("Listen to ")
        assert all(image["alt"] for image in page.all("img"))
        assert all(cell["scope"] in ("col", "row") for cell in page.all("th"))
        assert page.all("html")[0]["lang"] == "en"
        labels = [link["aria-label"] for link in page.all("a") if "download" in link]
        assert len(labels) == len(set(labels)) == 3

    def test_dark_pictures_where_given(self, folder):
        sources = self.outline(folder).all("source")
        assert sources == [{"srcset": "a_dark.png", "media": "(prefers-color-scheme: dark)"}] * 2

    def test_columns_of_numbers_are_set_to_the_right(self, folder):
        page = self.outline(folder)
        assert [cell.get("class") for cell in page.all("td")] == ["number", None] * 2

    def test_absolute_path_inside_the_folder(self, folder):
        write_page(folder / "index.html", "T", "", [Section("S", items=[Item("I", midi=folder / "a.mid")])])
        page = Outline((folder / "index.html").read_text(encoding="utf-8"))
        assert [link["href"] for link in page.all("a") if "download" in link] == ["a.mid"]
        assert page.all("nav") == []

    def test_page_named_relative_to_the_working_folder(self, folder, monkeypatch):
        monkeypatch.chdir(folder.parent)
        write_page(Path(folder.name) / "index.html", "T", "", [Section("S", items=[Item("I", midi="a.mid")])])
        assert 'href="a.mid"' in (folder / "index.html").read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        ("section", "message"),
        [
            (Section("S", items=[Item("I", midi="missing.mid")]), "'missing.mid' is not a file"),
            (Section("S", items=[Item("I", midi="../outside.mid")]), "'../outside.mid' lies outside"),
            (Section("S", items=[Item("I", sound="https://example.org/a.wav")]), "is not a file"),
            (Section("S", tables=[Table(["a", "b"], [["1"]])]), r"2 cells like its header, got \['1'\]"),
        ],
    )
    def test_refusals(self, section, message, folder):
        with pytest.raises(ValueError, match=message):
            write_page(folder / "index.html", "T", "", [section])
        assert not (folder / "index.html").exists()


class TestPlay:
    def test_the_instrument_that_a_score_names_is_heard(self, monkeypatch):
        def score(program: int):
            made = Score(480)
            made.tracks.append(Track(program=program, notes=[Note(0, 960, 69, 100)]))
            return made

        flute, violin = play(score(73)), play(score(40))
        assert len(flute) == len(violin) == round((1 + RELEASE_SECONDS) * 22050)
        assert np.abs(flute).max() == pytest.approx(PEAK, abs=1e-6)
        assert abs(np.corrcoef(flute, violin)[0, 1]) < 0.9
        monkeypatch.setattr("rendering.sampler.soundfile", None)  # as where it is not installed
        assert np.array_equal(play(score(73)), synthesise(score(73)))
        assert not play(Score(480)).any()
