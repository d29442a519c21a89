/**
 * What can be measured of a melody: its notes read from tokens, its key, and seven attributes; as
 * `melody_line_melody_vae.py` has it.
 *
 * A *line* has `pitch`, `start` and `duration` (arrays; grid steps from the first bar line), `timeSignature`, such as
 * `6/8`, `stepsPerBeat` and `bars`.
 *
 * @typedef {{pitch: number[], start: number[], duration: number[], timeSignature: string, stepsPerBeat: number,
 *   bars: number}} Line
 */

// A REMI token as one integer: its kind times BASE_TOKEN_VALUES, and its value. 0 is none.
export const BASE_TOKEN_KINDS = { Bar: 1, TimeSig: 2, Position: 3, Pitch: 4, Duration: 5 }
export const BASE_TOKEN_VALUES = 1 << 12

export const TIME_SIGNATURES = { 4: [2, 3, 4, 5, 6, 7], 8: [3, 5, 6, 7, 9, 12] } // denominator: numerators
export const MAX_NOTE_BEATS = 16
export const [MIN_PITCH, MAX_PITCH] = [21, 108]

const NATURALS = { C: 0, D: 2, E: 4, F: 5, G: 7, A: 9, B: 11 }
const ACCIDENTALS = { "": 0, "#": 1, "\u266f": 1, b: -1, "\u266d": -1 }
export const PITCH_NAMES = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
export const KEY_NAMES = ["major", "minor"].flatMap((mode) => PITCH_NAMES.map((name) => `${name} ${mode}`))

// Krumhansl and Kessler's probe-tone ratings (Krumhansl, Cognitive Foundations of Musical Pitch, 1990, table 2.1).
const MAJOR_PROFILE = [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88]
const MINOR_PROFILE = [6.33, 2.68, 3.52, 5.38, 2.6, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17]

export const sum = (values) => values.reduce((total, value) => total + value, 0)
/** The remainder that is never negative. */
export const modulo = (value, by) => ((value % by) + by) % by

/** Read a tonic such as `C`, `F#` or `Bb` as a pitch class, C being 0; null if it is none. */
export function tonicOf(name) {
  const natural = name.slice(0, 1).toUpperCase()
  const accidental = name.slice(1)
  if (!Object.hasOwn(NATURALS, natural) || !Object.hasOwn(ACCIDENTALS, accidental)) return null
  return modulo(NATURALS[natural] + ACCIDENTALS[accidental], 12)
}

/** Write a time signature in quarters or eighths where that is possible: halves as quarters (2/2 is 4/4), 8/16 as 4/8. */
export function plainTimeSignature(numerator, denominator) {
  while (denominator < 4) [numerator, denominator] = [2 * numerator, 2 * denominator]
  while (denominator > 8 && numerator % 2 === 0) [numerator, denominator] = [numerator / 2, denominator / 2]
  return [numerator, denominator]
}

/** Find the time signature of the vocabulary that is nearest to another one, see `readable_time_signature` in Python. */
export function readableTimeSignature(numerator, denominator) {
  const equal = (TIME_SIGNATURES[denominator] ?? []).filter((each) => numerator % each === 0)
  if (equal.length) return [Math.max(...equal), denominator]
  if (numerator === 1) return readableTimeSignature(4, denominator)
  if (numerator % 2 === 0 && denominator > 4) return readableTimeSignature(numerator / 2, denominator / 2)
  const beats = Math.max(denominator > 8 ? (numerator * 8) / denominator : numerator, 1)
  const nearest = Math.min(denominator, 8)
  const misfit = (each) => Math.abs(beats - Math.max(roundHalfEven(beats / each), 1) * each) / each
  const known = [...TIME_SIGNATURES[nearest]].reverse()
  return [known.reduce((best, each) => (misfit(each) < misfit(best) ? each : best)), nearest]
}

function roundHalfEven(value) {
  const below = Math.floor(value)
  if (value - below !== 0.5) return Math.round(value)
  return below % 2 ? below + 1 : below
}

/**
 * Read the notes of a valid melody from its REMI tokens.
 *
 * @param {Iterable<number>} baseTokens Tokens as integers, see `BASE_TOKEN_VALUES`.
 * @param {number} stepsPerBeat
 * @returns {Line} The time signature is that of its first bar, 4/4 if it has no bar.
 */
export function readLine(baseTokens, stepsPerBeat) {
  let signature = 0
  let bar = -1
  const [start, pitch, duration] = [[], [], []]
  for (const baseToken of baseTokens) {
    const kind = Math.floor(baseToken / BASE_TOKEN_VALUES)
    const value = baseToken % BASE_TOKEN_VALUES
    if (kind === BASE_TOKEN_KINDS.Bar) bar += 1
    else if (kind === BASE_TOKEN_KINDS.TimeSig) signature ||= value
    else if (kind === BASE_TOKEN_KINDS.Position) start.push(bar * (signature >> 6) * stepsPerBeat + value)
    else if (kind === BASE_TOKEN_KINDS.Pitch) pitch.push(value)
    else if (kind === BASE_TOKEN_KINDS.Duration) duration.push(value)
  }
  signature ||= 64 * 4 + 4
  const whole = Math.min(start.length, pitch.length, duration.length) // one that is cut short may end within a note
  return {
    pitch: pitch.slice(0, whole),
    start: start.slice(0, whole),
    duration: duration.slice(0, whole),
    timeSignature: `${signature >> 6}/${signature % 64}`,
    stepsPerBeat,
    bars: bar + 1,
  }
}

/**
 * Write a line as REMI tokens, those of each bar for itself.
 *
 * @param {Line} line Its notes are sorted, one at a time, and begin within its bars.
 * @returns {number[][]}
 */
