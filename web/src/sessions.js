/** The files of an exported model, and its graphs in onnxruntime, for pages and for node. */

import { readTables } from "./tables.js"
import { expandWeights } from "./weights.js"

const IS_NODE = typeof process !== "undefined" && Boolean(process.versions?.node)

/** A module with one function that works with SIMD, from which one sees whether there is any. */
const SIMD_MODULE = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11,
])

/** A graph that makes float32 of bfloat16, which builds of onnxruntime with WebGPU cannot do. */
const TINY_GRAPH = new Uint8Array([
  8, 8, 58, 54, 10, 23, 10, 1, 120, 18, 1, 121, 34, 4, 67, 97, 115, 116, 42, 9, 10, 2, 116, 111, 24, 1, 160, 1, 2, 18, 1,
  103, 90, 11, 10, 1, 120, 18, 6, 10, 4, 8, 16, 18, 0, 98, 11, 10, 1, 121, 18, 6, 10, 4, 8, 1, 18, 0, 66, 4, 10, 0, 16, 20,
])

/** An exported folder, of which files are fetched; graphs are kept in the page's Cache storage. */
export class Files {
  #progress = new Map() // of each file: bytes that came, and bytes in all
  #expected = new Set(["decoder.onnx"]) // files without which nothing can be written
  #digests = {} // SHA-256 of each file, as the configuration has it
  #stores = [] // what is being put into the cache

  /**
   * @param {string | URL} url Of the folder; in node also a path.
   * @param {import("../melody-vae.js").LoadOptions} options
   */
  constructor(url, { onProgress, fetch, cache = "melody-vae" } = {}) {
    const folder = String(url).replace(/\/?$/, "/")
    this.folder = globalThis.location ? new URL(folder, location.href).href : folder
    this.onProgress = onProgress
    // What the browser has from before is asked about: it may be of a model that was here then.
    this.fetch = fetch ?? (IS_NODE ? fetchInNode : (each) => globalThis.fetch(each, { cache: "no-cache" }))
    this.cacheName = cache
  }

  /** Say which files are needed, so that `total` is not known before all of them have said how long they are. */
  expect(names) {
    for (const name of names) this.#expected.add(name)
  }

