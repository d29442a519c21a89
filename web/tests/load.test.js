/** How a model's files come: progress, what is kept, and what is said where they do not. */

import assert from "node:assert/strict"
import { createHash } from "node:crypto"
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { pathToFileURL } from "node:url"
import test from "node:test"
import * as ort from "onnxruntime-node"

import { load } from "../src/index.js"
import { readTables } from "../src/tables.js"
import { folders } from "./golden.js"

const folder = folders.at(-1)
const GRAPHS = ["bar_conditioner", "critic", "decoder", "encoder", "prior"].map((name) => `${name}.onnx`)
const LATE = ["critic.onnx", "encoder.onnx"] // what comes when melodies can be drawn already
const FILES = [...GRAPHS, "onnx_config.json", "onnx_tables.npz"].sort()

/** A network of one folder, that counts what is asked for and may be cut. */
function makeNetwork(from = folder) {
  const network = { asked: [], isCut: false }
  network.fetch = async (address) => {
    if (network.isCut) throw new TypeError("fetch failed")
    const name = address.split("/").at(-1)
    network.asked.push(name)
    const bytes = readFileSync(join(from, name))
    return new Response(bytes, { headers: { "Content-Length": String(bytes.length) } })
  }
  return network
}

/** The page's Cache storage, as far as it is used. */
function makeCaches() {
  const kept = new Map()
  const cache = {
    match: async (address) => kept.get(address)?.clone(),
    put: async (address, response) => void kept.set(address, response),
    delete: async (address) => kept.delete(address),
    keys: async () => [...kept.keys()].map((url) => ({ url })),
  }
  return { kept, open: async () => cache }
}

/** Copy the model into a folder of its own; what `change` names is overwritten. */
function copyModel(t, change = {}) {
  const copy = mkdtempSync(join(tmpdir(), "melody-vae-"))
  t.after(() => rmSync(copy, { recursive: true }))
  for (const name of FILES) cpSync(join(folder, name), join(copy, name))
  for (const [name, content] of Object.entries(change)) writeFileSync(join(copy, name), content)
  return copy
}

test("a path, a file URL and fetched files are the same model", async () => {
  const options = { seed: 1, bars: 2 }
  const expected = await (await load(folder, { ort })).sample(options)
  assert.deepEqual(await (await load(pathToFileURL(folder), { ort })).sample(options), expected)
  const network = makeNetwork()
  const model = await load("models/melody", { ort, fetch: network.fetch })
  assert.deepEqual(await model.sample(options), expected)
  await model.complete
  assert.deepEqual(network.asked.sort(), FILES)
  assert.equal(model.device, "node")
})

test("progress rises to the bytes of all files", async () => {
  const seen = []
  const sizeOf = (names) => names.reduce((sum, name) => sum + readFileSync(join(folder, name)).length, 0)
  const model = await load(folder, { ort, onProgress: (progress) => seen.push(progress) })
  const needed = sizeOf(FILES.filter((name) => !LATE.includes(name)))
  const totals = [0, needed, ...LATE.map((name) => needed + sizeOf([name])), sizeOf(FILES)]
  assert.ok(seen.every(({ total }) => totals.includes(total)))
  assert.ok(seen.some(({ loaded, total }) => loaded === total && total === needed))
  await model.complete
  seen.reduce((before, now) => (assert.ok(now.loaded >= before.loaded), now))
  assert.deepEqual(seen.at(-1), { loaded: sizeOf(FILES), total: sizeOf(FILES) })
  assert.ok(seen.length > FILES.length)
})

test("where noise alone is enough for a melody, the prior comes after the first one", async (t) => {
  const config = JSON.parse(readFileSync(join(folder, "onnx_config.json"), "utf-8"))
  const changed = copyModel(t, { "onnx_config.json": JSON.stringify({ ...config, sampling_noise: 1 }) })
  const network = makeNetwork(changed)
  const model = await load("models/melody", { ort, fetch: network.fetch })
  await model.sample({ seed: 1, bars: 2 })
  assert.ok(!network.asked.includes("prior.onnx"))
  await model.complete
  assert.deepEqual(network.asked.toSorted(), FILES)
  assert.equal(network.asked.at(-1), "prior.onnx")
})

