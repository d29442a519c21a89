/**
 * Latents of melodies: encoded, drawn from the prior, and expanded for the melody decoder; as
 * `onnx_melody_vae/latents.py` has it.
 *
 * Dimension key: B batch, T tokens, N bars, S share of a bar in the latent, Z latent size, K decoder layers, C hidden
 * size, A attributes. Melodies' ids are arrays of token ids, `number[][]`; latents are arrays of `(Z,)`.
 */

import { partOfBar } from "./decoding.js"
import { TokenTable } from "./grammar.js"
import { ATTRIBUTES, PITCH_NAMES, keyOf, readLine, tonicOf, writeLine } from "./melody_line.js"
import { COLUMN, NO_ONSET, TokenWriter, markRepeats, runsOfTokens, splitKey } from "./token_grammar.js"

const PRIOR_STEPS = 8 // of Heun's method, as the model's own prior has them
const FEWEST_STEPS = 4
const f = Math.fround

/** Draw from N(0, I), `size` numbers from each generator. */
export function drawNormal(size, generator) {
  return generator.map((source) => source.standardNormal(size))
}

/** Join arrays of one length, as a feed of a graph. */
export function stack(rows, dims) {
  const data = new Float32Array(rows.length * rows[0].length)
  rows.forEach((row, at) => data.set(row, at * row.length))
  return { type: "float32", data, dims: [rows.length, ...dims] }
}

/** Part a flat array into `count` rows. */
function unstack(data, count) {
  const size = data.length / count
  return Array.from({ length: count }, (_, row) => data.slice(row * size, (row + 1) * size))
}

/** The graphs of a melody VAE but for the melody decoder's loop. */
export class LatentModel {
  #writer
  #runs

  /**
   * @param {object} config What `onnx_config.json` says.
   * @param {Record<string, {shape: number[], data: Int32Array | Float32Array}>} tables Of `onnx_tables.npz`.
   * @param {(name: string) => Promise<import("./sessions.js").Graph>} graph Loads a graph when it is first needed.
   */
  constructor(config, tables, graph) {
    this.config = config
    this.tables = tables
    this.graph = graph
    this.repeats = new Map(config.repeat_lags.map((lag, at) => [lag, config.repeat_token_ids[at]]))
    this.table = new TokenTable(tables.token_grammar, config.eos_token_id, this.repeats)
  }

  async run(name, feeds) {
    return (await this.graph(name)).run(feeds)
  }

  // Melodies as ids and as lines.