export function writeLine(line) {
  const [numerator, denominator] = line.timeSignature.split("/").map(Number)
  const steps = stepsPerBar(line)
  const token = (kind, value) => BASE_TOKEN_KINDS[kind] * BASE_TOKEN_VALUES + value
  const signature = token("TimeSig", 64 * numerator + denominator)
  const bars = Array.from({ length: line.bars }, () => [token("Bar", 0), signature])
  line.start.forEach((start, at) => {
    const note = [token("Position", start % steps), token("Pitch", line.pitch[at]), token("Duration", line.duration[at])]
    bars[Math.floor(start / steps)].push(...note)
  })
  return bars
}

/** Grid steps in each bar of a line. */
export function stepsPerBar(line) {
  return Number(line.timeSignature.split("/")[0]) * line.stepsPerBeat
}

/** Centre twelve numbers and give them length 1; zeros where they are all the same. */
function normalised(values) {
  const mean = sum(values) / 12
  const length = Math.sqrt(sum(values.map((each) => (each - mean) ** 2)))
  return values.map((each) => (length >= 1e-9 ? (each - mean) / length : 0))
}

const KEY_PROFILES = [MAJOR_PROFILE, MINOR_PROFILE].flatMap((ratings) => {
  const centred = normalised(ratings)
  return PITCH_NAMES.map((_, tonic) => PITCH_NAMES.map((_, pitch) => centred[modulo(pitch - tonic, 12)]))
})

/** Find the key of a line by the Krumhansl-Schmuckler algorithm; a tie goes to the first of `KEY_NAMES`. */
export function keyOf(line) {
  const weight = new Array(12).fill(0)
  line.pitch.forEach((pitch, at) => (weight[pitch % 12] += line.duration[at]))
  const centred = normalised(weight)
  let [best, highest] = [0, -Infinity]
  KEY_PROFILES.forEach((profile, place) => {
    const correlation = sum(profile.map((rating, pitch) => rating * centred[pitch]))
    if (correlation > highest + 1e-9) [best, highest] = [place, correlation]
  })
  return KEY_NAMES[best]
}

/** Find the pitch class of the major key that has the key signature of a key such as `D minor`; 0 is C. */
export function majorTonic(key) {
  const [tonic, mode] = key.split(" ")
  return (PITCH_NAMES.indexOf(tonic) + (mode === "minor" ? 3 : 0)) % 12
}

/**
 * Transpose a line from one tonic to another, by six semitones at most.
 *
 * @param {Line} line
 * @param {number} fromTonic Pitch class.
 * @param {number} toTonic Pitch class.
 * @param {number[]} pitches That the vocabulary has, ascending.
 * @returns {Line | null} null if the line has no notes, or one that would leave the vocabulary.
 */
export function transposeLine(line, fromTonic, toTonic, pitches) {
  const up = modulo(toTonic - fromTonic + 6, 12) - 6
  const moved = line.pitch.map((pitch) => pitch + up)
  const fits = moved.length && pitches[0] <= Math.min(...moved) && Math.max(...moved) <= pitches.at(-1)
  return fits ? { ...line, pitch: moved } : null
}

const pairs = (values) => values.slice(1).map((after, at) => [values[at], after])

/** Kendall's tau-a of onset and pitch: 1 for a line that only rises, -1 for one that only falls. */
function contour(line) {
  const count = line.pitch.length
  let rises = 0
  line.pitch.forEach((pitch, at) => {
    for (let before = 0; before < at; before++) rises += Math.sign(pitch - line.pitch[before])
  })
  return count > 1 ? rises / ((count * (count - 1)) / 2) : 0
}

/** The entropy, in bits, of the inter-onset intervals in steps; 0 for fewer than two notes. */
function rhythmicComplexity(line) {
  const counts = new Map()
  for (const [before, after] of pairs(line.start)) counts.set(after - before, (counts.get(after - before) ?? 0) + 1)
  const total = Math.max(sum([...counts.values()]), 1)
  return counts.size > 1 ? -sum([...counts.values()].map((count) => (count / total) * Math.log2(count / total))) : 0
}

/** The share of bars whose onsets and intervals occurred in a bar before; empty bars do not count. */
function repetition(line) {
  const steps = stepsPerBar(line)
  const bars = new Map()
  line.start.forEach((start, at) => {
    const bar = Math.floor(start / steps)
    if (!bars.has(bar)) bars.set(bar, [])
    bars.get(bar).push([start % steps, line.pitch[at]])
  })
  const shapes = [...bars.values()].map((notes) => {
    const intervals = pairs(notes.map(([, pitch]) => pitch)).map(([before, after]) => after - before)
    return `${notes.map(([start]) => start)} ${intervals}`
  })
  return shapes.length ? 1 - new Set(shapes).size / shapes.length : 0
}

/** The share of notes that begin off the beat and sound on, or into, the next beat's first half. */
function syncopation(line) {
  const beat = line.stepsPerBeat
  const onsets = new Set(line.start)
  const found = line.start.filter((start, at) => {
    const coming = (Math.floor(start / beat) + 1) * beat
    return start % beat !== 0 && !onsets.has(coming) && start + line.duration[at] > coming
  })
  return line.start.length ? found.length / line.start.length : 0
}

export const ATTRIBUTES = {
  note_density: (line) => (line.bars ? line.pitch.length / line.bars : 0),
  rhythmic_complexity: rhythmicComplexity,
  pitch_range: (line) => (line.pitch.length ? Math.max(...line.pitch) - Math.min(...line.pitch) : 0),
  mean_pitch: (line) => (line.pitch.length ? sum(line.pitch) / line.pitch.length : 60),
  contour,
  repetition,
  syncopation,
}
