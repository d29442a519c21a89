/** What the name of a track says: a tune, an accompaniment, drums; as `track_names_melody_vae.py` has it. */

/** Write a name without what makes no difference: capitals, accents, width of letters, underscores. */
function fold(text) {
  return text.toLowerCase().replaceAll("_", " ").normalize("NFKD").replace(/\p{Mn}/gu, "")
}

/** Make a search for names: beginnings and whole words of Latin script, and anything in other scripts. */
function pattern(stems, words, others) {
  const latin = [...stems.split(" "), ...words.split(" ").map((word) => `\\b(?:${word})\\b`)]
  return new RegExp([...latin, ...others.split(" ").map(fold)].join("|"))
}

const TUNE_NAME = pattern(
  "melod melot vo[ck]al voice \\blead \\bvox \\bsolo gesang singstimme oberstimme chante(?:u|r) cantante dallam",
  "singer singing tune voc voz voces voix voce stimme chant canto cantor sang sopran spiew zpev laulu",
  "メロディ メロデイ 旋律 歌 ボーカル ヴォーカル 主唱 人声 멜로디 보컬 мелод голос вокал соло μελωδ",
)
const OTHER_NAME = pattern(
  "bass (?<!harpsi)(?<!clavi)chord string drum perc back \\bpad \\bbgv \\brhy accomp harmon[yi] choir left begleit " +
    "schlagzeug streicher",
  "l\\.?h\\.? akkorde? accords? acordes? accordi bajo bateria batterie batteria cordes cuerdas archi coro chor choeur " +
    "gauche sinistra izquierda links",
  "伴奏 ドラム ベース 鼓 贝斯 드럼 베이스 аккомп бас ударн",
)
const DRUM_NAME = pattern(
  "drum percus schlagzeug hi-?hat cymbal snare",
  "perc kit kick toms? bateria batterie batteria bongos? congas? tambourine? shaker",
  "ドラム パーカッション 鼓 드럼 ударн",
)

// General MIDI's drum kit where most of a beat is: kicks, snares, hi-hats, cymbals and toms.
const [KICKS, SNARES, HATS] = [[35, 36], [38, 40], [42, 44, 46]]
const BEAT = [...KICKS, 37, ...SNARES, 39, ...HATS, 49, 51]
const KIT = Array.from({ length: 25 }, (_, at) => 35 + at)

/** Return 1 for the name of a tune (melody, vocal, lead, ...), -1 for one of an accompaniment, else 0. */
export function nameHint(name) {
  const folded = fold(name)
  return Number(TUNE_NAME.test(folded)) - Number(OTHER_NAME.test(folded))
}

/** Tell whether a track that is not on the drums' channel plays drums all the same: by its name or its pitches. */
export function isPercussion({ name, program, notes }) {
  if (!notes.length || (program >= 112 && program < 115)) return false // tinkle bell, agogo, steel drums
  const share = (group) => notes.filter(({ pitch }) => group.includes(pitch)).length / notes.length
  if (share(BEAT) >= 0.9 && share(HATS) >= 0.25 && share(KICKS) >= 0.05 && share([38]) >= 0.05) return true
  return DRUM_NAME.test(fold(name)) && share(KIT) >= 0.8
}
