/** Standard MIDI files of format 0 and 1: their notes, the melody of one of their tracks, and a melody as such a file. */

import { MAX_NOTE_BEATS, MAX_PITCH, MIN_PITCH, plainTimeSignature, readableTimeSignature, sum } from "./melody_line.js"
import { isPercussion } from "./track_names.js"
import { barGrid, scoreTracks } from "./tune_finding.js"

const MAX_BYTES = 4 << 20
const MAX_TRACKS = 1024
const MAX_NOTES = 1 << 17
const MAX_STEPS = 1 << 17 // grid steps that a melody may last
const DRUM_CHANNEL = 9
const SUSTAIN = 64 // the controller's number
const MAX_HELD_QUARTERS = 4 // by the sustain pedal
const TICKS_PER_QUARTER = 480 // of files that are written
const [SLOWEST, FASTEST] = [5, 1000] // quarter notes per minute

/** Says in a sentence for people what is wrong with a file. */
export class MidiError extends Error {
  name = "MidiError"
}

/** Reads numbers off bytes; beyond the end there is nothing, and it says so. */
class Reader {
  constructor(bytes) {
    this.bytes = bytes
    this.at = 0
  }

  get isAtEnd() {
    return this.at >= this.bytes.length
  }

  byte() {
    if (this.isAtEnd) throw new MidiError("The file ends within a track: it is cut off. Export it again.")
    return this.bytes[this.at++]
  }

  number(size) {
    let value = 0
    for (let left = size; left > 0; left--) value = value * 256 + this.byte()
    return value
  }

  /** A number of up to four bytes of seven bits. */
  length() {
    let value = 0
    for (let left = 4; left > 0; left--) {
      const byte = this.byte()
      value = value * 128 + (byte & 0x7f)
      if (byte < 0x80) return value
    }
    throw new MidiError("A track of the file is broken: a length has no end. Export it again.")
  }

  take(size) {
    if (this.at + size > this.bytes.length) throw new MidiError("The file is cut off. Export it again.")
    this.at += size
    return this.bytes.subarray(this.at - size, this.at)
  }

  text(size) {
    return String.fromCharCode(...this.take(size))
  }
}

/** Part a file into its header's numbers and the bytes of its tracks. */
function readChunks(bytes) {
  const riff = String.fromCharCode(...bytes.subarray(0, 4)) === "RIFF" // a MIDI file in a RIFF one
  const start = riff ? 20 : 0
  const reader = new Reader(bytes.subarray(start))
  if (reader.bytes.length < 14 || reader.text(4) !== "MThd") {
    throw new MidiError("This is not a MIDI file. Export the tune as standard MIDI (.mid) and bring that.")
  }
  const size = reader.number(4)
  const header = new Reader(reader.take(size))
  if (size < 6) throw new MidiError("The header of the file is broken. Export it again.")
  const [format, , division] = [header.number(2), header.number(2), header.number(2)]
  if (format > 1) throw new MidiError(`The file is of format ${format}. Export it as format 0 or 1.`)
  const tracks = []
  while (reader.bytes.length - reader.at >= 8) {
    const kind = reader.text(4)
    const length = reader.number(4)
    const body = reader.take(Math.min(length, reader.bytes.length - reader.at)) // a file that is cut off has less
    if (kind === "MTrk") tracks.push(body)
    if (tracks.length > MAX_TRACKS) throw new MidiError(`The file has more than ${MAX_TRACKS} tracks.`)
  }
  if (!tracks.length) throw new MidiError("The file has no tracks.")
  if (!division) throw new MidiError("The file does not say how long a quarter note is. Export it again.")
  // Frames of a second, which know no quarter notes: half a second is one, as at 120 to the minute.
  const isFrames = division >= 0x8000
  const ticks = isFrames ? ((256 - (division >> 8)) * (division & 0xff)) / 2 : division
  if (!ticks) throw new MidiError("The file does not say how long a quarter note is. Export it again.")
  return { tracks, ticks }
}

function decodeName(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes)
  } catch {
    return new TextDecoder("windows-1252").decode(bytes)
  }
}

/** Reads one track: its notes by their channel, in ticks, and what it says of the file. */
class TrackReader {
  name = ""
  tempos = [] // [ticks, microseconds per quarter]
  signatures = [] // [ticks, numerator, denominator]
  channels = new Map() // notes and program of each channel
  #open = new Map() // onsets and velocities of the notes that sound, by channel and pitch
  #programs = new Array(16).fill(0)
  #pedals = Array.from({ length: 16 }, () => []) // of each channel when the sustain pedal is pressed and released

