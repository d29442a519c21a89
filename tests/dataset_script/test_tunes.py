"""The embedded tunes: what a musician would check, and the reader's refusals."""

from collections import Counter
from fractions import Fraction

import pytest
import symusic

from dataset_script.tunes import MODE_NAMES, MODES, embedded_scores, embedded_tunes, parse_abc, to_score

TUNES = {tune.title: tune for tune in embedded_tunes()}
INTERVALS = {MODE_NAMES[key]: intervals for key, (_, intervals) in MODES.items()}

FINALS = {  # semitones of the last note above the tonic, where that is not the tonic
    "Drowsy Maggie": (10, "a circular reel: its last bar leads back to the first"),
    "The First Nowell": (4, "ends on the third"),
    "Theme from the Surprise Symphony": (7, "the first strain ends with a half close"),
}
CHROMATIC = {  # lowest share of notes in the scale, where under 0.9
    "Für Elise": (0.85, "d sharp, the lower neighbour, and g sharp, the leading note"),
    "Greensleeves": (0.85, "melodic minor: f sharp and g sharp rise to a"),
}


def abc(body: str, key: str = "C", meter: str = "4/4", unit: str = "1/4", order: str = "") -> str:
    parts = f"P:{order}\n" if order else ""
    return f"X:1\nT:Test\nO:here\nM:{meter}\nL:{unit}\nQ:1/4=90\n%%MIDI program 73\n{parts}K:{key}\n{body}\n"


def read(body: str, **header: str) -> list[tuple[int, Fraction, Fraction]]:
    (tune,) = parse_abc(abc(body, **header))
    return [(note.pitch, 4 * note.start, 4 * note.duration) for note in tune.notes]


def pitches(body: str, **header: str) -> list[int]:
    return [pitch for pitch, _, _ in read(body, **header)]


def test_collection_is_large_and_varied():
    tunes = embedded_tunes()
    assert len(tunes) == len(TUNES) >= 60, "too few tunes, or two of one title"
    names = [name for name, _ in embedded_scores()]
    assert len(set(names)) == len(names) == len(tunes)
    meters = Counter(f"{tune.meter[0]}/{tune.meter[1]}" for tune in tunes)
    assert meters["4/4"] > 0.55 * len(tunes)
    assert meters["3/4"] >= 8
    assert meters["6/8"] >= 8
    assert meters["2/4"] >= 5
    assert meters["3/8"] >= 1
    assert meters["9/8"] >= 1
    modes = Counter(tune.mode for tune in tunes)
    assert modes["major"] >= 40
    assert modes["minor"] >= 5
    assert min(modes[mode] for mode in ("dorian", "mixolydian")) >= 4
    assert modes["phrygian"] >= 2
    assert modes["lydian"] >= 1
    assert sum(len({note.pitch % 12 for note in tune.notes}) == 5 for tune in tunes) >= 5  # pentatonic, by and large
    assert sum(tune.bars - bool(tune.pickup) >= 16 for tune in tunes) >= 2 / 3 * len(tunes)


def test_each_tune_is_in_its_key(subtests):
    for tune in TUNES.values():
        with subtests.test(tune.title):
            final = (tune.notes[-1].pitch - tune.tonic) % 12
            assert final == FINALS.get(tune.title, (0, ""))[0]
            scale = INTERVALS[tune.mode]
            in_scale = sum((note.pitch - tune.tonic) % 12 in scale for note in tune.notes) / len(tune.notes)
            if tune.title in CHROMATIC:
                assert CHROMATIC[tune.title][0] <= in_scale < 0.9
            else:
                assert in_scale >= 0.9


def test_each_tune_can_be_sung_or_played(subtests):
    for tune in TUNES.values():
        with subtests.test(tune.title):
            low, high = min(note.pitch for note in tune.notes), max(note.pitch for note in tune.notes)
            assert 55 <= low < high <= 84
            assert 4 <= high - low <= 24
            leaps = [abs(b.pitch - a.pitch) for a, b in zip(tune.notes, tune.notes[1:], strict=False)]
            assert max(leaps) <= 16
            assert 40 <= tune.quarters_per_minute <= 200


def test_each_tune_fills_its_bars(subtests):
    for tune in TUNES.values():
        with subtests.test(tune.title):
            bar = Fraction(*tune.meter)
            assert 0 <= tune.pickup < bar
            assert tune.notes[0].start == bar - tune.pickup if tune.pickup else tune.notes[0].start < bar
            ends = [Fraction(0), *(note.start + note.duration for note in tune.notes)]
            assert all(end <= note.start for end, note in zip(ends, tune.notes, strict=False)), "notes overlap"
            assert (tune.bars - 1) * bar < ends[-1] <= tune.bars * bar
            sounding = sum(note.duration for note in tune.notes)
            assert sounding >= Fraction(4, 5) * (tune.bars * bar - (bar if tune.pickup else 0))


def test_midi_holds_the_same_tunes():
    for tune, (_, midi) in zip(embedded_tunes(), embedded_scores(), strict=True):
        score = symusic.Score.from_midi(midi)
        (track,) = score.tracks
        assert score.ticks_per_quarter == 480
        assert track.name == tune.title
        assert track.program == tune.program
        assert [(t.time, t.numerator, t.denominator) for t in score.time_signatures] == [(0, *tune.meter)]
        assert [k.key for k in score.key_signatures] == [tune.sharps]
        assert [t.qpm for t in score.tempos] == [pytest.approx(tune.quarters_per_minute, rel=1e-4)]
        assert [(n.pitch, Fraction(n.start, 1920), Fraction(n.duration, 1920)) for n in track.notes] == [
            (n.pitch, n.start, n.duration) for n in tune.notes
        ]


