/**
 * The melody decoder, one token after another, and the choice of each; as `onnx_melody_vae/decoding.py` has it.
 *
 * Dimension key: A melodies still being written, T tokens, S places in the cache, K decoder layers, H heads, D head
 * size, N bars, C hidden size, V vocabulary. Arrays are flat, the last axis running fastest.
 */

import { COLUMN, NO_ONSET } from "./token_grammar.js"

const CACHE_BLOCK = 32 // tokens by which the cache grows
const LOWEST = -3.4028234663852886e38 // of float32

/** Compute log(sum(exp(values))); -Infinity where all are. */
export function logSumExp(values) {
  const highest = Math.max(...values)
  if (highest === -Infinity) return -Infinity
  let total = 0
  for (const value of values) total += Math.exp(value - highest)
  return Math.log(total) + highest
}

/**
 * Draw from the most probable tokens that together have `topP`.
 *
 * @param {Float32Array} scores Logits, `(V,)`.
 * @param {number} share From 0 to just under 1; uniform ones draw each token as often as its probability says.
 * @param {number} topP From 0 to 1; 1 is all.
 */
export function drawToken(scores, share, topP) {
  let highest = -Infinity
  for (const score of scores) if (score > highest) highest = score
  const probabilities = new Float32Array(scores.length)
  let total = 0
  scores.forEach((score, token) => {
    if (score === -Infinity) return
    probabilities[token] = Math.exp(Math.fround(score - highest))
    total += probabilities[token]
  })
  // What is less probable than this has no more than `1 - topP` together, so top-p leaves it out: few are sorted.
  const least = (1 - topP) / scores.length
  const found = []
  probabilities.forEach((probability, token) => {
    const chance = Math.fround(probability / total)
    if (chance > least) found.push([chance, token])
  })
  found.sort(([a, first], [b, second]) => b - a || first - second)
  let kept = 0
  let running = 0
  for (const [chance] of found) {
    if (running >= topP) break
    kept = running += chance
  }
  running = 0
  for (const [chance, token] of found) if ((running += chance) > share * kept) return token
  return found.at(-1)[1]
}

/** Logits of melodies, one token after another; what is carried on lies here. */
export class StepDecoder {
  /**
   * @param {import("./sessions.js").Graph} graph Of `decoder.onnx`.
   * @param {object} config Of the model.
   * @param {import("./grammar.js").TokenTable} table
   * @param {number} count Melodies.
   * @param {Float32Array | null} barConditions `(A, N + 1, K, C)`; null for a model without a latent.
   */
  constructor(graph, config, table, count, barConditions) {
    Object.assign(this, { graph, config, table, barConditions, count })
    this.heads = config.num_attention_heads
    this.headSize = config.hidden_size / this.heads
    // Keys and values of each layer after each other, `(H, A, S, D)`.
    this.cache = Array.from({ length: 2 * config.num_hidden_layers }, () => new Float32Array(0))
    this.mask = new Float32Array(0) // (A, S)
    this.capacity = 0
    this.length = 0
    this.before = null // the token before, of each
    this.bars = new Array(count).fill(-1)
    this.reached = new Array(count).fill(-NO_ONSET) // the latest onset, and bars before it
    this.steps = new Array(count).fill(0)
    this.pitch = new Float32Array(count)
  }

  /**
   * Compute the logits `(A, V)` after one more token of each; padding is never attended to.
   *
   * @param {number[]} token
   * @param {boolean[]} [isPadding]
   * @returns {Promise<Float32Array[]>}
   */
  async step(token, isPadding) {
    if (this.length === this.capacity) this.#grow()
    const { config, count, capacity, length: now } = this
    const farthest = config.max_relative_distance
    const before = this.before ?? token
    const previous = before.map((each, row) => (each === config.pad_token_id ? token[row] : each))
    const feeds = {
      input_ids: { type: "int64", data: token, dims: [count] },
      distance: {
        type: "int64",
        data: Array.from({ length: capacity }, (_, at) => Math.min(Math.max(at - now + farthest, 0), farthest)),
        dims: [capacity],
      },
      mask: { type: "float32", data: this.mask, dims: [count, capacity] },
      ...this.#advance(token),
      previous_ids: { type: "int64", data: previous, dims: [count] },
    }
    if (this.barConditions) feeds.condition = this.#condition()
    for (let layer = 0; layer < config.num_hidden_layers; layer++) {
      const dims = [this.heads, count, capacity, this.headSize]
      feeds[`keys.${layer}`] = { type: "float32", data: this.cache[2 * layer], dims }
      feeds[`values.${layer}`] = { type: "float32", data: this.cache[2 * layer + 1], dims }
    }
    const { logits, present } = await this.graph.run(feeds)
    this.#store(present)
    for (let row = 0; row < count; row++) this.mask[row * capacity + now] = isPadding?.[row] ? LOWEST : 0
    this.length = now + 1
    this.before = token
    const size = logits.length / count
    return token.map((_, row) => logits.subarray(row * size, (row + 1) * size))
  }

