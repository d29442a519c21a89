/**
 * Which track of a MIDI file is its tune: the data set's lead score, as `melody_track_melody_vae.py` has it.
 *
 * Of each track the notes are laid on the bars of the file and made monophonic; what the tracks are like, by themselves
 * and beside each other, is weighed as the data set's leads were found.
 */

import { MAX_PITCH, MIN_PITCH, plainTimeSignature, sum } from "./melody_line.js"
import { nameHint } from "./track_names.js"

const MIN_PITCHES = 3
const MIN_BARS = 4
const MAX_DISCARDED = 0.5 // a track of which the skyline discards a larger share of the notes is chords, not a melody
const [VOCAL_LOW, VOCAL_HIGH] = [55, 79]
const [LEAP, OCTAVE] = [8, 12]
const LONGEST_QUARTERS = 8 // longer notes count as this long
const INTERVAL_QUARTERS = 4 // onsets further apart make no interval
const [REST_QUARTERS, PHRASE_REST_QUARTERS] = [0.5, 1] // silence that is a rest, and that ends a phrase
const LENGTH_FLOOR = 0.1
const BAR_SLOTS = 64 // longer bars have a coarser grid
const LARGEST_DEVIATION = 4
const LARGEST_LOG_ODDS = 50
const [DOUBLED, MIN_DOUBLED_NOTES] = [0.9, 16]

// The weights that dataset_script/lead_score.json has: mean, standard deviation, weight, weight of half the square.
const FEATURES = {
  log_notes: [5.234943, 1.001761, 0.399539, -0.206405],
  skyline: [0.87234, 0.176175, 0.402125, 0.602682],
  monophony: [0.843155, 0.212059, 0.92878, 0.398459],
  mean_pitch: [60.565218, 13.752188, 0.37845, -0.532943],
  vocal_range: [0.637708, 0.402479, 0.854756, 0.000317],
  log_pitches: [2.461592, 0.511541, -0.994348, -0.843353],
  steps: [0.340538, 0.211274, 0.606412, -0.770845],
  leaps: [0.092517, 0.145839, -0.066248, 0.477877],
  mean_interval: [2.998166, 1.76359, -0.531075, -0.039957],
  log_density: [0.018346, 0.517009, -0.027729, -0.062304],
  log_duration: [-0.232934, 0.62751, -0.06566, -0.354975],
  rests: [0.157592, 0.177412, -0.130202, -0.064166],
  phrase_end: [0.579668, 0.622516, 0.543665, -0.16302],
  same_rhythm: [0.273357, 0.299839, -0.809168, 0.318065],
  new_bars: [0.484056, 0.270632, 0.216115, -0.293283],
  coverage: [0.637685, 0.313908, 0.98263, -1.206905],
  highest: [0.290373, 0.344457, 0.365612, -0.12249],
  lowest: [0.232708, 0.392339, -0.347085, -0.563216],
  shared_onsets: [0.855078, 0.180354, -0.239384, -0.123687],
}
// What each of General MIDI's families of eight programs adds.
const PROGRAMS = [
  -0.047498, 0.005628, -0.061629, -0.540721, -0.263963, -0.100888, -0.030393, -0.153507, 0.224288, 0.221635, 0.83654,
  0.196706, 0.083365, -0.31196, -0.056725, -0.000881,
]
const [BIAS, TUNE_NAME_WEIGHT, OTHER_NAME_WEIGHT] = [-1.307939, 2.294841, 1.955896]
const CALIBRATION = [0.852669, 1.803945, 2.766778] // of the log-odds, of those of its rivals, and a bias

const count = (values, test) => values.filter(test).length
const rounded = (value) => Math.round(value * 1e6) / 1e6 // what the order of summation changes makes no difference

/**
 * Find the stretches of constant time signature, as they are written; 4/4 holds until the first.
 *
 * @param {[number, number, number][]} signatures Ticks, numerator and denominator, sorted.
 * @param {number} ticks Per quarter note.
 * @param {number} stepsPerBeat
 * @returns Of each its `start` and `length` and the length of a step, in ticks; its `meter`; the `size` of a bar and of a
 *   quarter note (`beat`), in steps; and the file's bars before it.
 */
