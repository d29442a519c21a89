/**
 * Melodies written by the grammar, and sampled: of several candidates the best, section by section where they are long;
 * as `onnx_melody_vae/sampling.py` has it, with the same random numbers in the same order.
 *
 * Dimension key: B batch, T tokens, N bars, Z latent size. Melodies are arrays of token ids,
 * latents arrays of `(Z,)`.
 */

import { StepDecoder, drawToken, writeMelodies } from "./decoding.js"
import { GrammarState } from "./grammar.js"
import { LatentModel, stack } from "./latents.js"
import { keyOf, majorTonic, sum, transposeLine } from "./melody_line.js"
import { makeGenerators } from "./random.js"
import { COLUMN, scaleMask } from "./token_grammar.js"

/** Options of `sample` that may be arrays with one for each melody. */
const PER_MELODY = ["generator", "bars", "temperature", "scale", "timeSignature", "lowestPitch", "highestPitch"]

// As in the model's own operations.
const LONGEST_REST = 1
const FREE_DRAWS = 4
const SECTION_NOISE_FACTOR = 0.75
const OTHER_KEY_LOSS = 1e4 // more than any logit of the critic
const f = Math.fround

/**
 * Return an option as an array with one for each of `n` melodies.
 *
 * @throws {RangeError} If there are not `n`.
 */
export function forEach(name, value, n) {
  const values = Array.isArray(value) ? value : new Array(n).fill(value)
  if (values.length !== n) throw new RangeError(`${values.length} values of ${name} for ${n} melodies`)
  return values
}

/** @throws {RangeError} If not each is a number of bars. */
export function checkBars(counts) {
  const wrong = counts.find((count) => !(Number.isInteger(count) && count >= 1))
  if (wrong !== undefined) throw new RangeError(`bars=${wrong}: a melody has a whole number of bars, at least one`)
}

/** Keep of the options, and of the conditions among them, those of some melodies; what is for all stays. */
function takeRows(options, rows) {
  const take = (values) => rows.map((row) => values[row])
  const taken = { ...options }
  for (const name of PER_MELODY) if (Array.isArray(options[name])) taken[name] = take(options[name])
  const conditions = Object.entries(options.conditions).map(([name, values]) => [name, take(values)])
  return { ...taken, conditions: Object.fromEntries(conditions) }
}

/** Repeat each value, `count` of one after the other. */
export function repeatEach(values, count) {
  return values.flatMap((value) => new Array(count).fill(value))
}

/** Keep of each `count` melodies after each other the first of the highest score. */
export function takeBest(ids, scores, count) {
  return Array.from({ length: ids.length / count }, (_, melody) => {
    let best = melody * count
    for (let row = best + 1; row < (melody + 1) * count; row++) if (scores[row] > scores[best]) best = row
    return ids[best]
  })
}

/** @throws {RangeError} If it is no number of candidates. */
export function checkCount(candidates) {
  if (!(Number.isInteger(candidates) && candidates >= 1)) {
    throw new RangeError(`candidates=${candidates} is not a whole number of 1 or more`)
  }
}

/** Repeat the options of `n` melodies for `count` candidates of each, with generators of their own. */
export function forCandidates(options, n, count) {
  if (count === 1) return options
  const rows = repeatEach([...new Array(n).keys()], count)
  return { ...takeRows(options, rows), generator: options.generator.flatMap((source) => source.spawn(count)) }
}

/** A model that writes melodies, from latents or from its prior. */
export class SamplingModel extends LatentModel {
  /** Decode latents; greedily, unless there is a seed or a generator for each. Options are those of `generate`. */
  async decode(latent, { seed, ...options } = {}) {
    if (seed != null) options.generator = makeGenerators(latent.length, seed)
    return this.generate({ latent, ...options })
  }