  /** Put keys and values of a step, `(2 K, H, A, D)`, into the cache. */
  #store(present) {
    const { heads, count, capacity, headSize, length: now } = this
    let from = 0
    for (const cache of this.cache) {
      for (let strand = 0; strand < heads * count; strand++) {
        const to = (strand * capacity + now) * headSize
        for (let at = 0; at < headSize; at++) cache[to + at] = present[from++]
      }
    }
  }

  /** The condition embedding of each melody's bar, `(A, K, C)`. */
  #condition() {
    const { config, count, barConditions } = this
    const dims = [count, config.num_hidden_layers, config.hidden_size]
    const size = dims[1] * dims[2]
    const data = new Float32Array(count * size)
    for (let row = 0; row < count; row++) {
      const bar = Math.min(Math.max(this.bars[row] + 1, 0), config.max_bars)
      const from = (row * (config.max_bars + 1) + bar) * size
      data.set(barConditions.subarray(from, from + size), row * size)
    }
    return { type: "float32", data, dims }
  }

  /**
   * Go on with some melodies only.
   *
   * @param {number[]} rows
   */
  keep(rows) {
    const { heads, capacity, headSize, count } = this
    const take = (values) => rows.map((row) => values[row])
    const size = capacity * headSize
    this.cache = this.cache.map((cache) => {
      const kept = new Float32Array(heads * rows.length * size)
      for (let head = 0; head < heads; head++) {
        rows.forEach((row, place) => {
          const from = (head * count + row) * size
          kept.set(cache.subarray(from, from + size), (head * rows.length + place) * size)
        })
      }
      return kept
    })
    this.mask = takeRows(this.mask, rows, count)
    if (this.barConditions) this.barConditions = takeRows(this.barConditions, rows, count)
    if (this.before) this.before = take(this.before)
    for (const name of ["bars", "reached", "steps"]) this[name] = take(this[name])
    this.pitch = Float32Array.from(take(this.pitch))
    this.count = rows.length
  }

  /** Copy the cache into a larger one; its new places are ruled out until they are written. */
  #grow() {
    const { heads, count, headSize, capacity } = this
    const larger = capacity + CACHE_BLOCK
    this.cache = this.cache.map((cache) => {
      const grown = new Float32Array(heads * count * larger * headSize)
      for (let strand = 0; strand < heads * count; strand++) {
        const from = strand * capacity * headSize
        grown.set(cache.subarray(from, from + capacity * headSize), strand * larger * headSize)
      }
      return grown
    })
    const mask = new Float32Array(count * larger).fill(LOWEST)
    for (let row = 0; row < count; row++) {
      mask.set(this.mask.subarray(row * capacity, (row + 1) * capacity), row * larger)
    }
    this.mask = mask
    this.capacity = larger
  }

  /** Carry on to one more token of each; returns its musical position and pitch. */
  #advance(token) {
    const position = new Float32Array(this.count)
    this.pitch = this.pitch.slice() // the one before may still be read
    token.forEach((each, row) => {
      const entry = this.table.rows[each]
      this.bars[row] += entry[COLUMN.OPENS_BAR]
      position[row] = this.bars[row]
      if (this.config.musical_time) {
        this.steps[row] = entry[COLUMN.BAR_STEPS] || this.steps[row]
        const reached = this.bars[row] * NO_ONSET + entry[COLUMN.LAST_ONSET] + 1
        this.reached[row] = Math.max(this.reached[row], reached)
        position[row] += partOfBar(this.reached[row], this.steps[row])
      }
      if (entry[COLUMN.HIGHEST_PITCH]) {
        this.pitch[row] = (entry[COLUMN.LOWEST_PITCH] + entry[COLUMN.HIGHEST_PITCH]) / 2
      }
    })
    const dims = [this.count]
    return {
      musical_position: { type: "float32", data: position, dims },
      pitch: { type: "float32", data: this.pitch, dims },
    }
  }
}

/** Take some rows of a flat array of `count` rows. */
function takeRows(values, rows, count) {
  const size = values.length / count
  const taken = new Float32Array(rows.length * size)
  rows.forEach((row, place) => taken.set(values.subarray(row * size, (row + 1) * size), place * size))
  return taken
}

/** How far into its bar of `steps` grid steps a melody is; `reached` is the latest onset plus one, and bars before. */
export function partOfBar(reached, steps) {
  const onset = Math.max((((reached % NO_ONSET) + NO_ONSET) % NO_ONSET) - 1, 0)
  return Math.min(Math.fround(onset / Math.max(steps, 1)), Math.fround(0.999))
}