export function barGrid(signatures, ticks, stepsPerBeat) {
  const found = [[0, 4, 4]]
  for (const [start, ...meter] of signatures) {
    const [numerator, denominator] = plainTimeSignature(...meter)
    if (start === found.at(-1)[0]) found.pop() // the last of several at one place holds
    const before = found.at(-1)
    const isSame = before && before[1] === numerator && before[2] === denominator
    if (!isSame || ((start - before[0]) * denominator) % (4 * ticks * numerator)) found.push([start, numerator, denominator])
  }
  let bars = 0
  const grid = found.map(([start, numerator, denominator], at) => {
    const length = (found[at + 1]?.[0] ?? Infinity) - start
    const ticksPerStep = (4 * ticks) / (denominator * stepsPerBeat)
    const [size, beat, firstBar] = [numerator * stepsPerBeat, (denominator * stepsPerBeat) / 4, bars]
    bars += Math.ceil(length / (ticksPerStep * size))
    return { start, length, meter: [numerator, denominator], ticksPerStep, size, beat, firstBar }
  })
  return grid
}

/** Lay a track's notes on the grid, ornaments left out: `[stretch, step, pitch, duration]` of each. */
function quantise(notes, grid) {
  const toStep = (time, { start, ticksPerStep }) => Math.floor((time - start) / ticksPerStep + 0.5)
  const following = grid.map((_, at) => at + 1)
  for (let at = grid.length - 2; at >= 0; at--) {
    if (2 * grid[at + 1].length <= grid[at + 1].ticksPerStep) following[at] = following[at + 1]
  }
  const places = new Map()
  let current = 0
  for (const { start, duration, pitch } of notes) {
    while (current + 1 < grid.length && grid[current + 1].start <= start) current++
    let [stretch, step] = [current, toStep(start, grid[current])]
    // What is nearest to a later stretch's first bar line begins there.
    if (step * grid[stretch].ticksPerStep >= grid[stretch].length) [stretch, step] = [following[stretch], 0]
    const last = Math.ceil(grid[stretch].length / grid[stretch].ticksPerStep)
    const steps = Math.max(Math.min(toStep(start + duration, grid[stretch]), last) - step, 1)
    const key = `${stretch} ${step}`
    if (!places.has(key)) places.set(key, [])
    places.get(key).push({ stretch, step, pitch, duration: steps, begin: start, length: Math.max(duration, 1) })
  }
  return [...places.values()].flatMap((place) => (place.length > 1 ? withoutOrnaments(place) : place))
}

/** Leave out which notes only decorate another of their grid step: only what overlaps in played time is a chord. */
function withoutOrnaments(place) {
  return place.filter((note) => {
    const isBefore = (other) => other.begin + other.length <= note.begin && other.length >= note.length
    const isAfter = (other) => other.begin >= note.begin + note.length && other.length > note.length
    return !place.some((other) => isBefore(other) || isAfter(other))
  })
}

/** Make a track monophonic: of the notes with one onset the highest stays, and the next onset ends it. */
function skyline(notes) {
  const order = (a, b) => a.stretch - b.stretch || a.step - b.step || b.pitch - a.pitch || b.duration - a.duration
  const sorted = [...notes].sort(order)
  const first = sorted.filter(({ stretch, step }, at) => !at || sorted[at - 1].stretch !== stretch || sorted[at - 1].step !== step)
  return first.map(({ stretch, step, pitch, duration }, at) => {
    const next = first[at + 1]
    const toNext = next?.stretch === stretch ? next.step - step : Infinity
    // Legato playing holds a note a little into the next one: a step, or a quarter of its length.
    const isAlone = duration - Math.max(duration >> 2, 1) <= toNext
    return { stretch, step, pitch, duration: Math.min(duration, toNext), toNext, isAlone }
  })
}

/** Whether a part of a track, split at silences of more than a bar, is a melody line. */
function hasLine(sky, grid) {
  let begin = 0
  return sky.some(({ stretch, step, duration, toNext }, at) => {
    const { size } = grid[stretch]
    if (toNext - duration <= size) return false
    const line = sky.slice(begin, at + 1)
    begin = at + 1
    const bars = Math.ceil((step + duration) / size) - Math.floor(line[0].step / size)
    const pitches = line.map(({ pitch }) => pitch)
    const isInRange = pitches.every((pitch) => pitch >= MIN_PITCH && pitch <= MAX_PITCH)
    return bars >= MIN_BARS && new Set(pitches).size >= MIN_PITCHES && isInRange
  })
}

