"""Names of tracks: a tune is a tune in any letters, and drums are no tune."""

import unicodedata

import pytest

from modeling.track_names_melody_vae import decode_name, is_percussion, name_hint

TUNES = [
    "Melody", "melodia", "Mélodie", "Melodía", "MELODIE", "Lead_Vox", "Vocals", "Vokal", "Voice", "voz", "VOIX", "Voce",
    "Gesang", "Stimme", "Singstimme", "chant", "Canto", "sång", "Sang", "Solo", "Tune", "メロディ", "ﾒﾛﾃﾞｨ", "主旋律",
    "ボーカル", "멜로디", "мелодия", "Голос",
]  # fmt: skip
OTHERS = [
    "Bass", "Basse", "Contrebasse", "Begleitung", "Akkorde", "Accords", "Batería", "Schlagzeug", "Cuerdas", "伴奏",
    "ドラム", "strings", "L.H.",
]  # fmt: skip
NEITHER = ["", "Piano", "Track 3", "Accordion", "Akkordeon", "Harpsichord", "Vorspiel", "Antik", "MIDI out", "Gauchel"]


@pytest.mark.parametrize(("names", "hint"), [(TUNES, 1), (OTHERS, -1), (NEITHER, 0)])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("case", [str, str.upper, str.lower])
def test_letters_capitals_and_accents_make_no_difference(names, hint, form, case):
    for name in names:
        assert name_hint(case(unicodedata.normalize(form, name))) == hint, name


def test_a_name_may_say_both():
    assert name_hint("Backing vocals") == 0
    assert name_hint("Lead guitar") == 1
    assert name_hint("Bass drum") == -1


@pytest.mark.parametrize("name", ["", "Melody", "Mélodie", "ﾒﾛﾃﾞｨ", "メロディ", "主旋律", "Flûte à bec", "Señor\u2019s"])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "cp932"])
def test_names_of_any_encoding_are_decoded(name, encoding):
    try:
        raw = name.encode(encoding)
    except UnicodeEncodeError:
        pytest.skip("this encoding cannot write the name")
    if name == "Flûte à bec" and encoding == "cp932":
        pytest.skip("written by this encoding it is another name")
    assert decode_name(raw) == name


def test_any_bytes_are_decoded():
    assert decode_name(bytes(range(256))) == bytes(range(256)).decode("latin-1")
    assert decode_name(b"M\xe9lodie") == "Mélodie"


BEAT = {36: 64, 38: 64, 42: 256}


@pytest.mark.parametrize(
    ("name", "program", "pitches", "expected"),
    [
        ("", 0, BEAT, True),
        ("Melody", 5, BEAT, True),
        ("Drums", 0, {45: 30, 47: 20, 36: 9}, True),
        ("BATERÍA", 0, {45: 30, 47: 20, 36: 9}, True),
        ("Drums", 0, {72: 30, 74: 20}, False),
        ("Steel drums", 114, {45: 30, 47: 20}, False),
        ("Bass", 33, {40: 30, 42: 10, 44: 20, 47: 30, 35: 30, 37: 5}, False),  # in E major
        ("Bass", 33, {38: 30, 40: 10, 42: 20, 43: 5, 45: 30, 35: 20}, False),  # in D major
        ("", 0, {}, False),
    ],
)
def test_drums_are_told_by_name_and_pitches(name, program, pitches, expected):
    assert is_percussion(name, program, pitches) is expected