/**
 * Rule out what is no melody, -Infinity in `(V,)`, and give the end of a bar what belongs to it.
 *
 * That a bar ends is one event, followed by a new bar or by the end of the melody; where only one of them is allowed
 * the event's probability goes to it.
 *
 * @param {Float32Array} logits
 * @param {import("./grammar.js").GrammarState} state
 * @param {boolean} isPrimer
 */
export function allowedScores(logits, state, isPrimer) {
  const offer = state.offer(isPrimer)
  const { table } = state
  const scores = new Float32Array(logits.length).fill(-Infinity)
  if (offer.only !== undefined) {
    scores[offer.only] = 0
    return scores
  }
  for (let token = 0; token < scores.length; token++) if (offer.allowed[token]) scores[token] = logits[token]
  scores[table.eosTokenId] = -Infinity
  if (!offer.barMayEnd) return scores
  const end = logits[table.eosTokenId]
  const newBar = Math.fround(logSumExp(Array.from(table.barEnds, (token) => scores[token])))
  const barEnds = Math.fround(logSumExp([end, newBar]))
  const gain = offer.mayEnd || newBar === -Infinity ? 0 : Math.fround(barEnds - newBar)
  const hasToClose = offer.mustEnd || offer.nextKept !== undefined
  for (const token of table.barEnds) scores[token] = hasToClose ? -Infinity : scores[token] + gain
  scores[table.eosTokenId] = offer.mustEnd ? barEnds : offer.mayEnd ? end : -Infinity
  if (offer.nextKept !== undefined) scores[offer.nextKept] = Number.isFinite(barEnds) ? barEnds : 0
  return scores
}

function mostLikely(scores) {
  let best = 0
  for (let token = 1; token < scores.length; token++) if (scores[token] > scores[best]) best = token
  return best
}

/**
 * Write melodies to their ends, greedily or with a source of random numbers for each.
 *
 * @param {StepDecoder} decoder Of these melodies.
 * @param {import("./grammar.js").GrammarState[]} states At their beginning, one for each.
 * @param {number[][]} primer The beginnings; shorter ones are padded on the left.
 * @param {object} options
 * @param {number} options.maxLength Tokens to stop at, the beginning's included.
 * @param {import("./random.js").Generator[]} [options.generator] One for each; without, the most likely token is taken.
 * @param {number[]} options.temperature Of the softmax over tokens, for each.
 * @param {number} options.topP Share of the probability that tokens are drawn from.
 * @param {Uint8Array} [options.isFirst] Whether a token may be the first new one; any by default.
 * @param {AbortSignal} [options.signal]
 * @returns {Promise<number[][]>} The ids of each melody, padding included.
 */
export async function writeMelodies(decoder, states, primer, options) {
  const { maxLength, generator, temperature, topP, isFirst, signal } = options
  const { pad_token_id: pad, eos_token_id: eos } = decoder.config
  let length = Math.max(...primer.map((row) => row.length))
  let rows = states.map((_, row) => row)
  let logits = []
  for (let place = 0; place < length; place++) {
    signal?.throwIfAborted()
    const token = primer.map((row) => row[place - (length - row.length)] ?? pad)
    logits = await decoder.step(
      token,
      primer.map((row) => place < length - row.length),
    )
    states.forEach((state, row) => state.advance(token[row]))
  }
  if (isFirst) for (const row of logits) row.forEach((_, token) => isFirst[token] || (row[token] = -Infinity))
  let isDone = rows.map(() => false)
  for (let isPrimer = true; length < maxLength; isPrimer = false) {
    signal?.throwIfAborted()
    const following = rows.map((row, at) => {
      if (isDone[at]) return pad
      const scores = allowedScores(logits[at], states[row], isPrimer)
      if (!generator) return mostLikely(scores)
      if (temperature[row] !== 1) scores.forEach((score, token) => (scores[token] = score / temperature[row]))
      return drawToken(scores, generator[row].randomFloat32(), topP)
    })
    following.forEach((token, at) => {
      if (isDone[at]) return
      states[rows[at]].advance(token)
      isDone[at] = token === eos
    })
    length += 1
    const kept = [...rows.keys()].filter((at) => !isDone[at])
    if (!kept.length || length === maxLength) break
    let token = following
    if (kept.length <= (8 / 9) * rows.length) {
      decoder.keep(kept)
      ;[rows, token] = [rows, following].map((each) => kept.map((at) => each[at]))
      isDone = rows.map(() => false)
    }
    logits = await decoder.step(token)
  }
  return states.map((state) => state.tokens)
}
