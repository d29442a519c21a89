/** MIDI files in and out, broken ones too. */

import assert from "node:assert/strict"
import test from "node:test"

import { MidiError, readMidi, writeMidi } from "../src/index.js"

const MELODY = {
  notes: [
    { pitch: 60, start: 0, duration: 4, velocity: 90 },
    { pitch: 62, start: 4, duration: 2, velocity: 100 },
    { pitch: 62, start: 6, duration: 2, velocity: 100 }, // begins where the same pitch ends
    { pitch: 67, start: 20, duration: 4, velocity: 127 },
  ],
  meter: [6, 8],
  stepsPerBeat: 4,
  bars: 1,
}

const text = (word) => [...word].map((letter) => letter.charCodeAt(0))
const chunk = (kind, body) => [...text(kind), body.length >> 24, body.length >> 16, body.length >> 8, body.length, ...body]
const header = (format, tracks, division) => chunk("MThd", [0, format, 0, tracks, division >> 8, division & 0xff])
const END = [0, 0xff, 0x2f, 0]
const file = (...tracks) => Uint8Array.from([...header(1, tracks.length, 96), ...tracks.flatMap((body) => chunk("MTrk", body))])
const named = (name) => [0, 0xff, 3, name.length, ...text(name)]

/** Events of notes of a quarter one after the other, on a channel. */
const play = (channel, pitches) => pitches.flatMap((pitch) => [0, 0x90 | channel, pitch, 80, 96, 0x80 | channel, pitch, 0])

/** Numbers from 0 to 1 that are the same each time. */
function* numbers(seed) {
  for (;;) yield (seed = (seed * 48271) % 2147483647) / 2147483647
}

test("what is written is read", () => {
  const { tracks, tempo, meter, melody, melodyTrack } = readMidi(writeMidi(MELODY, { tempo: 90, program: 40, name: "Lied ♪" }))
  assert.deepEqual(melody, MELODY)
  assert.ok(Math.abs(tempo - 90) < 1e-3)
  assert.deepEqual([meter, melodyTrack, tracks.length], [[6, 8], 0, 1])
  assert.deepEqual([tracks[0].name, tracks[0].program, tracks[0].isDrum], ["Lied ♪", 40, false])
  assert.deepEqual(tracks[0].notes[0], { pitch: 60, start: 0, duration: 0.5, velocity: 90 })
  assert.throws(() => writeMidi(MELODY, { tempo: 0 }), /tempo=0 is not from 5 to 1000/)
  assert.throws(() => writeMidi(MELODY, { program: 128 }), /program=128: General MIDI has 0 to 127/)
})

test("the tune is the track of that name, never drums or what the caller did not choose", () => {
  const tracks = [
    [...named("Bass"), ...play(0, [36, 38, 40, 41]), ...END],
    [...named("Drums"), ...play(9, [38, 42, 38, 42, 60, 72]), ...END],
    [...named("Melody"), ...play(1, [60, 62, 64, 65]), ...END],
  ]
  const found = readMidi(file(...tracks))
  assert.deepEqual(found.tracks.map(({ name, isDrum }) => [name, isDrum]), [["Bass", false], ["Drums", true], ["Melody", false]])
  assert.equal(found.melodyTrack, 2)
  assert.deepEqual(found.melody.notes.map(({ pitch }) => pitch), [60, 62, 64, 65])
  assert.deepEqual(readMidi(file(...tracks), { track: 0 }).melody.notes.map(({ pitch }) => pitch), [36, 38, 40, 41])
  assert.throws(() => readMidi(file(...tracks), { track: 3 }), MidiError)
  assert.equal(readMidi(file([...play(9, [38, 42]), ...END])).melody, null)
})

test("running status, notes without an end, and a melody within chords", () => {
  const events = [0, 0x90, 60, 80, 0, 72, 80, 96, 60, 0, 0, 72, 0, 0, 64, 80, 96, 0xff, 0x2f, 0]
  const { melody } = readMidi(file(events))
  assert.deepEqual(melody.notes.map(({ pitch, start, duration }) => [pitch, start, duration]), [[72, 0, 4], [64, 4, 4]])
})

test("rests before the melody are no bars of it", () => {
  const late = [0x87, 0x40, ...play(0, [60, 62]).slice(1), ...END] // 960 ticks: two bars and two quarters
  assert.deepEqual(readMidi(file(late)).melody.notes.map(({ start }) => start), [8, 12])
  assert.equal(readMidi(file(late)).melody.bars, 1)
})

test("what came before the end of a file that is cut off is read", () => {
  const whole = writeMidi(MELODY)
  const found = readMidi(whole.subarray(0, whole.length - 8))
  assert.ok(found.isCut && !readMidi(whole).isCut)
  assert.deepEqual(found.melody.notes.map(({ pitch }) => pitch), [60, 62, 62, 67])
})

test("the sustain pedal holds notes", () => {
  const pedal = (value) => [0, 0xb0, 64, value]
  const events = [...pedal(127), ...play(0, [60, 62]), 96, 0xb0, 64, 0, ...play(0, [64]), ...END]
  const { melody, tracks } = readMidi(file(events))
  assert.deepEqual(melody.notes.map(({ start, duration }) => [start, duration]), [[0, 4], [4, 8], [12, 4]])
  assert.deepEqual(tracks[0].notes.map(({ duration }) => duration), [1, 1, 1])
})

test("broken files are a sentence", () => {
  const whole = writeMidi(MELODY)
  const cases = [
    [text("not a MIDI file, no"), /not a MIDI file/],
    [[], /not a MIDI file/],
    [[...header(2, 1, 96), ...chunk("MTrk", END)], /format 2/],
    [header(1, 0, 96), /no tracks/],
    [[...header(1, 1, 0), ...chunk("MTrk", END)], /how long a quarter note is/],
    [whole.subarray(0, 39), /cut off/],
    [file([0, 60, 80]), /begins within an event/],
    [file([0xff, 0xff, 0xff, 0xff, 0x7f]), /a length has no end/],
    [new Uint8Array((4 << 20) + 1), /larger than 4 megabytes/],
  ]
  for (const [bytes, message] of cases) {
    assert.throws(() => readMidi(Uint8Array.from(bytes)), { name: "MidiError", message })
  }
  const low = file([...play(0, [5, 6]), ...END])
  assert.equal(readMidi(low).melody, null)
  assert.throws(() => readMidi(low, { track: 0 }), { name: "MidiError", message: /no notes from MIDI pitch 21 to 108/ })
})

test("whatever is changed in a file, it is read or refused, and soon", () => {
  const whole = file([...named("Lead"), ...play(0, [60, 62, 64, 65, 67]), ...END], [...play(3, [48, 50]), ...END])
  const random = numbers(1)
  const draw = (below) => Math.floor(random.next().value * below)
  let refused = 0
  const begun = performance.now()
  for (let round = 0; round < 5000; round++) {
    const bytes = Uint8Array.from(whole).subarray(0, draw(10) ? whole.length : draw(whole.length))
    for (let changes = draw(4); changes > 0; changes--) bytes[draw(bytes.length)] = draw(256)
    try {
      const { melody } = readMidi(bytes)
      if (melody) assert.ok(melody.notes.every(({ start, duration }) => start >= 0 && duration >= 1) && melody.bars >= 1)
      if (melody) readMidi(writeMidi(melody))
    } catch (error) {
      assert.equal(error.name, "MidiError", error.stack)
      refused += 1
    }
  }
  assert.ok(refused > 500 && refused < 4500, `${refused} of 5000 refused`)
  assert.ok(performance.now() - begun < 20_000)
})
