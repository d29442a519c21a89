/**
 * What Python does with an exported model is what this module does: `MELODY_VAE_GOLDEN` names folders, each with the
 * graphs and the `golden.json` of `python -m publishing.onnx.golden`.
 */

import assert from "node:assert/strict"
import test from "node:test"

import { drawToken } from "../src/decoding.js"
import { GrammarState } from "../src/grammar.js"
import { ATTRIBUTES, keyOf } from "../src/melody_line.js"
import { makeGenerators } from "../src/random.js"
import { folders, openModel, readGolden } from "./golden.js"

const OPTIONS = {
  time_signature: "timeSignature",
  lowest_pitch: "lowestPitch",
  highest_pitch: "highestPitch",
  guidance_scale: "guidanceScale",
}
const NAMES = { ...OPTIONS, top_p: "topP", noise_level: "noiseLevel" }

/** Write options of Python as those of this module. */
function translate(options) {
  return Object.fromEntries(Object.entries(options).map(([name, value]) => [NAMES[name] ?? name, value]))
}

function toLine({ time_signature: timeSignature, steps_per_beat: stepsPerBeat, ...line }) {
  return { ...line, timeSignature, stepsPerBeat }
}

/** The greatest difference of two arrays of arrays. */
function distance(found, expected) {
  assert.equal(found.length, expected.length)
  return Math.max(...found.map((row, at) => Math.max(...row.map((value, place) => Math.abs(value - expected[at][place])))))
}

for (const folder of folders) {
  const golden = readGolden(folder)
  const model = await openModel(folder)
  const name = folder.split("/").at(-2)
  const latents = golden.greedy.latents.map((row) => Float32Array.from(row))

  test(`${name}: generators draw numpy's numbers`, () => {
    for (const { seed, random, float32, normal } of golden.random) {
      const generator = makeGenerators(3, seed)[2]
      assert.deepEqual(random.map(() => generator.random()), random)
      assert.deepEqual(float32.map(() => generator.randomFloat32()), float32)
      assert.ok(distance([Array.from(generator.standardNormal(normal.length))], [normal]) < 1e-6)
    }
  })

  test(`${name}: greedy token ids of ${latents.length} melodies`, async () => {
    assert.equal(latents.length, 100)
    const ids = await model.decode(latents, translate(golden.greedy.options))
    assert.deepEqual(ids, golden.greedy.ids)
    assert.ok(new Set(ids.map(String)).size > 50)
  })

  test(`${name}: latents to 1e-4`, async () => {
    const { mean, logVariance } = await model.encode(golden.greedy.ids)
    assert.ok(distance(mean.map((row) => Array.from(row)), golden.greedy.latent_mean) < 1e-4)
    assert.ok(distance(logVariance.map((row) => Array.from(row)), golden.greedy.latent_log_variance) < 1e-4)
  })

  test(`${name}: lines, keys and attributes`, () => {
    const lines = model.readLines(golden.greedy.ids)
    assert.deepEqual(lines, golden.greedy.lines.map(toLine))
    assert.deepEqual(lines.map(keyOf), golden.greedy.keys)
    const measured = lines.map((line) => Object.values(ATTRIBUTES).map((measure) => measure(line)))
    assert.ok(distance(measured, golden.greedy.attributes) < 1e-9)
    assert.deepEqual(model.readLines(model.writeLines(lines)), lines)
  })

  test(`${name}: masks of the grammar in 10,000 states`, () => {
    let count = 0
    for (const { wanted, tokens, masks, flags } of golden.grammar) {
      const state = new GrammarState(model.table, { ...wanted, kept: new Map(wanted.kept) })
      masks.forEach((mask, at) => {
        state.advance(tokens[at])
        const { allowed, barMayEnd = false, mustEnd = false, mayEnd = false, only, nextKept } = state.offer(at === 0)
        assert.equal(toBits(only === undefined ? allowed : allowed.map(() => 0)), mask)
        const found = [Number(barMayEnd), Number(mustEnd), Number(mayEnd), only ?? null, nextKept ?? null]
        assert.deepEqual(found, flags[at])
        count += 1
      })
    }
    assert.equal(count, 10000)
  })

  test(`${name}: draws of a distribution, share by share`, () => {
    const { scores, shares, tokens } = golden.draws
    for (const [topP, expected] of Object.entries(tokens)) {
      assert.deepEqual(shares.map((share) => drawToken(Float32Array.from(scores), share, Number(topP))), expected)
    }
  })

  for (const { name: what, method, options, latents: count, melodies, ids } of golden.operations) {
    test(`${name}: ${what} writes the same token ids`, async () => {
      const given = melodies ? [melodies] : latents.slice(0, count ?? 0)
      const { n, ...rest } = translate(options)
      const asked = method === "sample" ? [n, rest] : [n === undefined ? rest : { n, ...rest }]
      assert.deepEqual(await model[method](...given, ...asked), ids)
    })
  }
}

/** Write a mask as numpy's `packbits` does, in hexadecimal digits. */
function toBits(mask) {
  let digits = ""
  for (let at = 0; at < mask.length; at += 4) {
    const bits = [0, 1, 2, 3].map((bit) => mask[at + bit] ?? 0)
    digits += parseInt(bits.join(""), 2).toString(16)
  }
  return digits.length % 2 ? `${digits}0` : digits
}
