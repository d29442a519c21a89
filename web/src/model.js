/** The model as pages use it: melodies in, melodies out. */

import { MAX_NOTE_BEATS, keyOf, plainTimeSignature, readableTimeSignature } from "./melody_line.js"
import { OnnxMelodyVAE } from "./operations.js"

/** @typedef {import("../melody-vae.js").Melody} Melody */

/** Leave out of an object what is undefined, so that it stands in nobody's way. */
function given(options) {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined))
}

const meterName = (meter) => (Array.isArray(meter) ? meter.join("/") : meter)

/** @implements {import("../melody-vae.js").MelodyVAE} */
export class MelodyVAE {
  #model
  #graphs
  #runtime
  #last = Promise.resolve()
  #isDisposed = false

  /**
   * @param {{config: object, tables: object}} about What `onnx_config.json` and `onnx_tables.npz` hold.
   * @param {(name: string) => Promise<import("./sessions.js").Graph>} graph Loads a graph when it is first needed.
   * @param {object} parts
   * @param {import("./sessions.js").Runtime} parts.runtime
   * @param {import("./sessions.js").Files} parts.files
   * @param {Map<string, Promise<any>>} parts.graphs Those that have been asked for.
   * @param {string[]} parts.soon Graphs to load now.
   * @param {string[]} parts.late Graphs to load after what was called meanwhile, which then waits for fewer.
   */
  constructor({ config, tables }, graph, { runtime, files, graphs, soon, late }) {
    this.#model = new OnnxMelodyVAE(config, tables, graph)
    this.#runtime = runtime
    this.#graphs = graphs
    this.complete = Promise.all(soon.map(graph))
      .then(() => this.#last)
      .then(() => Promise.all(this.#isDisposed ? [] : late.map(graph)))
      .then(() => files.keep())
    this.complete.catch(() => {}) // whoever needs a graph gets the error
    this.config = config
    this.latentSize = config.latent_size
    this.maxBars = config.max_bars
    this.stepsPerBeat = this.#model.stepsPerBeat
    this.attributes = config.attributes
    this.conditions = config.conditions
    this.meters = this.#model.table.signatures.map((number) => `${number >> 6}/${number % 64}`)
    this.pitches = [this.#model.pitches[0], this.#model.pitches.at(-1)]
  }

  get device() {
    return this.#runtime.device
  }

  async sample({ count = 1, bars, meter, candidates, ...options } = {}) {
    const asked = { ...this.#writing(options), ...this.#conditions(options), bars, candidates, timeSignature: meterName(meter) }
    return this.#run(async (model) => this.#melodies(await model.sample(count, given(asked))))
  }

  async encode(melody) {
    const ids = this.#ids(melody)
    return this.#run(async (model) => (await model.encode([ids])).mean[0])
  }

  async decode(latent, options = {}) {
    return (await this.decodeAll([latent], options))[0]
  }

  async decodeAll(latents, options = {}) {
    latents.forEach((latent) => this.#checkLatent(latent))
    const asked = { ...this.#decoding(options), seed: options.seed }
    return this.#run(async (model) => this.#melodies(await model.decode(latents, given(asked))))
  }

  async reconstruct(melody, options = {}) {
    const ids = this.#ids(melody)
    const asked = { ...this.#decoding(this.#like([melody], options)), seed: options.seed }
    return this.#run(async (model) => this.#melodies(await model.reconstruct([ids], given(asked)))[0])
  }

  async interpolate(a, b, { steps, ...options } = {}) {
    const ends = [await this.#latent(a), await this.#latent(b)]
    const asked = { ...this.#decoding(this.#like([a, b], options)), steps, seed: options.seed }
    return this.#run(async (model) => this.#melodies(await model.interpolate(...ends, given(asked))))
  }

  async prepareMap(corners, options = {}) {
    const asked = this.#decoding(this.#like(corners, options))
    const latents = []
    for (const corner of corners) latents.push(await this.#latent(corner))
    const ends = await this.#run((model) => model.bringTogether(latents, asked))
    return { ...ends, options: given({ bars: asked.bars, meter: asked.timeSignature }) }
  }

  async decodeMap({ options: own, ...ends }, points, options = {}) {
    const asked = { ...this.#decoding({ ...own, ...given(options) }), seed: options.seed }
    return this.#run(async (model) => this.#melodies(await model.decodeBetween(ends, points, given(asked))))
  }

  async vary(melody, { similarity, count, ...options } = {}) {
    const latent = await this.#latent(melody)
    const asked = { ...this.#decoding(this.#like([melody], options)), similarity, n: count, seed: options.seed }
    return this.#run(async (model) => this.#melodies(await model.vary(latent, given(asked))))
  }

  async infill(melody, { bars, candidates, ...options }) {
    const ids = this.#ids(melody)
    const asked = { ...this.#writing(options), ...this.#conditions(options), bars, candidates }
    return this.#run(async (model) => this.#melodies(await model.infill([ids], given(asked)))[0])
  }

  async continueMelody(melody, { bars, ...options } = {}) {
    const ids = this.#ids(melody)
    const asked = { ...this.#writing(options), ...this.#conditions(options), bars }
    return this.#run(async (model) => this.#melodies(await model.continueMelody([ids], given(asked)))[0])
  }

  fit(melody, { firstBar = 0, bars = this.maxBars } = {}) {
    let meter = melody.meter
    if (!this.meters.includes(meter.join("/"))) meter = readableTimeSignature(...plainTimeSignature(...meter))
    if (!this.meters.includes(meter.join("/"))) throw new RangeError(`the model has no meter like ${melody.meter.join("/")}`)
    const { stepsPerBeat } = this
    const scale = (meter[1] * stepsPerBeat) / (melody.meter[1] * melody.stepsPerBeat)
    const bar = meter[0] * stepsPerBeat
    const highest = new Map()
    for (const note of melody.notes) {
      const start = Math.round(note.start * scale) - firstBar * bar
      if (start < 0 || start >= bars * bar || note.pitch < this.pitches[0] || note.pitch > this.pitches[1]) continue
      const duration = Math.max(Math.round((note.start + note.duration) * scale) - firstBar * bar - start, 1)
      if (!(highest.get(start)?.pitch >= note.pitch)) highest.set(start, { ...note, start, duration })
    }
    const notes = [...highest.values()].sort((a, b) => a.start - b.start)
    const own = Math.ceil((melody.bars * melody.meter[0] * melody.stepsPerBeat * scale) / bar) - firstBar
    bars = Math.max(Math.min(bars, own), 1)
    notes.forEach((note, at) => {
      const next = notes[at + 1]?.start ?? bars * bar
      note.duration = Math.min(note.duration, next - note.start, MAX_NOTE_BEATS * stepsPerBeat)
    })
    return { notes, meter, stepsPerBeat, bars }
  }

  keyOf(melody) {
    return keyOf(toLine(melody))
  }

  async dispose() {
    this.#isDisposed = true
    await this.complete.catch(() => {})
    await this.#run(async () => {
      const graphs = [...this.#graphs.values()]
      this.#graphs.clear()
      for (const graph of await Promise.allSettled(graphs)) await graph.value?.release()
    })
  }

  /** Do one thing after the other: onnxruntime runs one graph at a time. */
  #run(work) {
    const done = this.#last.then(() => work(this.#model))
    this.#last = done.catch(() => {})
    return done
  }

  /** Options of all that writes melodies. */
  #writing({ seed, temperature, topP, scale, lowestPitch, highestPitch, maxRest, signal }) {
    return { seed, temperature, topP, scale, lowestPitch, highestPitch, maxRest, signal }
  }

  #conditions({ key, attributes, conditions, guidanceScale, noise }) {
    const all = given({ ...conditions, ...attributes, key })
    return { conditions: Object.keys(all).length ? all : undefined, guidanceScale, noiseLevel: noise }
  }

  #decoding({ bars, meter, noise, ...options }) {
    return given({ ...this.#writing(options), seed: undefined, bars, timeSignature: meterName(meter), noiseLevel: noise })
  }

  /** Let what is written have the bars and the meter of the melodies that it is made of. */
  #like(sources, options) {
    const melodies = sources.filter((source) => source.notes)
    if (!melodies.length) return options
    const bars = melodies.length === sources.length ? Math.max(...melodies.map((melody) => melody.bars)) : undefined
    return { bars, meter: melodies[0].meter, ...given(options) }
  }

  async #latent(source) {
    if (source.notes) return this.encode(source)
    return this.#checkLatent(source)
  }

  #checkLatent(latent) {
    if (latent?.length !== this.latentSize) {
      throw new RangeError(`a latent has ${this.latentSize} numbers, not ${latent?.length}`)
    }
    return Float32Array.from(latent)
  }

  /** The token ids of a melody: its own, if they say what its notes say. */
  #ids(melody) {
    const line = toLine(melody)
    if (line.stepsPerBeat !== this.stepsPerBeat) {
      throw new RangeError(`stepsPerBeat=${line.stepsPerBeat}: this model has ${this.stepsPerBeat}; see model.fit(melody)`)
    }
    if (melody.tokens?.length) {
      const ids = Array.from(melody.tokens)
      const [own] = this.#model.readLines([ids])
      if (JSON.stringify(own) === JSON.stringify(line)) return ids
    }
    return this.#model.writeLines([line])[0]
  }

  #melodies(ids) {
    return this.#model.readLines(ids).map((line, at) => ({
      notes: line.pitch.map((pitch, note) => ({ pitch, start: line.start[note], duration: line.duration[note] })),
      meter: line.timeSignature.split("/").map(Number),
      stepsPerBeat: line.stepsPerBeat,
      bars: line.bars,
      tokens: Int32Array.from(ids[at]),
    }))
  }
}

/**
 * Write a melody as a line, see `melody_line.js`.
 *
 * @param {Melody} melody
 * @throws {RangeError} If its notes are not one at a time, sorted and within its bars.
 */
function toLine({ notes, meter, stepsPerBeat, bars }) {
  const steps = meter[0] * stepsPerBeat * bars
  let end = 0
  notes.forEach(({ pitch, start, duration }, at) => {
    const whole = [pitch, start, duration].every(Number.isInteger)
    if (!whole || start < end || duration < 1 || start + duration > steps) {
      const what = `pitch ${pitch}, start ${start}, duration ${duration}`
      throw new RangeError(
        `note ${at} (${what}) is not on the grid, sorted, after the one before and within ${bars} bars; see model.fit(melody)`,
      )
    }
    end = start + duration
  })
  return {
    pitch: notes.map((note) => note.pitch),
    start: notes.map((note) => note.start),
    duration: notes.map((note) => note.duration),
    timeSignature: meter.join("/"),
    stepsPerBeat,
    bars,
  }
}
