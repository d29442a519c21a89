/** Weights in half the bytes are the same numbers when they are made whole. */

import assert from "node:assert/strict"
import test from "node:test"
import * as ort from "onnxruntime-node"

import { expandWeights } from "../src/weights.js"

// x * w, where w is cast from four bfloat16 weights, the last of them almost the greatest
const GRAPH = Buffer.from(
  "CAg6cwogCgp3LmJmbG9hdDE2EgF3IgRDYXN0KgkKAnRvGAGgAQIKDgoBeAoBdxIBeSIDTXVsEgFnKhoIBBAQQgp3LmJmbG9hdDE2" +
    "SgjAPwDAADxhf1oPCgF4EgoKCAgBEgQKAggEYg8KAXkSCgoICAESBAoCCARCBAoAEBQ=",
  "base64",
)

test("a graph computes the same with its weights made whole", async () => {
  const feeds = { x: new ort.Tensor("float32", [1, 2, 3, 1], [4]) }
  const run = async (bytes) => (await (await ort.InferenceSession.create(bytes)).run(feeds)).y.data
  const whole = expandWeights(GRAPH)
  assert.equal(whole.length, GRAPH.length + 8)
  const expected = await run(GRAPH)
  assert.deepEqual(expected.slice(0, 3), Float32Array.of(1.5, -4, 0.0234375))
  assert.deepEqual(await run(whole), expected)
  assert.deepEqual(expandWeights(whole), whole)
})