/** Describe the bars of a track in which it has an onset. */
function describeBars(sky, grid) {
  const bars = new Map()
  for (const { stretch, step, pitch } of sky) {
    const { size, beat, firstBar } = grid[stretch]
    const bar = firstBar + Math.floor(step / size)
    if (!bars.has(bar)) bars.set(bar, { quarters: size / beat, notes: [], slots: new Set() })
    const position = step % size
    bars.get(bar).notes.push([position, pitch])
    bars.get(bar).slots.add(size <= BAR_SLOTS ? position : Math.floor((position * BAR_SLOTS) / size))
  }
  for (const each of bars.values()) each.meanPitch = sum(each.notes.map(([, pitch]) => pitch)) / each.notes.length
  return bars
}

/** Describe a track by itself and beside the others: its `FEATURES`. */
function describeTrack({ found, sky, bars }, file, grid) {
  const kept = sky.length
  const notes = sky.map(({ stretch, step, pitch, duration }, at) => {
    const { size, beat, firstBar } = grid[stretch]
    const next = sky[at + 1]
    const place = (note) => [grid[note.stretch].firstBar + Math.floor(note.step / grid[note.stretch].size), note.step % grid[note.stretch].size]
    const [nextBar, nextPosition] = next ? place(next) : [Infinity, 0]
    const gap = nextPosition - (step % size) + (nextBar - firstBar - Math.floor(step / size)) * size
    const interval = next ? Math.abs(next.pitch - pitch) : 0
    return { silence: (gap - duration) / beat, leadsOn: gap <= INTERVAL_QUARTERS * beat, interval, quarters: duration / beat }
  })
  const intervals = notes.filter(({ leadsOn }) => leadsOn).map(({ interval }) => interval)
  const among = Math.max(intervals.length, 1)
  const lengthOf = (some) => sum(some.map(({ quarters }) => Math.min(quarters, LONGEST_QUARTERS))) / some.length
  const meanLength = lengthOf(notes)
  const phraseEnd = lengthOf(notes.filter(({ silence }) => silence >= PHRASE_REST_QUARTERS))
  const records = [...bars]
  const rhythms = records.map(([, { slots }]) => [...slots].sort((a, b) => a - b).join())
  const onsets = records.flatMap(([bar, { slots }]) => [...slots].map((slot) => file.users.get(`${bar} ${slot}`)))
  return {
    log_notes: Math.log(kept),
    skyline: kept / found,
    monophony: count(sky, ({ isAlone }) => isAlone) / found,
    mean_pitch: sum(sky.map(({ pitch }) => pitch)) / kept,
    vocal_range: count(sky, ({ pitch }) => pitch >= VOCAL_LOW && pitch <= VOCAL_HIGH) / kept,
    log_pitches: Math.log(new Set(sky.map(({ pitch }) => pitch)).size),
    steps: count(intervals, (interval) => interval >= 1 && interval <= 2) / among,
    leaps: count(intervals, (interval) => interval >= LEAP) / among,
    mean_interval: sum(intervals.map((interval) => Math.min(interval, OCTAVE))) / among,
    log_density: Math.log(kept / sum(records.map(([, { quarters }]) => quarters))),
    log_duration: Math.log(meanLength),
    rests: count(notes, ({ silence }) => silence >= REST_QUARTERS) / kept,
    phrase_end: Math.log((phraseEnd + LENGTH_FLOOR) / (meanLength + LENGTH_FLOOR)),
    same_rhythm: count(rhythms, (rhythm, at) => at > 0 && rhythm === rhythms[at - 1]) / Math.max(records.length - 1, 1),
    new_bars: new Set(records.map(([, own]) => String(own.notes))).size / records.length,
    coverage: records.length / file.highest.size,
    highest: count(records, ([bar, { meanPitch }]) => meanPitch === file.highest.get(bar)) / records.length,
    lowest: count(records, ([bar, { meanPitch }]) => meanPitch === file.lowest.get(bar)) / records.length,
    shared_onsets: count(onsets, (users) => users > 1) / onsets.length,
  }
}

