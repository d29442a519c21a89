/**
 * What one does with melodies, as `MelodyVAEModel` has it: reconstruct, vary, infill, continue, interpolate; as
 * `onnx_melody_vae/operations.py` has it, with the same random numbers in the same order.
 *
 * Dimension key: B batch, T tokens, N bars, Z latent size, S points of a path. Melodies are arrays of token ids,
 * latents arrays of `(Z,)`.
 */

import { StepDecoder, logSumExp } from "./decoding.js"
import { drawNormal } from "./latents.js"
import { keyOf, majorTonic, transposeLine } from "./melody_line.js"
import { makeGenerators } from "./random.js"
import { SamplingModel, checkBars, checkCount, forCandidates, forEach, repeatEach, takeBest } from "./sampling.js"

const PATH_SPREAD = 7
const PATH_NOISE = 0.5
const f = Math.fround

const lengthOf = (values) => Math.max(Math.sqrt(values.reduce((total, value) => total + value * value, 0)), 1e-12)

/** Interpolate on the great circle from `a` to `b` at a position; lengths change linearly. */
export function slerp(a, b, weight) {
  const [lengthA, lengthB] = [lengthOf(a), lengthOf(b)]
  const product = a.reduce((total, value, at) => total + value * b[at], 0)
  const angle = Math.acos(Math.min(Math.max(product / (lengthA * lengthB), -1), 1))
  if (Math.abs(Math.sin(angle)) < 1e-4) return a.map((value, at) => (1 - weight) * value + weight * b[at])
  const shareA = Math.sin((1 - weight) * angle) / lengthA
  const shareB = Math.sin(weight * angle) / lengthB
  const length = ((1 - weight) * lengthA + weight * lengthB) / Math.sin(angle)
  return a.map((value, at) => (shareA * value + shareB * b[at]) * length)
}

/** `steps` numbers from 0 to 1, both included. */
function linspace(steps) {
  return Array.from({ length: steps }, (_, at) => (steps > 1 ? f(at / (steps - 1)) : 0))
}

/** A melody VAE of ONNX graphs, with the operations of `MelodyVAEModel`; `OnnxMelodyVAE` in Python. */
export class OnnxMelodyVAE extends SamplingModel {
  /** Decode melodies from their posterior's mean, under their own conditions, as many bars as they have. */
  async reconstruct(ids, options = {}) {
    const own = { bars: this.numBars(ids), conditions: this.conditionsOf(this.readLines(ids)) }
    return this.decode((await this.encode(ids)).mean, { ...own, ...options })
  }

  /**
   * Decode `n` variations of the melody of a latent, as `MelodyVAEModel.vary` does.
   *
   * @param {Float32Array} latent
   * @param {object} options Those of `generate`, and `n`, `similarity` (the share of the notes that a variation has in
   *   common with the melody, from 0 to 1), `seed` or a generator for each.
   */
  async vary(latent, { n = 4, similarity = 0.8, seed, generator, ...options } = {}) {
    if (!(similarity >= 0 && similarity <= 1)) {
      throw new RangeError(`similarity=${similarity} is not a finite number from 0 to 1`)
    }
    const { config } = this
    const sources = generator ?? makeGenerators(n, seed)
    let latents = sources.map(() => latent)
    let own = {}
    if (n && similarity < 1) {
      const noise = drawNormal(config.latent_size, sources)
      if (config.noise_probability) {
        const level = this.#variationLevel(similarity)
        own = { ...this.samplingOptions(), conditions: await this.#conditionsLike(latent, options), generator: sources }
        own.noiseLevel = latents.map(() => new Array(config.max_bars).fill(level))
        latents = this.addNoise(latents, own.noiseLevel, noise)
      } else if (config.num_prior_layers) {
        const isKnown = latents.map(() => new Array(config.max_bars).fill(false))
        latents = await this.complete(latents, isKnown, this.labels({}, n), sources, { begin: similarity, noise })
      } else latents = latents.map((each, row) => slerp(each, noise[row], f(1 - similarity)))
    }
    return this.generate({ latent: latents, ...own, ...options })
  }

  /** Look up the noise level at which variations have this similarity. */
  #variationLevel(similarity) {
    const levels = this.config.variation_levels?.length ? this.config.variation_levels : [1, 0]
    const place = similarity * (levels.length - 1)
    const below = Math.min(Math.floor(place), Math.max(levels.length - 2, 0))
    return levels[below] + (place - below) * ((levels[below + 1] ?? levels[below]) - levels[below])
  }