  /**
   * Write melodies.
   *
   * @param {object} options
   * @param {Float32Array[]} [options.latent] Needed unless the model has none.
   * @param {number[][]} [options.ids] Beginnings of the melodies; the start token by default.
   * @param {number | number[]} [options.bars] Bars that each melody shall have; the model decides by default.
   * @param {number | number[][]} [options.noiseLevel] How much of the latent is noise, from 0 to 1; of all, or of each bar.
   * @param {Record<string, any>} [options.conditions] What the melody decoder is conditioned on, as in `sample`.
   * @param {string | (string | null)[]} [options.scale] Such as `D dorian`: the only pitches. For all, or one for each,
   *   as the three that follow.
   * @param {string | (string | null)[]} [options.timeSignature] Such as `6/8`; the model's choice by default.
   * @param {number | (number | null)[]} [options.lowestPitch]
   * @param {number | (number | null)[]} [options.highestPitch]
   * @param {number[][]} [options.template] Melodies to keep bars of.
   * @param {number[]} [options.regenerate] Which of their bars to write anew, from 0.
   * @param {number} [options.maxRest] Bars that a rest between notes may last; any by default.
   * @param {import("./random.js").Generator[]} [options.generator] For each melody; by default the most likely token
   *   is taken.
   * @param {number | number[]} [options.temperature] Of the softmax over tokens, for all or for each.
   * @param {number} [options.topP] Share of the probability that tokens are drawn from.
   * @param {number} [options.maxLength] Tokens to stop at, the beginning's included.
   * @param {boolean} [options.opensBar] Whether the first new token has to open a bar.
   * @param {AbortSignal} [options.signal]
   * @returns {Promise<number[][]>} Ids, without padding.
   * @throws {RangeError} If no melody can be like this, or there is a latent too much or none.
   */
  async generate(options) {
    const { config, table } = this
    const { latent, ids, template, bars, noiseLevel, conditions, generator, opensBar, signal } = options
    const { maxRest, temperature = 1, topP = 1, maxLength, regenerate = [] } = options
    if (!latent === Boolean(config.latent_size)) {
      throw new RangeError(`latent_size=${config.latent_size}, and ${latent ? "a" : "no"} latent given`)
    }
    if (!(topP >= 0 && topP <= 1)) throw new RangeError(`topP=${topP} is not a number from 0 to 1`)
    const n = [latent, ids, template].find((part) => part)?.length ?? 1
    if (!n) return []
    const temperatures = forEach("temperature", temperature, n).map(f)
    for (const each of temperatures) {
      if (!(each > 0 && each < Infinity)) throw new RangeError(`temperature=${each} is not a number above 0`)
    }
    const wanted = this.#wanted(n, bars, maxRest, options)
    let length = maxLength ?? config.max_length
    if (template) {
      if (maxLength == null) length += Math.max(...template.map((row) => row.length))
      this.#keepTemplate(wanted, template, regenerate, bars == null)
    }
    let barConditions = null
    if (latent) {
      const level = typeof noiseLevel === "number" ? latent.map(() => new Array(config.max_bars).fill(noiseLevel)) : noiseLevel
      barConditions = await this.barConditions(latent, level, this.checkConditions(conditions, n))
    }
    let isFirst
    if (opensBar) { // a token that opens none could put more notes into the last bar that is there
      isFirst = Uint8Array.from(table.opensBar)
      for (const token of this.repeats.values()) isFirst[token] = 1
    } // prettier-ignore
    const rows = await writeMelodies(
      new StepDecoder(await this.graph("decoder"), config, table, n, barConditions),
      wanted.map((each) => new GrammarState(table, each)),
      ids ?? wanted.map(() => [config.bos_token_id]),
      { maxLength: length, generator, temperature: temperatures, topP, isFirst, signal },
    )
    return rows.map((row) => row.filter((token) => token !== config.pad_token_id))
  }