  constructor(bytes, budget, ticks) {
    this.reader = new Reader(bytes)
    this.longestHeld = MAX_HELD_QUARTERS * ticks
    this.budget = budget
    this.time = 0
    try {
      this.#read()
    } catch (error) {
      if (!(error instanceof MidiError)) throw error
      this.fault = error // what came before is there
    }
    if (budget.notes < 0) throw new MidiError(`The file has more than ${MAX_NOTES} notes. Export a part of it.`)
    for (const key of this.#open.keys()) while (this.#open.get(key).length) this.#end(key)
    for (const [channel, { notes }] of this.channels) this.#hold(notes, this.#pedals[channel])
  }

  /** Say how long notes sound: those that end while the sustain pedal is down, to its release. */
  #hold(notes, pedals) {
    for (const note of notes) {
      const end = note.start + note.duration
      let [low, high] = [0, pedals.length] // of the first that comes after the end
      while (low < high) {
        const middle = (low + high) >> 1
        if (pedals[middle] <= end) low = middle + 1
        else high = middle
      }
      const release = low % 2 ? Math.min(pedals[low] ?? this.time, end + this.longestHeld) : end
      note.held = Math.max(release, end) - note.start
    }
  }

  #read() {
    let status = 0
    while (!this.reader.isAtEnd) {
      this.time += this.reader.length()
      const first = this.reader.bytes[this.reader.at]
      if (first >= 0x80) status = this.reader.byte()
      if (status < 0x80) throw new MidiError("A track of the file is broken: it begins within an event. Export it again.")
      if (status < 0xf0) this.#channelEvent(status)
      else if (this.#systemEvent(status)) return
      else if (status !== 0xff) status = 0
    }
  }

