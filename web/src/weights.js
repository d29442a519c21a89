/** Weights in half the bytes, made whole for builds of onnxruntime that cannot do it. */

const BFLOAT16 = 16
const FLOAT = 1
const WITH_LENGTH = 2 // a kind of field whose content follows its length

/**
 * Write an ONNX file with float32 in the place of bfloat16; the numbers are the same.
 *
 * @param {Uint8Array} bytes
 * @returns {Uint8Array}
 */
export function expandWeights(bytes) {
  const inGraph = (field, content) => (field === 5 ? expandTensor(content) : content)
  return rewrite(bytes, (field, content) => (field === 7 ? rewrite(content, inGraph) : content))
}

function expandTensor(bytes) {
  let isShort = false // the type of a tensor stands before its data
  return rewrite(bytes, (field, content) => {
    if (field === 2) isShort = content[0] === BFLOAT16
    if (!isShort || (field !== 2 && field !== 9)) return content
    if (field === 2) return [FLOAT]
    const whole = new Uint8Array(2 * content.length)
    for (let at = 0; at < content.length; at += 2) {
      whole[2 * at + 2] = content[at]
      whole[2 * at + 3] = content[at + 1]
    }
    return whole
  })
}

/** Write a protobuf message anew, with what `change` makes of each field's content. */
function rewrite(bytes, change) {
  const parts = []
  let at = 0
  const readNumber = () => {
    for (let [value, scale] = [0, 1]; ; scale *= 128) {
      const byte = bytes[at++]
      value += (byte & 127) * scale
      if (!(byte & 128)) return value
    }
  }
  while (at < bytes.length) {
    const begin = at
    const tag = readNumber()
    const kind = tag & 7
    parts.push(bytes.subarray(begin, at))
    let start = at
    if (kind === WITH_LENGTH) {
      const length = readNumber()
      start = at
      at += length
    } else if (kind === 0) readNumber()
    else at += kind === 1 ? 8 : 4
    const content = change(tag >>> 3, bytes.subarray(start, at))
    if (kind === WITH_LENGTH) parts.push(writeNumber(content.length))
    parts.push(content)
  }
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0))
  let end = 0
  for (const part of parts) {
    all.set(part, end)
    end += part.length
  }
  return all
}

function writeNumber(value) {
  const bytes = []
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128)
  return [...bytes, value]
}