  /** Writes lines with the model's tokens. */
  get writer() {
    return (this.#writer ??= new TokenWriter(this.table.rows))
  }

  /** Grid steps per beat. */
  get stepsPerBeat() {
    const row = this.table.rows.find((each) => each[COLUMN.TIME_SIGNATURE] > 0)
    return Math.floor(row[COLUMN.BAR_STEPS] / (row[COLUMN.TIME_SIGNATURE] >> 6))
  }

  /** Read ids as lines, see `melody_line.js`. */
  readLines(ids) {
    const runs = (this.#runs ??= runsOfTokens(this.table.rows))
    return ids.map((row) => readLine(row.flatMap((token) => runs[token]), this.stepsPerBeat))
  }

  /**
   * Write lines as ids.
   *
   * @throws {RangeError} If the vocabulary lacks what a line has.
   */
  writeLines(lines) {
    return this.joinBars(lines.map((line) => this.writer.write(writeLine(line))))
  }

  /** Write bars' tokens as ids; open ones have no end. */
  joinBars(melodies, isOpen = false) {
    const { bos_token_id: bos, eos_token_id: eos } = this.config
    const hasNotes = (bar) => bar.some((token) => this.table.hasNote[token])
    return melodies.map((bars) => [bos, ...markRepeats(bars, this.repeats, hasNotes).flat(), ...(isOpen ? [] : [eos])])
  }

  /** Return the tokens of each bar; what stands outside bars is left out. */
  splitBars(ids) {
    const { pad_token_id: pad, bos_token_id: bos, eos_token_id: eos } = this.config
    const special = new Set([pad, bos, eos, ...this.repeats.values()])
    return ids.map((row) => {
      const bars = []
      for (const token of row) {
        if (this.table.opensBar[token]) bars.push([])
        if (bars.length && !special.has(token)) bars.at(-1).push(token)
      }
      return bars
    })
  }

  /** Count the bars of each melody. */
  numBars(ids) {
    return ids.map((row) => row.filter((token) => this.table.opensBar[token]).length)
  }

  // Latents.

  /** Where in the music each token of a melody is, in bars, and the pitch of the latest note, in semitones. */
  places(row) {
    const [position, pitch] = [new Float32Array(row.length), new Float32Array(row.length)]
    let [bars, reached, steps, latest] = [-1, -NO_ONSET, 0, 0]
    row.forEach((token, at) => {
      const entry = this.table.rows[token]
      bars += entry[COLUMN.OPENS_BAR]
      steps = entry[COLUMN.BAR_STEPS] || steps
      reached = Math.max(reached, bars * NO_ONSET + entry[COLUMN.LAST_ONSET] + 1)
      position[at] = bars
      if (this.config.musical_time) position[at] += partOfBar(reached, steps)
      if (entry[COLUMN.HIGHEST_PITCH]) latest = (entry[COLUMN.LOWEST_PITCH] + entry[COLUMN.HIGHEST_PITCH]) / 2
      pitch[at] = latest
    })
    return { position, pitch }
  }

  /**
   * Encode melodies of up to `max_bars` bars; returns the posterior's mean and log-variance of each.
   *
   * @param {number[][]} ids
   * @throws {RangeError} If the model has no latent, or a melody is too long for it.
   */
  async encode(ids) {
    const { config } = this
    if (!config.latent_size) {
      throw new RangeError("latent_size=0: this model is a plain Music Transformer and has no latent to encode into")
    }
    if (!ids.length) return { mean: [], logVariance: [] }
    const longest = Math.max(...this.numBars(ids))
    if (longest > config.max_bars) {
      throw new RangeError(
        `a melody of ${longest} bars does not fit a latent of max_bars=${config.max_bars}: cut it up`,
      )
    }
    // What a bar is called makes no difference to the melody encoder: tokens of repeated bars are left out.
    const isRepeat = new Set(this.repeats.values())
    const read = ids.map((row) => {
      const { position, pitch } = this.places(row)
      return row.map((token, at) => [token, position[at], pitch[at]]).filter(([token]) => !isRepeat.has(token))
    })
    const length = Math.max(...read.map((row) => row.length))
    const feed = (type, value) => ({
      type,
      data: read.flatMap((row) => Array.from({ length }, (_, at) => value(row[at]))),
      dims: [ids.length, length],
    })
    const outputs = await this.run("encoder", {
      input_ids: feed("int64", (token) => (token ? token[0] : config.pad_token_id)),
      attention_mask: feed("int64", (token) => (token ? 1 : 0)),
      musical_position: feed("float32", (token) => (token ? token[1] : 0)),
      pitch: feed("float32", (token) => (token ? token[2] : 0)),
    })
    return {
      mean: unstack(outputs.latent_mean, ids.length),
      logVariance: unstack(outputs.latent_log_variance, ids.length),
    }
  }

  /**
   * Expand latents into condition embeddings, `(B, N + 1, K, C)`, flat.
   *
   * @param {Float32Array[]} latent
   * @param {number[][] | null} noiseLevel Of each bar, from 0 to 1; 0 by default.
   * @param {Record<string, any[]>} conditions What the melody decoder is conditioned on, an array for each. Attributes
   *   that are left open are those of an average melody where a latent has no noise, if the model is made so.
   */
  async barConditions(latent, noiseLevel, conditions) {
    const { config } = this
    if (noiseLevel && !config.noise_probability) {
      throw new RangeError(`noise=${noiseLevel[0][0]}: this model was trained without (noise_probability=0)`)
    }
    const level = noiseLevel ?? latent.map(() => new Array(config.max_bars).fill(0))
    const feeds = { latent: stack(latent, [config.latent_size]), noise_level: stack(level, [config.max_bars]) }
    const labels = this.labels(conditions, latent.length)
    if (config.average_attributes) {
      const { data } = labels["labels.attributes"]
      const count = config.attributes.length
      const isClean = level.map((bars) => bars.every((each) => each === 0))
      data.forEach((value, at) => Number.isNaN(value) && isClean[Math.floor(at / count)] && (data[at] = 0))
    }
    return (await this.run("bar_conditioner", { ...feeds, ...labels })).bar_conditions
  }

  /** Write the conditions and bars of `n` melodies as graphs take them. */
  labels(conditions, n, bars) {
    const { attributes, conditions: known, max_bars: most } = this.config
    const values = new Float32Array(n * attributes.length).fill(NaN)
    const labels = {}
    const add = (name, data) => (labels[`labels.${name}`] = { type: "int64", data, dims: [n] })
    for (const [name, choices] of Object.entries(known)) add(name, new Array(n).fill(choices.length)) // left open
    add(
      "bars",
      Array.from({ length: n }, (_, row) => (bars == null ? 0 : Math.min(Array.isArray(bars) ? bars[row] : bars, most))),
    )
    for (const [name, wanted] of Object.entries(conditions)) {
      const column = attributes.indexOf(name)
      if (column < 0) {
        const number = (value) => (value == null ? known[name].length : known[name].indexOf(value))
        add(name, wanted.map(number))
      } else wanted.forEach((value, row) => (values[row * attributes.length + column] = value ?? NaN))
    }
    labels["labels.attributes"] = { type: "float32", data: values, dims: [n, attributes.length] }
    return labels
  }

  /** Measure `config.attributes` of a line, in standard deviations from the training data's mean. */
  attributesOf(line) {
    const { attribute_mean: mean, attribute_scale: scale } = this.tables
    return this.config.attributes.map((name, at) => f(f(f(ATTRIBUTES[name](line)) - mean.data[at]) / scale.data[at]))
  }

  /** Read the conditions of the melody decoder from lines, as `MelodyVAEModel.conditions_of` does; an array for each. */
  conditionsOf(lines) {
    const { attributes, conditions: known, decoder_conditions: names } = this.config
    const conditions = {}
    if (names.includes("key")) conditions.key = lines.map((line) => this.knownKey(line))
    if (names.includes("time_signature")) {
      const signatures = lines.map((line) => line.timeSignature)
      conditions.time_signature = signatures.map((each) => (known.time_signature.includes(each) ? each : null))
    }
    if (names.includes("attributes")) {
      const values = lines.map((line) => (line.pitch.length ? this.attributesOf(line) : attributes.map(() => null)))
      attributes.forEach((name, at) => (conditions[name] = values.map((each) => each[at])))
    }
    return conditions
  }

  /** Find the key of a melody; null where it has no notes, or the training data had none in it. */
  knownKey(line) {
    const key = line.pitch.length ? keyOf(line) : null
    return this.config.conditions.key.includes(key) ? key : null
  }

  /** Mix latents with noise at levels of each bar. */
  addNoise(latent, noiseLevel, noise) {
    const share = this.config.latent_size / this.config.max_bars
    return latent.map((row, melody) =>
      row.map((value, at) => {
        const level = f(noiseLevel[melody][Math.floor(at / share)])
        return f(f(1 - level) * value) + f(level * noise[melody][at])
      }),
    )
  }

  /**
   * Sample latents from the prior: the learned one where the model has it, else N(0, I).
   *
   * @param {import("./random.js").Generator[]} generator One for each latent.
   * @param {object} options
   * @param {Float32Array[] | null} [options.known] Latents of which some bars are kept.
   * @param {boolean[][]} [options.isKnown] Which bars are.
   * @param {Record<string, any[]>} [options.conditions] An array for each.
   * @param {number} [options.guidanceScale] Scale of classifier-free guidance; 1 is none.
   * @param {number} [options.noiseLevel] How much of the bars that are not known is still noise, from 0 to 1.
   * @param {number | number[]} [options.bars] Bars of the melodies, of each or of all.
   */
  async sampleLatent(generator, { known, isKnown, conditions = {}, guidanceScale = 1, noiseLevel = 0, bars } = {}) {
    const { latent_size: size, max_bars: most, num_prior_layers: layers } = this.config
    const n = generator.length
    const latent = known ?? generator.map(() => new Float32Array(size))
    if (!known || !isKnown) isKnown = generator.map(() => new Array(most).fill(false))
    if (layers) {
      const labels = this.labels(conditions, n, bars)
      return this.complete(latent, isKnown, labels, generator, { end: 1 - noiseLevel, guidanceScale })
    }
    const normal = drawNormal(size, generator)
    const drawn = this.#where(isKnown, latent, normal)
    if (!noiseLevel) return drawn
    const levels = isKnown.map((row) => row.map((each) => (each ? 0 : noiseLevel)))
    return this.addNoise(drawn, levels, drawNormal(size, generator))
  }

  /** Take the bars of latents that are known from one, the others from another. */
  #where(isKnown, latent, other) {
    const share = this.config.latent_size / this.config.max_bars
    return latent.map((row, melody) =>
      row.map((value, at) => (isKnown[melody][Math.floor(at / share)] ? value : other[melody][at])),
    )
  }

  /** Draw the bars of latents that are not known, as `LatentPrior.sample` does, by Heun's method. */
  async complete(latent, isKnown, labels, generator, { begin = 0, end = 1, guidanceScale = 1, noise } = {}) {
    const { latent_size: size, max_bars: bars } = this.config
    const [mean, scale] = [this.tables.mean.data, this.tables.scale.data]
    const n = latent.length
    const shares = (values) => stack(values, [bars, size / bars])
    noise ??= drawNormal(size, generator)
    const target = latent.map((row) => row.map((value, at) => f(value - mean[at]) / scale[at]))
    let state = target.map((row, melody) =>
      row.map((value, at) => f(f(begin) * value) + f(f(1 - begin) * noise[melody][at])),
    )
    const openLabels = { ...this.labels({}, n), "labels.bars": labels["labels.bars"] }
    const fixed = {
      known: shares(target),
      is_known: { type: "bool", data: isKnown.flat().map(Number), dims: [n, bars] },
    }
    const velocity = async (at, timestep) => {
      const feeds = {
        noisy: shares(at),
        timestep: { type: "float32", data: new Float32Array(n).fill(timestep), dims: [n] },
        ...fixed,
      }
      const conditional = (await this.run("prior", { ...feeds, ...labels })).velocity
      if (guidanceScale === 1) return unstack(conditional, n)
      const open = (await this.run("prior", { ...feeds, ...openLabels })).velocity
      return unstack(
        open.map((value, place) => value + f(f(guidanceScale) * f(conditional[place] - value))),
        n,
      )
    }
    const fewest = Math.min(FEWEST_STEPS, PRIOR_STEPS)
    const count = begin < end ? Math.max(Math.ceil(PRIOR_STEPS * (end - begin)), fewest) : 0
    for (let step = 0; step < count; step++) {
      const time = (at) => f(at === count ? end : begin + ((end - begin) / count) * at)
      const [now, then] = [time(step), time(step + 1)]
      const gap = f(then - now)
      const first = await velocity(state, now)
      const guess = state.map((row, melody) => row.map((value, at) => value + f(gap * first[melody][at])))
      const second = await velocity(guess, then)
      state = state.map((row, melody) =>
        row.map((value, at) => value + f(f(gap * f(first[melody][at] + second[melody][at])) / 2)),
      )
    }
    const drawn = state.map((row) => row.map((value, at) => f(value * scale[at]) + mean[at]))
    return this.#where(isKnown, latent, drawn)
  }

  /**
   * Write conditions as an array for each of `n` melodies.
   *
   * @throws {RangeError} If the model does not know a condition or a value.
   */
  checkConditions(conditions, n) {
    const { conditions: known, attributes, num_prior_layers: layers, decoder_conditions: decoderConditions } = this.config
    const names = Object.keys(conditions ?? {})
    if (names.length && !layers && !decoderConditions.length) {
      throw new RangeError(`conditions ${names}: this model has no learned prior (train_prior.py)`)
    }
    const lists = {}
    for (const name of names) {
      if (!Object.hasOwn(known, name) && !attributes.includes(name)) {
        const all = [...Object.keys(known), ...attributes].join(", ")
        throw new RangeError(`unknown condition '${name}'; this model has ${all}`)
      }
      let values = Array.isArray(conditions[name]) ? conditions[name] : new Array(n).fill(conditions[name])
      if (values.length !== n) throw new RangeError(`${values.length} values of ${name} for ${n} melodies`)
      if (name === "key") values = values.map(keyName)
      for (const value of values) {
        if (value == null) continue
        if (Object.hasOwn(known, name) && !known[name].includes(value)) {
          throw new RangeError(`unknown ${name} '${value}'; this model has ${known[name].join(", ")}`)
        }
        if (!Object.hasOwn(known, name) && !Number.isFinite(value)) {
          throw new RangeError(`${name}=${value} is not a finite number`)
        }
      }
      lists[name] = values
    }
    return lists
  }
}

/** Write a key such as `Bb major` as conditions name it, `A# major`; anything else stays as it is. */
function keyName(value) {
  if (typeof value !== "string") return value
  const [tonic, mode] = splitKey(value)
  const pitch = tonicOf(tonic)
  return pitch === null ? value : `${PITCH_NAMES[pitch]} ${mode}`
}