  /** Wait until all that was read is kept, as far as it can be. */
  async keep() {
    await Promise.all(this.#stores)
  }

  /** Read configuration and tables; the configuration says which graphs in the cache are still right. */
  async readAbout() {
    const names = ["onnx_config.json", "onnx_tables.npz"]
    const [config, tables] = names.map((name) => this.#readSmall(name))
    tables.catch(() => {}) // where both fail the configuration is named
    const text = new TextDecoder().decode(await config)
    let parsed
    try {
      parsed = JSON.parse(text)
    } catch (error) {
      throw new Error(`${this.folder}onnx_config.json is not JSON; write the folder with export_onnx.py`, { cause: error })
    }
    this.#digests = parsed.sha256 ?? {}
    await this.#check(names[1], await tables)
    return { config: parsed, tables: await readTables(await tables) }
  }

  /**
   * See that a file is the one that the configuration means, where the page may compute digests.
   *
   * @throws {Error} If it is another: one cut short, or of another model.
   */
  async #check(name, bytes) {
    if (!globalThis.crypto?.subtle) return
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))
    if (Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") !== this.#digests[name]) {
      throw new Error(`${this.folder}${name} is not the file that onnx_config.json names; write the folder with export_onnx.py`)
    }
  }

  /** Read a small file from the network, from the cache where there is none. */
  async #readSmall(name) {
    const cache = await this.#openCache()
    const address = this.folder + name
    let response
    try {
      response = await this.#request(name)
    } catch (error) {
      response = await cache?.match(address)
      if (!response) throw error
    }
    const bytes = await this.#readBody(name, response)
    this.#stores.push(this.#store(cache, address, bytes))
    return bytes
  }

  /** Read a graph from the cache, else from the network. */
  async readGraph(name) {
    const cache = await this.#openCache()
    const address = `${this.folder}${name}?${this.#digests[name]}`
    const known = await cache?.match(address)
    if (known) return this.#readBody(name, known)
    const bytes = await this.#readBody(name, await this.#request(name))
    await this.#check(name, bytes)
    this.#stores.push(this.#store(cache, address, bytes, `${this.folder}${name}?`))
    return bytes
  }

  async #openCache() {
    if (!this.cacheName || !globalThis.caches) return null
    return caches.open(this.cacheName).catch(() => null) // a private window may refuse
  }

  /** Put a file into the cache, in the place of those whose addresses begin like it: of a model that was there before. */
  async #store(cache, address, bytes, beginning) {
    if (!cache) return
    const copy = new Response(bytes, { headers: { "Content-Length": String(bytes.length) } }) // onnxruntime may take them
    try {
      for (const { url } of (beginning && (await cache.keys())) || []) if (url.startsWith(beginning)) await cache.delete(url)
      await cache.put(address, copy)
    } catch {
      // the disk may be full
    }
  }

  async #request(name) {
    const address = this.folder + name
    let response
    try {
      response = await this.fetch(address)
    } catch (error) {
      throw new Error(`${address} cannot be read (${error.message})`, { cause: error })
    }
    if (!response.ok) throw new Error(`${address} cannot be read (HTTP ${response.status}); write it with export_onnx.py`)
    return response
  }

  /** Read a response to its end, and tell how far it is. */
  async #readBody(name, response) {
    let [loaded, total] = [0, Number(response.headers?.get("Content-Length") ?? 0)]
    const tell = () => {
      this.#progress.set(name, [loaded, Math.max(loaded, total)])
      const sum = (at) => [...this.#progress.values()].reduce((all, each) => all + each[at], 0)
      const isKnown = [...this.#expected].every((each) => this.#progress.has(each))
      this.onProgress?.({ loaded: sum(0), total: isKnown ? sum(1) : 0 })
    }
    tell()
    const parts = []
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read()
      if (done) break
      parts.push(value)
      loaded += value.length
      tell()
    }
    total = loaded // a body that was sent compressed is longer than its header says
    tell()
    const bytes = new Uint8Array(loaded)
    let at = 0
    for (const part of parts) {
      bytes.set(part, at)
      at += part.length
    }
    return bytes
  }
}

/** Fetch an address, or read a file where it is none; in node. */
async function fetchInNode(address) {
  if (/^https?:/.test(address)) return globalThis.fetch(address)
  const { readFile } = await import("node:fs/promises")
  const bytes = await readFile(address.startsWith("file:") ? new URL(address) : address)
  return new Response(bytes, { headers: { "Content-Length": String(bytes.length) } })
}

/** Loads graphs into onnxruntime, each where it runs best. */
export class Runtime {
  #last = Promise.resolve()

  /**
   * @param {object} ort The module of onnxruntime.
   * @param {"wasm" | "webgpu" | "node"} device
   * @param {number} threads In node; `ort.env.wasm.numThreads` has those of WebAssembly.
   * @param {boolean | Promise<boolean>} [readsBfloat16] Known when WebAssembly is there; in a build with WebGPU a session
   *   made meanwhile fails.
   */
  constructor(ort, device, threads, readsBfloat16 = true) {
    this.ort = ort
    this.readsBfloat16 = readsBfloat16
    this.device = device
    this.threads = threads
  }