  /** Write options of `generate` as what each melody is to be. */
  #wanted(n, bars, maxRest, asked) {
    const { max_bars: most, latent_size: size } = this.config
    const all = (name, value) => forEach(name, value, n)
    const options = PER_MELODY.slice(3).map((name) => all(name, asked[name]))
    return all("bars", bars).map((count, row) => {
      if (count != null && count > most && size) {
        throw new RangeError(`bars=${count}: a latent holds at most max_bars=${most}; sample({ bars }) writes longer ones`)
      }
      if (count != null) checkBars([count])
      const [scale, signature, low, high] = options.map((values) => values[row])
      const pitches = [scale == null ? 0xfff : scaleMask(scale), low ?? 0, high ?? 127]
      this.table.usablePhases(pitches)
      return {
        bars: count ?? most,
        modelEnds: count == null,
        signature: signature == null ? [0, 0] : this.table.timeSignature(signature),
        pitches,
        maxRest: maxRest ?? null,
        kept: new Map(),
      }
    })
  }

  /** Let melodies keep the bars of a template but for some; `own` bars are those that it has. */
  #keepTemplate(wanted, template, regenerate, own) {
    this.splitBars(template).forEach((melody, row) => {
      const each = wanted[row]
      each.kept = new Map([...melody.entries()].filter(([index]) => !regenerate.includes(index)))
      if (own && melody.length) each.bars = melody.length
      each.modelEnds = false
      const signed = melody.flat().map((token) => this.table.rows[token]).find((entry) => entry[COLUMN.TIME_SIGNATURE])
      if (signed) each.signature = [signed[COLUMN.TIME_SIGNATURE], signed[COLUMN.BAR_STEPS]]
    })
  }

  /**
   * Sample `n` melodies from the prior, as `MelodyVAEModel.sample` does.
   *
   * @param {number} n
   * @param {object} options Those of `generate`, and these:
   * @param {number} [options.seed] Makes the result repeatable: melody i of a seed is the same for every `n`.
   * @param {number | number[]} [options.bars] Bars per melody; `max_bars` by default; more are written section by
   *   section. One number for all, or one for each, none of them more than `max_bars`.
   * @param {Record<string, any>} [options.conditions] Such as `{key: "D minor", note_density: 1}`; for all, or an array
   *   with one for each, in which null leaves it open.
   * @param {number} [options.guidanceScale] Scale of classifier-free guidance; 1 is none.
   * @param {number} [options.maxAttempts] How often a melody in another key than asked for is sampled at most.
   * @param {number} [options.noiseLevel] How much of its latent a melody leaves to the melody decoder, from 0 to 1;
   *   `config.sampling_noise` by default.
   * @param {number} [options.candidates] Drawn for each melody; the one is kept that the critic takes most for a
   *   training melody. `config.sampling_candidates` by default; melodies longer than a latent are drawn once.
   */
  async sample(n, { seed, bars, conditions, guidanceScale = 1, maxAttempts = 12, generator, noiseLevel, candidates, ...options } = {}) {
    const checked = this.checkConditions(conditions, n)
    const asked = {
      ...this.samplingOptions(),
      temperature: 1,
      bars: bars ?? this.config.max_bars,
      conditions: checked,
      guidanceScale,
      noiseLevel,
      generator: generator ?? makeGenerators(n, seed),
      ...options,
    }
    for (const name of PER_MELODY) forEach(name, asked[name], n)
    checkBars(forEach("bars", asked.bars, n))
    asked.timeSignature = this.#oneTimeSignature(asked.timeSignature, checked, n)
    if (!n) return []
    const count = this.#checkCandidates(candidates, asked.bars)
    const ids = await this.#sampleBest(n, count, asked)
    for (let attempt = 1; attempt < maxAttempts; attempt++) {
      const wrong = this.#rowsInAnotherKey(ids, checked)
      if (!wrong.length) break
      const again = takeRows(asked, wrong)
      if (attempt >= FREE_DRAWS && again.scale == null) again.scale = again.conditions.key
      const drawn = await this.#sampleBest(wrong.length, count, again)
      wrong.forEach((row, at) => (ids[row] = drawn[at]))
    }
    return ids
  }

  // Batches and sections of sampled melodies.

  /**
   * Return how many candidates `sample` draws for each melody.
   *
   * @throws {RangeError} If the critic cannot choose among so many.
   */
  #checkCandidates(candidates, bars) {
    const { max_bars: most, critic_size: hasCritic, sampling_candidates: own } = this.config
    const isLong = !Array.isArray(bars) && bars > most
    if (candidates == null) return isLong ? 1 : own
    checkCount(candidates)
    if (candidates > 1 && !hasCritic) {
      throw new RangeError(`candidates=${candidates}: this model has no critic to choose among them`)
    }
    if (candidates > 1 && isLong) {
      throw new RangeError(`candidates=${candidates} of bars=${bars}: the critic reads ${most} bars at most`)
    }
    return candidates
  }

  /** Draw `count` candidates for each of `n` melodies, transpose them, and keep of each the best in its key. */
  async #sampleBest(n, count, asked) {
    const options = forCandidates(asked, n, count)
    const ids = this.#transposeToKeys(await this.#sampleBatch(n * count, options), options)
    return count === 1 ? ids : this.#choose(ids, count, options)
  }

  /** Keep of `ids`, candidates of one melody after the other, the best of each by the critic. */
  async #choose(ids, count, { conditions, signal }) {
    signal?.throwIfAborted()
    const { mean } = await this.encode(ids)
    const bars = { type: "int64", data: this.numBars(ids), dims: [ids.length] }
    const { score } = await this.run("critic", { latent: stack(mean, [this.config.latent_size]), bars })
    for (const row of this.#rowsInAnotherKey(ids, conditions)) score[row] -= OTHER_KEY_LOSS
    return takeBest(ids, score, count)
  }

  /** Write `n` melodies once, by the options of `sample`. */
  async #sampleBatch(n, { bars, ...options }) {
    const { max_bars: most, conditions, latent_size: size, bos_token_id: bos } = this.config
    if (!Array.isArray(bars) && bars > most) return this.#sampleSections(n, bars, options)
    const known = conditions.time_signature ?? []
    const signature = options.timeSignature
    if (known.length && signature != null && !("time_signature" in options.conditions) && size) {
      const asked = forEach("timeSignature", signature, n).map((name) => (known.includes(name) ? name : null))
      options.conditions = { ...options.conditions, time_signature: asked }
    }
    return this.generateAfter(Array.from({ length: n }, () => [bos]), bars, bars, options)
  }

  /** Sample latents that fit a primer, and write what follows it, up to so many bars. */
  async generateAfter(primer, bars, barsOfLatent, options) {
    const numBars = this.numBars(primer)
    if (this.config.latent_size) {
      const isKnown = numBars.map((has) => Array.from({ length: this.config.max_bars }, (_, bar) => bar < has))
      const known = numBars.some((has) => has) ? (await this.encode(primer)).mean : null
      options = await this.withLatent(primer, options, known, isKnown, barsOfLatent)
    } else {
      // It has no prior that could read them.
      options = { ...options, conditions: undefined, noiseLevel: undefined }
    }
    return this.generate({ ids: primer, bars, ...options })
  }

  /** Put latents, and the noise level of each bar, in place of the options that say how to sample what `ids` begin. */
  async withLatent(ids, { guidanceScale, noiseLevel, ...options }, known, isKnown, bars) {
    const { conditions, generator } = options
    noiseLevel ??= this.#defaultNoiseLevel(conditions)
    if (!(noiseLevel >= 0 && noiseLevel <= 1)) throw new RangeError(`noise=${noiseLevel} is not a number from 0 to 1`)
    if (noiseLevel && !this.config.noise_probability) {
      throw new RangeError(`noise=${noiseLevel} and a model trained without (noise_probability=0)`)
    }
    const latent = await this.sampleLatent(generator, { known, isKnown, conditions, guidanceScale, noiseLevel, bars })
    const levels = isKnown.map((row) => row.map((each) => (each ? 0 : noiseLevel)))
    const all = this.#withKeys(conditions, ids, generator)
    return { ...options, conditions: all, latent, ...(noiseLevel ? { noiseLevel: levels } : {}) }
  }

  /** Add to conditions the keys of what there is of melodies, or keys drawn as in the training data. */
  #withKeys(conditions, ids, generator) {
    const { key_shares: shares, decoder_conditions: decoderConditions, conditions: known } = this.config
    if (!shares || !decoderConditions.includes("key")) return conditions
    const lines = this.readLines(ids)
    const sums = shares.reduce((all, share) => [...all, (all.at(-1) ?? 0) + share], [])
    const key = generator.map((source, row) => {
      const place = source.random() * sums.at(-1)
      const drawn = known.key[sums.findIndex((each) => each > place)]
      return conditions.key?.[row] ?? (lines[row].pitch.length ? this.knownKey(lines[row]) : drawn)
    })
    return { ...conditions, key }
  }

  /** Write melodies longer than a latent, section by section of half a latent, as `MelodyVAEModel` does. */
  async #sampleSections(n, bars, options) {
    const size = Math.max(1, Math.floor(this.config.max_bars / 2))
    const melodies = Array.from({ length: n }, () => []) // of each its sections, their bars' tokens
    while (size * melodies[0].length < bars) {
      const count = Math.min(size, bars - size * melodies[0].length)
      // Half a section could end within a note, so the last one repeats none unless it is whole.
      const lags = count === size ? this.#drawLags(n, melodies[0].length, options.generator) : new Array(n).fill(-1)
      const sections = melodies.map((melody, row) => (lags[row] >= 0 ? melody.at(-1 - lags[row]) : []))
      const rows = [...lags.keys()].filter((row) => lags[row] < 0)
      if (rows.length) {
        const before = rows.map((row) => melodies[row].at(-1) ?? [])
        const ids = await this.#sampleNextSection(before, count, takeRows(options, rows))
        this.splitBars(ids).forEach((section, at) => (sections[rows[at]] = section.slice(before[at].length)))
      }
      melodies.forEach((melody, row) => melody.push(sections[row]))
    }
    return this.joinBars(melodies.map((melody) => melody.flat()))
  }

  /** Draw for each melody how many sections back the one is that it repeats now, from 0; -1 for none. */
  #drawLags(n, numSections, generator) {
    const returns = this.config.section_returns.slice(0, numSections)
    if (!returns.length) return new Array(n).fill(-1)
    const scores = Float64Array.from([...returns, Math.max(1 - sum(returns), 0)], Math.log)
    return generator.map((source) => {
      const lag = drawToken(scores, source.random(), 1)
      return lag < returns.length ? lag : -1
    })
  }

  /** Write `count` bars after the section before; returns ids with both. */
  async #sampleNextSection(before, count, options) {
    const known = before[0].length
    if (known) {
      options.timeSignature = undefined // the primer has its own
      options.noiseLevel ??= SECTION_NOISE_FACTOR * this.#defaultNoiseLevel(options.conditions)
    }
    const primer = this.joinBars(before, true)
    return this.generateAfter(primer, known + count, this.config.max_bars, options) // the melody goes on
  }

  /** List the melodies whose key is not the condition's. */
  #rowsInAnotherKey(ids, { key }) {
    if (!key) return []
    const lines = this.readLines(ids)
    return [...lines.keys()].filter((row) => key[row] != null && keyOf(lines[row]) !== key[row])
  }

  /**
   * Transpose melodies to the keys asked for where their mode is the same.
   *
   * Those stay as they are whose scale or range was asked for, or that would leave the vocabulary.
   */
  #transposeToKeys(ids, options) {
    const wrong = this.#rowsInAnotherKey(ids, options.conditions)
    if (["scale", "lowestPitch", "highestPitch"].some((name) => options[name] != null)) return ids
    const moved = [...ids]
    for (const row of wrong) {
      const [line] = this.readLines([ids[row]])
      const [has, wanted] = [keyOf(line), options.conditions.key[row]]
      if (has.split(" ")[1] !== wanted.split(" ")[1]) continue
      const transposed = transposeLine(line, majorTonic(has), majorTonic(wanted), this.pitches)
      if (transposed) [moved[row]] = this.writeLines([transposed])
    }
    return moved
  }

  /** Pitches of the vocabulary, ascending. */
  get pitches() {
    return this.writer.values("Pitch")
  }

  // Options and conditions.

  /** Return the options of `generate` with which this model samples tokens. */
  samplingOptions() {
    return { topP: this.config.sampling_top_p, maxRest: LONGEST_REST }
  }

  /** How noisy the latents of melodies under these conditions are by default. */
  #defaultNoiseLevel(conditions) {
    const { decoder_conditions: decoderConditions, attributes, sampling_noise: level } = this.config
    // The others reach the melody decoder through the latent alone; the time signature is in the tokens.
    const all = decoderConditions.includes("attributes") ? attributes : []
    const direct = new Set(["time_signature", ...decoderConditions, ...all])
    return Object.keys(conditions).some((name) => !direct.has(name)) ? level / 2 : level
  }

  /**
   * Return the time signature that an option and a condition ask for together.
   *
   * @throws {RangeError} If they ask for different ones.
   */
  #oneTimeSignature(signature, { time_signature: asked }, n) {
    if (!asked) return signature
    return forEach("timeSignature", signature, n).map((one, row) => {
      const other = asked[row]
      if (one != null && other != null && one !== other) {
        throw new RangeError(`meter=${one} and the condition time_signature=${other} differ`)
      }
      return one ?? other
    })
  }
}
