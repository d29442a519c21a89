/** Melodies as the page has them, columns as in the data set, and as the model has them; and their files. */

import { writeMidi } from "./src/client.js"

const SAMPLE_RATE = 44100
const TAIL_SECONDS = 1.5 // after the last note

const Space = window.MelodySpace

/** Write a melody of the page as one of the model. */
export function toModel(melody) {
  return {
    notes: melody.pitch.map((pitch, at) => ({ pitch, start: melody.start[at], duration: melody.duration[at] })),
    meter: melody.time_signature.split("/").map(Number),
    stepsPerBeat: melody.steps_per_beat,
    bars: melody.bars,
  }
}

/** Write a melody of the model as one of the page; `more` is its title, tempo, program and the like. */
export function toPage({ notes, meter, stepsPerBeat, bars }, more) {
  return {
    pitch: notes.map((note) => note.pitch),
    start: notes.map((note) => note.start),
    duration: notes.map((note) => note.duration),
    time_signature: meter.join("/"),
    steps_per_beat: stepsPerBeat,
    bars,
    tempo: 120,
    program: 0,
    origin: null,
    ...more,
  }
}

/** Cut bars out of a melody of the page; notes that began earlier are left out, the last one ends with the last bar. */
export function cutBars(melody, firstBar, bars) {
  const bar = Space.stepsPerBar(melody)
  const [low, high] = [firstBar, firstBar + bars].map((edge) => Math.min(edge, melody.bars) * bar)
  const kept = melody.start.flatMap((start, at) => (start >= low && start < high ? [at] : []))
  return {
    ...melody,
    pitch: kept.map((at) => melody.pitch[at]),
    start: kept.map((at) => melody.start[at] - low),
    duration: kept.map((at) => Math.min(melody.duration[at], high - melody.start[at])),
    bars: (high - low) / bar,
  }
}

/** Put the bars of one melody after those of another of the same meter and grid. */
export function append(melody, more) {
  const offset = melody.bars * Space.stepsPerBar(melody)
  return {
    ...melody,
    pitch: [...melody.pitch, ...more.pitch],
    start: [...melody.start, ...more.start.map((start) => start + offset)],
    duration: [...melody.duration, ...more.duration],
    bars: melody.bars + more.bars,
  }
}

function asFile(melody, suffix, bytes) {
  const stem = melody.title.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replaceAll(/^-|-$/g, "")
  let text = ""
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768))
  return { name: `${stem || "melody"}.${suffix}`, base64: btoa(text) }
}

/** Write 16 bits, mono. */
function wavBytes(samples) {
  const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length))
  const text = (at, letters) => [...letters].forEach((letter, index) => bytes.setUint8(at + index, letter.charCodeAt(0)))
  text(0, "RIFF")
  bytes.setUint32(4, 36 + 2 * samples.length, true)
  text(8, "WAVEfmt ")
  bytes.setUint32(16, 16, true)
  bytes.setUint16(20, 1, true) // PCM
  bytes.setUint16(22, 1, true)
  bytes.setUint32(24, SAMPLE_RATE, true)
  bytes.setUint32(28, 2 * SAMPLE_RATE, true)
  bytes.setUint16(32, 2, true)
  bytes.setUint16(34, 16, true)
  text(36, "data")
  bytes.setUint32(40, 2 * samples.length, true)
  const peak = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 0.9)
  samples.forEach((sample, at) => bytes.setInt16(44 + 2 * at, Math.round((32767 * 0.9 * sample) / peak), true))
  return new Uint8Array(bytes.buffer)
}

/** What a server does in the other Space, by the same names. */
export const files = {
  midi: async ([melody]) => {
    const { tempo, program, title: name } = melody
    return asFile(melody, "mid", writeMidi(toModel(melody), { tempo, program, name }))
  },
  wav: async ([melody]) => {
    const step = Space.secondsPerStep(melody)
    const seconds = Space.totalSteps(melody) * step + TAIL_SECONDS
    const player = new Space.player.constructor()
    player.context = new OfflineAudioContext(1, Math.ceil(seconds * SAMPLE_RATE), SAMPLE_RATE)
    await player.load(melody.program)
    melody.pitch.forEach((pitch, at) =>
      player.voice(pitch, melody.start[at] * step, melody.duration[at] * step, melody.program, player.context.destination),
    )
    const sound = await player.context.startRendering()
    return asFile(melody, "wav", wavBytes(sound.getChannelData(0)))
  },
}