/** What the tracks of a file have together: extremes of pitch of each bar, and how many tracks have an onset where. */
function describeFile(tracks) {
  const file = { highest: new Map(), lowest: new Map(), users: new Map() }
  for (const { bars } of tracks) {
    for (const [bar, { meanPitch, slots }] of bars) {
      file.highest.set(bar, Math.max(file.highest.get(bar) ?? -Infinity, meanPitch))
      file.lowest.set(bar, Math.min(file.lowest.get(bar) ?? Infinity, meanPitch))
      for (const slot of slots) file.users.set(`${bar} ${slot}`, (file.users.get(`${bar} ${slot}`) ?? 0) + 1)
    }
  }
  return file
}

/** Whether a track doubles a likelier one: nearly all notes at the same onsets, octaves apart or not. */
function isDouble(track, index, tracks) {
  return tracks.some((other, place) => {
    const isLikelier = other.utility > track.utility || (other.utility === track.utility && place < index)
    const [least, most] = [track.places.length, other.places.length].sort((a, b) => a - b)
    if (place === index || !isLikelier || least < MIN_DOUBLED_NOTES || least < DOUBLED * most) return false
    other.placeSet ??= new Set(other.places)
    return count(track.places, (each) => other.placeSet.has(each)) >= DOUBLED * most
  })
}

/**
 * Rate how much each track is the tune that one would hum.
 *
 * @param {{name: string, program: number, notes: {start: number, duration: number, pitch: number}[]}[]} voices Each with
 *   notes, in ticks, sorted by their start; none of them drums.
 * @param {[number, number, number][]} signatures Ticks, numerator and denominator, sorted.
 * @param {number} ticks Per quarter note.
 * @param {number} stepsPerBeat
 * @returns {{score: number, isMelody: boolean}[]} The lead score of each, from 0 to 1, and whether it has a melody line.
 */
export function scoreTracks(voices, signatures, ticks, stepsPerBeat) {
  const grid = barGrid(signatures, ticks, stepsPerBeat)
  const tracks = voices.map(({ notes }) => {
    const onGrid = quantise(notes, grid)
    const sky = skyline(onGrid)
    const places = sky.map(({ stretch, step, pitch }) => `${stretch} ${step} ${pitch % OCTAVE}`)
    return { found: onGrid.length, sky, bars: describeBars(sky, grid), places }
  })
  const file = describeFile(tracks)
  tracks.forEach((track, at) => {
    const features = describeTrack(track, file, grid)
    const hint = nameHint(voices[at].name)
    track.utility = BIAS + PROGRAMS[voices[at].program >> 3] + hint * (hint > 0 ? TUNE_NAME_WEIGHT : OTHER_NAME_WEIGHT)
    for (const [name, [mean, scale, linear, square]] of Object.entries(FEATURES)) {
      const value = Math.min(Math.max((features[name] - mean) / scale, -LARGEST_DEVIATION), LARGEST_DEVIATION)
      track.utility += value * linear + (value ** 2 / 2) * square
    }
    track.utility = rounded(track.utility)
  })
  const likeliest = Math.max(...tracks.map(({ utility }) => utility))
  tracks.forEach((track, at) => {
    // Chords and doubles are left out; but the likeliest track of all may be chords, such as a piano's right hand.
    const isChords = track.found - track.sky.length > MAX_DISCARDED * track.found && track.utility !== likeliest
    track.isMelody = hasLine(track.sky, grid) && !isChords && !isDouble(track, at, tracks)
    const bounded = Math.min(Math.max(track.utility, -LARGEST_LOG_ODDS), LARGEST_LOG_ODDS)
    track.odds = track.isMelody ? Math.exp(bounded) : 0
  })
  const all = sum(tracks.map(({ odds }) => odds))
  const [ofUtility, ofRivals, bias] = CALIBRATION
  return tracks.map(({ utility, odds, isMelody }) => {
    const rivals = Math.log1p(Math.max(all - odds, 0))
    return { score: 1 / (1 + Math.exp(-rounded(ofUtility * utility - ofRivals * rivals + bias))), isMelody }
  })
}
