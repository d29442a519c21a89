/** Reads the arrays of `onnx_tables.npz`, a zip archive of numpy's arrays. */

const TYPES = { "<i4": Int32Array, "<f4": Float32Array }
const [STORED, DEFLATED] = [0, 8]

/**
 * Read an npz archive.
 *
 * @param {Uint8Array} bytes
 * @returns {Promise<Record<string, {shape: number[], data: Int32Array | Float32Array}>>}
 * @throws {Error} If it is none, or has arrays of other types.
 */
export async function readTables(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const broken = (what) => new Error(`onnx_tables.npz is broken (${what}); write it with export_onnx.py`)
  let end = bytes.length - 22
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--
  if (end < 0) throw broken("no zip archive")
  const tables = {}
  let at = view.getUint32(end + 16, true)
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    if (at + 46 > bytes.length || view.getUint32(at, true) !== 0x02014b50) throw broken("its list of files")
    const method = view.getUint16(at + 10, true)
    const packed = view.getUint32(at + 20, true)
    const [nameLength, extra, comment] = [28, 30, 32].map((field) => view.getUint16(at + field, true))
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + nameLength))
    const local = view.getUint32(at + 42, true)
    const begin = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true)
    const content = bytes.subarray(begin, begin + packed)
    if (method !== STORED && method !== DEFLATED) throw broken(`${name} is packed in an unknown way`)
    tables[name.replace(/\.npy$/, "")] = readArray(method === STORED ? content : await inflate(content), name)
    at += 46 + nameLength + extra + comment
  }
  return tables
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"))
  return new Uint8Array(await new Response(stream).arrayBuffer())
}

function readArray(bytes, name) {
  const isLong = bytes[6] > 1 // version 2 has more room for its header
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
  const begin = (isLong ? 12 : 10) + (isLong ? view.getUint32(8, true) : view.getUint16(8, true))
  const header = new TextDecoder().decode(bytes.subarray(10, begin))
  const type = TYPES[/'descr': '([^']*)'/.exec(header)?.[1]]
  if (!type || !header.includes("'fortran_order': False")) throw new Error(`${name}: an array of another kind: ${header}`)
  const shape = /'shape': \(([^)]*)\)/.exec(header)[1].split(",").filter((size) => size.trim()).map(Number)
  return { shape, data: new type(bytes.slice(begin).buffer) }
}