  /** Read the conditions of the melody decoder from the melody of a latent. */
  async #conditionsLike(latent, { bars, signal }) {
    if (!this.config.decoder_conditions.length) return {}
    const asked = { bars: typeof bars === "number" ? bars : undefined, signal }
    const conditions = this.conditionsOf(this.readLines(await this.decode([latent], asked)))
    return Object.fromEntries(Object.entries(conditions).map(([name, [value]]) => [name, value]))
  }

  /**
   * Write some bars of melodies anew, `bars` from 0; the others come back as they are. Of `candidates` for each melody
   * the one is kept that leads best to what follows. Other options are those of `sample`.
   *
   * @throws {RangeError} If a melody has no such bar.
   */
  async infill(ids, { bars = [], seed, conditions, guidanceScale = 1, generator, noiseLevel, candidates = 8, ...options } = {}) {
    const { config } = this
    const n = ids.length
    const numBars = this.numBars(ids)
    const shortest = n ? Math.min(...numBars) : config.max_bars
    for (const bar of bars) {
      if (!(Number.isInteger(bar) && bar >= 0 && bar < shortest)) {
        throw new RangeError(`bar ${bar} cannot be filled: bars count from 0 to ${shortest - 1} here`)
      }
    }
    checkCount(candidates)
    const own = { ...this.samplingOptions(), generator: generator ?? makeGenerators(n, seed), ...options }
    let asked = forCandidates({ ...own, conditions: this.checkConditions(conditions, n) }, n, candidates)
    const template = repeatEach(ids, candidates)
    if (config.latent_size) {
      const isKnown = template.map(() => Array.from({ length: config.max_bars }, (_, bar) => !bars.includes(bar)))
      const known = repeatEach((await this.encode(ids)).mean, candidates)
      asked = await this.withLatent(template, { ...asked, guidanceScale, noiseLevel }, known, isKnown, repeatEach(numBars, candidates))
    }
    const filled = await this.generate({ template, regenerate: bars, ...asked })
    return candidates === 1 || !n ? filled : this.#bestFillings(filled, template, bars, { count: candidates, ...options })
  }

  /** Keep of fillings, candidates of one melody after the other, those that silence no bar and lead best to what follows. */
  async #bestFillings(ids, originals, bars, { count, signal }) {
    const hasNotes = (melodies) =>
      this.splitBars(melodies).map((melody) => bars.map((bar) => melody[bar].some((token) => this.table.hasNote[token])))
    const filled = hasNotes(ids)
    const price = hasNotes(originals).map((has, row) => has.filter((each, at) => each && !filled[row][at]).length)
    if (this.config.noise_probability) {
      const nats = await this.#natsOfRest(ids, bars, signal)
      const share = 1 + Math.max(...nats)
      nats.forEach((each, row) => (price[row] += each / share)) // less than a bar
    }
    return takeBest(ids, price.map((each) => -each), count)
  }

  /** Nats of the bars after the first that was filled, those filled aside, for the melody decoder without a latent. */
  async #natsOfRest(ids, bars, signal) {
    const { config, table } = this
    const latent = ids.map(() => new Float32Array(config.latent_size))
    const conditions = await this.barConditions(latent, ids.map(() => new Array(config.max_bars).fill(1)), {})
    const decoder = new StepDecoder(await this.graph("decoder"), config, table, ids.length, conditions)
    const repeats = new Set(this.repeats.values())
    const nats = ids.map(() => 0)
    const [bar, isCopied] = [ids.map(() => -1), ids.map(() => false)]
    for (let place = 0; place + 1 < Math.max(...ids.map((row) => row.length)); place++) {
      signal?.throwIfAborted()
      const token = ids.map((row) => row[place] ?? config.pad_token_id)
      const logits = await decoder.step(token, ids.map((row) => place >= row.length))
      ids.forEach((row, at) => {
        const following = row[place + 1]
        if (following === undefined) return
        const isRepeat = repeats.has(following)
        if (table.opensBar[following]) {
          bar[at] += 1
          isCopied[at] = repeats.has(row[place]) // by the grammar, which costs nothing
        } else if (isRepeat || following === config.eos_token_id) isCopied[at] = false
        const ofBar = bar[at] + Number(isRepeat) // what says that a bar repeats stands before it
        if (isCopied[at] || ofBar <= Math.min(...bars) || bars.includes(ofBar)) return
        nats[at] += logSumExp(logits[at]) - logits[at][following]
      })
    }
    return nats
  }

  /**
   * Keep the bars of melodies and write on, up to `bars` bars, `max_bars` by default and at most. Other options are
   * those of `sample`.
   *
   * @throws {RangeError} If a melody has no bar to begin with, or nothing is left to write.
   */
  async continueMelody(ids, { bars, seed, conditions, guidanceScale = 1, generator, noiseLevel, ...options } = {}) {
    const n = ids.length
    bars ??= this.config.max_bars
    const wanted = forEach("bars", bars, n)
    checkBars(wanted)
    this.numBars(ids).forEach((has, row) => {
      if (!(has >= 1 && has < wanted[row])) {
        throw new RangeError(`${has} bars cannot be continued to bars=${wanted[row]}: give at least 1, and fewer`)
      }
    })
    if (options.timeSignature != null) {
      throw new RangeError(`timeSignature=${options.timeSignature}: the melody has its own`)
    }
    const primer = this.joinBars(this.splitBars(ids), true)
    const asked = { ...this.samplingOptions(), generator: generator ?? makeGenerators(n, seed), ...options }
    const drawn = { conditions: this.checkConditions(conditions, n), guidanceScale, noiseLevel, opensBar: true }
    return this.generateAfter(primer, bars, bars, { ...asked, ...drawn })
  }

  /** Decode a path between two latents, ends included, as `MelodyVAEModel` does. */
  async interpolate(a, b, { steps = 7, ...options } = {}) {
    if (!steps) return []
    const points = linspace(steps).map((weight) => [weight])
    return this.decodeBetween(await this.bringTogether([a, b], options), points, options)
  }

  /**
   * Prepare to decode points between two latents, or four: top left, top right, bottom left, bottom right.
   *
   * @param {Float32Array[]} corners
   */
  async bringTogether(corners, options = {}) {
    if (!this.config.noise_probability) return { corners, moved: corners, numBars: null }
    const [moved, numBars] = await this.#inOneKey(corners, options)
    return { corners, moved, numBars }
  }

  /**
   * Decode points between corners, as `MelodyVAEModel`'s `interpolate` and `interpolate_grid` do.
   *
   * @param {Awaited<ReturnType<OnnxMelodyVAE["bringTogether"]>>} ends
   * @param {number[][]} points How far each is to the right, and of four corners down, from 0 to 1.
   */
  decodeBetween({ corners, moved, numBars }, points, options) {
    const latents = points.map((weights) => {
      if (weights.every((weight) => weight === 0 || weight === 1)) return corners[weights[0] + 2 * (weights[1] ?? 0)]
      const [right, down] = weights
      const above = this.#blend(moved[0], moved[1], right, numBars)
      if (corners.length === 2) return above
      return this.#blend(above, this.#blend(moved[2], moved[3], right, numBars), down, numBars)
    })
    if (numBars === null) return this.decode(latents, options)
    const level = (weights) => Math.max(...weights.map((weight) => f(PATH_NOISE * f(Math.sin(f(f(Math.PI) * weight))))))
    const noiseLevel = points.map((weights) => new Array(this.config.max_bars).fill(level(weights)))
    return this.decode(latents, { noiseLevel, ...options })
  }

  /** Transpose melodies to the first one's key, by six semitones at most; returns latents and the most bars. */
  async #inOneKey(latents, { bars, signal }) {
    const lines = this.readLines(await this.decode(latents, { bars: typeof bars === "number" ? bars : undefined, signal }))
    const tonics = lines.map((line) => majorTonic(keyOf(line)))
    const moved = [...latents]
    for (const [row, line] of lines.entries()) {
      const transposed = tonics[row] !== tonics[0] && transposeLine(line, tonics[row], tonics[0], this.pitches)
      if (transposed) moved[row] = (await this.encode(this.writeLines([transposed]))).mean[0]
    }
    return [moved, Math.max(1, ...lines.map((line) => line.bars))]
  }

  /** Turn latent `a` into `b`, bar after bar or all at once; at a weight from 0 to 1. */
  #blend(a, b, weight, numBars) {
    if (numBars === null) return slerp(a, b, weight)
    const share = this.config.latent_size / this.config.max_bars
    const blended = new Float32Array(a.length)
    for (let bar = 0; bar < this.config.max_bars; bar++) {
      const place = Math.min(bar, numBars - 1) / Math.max(1, numBars - 1)
      const own = f(Math.min(Math.max(weight * (1 + PATH_SPREAD) - PATH_SPREAD * place, 0), 1))
      const [begin, end] = [bar * share, (bar + 1) * share]
      blended.set(slerp(a.subarray(begin, end), b.subarray(begin, end), own), begin)
    }
    return blended
  }
}
