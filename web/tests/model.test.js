/** What pages do with a model. */

import assert from "node:assert/strict"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import test from "node:test"
import * as ortNode from "onnxruntime-node"
import * as ortWeb from "onnxruntime-web"

import { load } from "../src/index.js"
import { folders } from "./golden.js"

const model = await load(folders.at(-1), { ort: ortNode })
const BARS = model.maxBars

const notesOf = (melodies) => melodies.map(({ notes }) => notes.map(({ pitch, start, duration }) => [pitch, start, duration]))
const barsOf = ({ notes, meter, stepsPerBeat }, from, to) => {
  const steps = meter[0] * stepsPerBeat
  return notes.filter(({ start }) => start >= from * steps && start < to * steps)
}

test("a seed is repeatable, and each melody has its own generator", async () => {
  const options = { seed: 3, bars: BARS, temperature: 4 }
  const melodies = await model.sample({ ...options, count: 4 })
  assert.deepEqual(await model.sample({ ...options, count: 4 }), melodies)
  assert.deepEqual(await model.sample({ ...options, count: 2 }), melodies.slice(0, 2))
  assert.equal(new Set(notesOf(melodies).map(String)).size, 4)
  assert.notDeepEqual(await model.sample({ ...options, count: 4, seed: 4 }), melodies)
  const chosen = await model.sample({ ...options, count: 2, candidates: 3 })
  assert.deepEqual(await model.sample({ ...options, count: 1, candidates: 3 }), chosen.slice(0, 1))
  assert.notDeepEqual(...(await Promise.all([1, 2].map(() => model.sample({ temperature: 4 })))))
})

test("melodies are what was asked for", async () => {
  const limits = { scale: "D dorian", lowestPitch: 60, highestPitch: 72 }
  const [melody] = await model.sample({ ...limits, seed: 1, bars: 5, meter: [3, 4], temperature: 2 })
  assert.deepEqual([melody.bars, melody.meter, melody.stepsPerBeat], [5, [3, 4], 4])
  assert.ok(melody.notes.length > 3)
  const scale = [2, 4, 5, 7, 9, 11, 0]
  assert.ok(melody.notes.every(({ pitch }) => scale.includes(pitch % 12) && pitch >= 60 && pitch <= 72))
  const [inKey] = await model.sample({ seed: 2, key: "Bb major", attributes: { note_density: 1 } })
  assert.equal(model.keyOf(inKey), "A# major")
  const [long] = await model.sample({ seed: 1, bars: 2 * BARS + 1, meter: "3/4" })
  assert.deepEqual([long.bars, long.meter], [2 * BARS + 1, [3, 4]])
})

test("bars that are kept come back as they are", async () => {
  const [melody] = await model.sample({ seed: 5, bars: 4, meter: "4/4" })
  const filled = await model.infill(melody, { bars: [1], seed: 1, temperature: 5 })
  for (const bar of [0, 2, 3]) assert.deepEqual(barsOf(filled, bar, bar + 1), barsOf(melody, bar, bar + 1))
  assert.notDeepEqual(barsOf(filled, 1, 2), barsOf(melody, 1, 2))
  const longer = await model.continueMelody(melody, { bars: 6, seed: 1 })
  assert.equal(longer.bars, 6)
  assert.deepEqual(barsOf(longer, 0, 4), melody.notes)
})

test("paths begin and end at their melodies, variations of similarity 1 are the melody", async () => {
  const [a, b] = await model.sample({ seed: 6, count: 2, bars: 3, meter: "4/4" })
  const [first, last] = await model.decodeAll([await model.encode(a), await model.encode(b)], { bars: 3, meter: "4/4" })
  const path = await model.interpolate(a, b, { steps: 4 })
  assert.equal(path.length, 4)
  assert.deepEqual([path[0], path[3]], [first, last])
  assert.deepEqual(await model.vary(a, { similarity: 1, count: 2 }), [first, first])
  assert.deepEqual(await model.reconstruct(a), first)
  assert.deepEqual(await model.decode(await model.encode(a), { bars: 3, meter: "4/4" }), first)
})

test("a map has its corners' melodies, and one of two corners is their path", async () => {
  const corners = await model.sample({ seed: 13, count: 4, bars: 3, meter: "4/4" })
  const map = await model.prepareMap(corners)
  const found = await model.decodeMap(map, [[0, 0], [1, 0], [0, 1], [1, 1]])
  for (const [at, corner] of corners.entries()) assert.deepEqual(found[at], await model.reconstruct(corner))
  const path = await model.prepareMap(corners.slice(0, 2))
  const expected = await model.interpolate(corners[0], corners[1], { steps: 3 })
  assert.deepEqual(await model.decodeMap(path, [[0], [0.5], [1]]), expected)
})

test("notes count where the tokens say something else", async () => {
  const [melody] = await model.sample({ seed: 7, bars: 2 })
  const { tokens, ...bare } = melody
  const edited = { ...melody, notes: melody.notes.map((note) => ({ ...note, pitch: note.pitch + 1 })) }
  assert.notDeepEqual(await model.encode(edited), await model.encode(melody))
  assert.deepEqual(await model.encode({ ...edited, tokens: undefined }), await model.encode(edited))
  const again = await model.infill(bare, { bars: [], seed: 0 })
  assert.deepEqual(notesOf([again]), notesOf([melody]))
})

