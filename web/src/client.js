/**
 * The same model as `index.js` has, computed in a worker, so that the page never stalls.
 *
 * ```js
 * const model = await load("model/", { onProgress: ({ loaded, total }) => ... })
 * const [melody] = await model.sample({ seed: 0, bars: 8, signal: AbortSignal.timeout(10000) })
 * ```
 */

import { MelodyVAE } from "./model.js"

export { MidiError, readMidi, writeMidi } from "./midi.js"

const ORT = new URL("../ort/ort.wasm.min.mjs", import.meta.url)
const WORKER = new URL("./worker.js", import.meta.url)
const ERRORS = { RangeError, TypeError }

/** Make an error again that the worker described. */
function revive({ name, message }) {
  return new (ERRORS[name] ?? Error)(message)
}

/** Start a worker; a page of another origin may only start what it has itself, so it gets a line that imports it. */
function startWorker() {
  if (WORKER.origin === location.origin) return new Worker(WORKER, { type: "module" })
  const line = new Blob([`import ${JSON.stringify(WORKER.href)}`], { type: "text/javascript" })
  const address = URL.createObjectURL(line)
  const worker = new Worker(address, { type: "module" })
  worker.addEventListener("message", () => URL.revokeObjectURL(address), { once: true })
  return worker
}

/** The worker and the calls that wait for it. */
class Line {
  #worker = startWorker()
  #calls = new Map()
  #next = 0

  /** @param {(message: object) => void} onNews Takes what is no answer to a call. */
  constructor(onNews) {
    this.#worker.onmessage = ({ data }) => {
      const call = this.#calls.get(data.id)
      this.#calls.delete(data.id)
      if (data.id === undefined) onNews(data)
      else if (data.error) call?.fail(revive(data.error))
      else call?.done(data.result)
    }
    this.#worker.onerror = (event) => {
      event.preventDefault()
      const reason = event.message || `${WORKER.href} cannot be loaded`
      for (const call of this.#calls.values()) call.fail(new Error(`The model's worker stopped: ${reason}`))
      this.#calls.clear()
    }
  }

  /**
   * Call a method of the model.
   *
   * @param {string} method
   * @param {unknown[]} values Its arguments, options last.
   */
  call(method, ...values) {
    const { signal, ...options } = values.pop() ?? {}
    const id = this.#next++
    return new Promise((done, fail) => {
      signal?.throwIfAborted()
      this.#calls.set(id, { done, fail })
      this.#worker.postMessage({ id, method, options: [...values, options] })
      signal?.addEventListener("abort", () => {
        if (!this.#calls.delete(id)) return
        this.#worker.postMessage({ id, stop: true })
        fail(signal.reason)
      })
    })
  }

  close() {
    this.#worker.terminate()
  }
}

/** @implements {import("../melody-vae.js").MelodyVAE} */
class WorkerModel {
  #line

  constructor(line, complete, about) {
    this.#line = line
    this.complete = complete
    Object.assign(this, about)
  }

  sample(options) {
    return this.#line.call("sample", options)
  }

  encode(melody) {
    return this.#line.call("encode", melody, {})
  }

  decode(latent, options) {
    return this.#line.call("decode", latent, options)
  }

  decodeAll(latents, options) {
    return this.#line.call("decodeAll", latents, options)
  }

  reconstruct(melody, options) {
    return this.#line.call("reconstruct", melody, options)
  }

  interpolate(a, b, options) {
    return this.#line.call("interpolate", a, b, options)
  }

  prepareMap(corners, options) {
    return this.#line.call("prepareMap", corners, options)
  }

  decodeMap(map, points, options) {
    return this.#line.call("decodeMap", map, points, options)
  }

  vary(melody, options) {
    return this.#line.call("vary", melody, options)
  }

  infill(melody, options) {
    return this.#line.call("infill", melody, options)
  }

  continueMelody(melody, options) {
    return this.#line.call("continueMelody", melody, options)
  }

  fit(melody, options) {
    return MelodyVAE.prototype.fit.call(this, melody, options)
  }

  keyOf(melody) {
    return MelodyVAE.prototype.keyOf.call(this, melody)
  }

  async dispose() {
    this.#line.close()
  }
}

/**
 * Load a model into a worker of its own.
 *
 * @param {string | URL} url Of the folder that `export_onnx.py` wrote.
 * @param {object} [options] Those of `load` in `index.js` without `fetch`; `ort` is the address of onnxruntime-web's
 *   module, by default `../ort/ort.wasm.min.mjs` as seen from this file.
 * @returns {Promise<import("../melody-vae.js").MelodyVAE>}
 */
export async function load(url, { onProgress, ort = ORT, ...options } = {}) {
  let [tell, refuse] = [null, null]
  const complete = new Promise((done, fail) => ([tell, refuse] = [done, fail]))
  complete.catch(() => {}) // whoever needs the melody encoder gets the error
  const line = new Line(({ progress, error }) => {
    if (progress) onProgress?.(progress)
    else if (error) refuse(revive(error))
    else tell()
  })
  const folder = new URL(String(url).replace(/\/?$/, "/"), location.href).href
  try {
    const about = await line.call("load", { url: folder, ort: new URL(ort, location.href).href, ...options })
    return new WorkerModel(line, complete, about)
  } catch (error) {
    line.close()
    throw error
  }
}
