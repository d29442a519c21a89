"""What the name of a track says: a tune, an accompaniment, drums; in whatever letters and languages.

The standard library is all that is needed here, and the data set's builder reads names by this file too.
"""

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache


def fold(text: str) -> str:
    """Write a name without what makes no difference: capitals, accents, width of letters, underscores."""
    letters = unicodedata.normalize("NFKD", text.casefold().replace("_", " "))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _pattern(stems: str, words: str, others: str) -> re.Pattern[str]:
    """Compile a search for names: beginnings and whole words of Latin script, and anything in other scripts."""
    latin = "|".join([*stems.split(), *(rf"\b{word}\b" for word in words.split())])
    return re.compile("|".join([latin, *map(fold, others.split())]))


TUNE_NAME = _pattern(
    r"melod melot vo[ck]al voice \blead \bvox \bsolo gesang singstimme oberstimme chante(?:u|r) cantante dallam",
    r"singer singing tune voc voz voces voix voce stimme chant canto cantor sang sopran spiew zpev laulu",
    "メロディ メロデイ 旋律 歌 ボーカル ヴォーカル 主唱 人声 멜로디 보컬 мелод голос вокал соло μελωδ",
)
OTHER_NAME = _pattern(
    r"bass (?<!harpsi)(?<!clavi)chord string drum perc back \bpad \bbgv \brhy accomp harmon[yi] choir left begleit "
    r"schlagzeug streicher",
    r"l\.?h\.? akkorde? accords? acordes? accordi bajo bateria batterie batteria cordes cuerdas archi coro chor choeur "
    r"gauche sinistra izquierda links",
    "伴奏 ドラム ベース 鼓 贝斯 드럼 베이스 аккомп бас ударн",  # noqa: RUF001 (Cyrillic is meant)
)
DRUM_NAME = _pattern(
    r"drum percus schlagzeug hi-?hat cymbal snare",
    r"perc kit kick toms? bateria batterie batteria bongos? congas? tambourine? shaker",
    "ドラム パーカッション 鼓 드럼 ударн",
)
PITCHED_DRUMS = range(112, 115)  # programs that a name with drums in it may mean: tinkle bell, agogo, steel drums

JAPANESE = re.compile("[\0-\x7f\u3000-\u9fff\uff00-\uffef]*")  # and what of Latin script is beside it

# General MIDI's drum kit where most of a beat is: kicks, snares, hi-hats, cymbals and toms.
KICKS, SNARES, HATS = (35, 36), (38, 40), (42, 44, 46)
KIT = frozenset(range(35, 60))
BEAT = frozenset([*KICKS, 37, *SNARES, 39, *HATS, 49, 51])


@lru_cache(maxsize=4096)  # most names are among a few hundred
def name_hint(name: str) -> int:
    """Return 1 for the name of a tune (melody, vocal, lead, ...), -1 for one of an accompaniment, else 0."""
    folded = fold(name)
    return bool(TUNE_NAME.search(folded)) - bool(OTHER_NAME.search(folded))


def is_percussion(name: str, program: int, pitches: Mapping[int, int]) -> bool:
    """Tell whether a track that is not on the drums' channel plays drums all the same.

    Args:
        name: Of the track.
        program: General MIDI program, from 0.
        pitches: How many notes of each MIDI pitch the track has.

    Returns:
        Whether its name says so and its pitches are a drum kit's, or its pitches can be nothing else: kicks, snares and
        hi-hats, which lie in no key together.
    """
    total = sum(pitches.values())
    if not total or program in PITCHED_DRUMS:
        return False

    def share(group) -> float:
        return sum(pitches.get(pitch, 0) for pitch in group) / total

    if share(BEAT) >= 0.9 and share(HATS) >= 0.25 and share(KICKS) >= 0.05 and share((38,)) >= 0.05:
        return True
    return bool(DRUM_NAME.search(fold(name))) and share(KIT) >= 0.8


def decode_name(raw: bytes) -> str:
    """Decode a name, whose encoding MIDI files do not state: UTF-8, Shift JIS or a Western one.

    Args:
        raw: As it stands in the file.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        pass
    # Shift JIS begins two-byte characters with bytes that Western names have no letters for, or writes half-width kana,
    # several in a row.
    if re.search(rb"[\x81-\x9f][\x40-\xfc]|[\xa6-\xdf]{3}", raw):
        try:
            text = raw.decode("cp932")
        except UnicodeDecodeError:
            pass
        else:
            if JAPANESE.fullmatch(text):
                return text
    try:
        return raw.decode("cp1252")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