  /**
   * Choose onnxruntime and where it computes.
   *
   * @param {import("../melody-vae.js").LoadOptions} options
   * @throws {Error} If this machine lacks what was asked for.
   */
  static async choose({ device = "auto", ort, threads } = {}) {
    const devices = ["auto", "wasm", "webgpu", "node"]
    if (!devices.includes(device)) throw new RangeError(`device='${device}' is none of ${devices.join(", ")}`)
    if (device === "node" || (device === "auto" && IS_NODE)) {
      return new Runtime((await ort) ?? (await importModule("onnxruntime-node")), "node", threads ?? 1)
    }
    if (typeof WebAssembly !== "object" || !WebAssembly.validate(SIMD_MODULE)) {
      throw new Error(
        "This browser cannot run the model: it has no WebAssembly with SIMD. " +
          "The current versions of Chrome, Edge, Firefox and Safari do.",
      )
    }
    ort = (await ort) ?? (await importModule("onnxruntime-web"))
    if (threads !== undefined) ort.env.wasm.numThreads = threads
    // WebAssembly is fetched and compiled while the model's own graphs come; what fails here fails with them again.
    const tiny = ort.InferenceSession.create(TINY_GRAPH.slice(), { executionProviders: ["wasm"] })
    const readsBfloat16 = tiny.then((session) => session.release()).then(() => true, () => false)
    const adapter = device === "wasm" ? null : await globalThis.navigator?.gpu?.requestAdapter().catch(() => null)
    if (device === "webgpu" && !adapter) throw new Error("This browser has no WebGPU: choose device='wasm' or 'auto'.")
    const isSlow = adapter?.info?.isFallbackAdapter ?? adapter?.isFallbackAdapter // software in place of a GPU
    return new Runtime(ort, adapter && (device === "webgpu" || !isSlow) ? "webgpu" : "wasm", threads, readsBfloat16)
  }

  /**
   * Load a graph.
   *
   * @param {string} name
   * @param {Uint8Array} bytes
   * @param {boolean} isFixed Whether `device` was asked for, so that nothing else will do.
   */
  async load(name, bytes, isFixed) {
    const { ort, threads } = this
    const options = this.device === "node" ? { intraOpNumThreads: threads, executionProviders: ["cpu"] } : {}
    // A step of the melody decoder is many small operations, each of which would wait for the GPU.
    const providers = this.device === "webgpu" && name !== "decoder" ? ["webgpu", "wasm"] : ["wasm"]
    if (this.device !== "node") options.executionProviders = providers
    if (!(await this.readsBfloat16)) bytes = expandWeights(bytes)
    try {
      const session = await this.inTurn(() => ort.InferenceSession.create(bytes, options))
      return new Graph(ort, session, (work) => this.inTurn(work))
    } catch (error) {
      if (providers[0] !== "webgpu" || isFixed) throw error
      this.device = "wasm" // a build of onnxruntime-web without WebGPU
      return this.load(name, bytes, isFixed)
    }
  }

  /** Make and run sessions one after the other where some are on a GPU, as onnxruntime needs it. */
  inTurn(work) {
    if (this.device !== "webgpu") return work()
    const result = this.#last.then(work)
    this.#last = result.catch(() => {})
    return result
  }
}

async function importModule(name) {
  try {
    const module = await import(/* @vite-ignore */ name)
    return module.InferenceSession ? module : module.default
  } catch (error) {
    throw new Error(`${name} is not there: install it, or give load() its module as 'ort'`, { cause: error })
  }
}

/**
 * An array as graphs take it.
 *
 * @typedef {{type: "int64" | "float32" | "bool", data: ArrayLike<number>, dims: number[]}} Feed
 */

/** One graph, loaded. */
export class Graph {
  constructor(ort, session, inTurn) {
    this.ort = ort
    this.inTurn = inTurn
    this.session = session
    this.inputs = session.inputNames
  }

  /**
   * Run the graph; inputs that it does not read are left out.
   *
   * @param {Record<string, Feed>} feeds
   * @returns {Promise<Record<string, Float32Array>>} The outputs by their names.
   */
  async run(feeds) {
    const tensors = {}
    for (const name of this.inputs) tensors[name] = this.#tensor(feeds[name])
    const results = await this.inTurn(() => this.session.run(tensors))
    const outputs = {}
    for (const name of Object.keys(results)) {
      outputs[name] = results[name].data
      results[name].dispose?.()
    }
    return outputs
  }

  #tensor({ type, data, dims }) {
    if (type === "int64") data = BigInt64Array.from(data, BigInt)
    if (type === "bool") data = Uint8Array.from(data)
    return new this.ort.Tensor(type, data, dims)
  }

  release() {
    return this.session.release()
  }
}
