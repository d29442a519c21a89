/**
 * The melody VAE in a page or in node, without a server.
 *
 * ```js
 * const model = await load("onnx/")
 * const [melody] = await model.sample({ seed: 0, key: "D minor", bars: 8 })
 * const bytes = writeMidi(melody, { tempo: 100 })
 * ```
 */

import { MelodyVAE } from "./model.js"
import { Files, Runtime } from "./sessions.js"

export { MidiError, readMidi, writeMidi } from "./midi.js"

/**
 * Load a model from the URL (in node also the path) of the folder that `export_onnx.py` wrote.
 *
 * Resolves when a melody can be drawn; melody encoder and critic come after that, at last the prior where
 * samples seldom need it, see `model.complete`.
 *
 * @param {string | URL} url
 * @param {import("../melody-vae.js").LoadOptions} [options]
 * @returns {Promise<import("../melody-vae.js").MelodyVAE>}
 */
export async function load(url, options = {}) {
  const files = new Files(url, options)
  const [runtime, about] = await Promise.all([Runtime.choose(options), files.readAbout()])
  const graphs = new Map()
  const graph = (name) => {
    if (!graphs.has(name)) {
      const isFixed = (options.device ?? "auto") !== "auto"
      const loaded = files.readGraph(`${name}.onnx`).then((bytes) => runtime.load(name, bytes, isFixed))
      loaded.catch(() => graphs.delete(name)) // the next one that needs it tries again
      graphs.set(name, loaded)
    }
    return graphs.get(name)
  }
  const { latent_size: hasLatent, num_prior_layers: hasPrior, critic_size: hasCritic, sampling_noise: noise } = about.config
  const prior = hasPrior ? ["prior"] : []
  const isFree = noise === 1 // the melody decoder writes out of noise alone, so that samples seldom need the prior
  const needed = ["decoder", ...(hasLatent ? ["bar_conditioner"] : []), ...(isFree ? [] : prior)]
  files.expect(needed.map((name) => `${name}.onnx`))
  await Promise.all(needed.map(graph))
  const soon = [...(hasLatent ? ["encoder"] : []), ...(hasCritic ? ["critic"] : [])]
  return new MelodyVAE(about, graph, { runtime, files, graphs, soon, late: isFree ? prior : [] })
}