test("what was loaded once needs no network", async (t) => {
  const caches = (globalThis.caches = makeCaches())
  t.after(() => delete globalThis.caches)
  const network = makeNetwork()
  const first = await load("models/melody", { ort, fetch: network.fetch })
  await first.complete
  const expected = await first.reconstruct((await first.sample({ seed: 2 }))[0])
  network.isCut = true
  const second = await load("models/melody", { ort, fetch: network.fetch })
  assert.deepEqual(await second.reconstruct((await second.sample({ seed: 2 }))[0]), expected)
  await assert.rejects(load("models/melody", { ort, fetch: network.fetch, cache: null }), /cannot be read \(fetch failed\)/)
  assert.equal(caches.kept.size, FILES.length)
})

test("weights that were published anew take the place of what was kept", async (t) => {
  const caches = (globalThis.caches = makeCaches())
  t.after(() => delete globalThis.caches)
  await (await load("models/melody", { ort, fetch: makeNetwork().fetch })).complete
  const config = JSON.parse(readFileSync(join(folder, "onnx_config.json"), "utf-8"))
  const decoder = Buffer.concat([readFileSync(join(folder, "decoder.onnx")), Buffer.from([0x32, 1, 97])]) // a doc_string
  const sha256 = { ...config.sha256, "decoder.onnx": createHash("sha256").update(decoder).digest("hex") }
  const changed = copyModel(t, { "decoder.onnx": decoder, "onnx_config.json": JSON.stringify({ ...config, sha256 }) })
  const network = makeNetwork(changed)
  await (await load("models/melody", { ort, fetch: network.fetch })).complete
  const always = FILES.filter((name) => !GRAPHS.includes(name))
  assert.deepEqual(network.asked.sort(), ["decoder.onnx", ...always])
  assert.equal(caches.kept.size, FILES.length)
  const again = makeNetwork(changed)
  await (await load("models/melody", { ort, fetch: again.fetch })).complete
  assert.deepEqual(again.asked.sort(), always)
})

test("a file that the configuration does not mean is refused, and not kept", async (t) => {
  const caches = (globalThis.caches = makeCaches())
  t.after(() => delete globalThis.caches)
  const cut = readFileSync(join(folder, "decoder.onnx")).subarray(0, -1)
  const { fetch } = makeNetwork(copyModel(t, { "decoder.onnx": cut }))
  await assert.rejects(load("models/melody", { ort, fetch }), /decoder\.onnx is not the file that onnx_config\.json names/)
  assert.ok([...caches.kept.keys()].every((address) => !address.includes("decoder.onnx")))
  const tables = makeNetwork(copyModel(t, { "onnx_tables.npz": "no" }))
  await assert.rejects(load("models/melody", { ort, fetch: tables.fetch }), /onnx_tables\.npz is not the file/)
})

test("a file that does not come is named", async (t) => {
  await assert.rejects(load("/nowhere", { ort }), /\/nowhere\/onnx_config\.json cannot be read/)
  const missing = async () => new Response("no", { status: 404 })
  await assert.rejects(load("models/melody", { ort, fetch: missing }), /HTTP 404.*export_onnx\.py/)
  await assert.rejects(load(copyModel(t, { "onnx_config.json": "{" }), { ort }), /onnx_config\.json is not JSON/)
  const cut = readFileSync(join(folder, "onnx_tables.npz")).subarray(100)
  await assert.rejects(readTables(new Uint8Array(cut)), /onnx_tables\.npz is broken/)
})

test("a graph that failed is asked for again", async () => {
  const network = makeNetwork()
  let failures = 1
  const fetch = async (address) => {
    if (address.endsWith("encoder.onnx") && failures-- > 0) throw new TypeError("fetch failed")
    return network.fetch(address)
  }
  const model = await load("models/melody", { ort, fetch })
  await assert.rejects(model.complete, /encoder\.onnx cannot be read \(fetch failed\)/)
  const [melody] = await model.sample({ seed: 3, bars: 2 })
  assert.equal((await model.encode(melody)).length, model.latentSize)
})

test("a device that is not there is said to be missing", async (t) => {
  await assert.rejects(load(folder, { ort, device: "abacus" }), /device='abacus' is none of auto, wasm, webgpu, node/)
  await assert.rejects(load(folder, { ort, device: "webgpu" }), /no WebGPU: choose device='wasm' or 'auto'/)
  const { validate } = WebAssembly
  t.after(() => (WebAssembly.validate = validate))
  WebAssembly.validate = () => false
  await assert.rejects(load(folder, { ort, device: "wasm" }), /no WebAssembly with SIMD.*Firefox/)
})
