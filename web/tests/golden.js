/** Exported models to test with, and what Python does with them. */

import { readFileSync } from "node:fs"
import * as ort from "onnxruntime-node"

import { OnnxMelodyVAE } from "../src/operations.js"
import { Files, Runtime } from "../src/sessions.js"

/** Folders, each with a model's graphs and `golden.json`; separated by colons. */
export const folders = (process.env.MELODY_VAE_GOLDEN ?? "").split(":").filter((folder) => folder)
if (!folders.length) throw new Error("MELODY_VAE_GOLDEN names no folder: run python -m pytest -m slow tests/web")

export function readGolden(folder) {
  return JSON.parse(readFileSync(`${folder}/golden.json`, "utf-8"))
}

/** Open the model whose ids are Python's, below the one that pages use. */
export async function openModel(folder, module = ort, device = "node") {
  const [files, runtime] = [new Files(folder), await Runtime.choose({ ort: module, device })]
  const { config, tables } = await files.readAbout()
  const graphs = new Map()
  return new OnnxMelodyVAE(config, tables, async (name) => {
    if (!graphs.has(name)) graphs.set(name, await runtime.load(name, await files.readGraph(`${name}.onnx`), true))
    return graphs.get(name)
  })
}