test("calls at the same time wait for each other", async () => {
  const alone = [await model.sample({ seed: 8, bars: 2 }), await model.sample({ seed: 9, bars: 2 })]
  assert.deepEqual(await Promise.all([8, 9].map((seed) => model.sample({ seed, bars: 2 }))), alone)
})

test("a signal stops a call, and the next one works", async () => {
  const controller = new AbortController()
  const stopped = model.sample({ count: 8, signal: controller.signal })
  setTimeout(() => controller.abort(), 5)
  await assert.rejects(stopped, { name: "AbortError" })
  assert.equal((await model.sample({ bars: 1 })).length, 1)
})

test("what cannot be done is said in a sentence", async () => {
  const [melody] = await model.sample({ seed: 0, bars: 2 })
  const cases = [
    [() => model.sample({ key: "H major" }), /unknown key 'H major'; this model has C major/],
    [() => model.sample({ conditions: { mood: "sad" } }), /unknown condition 'mood'; this model has key/],
    [() => model.sample({ attributes: { note_density: NaN } }), /note_density=NaN is not a finite number/],
    [() => model.sample({ meter: "8/8" }), /time signature 8\/8 is not in the vocabulary: .*4\/4/],
    [() => model.sample({ scale: "C sad" }), /unknown scale 'C sad'.*dorian/],
    [() => model.sample({ lowestPitch: 61, highestPitch: 61, scale: "C major" }), /no pitch of the scale/],
    [() => model.sample({ temperature: 0 }), /temperature=0 is not a number above 0/],
    [() => model.sample({ bars: 0 }), /bars=0: a melody has a whole number of bars/],
    [() => model.sample({ bars: NaN }), /bars=NaN: a melody has a whole number of bars/],
    [() => model.sample({ bars: Infinity }), /bars=Infinity: a melody has a whole number of bars/],
    [() => model.continueMelody(melody, { bars: 2.5 }), /bars=2.5: a melody has a whole number of bars/],
    [() => model.sample({ seed: -1 }), /seed=-1 is not a whole number/],
    [() => model.sample({ noise: 2 }), /noise=2 is not a number from 0 to 1/],
    [() => model.sample({ candidates: 1.5 }), /candidates=1.5 is not a whole number of 1 or more/],
    [() => model.sample({ candidates: 2, bars: BARS + 1 }), /candidates=2 of bars=8: the critic reads 7 bars at most/],
    [() => model.vary(melody, { similarity: 2 }), /similarity=2 is not a finite number/],
    [() => model.infill(melody, { bars: [2] }), /bar 2 cannot be filled: bars count from 0 to 1/],
    [() => model.infill(melody, { bars: [0], candidates: 0 }), /candidates=0 is not a whole number of 1 or more/],
    [() => model.continueMelody(melody, { bars: 2 }), /2 bars cannot be continued to bars=2/],
    [() => model.decode(new Float32Array(3)), /a latent has 14 numbers, not 3/],
    [() => model.encode({ ...melody, stepsPerBeat: 12 }), /stepsPerBeat=12: this model has 4/],
    [() => model.encode({ ...melody, notes: [{ pitch: 60, start: 0.5, duration: 1 }] }), /note 0 .*not on the grid/],
    [() => model.encode({ ...melody, notes: [{ pitch: 12, start: 0, duration: 1 }] }), /the vocabulary has no Pitch of 12/],
    [() => model.encode({ ...melody, notes: [], bars: BARS + 1 }), /8 bars does not fit a latent of max_bars=7/],
  ]
  for (const [call, message] of cases) await assert.rejects(async () => call(), { name: "RangeError", message })
})

test("WebAssembly writes the same token ids", async () => {
  ortWeb.env.wasm.numThreads = 1
  const inWasm = await load(folders.at(-1), { ort: ortWeb, device: "wasm" })
  assert.equal(inWasm.device, "wasm")
  const options = { seed: 11, count: 4, bars: BARS }
  assert.deepEqual(await inWasm.sample(options), await model.sample(options))
  const [melody] = await model.sample({ seed: 12 })
  const [found, expected] = [await inWasm.encode(melody), await model.encode(melody)]
  assert.ok(found.every((value, at) => Math.abs(value - expected[at]) < 1e-4))
  await inWasm.dispose()
})

test("memory stays flat over 200 melodies", async () => {
  setFlagsFromString("--expose_gc")
  const collect = runInNewContext("gc")
  const used = async () => {
    await new Promise(setImmediate)
    collect()
    const { heapUsed, external } = process.memoryUsage()
    return (heapUsed + external) / 2 ** 20
  }
  const write = async (seed) => model.vary((await model.sample({ seed, bars: 4 }))[0], { count: 1, seed })
  for (let seed = 0; seed < 100; seed++) await write(seed) // what the grammar remembers has an end
  const before = await used()
  for (let seed = 100; seed < 300; seed++) await write(seed)
  const grown = (await used()) - before
  assert.ok(grown < 4, `${grown.toFixed(1)} MiB more`)
})
