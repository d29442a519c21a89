/** The model in a worker, for `client.js`: one message for each call, one for each answer. */

import { load } from "./index.js"

const TURN_MS = 20 // after which messages are read between two steps

let model = null
const running = new Map() // what stops each call

/** Let the worker read its messages; a promise alone does not. */
const turn = () =>
  new Promise((resume) => {
    const { port1, port2 } = new MessageChannel()
    port1.onmessage = () => {
      port1.close()
      resume()
    }
    port2.postMessage(null)
  })

/** onnxruntime, whose sessions let a message through now and then: one that stops a call is read before its end. */
function interruptible(ort) {
  let last = performance.now()
  const create = async (...all) => {
    const session = await ort.InferenceSession.create(...all)
    return {
      inputNames: session.inputNames,
      run: async (...feeds) => {
        if (performance.now() - last > TURN_MS) {
          await turn()
          last = performance.now()
        }
        return session.run(...feeds)
      },
      release: () => session.release(),
    }
  }
  return { env: ort.env, Tensor: ort.Tensor, InferenceSession: { create } }
}

async function start({ url, ort, ...options }) {
  const onProgress = (progress) => postMessage({ progress })
  model = await load(url, { ...options, onProgress, ort: import(ort).then(interruptible) })
  model.complete.then(
    () => postMessage({ isComplete: true }),
    (error) => postMessage({ isComplete: true, error: describe(error) }),
  )
  const { latentSize, maxBars, stepsPerBeat, attributes, conditions, meters, pitches, config } = model
  return { device: model.device, latentSize, maxBars, stepsPerBeat, attributes, conditions, meters, pitches, config }
}

function describe(error) {
  return { name: error?.name, message: error?.message ?? String(error) }
}

onmessage = async ({ data: { id, method, options, stop } }) => {
  if (stop) return running.get(id)?.abort()
  const control = new AbortController()
  running.set(id, control)
  try {
    if (method === "load") postMessage({ id, result: await start(options[0]) })
    else {
      // The options of a call stand last.
      const asked = { ...options.pop(), signal: control.signal }
      postMessage({ id, result: await model[method](...options, asked) })
    }
  } catch (error) {
    postMessage({ id, error: describe(error) })
  } finally {
    running.delete(id)
  }
}