def test_pickup_ends_on_the_first_full_bar_line():
    (tune,) = parse_abc(abc("G|cccc|c3|"))
    assert [note.start for note in to_score(tune).tracks[0].notes] == [1440, 1920, 2400, 2880, 3360, 3840]
    assert tune.bars == 3


@pytest.mark.parametrize(
    ("title", "incipit"),
    [
        ("Ode to Joy", [64, 64, 65, 67, 67, 65, 64, 62, 60, 60, 62, 64, 64, 62, 62]),
        ("Ah! vous dirai-je, maman", [60, 60, 67, 67, 69, 69, 67, 65, 65, 64, 64, 62, 62, 60]),
        ("Frère Jacques", [60, 62, 64, 60, 60, 62, 64, 60, 64, 65, 67, 64, 65, 67, 67, 69, 67, 65, 64, 60]),
        ("Amazing Grace", [62, 67, 71, 67, 71, 69, 67, 64, 62, 62, 67, 71, 67, 71, 69, 74]),
        ("Für Elise", [76, 75, 76, 75, 76, 71, 74, 72, 69, 60, 64, 69, 71]),
        ("Silent Night", [67, 69, 67, 64, 67, 69, 67, 64, 74, 74, 71, 72, 72, 67]),
        ("Sakura, sakura", [69, 69, 71, 69, 69, 71, 69, 71, 72, 71, 69, 71, 69, 65]),
        ("Rondo alla turca", [71, 69, 68, 69, 72, 74, 72, 71, 72, 76, 77, 76, 75, 76]),
        ("The Blarney Pilgrim", [62, 64, 62, 62, 64, 67, 69, 69, 69, 71, 72]),
    ],
)
def test_famous_incipits(title, incipit):
    assert [note.pitch for note in TUNES[title].notes][: len(incipit)] == incipit


def test_reader_pitches():
    assert pitches("CDEF|GABc|", key="D") == [61, 62, 64, 66, 67, 69, 71, 73]
    assert pitches("CDEF|GABc|", key="Gmix") == [60, 62, 64, 65, 67, 69, 71, 72]
    assert pitches("EFGA|", key="Edor") == [64, 66, 67, 69]
    assert pitches("EFGA|", key="Bbm") == [63, 65, 66, 68]
    assert pitches("C,Cc'c,|") == [48, 60, 84, 60]
    assert pitches("^FFf=F|FBBB|") == [66, 66, 78, 65, 65, 71, 71, 71]
    assert pitches("_B=BB^c|c4|") == [70, 71, 71, 73, 72]


def test_reader_lengths():
    lengths = [duration for _, _, duration in read("C3/2D/E>F|G<A(3B/c/d/e|C2-C/D/4E/4F|", unit="1/4")]
    thirds = [Fraction(1, 3)] * 3  # of a quarter
    assert lengths == [1.5, 0.5, 1.5, 0.5, 0.5, 1.5, *thirds, 1, 2.5, 0.25, 0.25, 1]
    assert read("C4-|C2z2|", unit="1/4") == [(60, 0, 6)]


def test_reader_repeats_and_parts():
    assert pitches("|:C4|D4:|E4|") == [60, 62, 60, 62, 64]
    assert pitches("|:C4::D4:|") == [60, 60, 62, 62]
    assert pitches("C4|:D4|1E4:|2F4|G4|") == [60, 62, 64, 62, 65, 67]
    assert pitches("P:A\nC4|\nP:B\nD4|", order="ABA") == [60, 62, 60]
    assert [start for _, start, _ in read("|:G|C3:|")] == [3, 4, 7, 8]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (abc("C4|C3|C4|"), r"Test: bar 3 lasts 7/4"),
        (abc("C4|C5|"), r"Test: bar 2 lasts 5/4"),
        (abc("C4|C3|"), r"Test: bar 2: .*pick-up"),
        (abc("C4|[CE]4|"), r"Test: bar 2: cannot read"),
        (abc("C4|{g}C4|"), r"Test: bar 2: cannot read"),
        (abc("C4|C2-D2|"), r"Test: bar 2: a tie leads to another pitch"),
        (abc("C4|C4-|"), r"Test: bar 2: a tie leads nowhere"),
        (abc("C4|(3CD|"), r"Test: bar 2: the bar ends in the middle"),
        (abc("C4|>C4|"), r"Test: bar 2: a broken rhythm"),
        (abc("C3>(3DEF C3|"), r"Test: bar 1: a triplet in a broken rhythm"),
        (abc("C4|C0|"), r"Test: bar 2: length"),
        (abc("|:C4|1D4:|E4|"), r"Test: bar 3: .*endings"),
        (abc("|:C4|1D4|"), r"Test: bar 3: a first ending without"),
        (abc("C4|^z4|"), r"Test: bar 2: a rest with"),
        (abc("C4|", key="Cloc"), r"Test: key 'Cloc'"),
        (abc("C4|", key="G#"), r"Test: key 'G#' has more than 7"),
        (abc("C4|", meter="C"), r"Test: M, L, Q"),
        (abc("P:A\nC4|", order="AB"), r"Test: parts \['A'\]"),
        (abc("C4|").replace("O:here\n", ""), r"Test: header lacks a composer"),
        (abc("C4|").replace("T:Test\n", ""), r"header lacks \['T'\]"),
        (abc("C4|").replace("O:here", "V:1"), r"Test: header line 'V:1'"),
    ],
)
def test_reader_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        list(parse_abc(text))