  #channelEvent(status) {
    const [kind, channel] = [status & 0xf0, status & 0x0f]
    const value = this.reader.byte() & 0x7f
    const second = kind === 0xc0 || kind === 0xd0 ? 0 : this.reader.byte() & 0x7f
    if (kind === 0xc0) this.#programs[channel] = value
    if (kind === 0xb0 && value === SUSTAIN) {
      const isDown = this.#pedals[channel].length % 2 === 1
      if (second >= 64 !== isDown) this.#pedals[channel].push(this.time)
    }
    if (kind !== 0x80 && kind !== 0x90) return
    const key = (channel << 7) | value
    if (kind === 0x90 && second) {
      if (!this.#open.has(key)) this.#open.set(key, [])
      this.#open.get(key).push([this.time, second])
    } else if (this.#open.get(key)?.length) this.#end(key)
  }

  #end(key) {
    const [start, velocity] = this.#open.get(key).shift()
    const channel = key >> 7
    if (!this.channels.has(channel)) this.channels.set(channel, { notes: [], program: this.#programs[channel] })
    if (--this.budget.notes < 0) return
    this.channels.get(channel).notes.push({ start, duration: this.time - start, pitch: key & 0x7f, velocity })
  }

  /** Read an event that is of no channel; returns whether the track ends with it. */
  #systemEvent(status) {
    if (status !== 0xff) {
      if (status === 0xf0 || status === 0xf7) this.reader.take(this.reader.length())
      else if (status === 0xf2) this.reader.take(2)
      else if (status === 0xf1 || status === 0xf3) this.reader.take(1)
      return false
    }
    const kind = this.reader.byte()
    const content = this.reader.take(this.reader.length())
    if (kind === 0x03 && !this.name) this.name = decodeName(content.subarray(0, 200)).trim()
    if (kind === 0x51 && content.length >= 3) {
      this.tempos.push([this.time, (content[0] << 16) | (content[1] << 8) | content[2]])
    }
    if (kind === 0x58 && content.length >= 2 && content[0] && content[1] < 7) {
      this.signatures.push([this.time, content[0], 2 ** content[1]])
    }
    return kind === 0x2f
  }
}

/**
 * Read a MIDI file of format 0 or 1.
 *
 * @param {Uint8Array | ArrayBuffer} bytes
 * @param {{track?: number, stepsPerBeat?: number}} [options] `track`: index of the one that the melody is of, instead
 *   of the likeliest.
 * @returns {import("../melody-vae.js").MidiFile}
 * @throws {MidiError} If it is broken or too large; its message is a sentence for people.
 */
export function readMidi(bytes, { track, stepsPerBeat = 4 } = {}) {
  const content = bytes instanceof Uint8Array ? bytes : new Uint8Array(bytes)
  if (content.length > MAX_BYTES) throw new MidiError(`The file is larger than ${MAX_BYTES >> 20} megabytes.`)
  const { tracks: chunks, ticks } = readChunks(content)
  const budget = { notes: MAX_NOTES }
  const read = chunks.map((chunk) => new TrackReader(chunk, budget, ticks))
  const inOrder = (name) => read.flatMap((each) => each[name]).sort(([a], [b]) => a - b)
  const written = inOrder("signatures")
  const readable = written.map(([time, ...meter]) => [time, ...readableTimeSignature(...plainTimeSignature(...meter))])
  const grid = barGrid(readable, ticks, stepsPerBeat)
  const tempo = inOrder("tempos").find(([, microseconds]) => microseconds)
  const voices = read.flatMap(({ name, channels }) =>
    [...channels].sort(([a], [b]) => a - b).map(([channel, { notes, program }]) => {
      notes.sort((a, b) => a.start - b.start || b.pitch - a.pitch)
      const voice = { name, program, notes }
      return { ...voice, isDrum: channel === DRUM_CHANNEL || isPercussion(voice) }
    }),
  )
  const fault = read.find((each) => each.fault)?.fault
  if (fault && !voices.length) throw fault
  if (track !== undefined && !voices[track]) {
    throw new MidiError(`track=${track}: the file has tracks 0 to ${voices.length - 1} with notes.`)
  }
  const ranked = rankTunes(voices, written, ticks, stepsPerBeat)
  const melodyTrack = track ?? ranked[0]?.track ?? -1
  return {
    tracks: voices.map((voice) => ({ ...voice, notes: voice.notes.map((note) => inQuarters(note, ticks)) })),
    tempo: tempo ? Math.min(Math.max(6e7 / tempo[1], SLOWEST), FASTEST) : 120,
    meter: grid[0].meter,
    isCut: Boolean(fault),
    melodyTrack,
    leadScores: voices.map((_, at) => ranked.find((each) => each.track === at)?.score ?? 0),
    melody: melodyTrack < 0 ? null : layOnGrid(voices[melodyTrack].notes, grid, stepsPerBeat),
  }
}

const inQuarters = ({ pitch, start, duration, velocity }, ticks) => {
  return { pitch, start: start / ticks, duration: duration / ticks, velocity }
}

/**
 * Order the tracks that may be the tune, the likeliest first: those with a melody line before the others, by their lead
 * score.
 */
function rankTunes(voices, signatures, ticks, stepsPerBeat) {
  const pitched = [...voices.keys()].filter((at) => !voices[at].isDrum)
  const own = pitched.map((at) => voices[at])
  const scores = own.length ? scoreTracks(own, signatures, ticks, stepsPerBeat) : []
  const ranked = pitched.map((track, at) => ({ track, ...scores[at] }))
  const hasRange = ({ track }) => voices[track].notes.some(({ pitch }) => pitch >= MIN_PITCH && pitch <= MAX_PITCH)
  return ranked.filter(hasRange).sort((a, b) => b.isMelody - a.isMelody || b.score - a.score)
}

/** The stretch whose bar lines hold for a whole track: that of most notes, of the meter of most notes. */
function mainStretch(notes, grid) {
  const counts = grid.map(({ start, length }) => notes.filter((note) => note.start >= start && note.start < start + length).length)
  const ofMeter = (name) => sum(counts.filter((_, at) => grid[at].meter.join() === name))
  const names = [...new Set(grid.map(({ meter }) => meter.join()))]
  const main = names.reduce((a, b) => (ofMeter(b) > ofMeter(a) ? b : a))
  const own = [...grid.keys()].filter((at) => grid[at].meter.join() === main)
  return grid[own.reduce((a, b) => (counts[b] > counts[a] ? b : a))]
}

/**
 * Lay notes on the grid, one at a time: of those with one onset the highest stays, and the next onset ends it.
 *
 * The meter is that of most of the notes; its bars go on through what is written in others.
 *
 * @param {{start: number, held: number, pitch: number, velocity: number}[]} notes In ticks, sorted.
 * @param {ReturnType<typeof barGrid>} grid
 * @param {number} stepsPerBeat
 * @returns {import("../melody-vae.js").Melody}
 */
function layOnGrid(notes, grid, stepsPerBeat) {
  const { start: from, meter, ticksPerStep } = mainStretch(notes, grid)
  const toStep = (time) => Math.floor((time - from) / ticksPerStep + 0.5)
  const inRange = notes.filter(({ pitch }) => pitch >= MIN_PITCH && pitch <= MAX_PITCH)
  if (!inRange.length) throw new MidiError(`The track has no notes from MIDI pitch ${MIN_PITCH} to ${MAX_PITCH}.`)
  const places = groupBySteps(inRange, toStep)
  const steps = [...places.keys()].sort((a, b) => a - b)
  const stepsPerBar = meter[0] * stepsPerBeat
  const first = Math.floor(steps[0] / stepsPerBar) * stepsPerBar
  const longest = MAX_NOTE_BEATS * stepsPerBeat
  const found = steps.map((step, at) => {
    const { pitch, start, held, velocity } = highestOf(places.get(step))
    const length = Math.max(toStep(start + held) - step, 1)
    const toNext = at + 1 < steps.length ? steps[at + 1] - step : Infinity
    return { pitch, start: step - first, duration: Math.min(length, toNext, longest), velocity }
  })
  const last = found.at(-1)
  if (last.start > MAX_STEPS) throw new MidiError("The track lasts too long. Export a part of it.")
  const bars = Math.ceil((last.start + last.duration) / stepsPerBar)
  return { notes: found, meter, stepsPerBeat, bars }
}

function groupBySteps(notes, toStep) {
  const places = new Map()
  for (const note of notes) {
    const step = toStep(note.start)
    if (!places.has(step)) places.set(step, [])
    places.get(step).push(note)
  }
  return places
}

/** The highest of the notes of a grid step; of notes that do not overlap as played the shorter ones are ornaments. */
function highestOf(notes) {
  const longest = notes.reduce((a, b) => (b.duration > a.duration ? b : a))
  const overlaps = ({ start, duration }) => start < longest.start + longest.duration && longest.start < start + duration
  return notes.filter((note) => note === longest || overlaps(note)).reduce((a, b) => (b.pitch > a.pitch ? b : a))
}

/** Write a number in groups of seven bits, as MIDI files have lengths. */
function writeLength(value) {
  const bytes = [value & 0x7f]
  while ((value >>= 7)) bytes.unshift((value & 0x7f) | 0x80)
  return bytes
}

const writeNumber = (value, size) => Array.from({ length: size }, (_, at) => Math.floor(value / 256 ** (size - 1 - at)) & 0xff)

/**
 * Write a melody as a MIDI file of format 0.
 *
 * @param {import("../melody-vae.js").Melody} melody
 * @param {{tempo?: number, program?: number, name?: string}} [options] `tempo`: quarter notes per minute.
 * @returns {Uint8Array}
 * @throws {RangeError} If tempo or program are such as MIDI cannot hold.
 */
export function writeMidi(melody, { tempo = 120, program = 0, name = "Melody" } = {}) {
  if (!(tempo >= SLOWEST && tempo <= FASTEST)) throw new RangeError(`tempo=${tempo} is not from ${SLOWEST} to ${FASTEST}`)
  if (!(Number.isInteger(program) && program >= 0 && program <= 127)) {
    throw new RangeError(`program=${program}: General MIDI has 0 to 127`)
  }
  const [numerator, denominator] = melody.meter
  const ticksPerStep = (4 * TICKS_PER_QUARTER) / (denominator * melody.stepsPerBeat)
  const toTicks = (steps) => Math.round(steps * ticksPerStep)
  const events = melody.notes.flatMap(({ pitch, start, duration, velocity = 100 }) => [
    [toTicks(start), 1, [0x90, pitch, velocity]],
    [toTicks(start + duration), 0, [0x80, pitch, 0]], // before a note that begins then
  ])
  events.sort(([a, isOn], [b, isOnToo]) => a - b || isOn - isOnToo)
  const end = Math.max(toTicks(melody.bars * numerator * melody.stepsPerBeat), events.at(-1)?.[0] ?? 0)
  const text = new TextEncoder().encode(name)
  const track = [
    ...[0, 0xff, 0x03, ...writeLength(text.length), ...text],
    ...[0, 0xff, 0x58, 4, numerator, Math.log2(denominator), 24, 8],
    ...[0, 0xff, 0x51, 3, ...writeNumber(Math.round(6e7 / tempo), 3)],
    ...[0, 0xc0, program],
  ]
  let now = 0
  for (const [time, , event] of [...events, [end, 0, [0xff, 0x2f, 0]]]) {
    track.push(...writeLength(time - now), ...event)
    now = time
  }
  const header = [0x4d, 0x54, 0x68, 0x64, ...writeNumber(6, 4), 0, 0, 0, 1, ...writeNumber(TICKS_PER_QUARTER, 2)]
  return Uint8Array.from([...header, 0x4d, 0x54, 0x72, 0x6b, ...writeNumber(track.length, 4), ...track])
}
