/**
 * numpy's random numbers: `default_rng` with `SeedSequence.spawn`, so that a seed gives the melodies that it gives in
 * Python.
 *
 * O'Neill, PCG: a family of simple fast space-efficient statistically good algorithms (2014), PCG XSL RR 128/64;
 * Marsaglia and Tsang, The ziggurat method (2000), of 256 layers.
 */

const MASK_64 = (1n << 64n) - 1n
const MASK_128 = (1n << 128n) - 1n
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n
const POOL_SIZE = 4

/** Give the 32-bit words of a whole number, the lowest first. */
function wordsOf(number) {
  const words = []
  let rest = BigInt(number)
  do {
    words.push(Number(rest & 0xffffffffn))
    rest >>= 32n
  } while (rest)
  return words
}

/** Hash words as numpy's `SeedSequence` does; `multiplier` and `constant` move on with each. */
function makeHash(constant, multiplier) {
  return (value) => {
    value ^= constant
    constant = Math.imul(constant, multiplier)
    value = Math.imul(value, constant)
    return (value ^ (value >>> 16)) >>> 0
  }
}

function mix(x, y) {
  const result = (Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y)) | 0
  return (result ^ (result >>> 16)) >>> 0
}

/** Spread a seed, and the numbers of a child, its child and so on, over four words of 64 bits. */
function seedState(seed, children) {
  const entropy = wordsOf(seed)
  while (entropy.length < POOL_SIZE) entropy.push(0)
  entropy.push(...children.flatMap(wordsOf))
  const hash = makeHash(0x43b0d7e5, 0x931e8875)
  const pool = entropy.slice(0, POOL_SIZE).map(hash)
  for (let from = 0; from < POOL_SIZE; from++) {
    for (let to = 0; to < POOL_SIZE; to++) if (from !== to) pool[to] = mix(pool[to], hash(pool[from]))
  }
  for (const word of entropy.slice(POOL_SIZE)) {
    for (let to = 0; to < POOL_SIZE; to++) pool[to] = mix(pool[to], hash(word))
  }
  const draw = makeHash(0x8b51f9dd, 0x58f38ded)
  const words = Array.from({ length: 8 }, (_, index) => BigInt(draw(pool[index % POOL_SIZE])))
  return [0, 2, 4, 6].map((at) => words[at] | (words[at + 1] << 32n))
}

// The ziggurat's layers: where the tail begins, and the area of each.
const TAIL = 3.6541528853610088
const AREA = 0.00492867323399
const [INSIDE, WIDTH, HEIGHT] = makeLayers()

function makeLayers() {
  const steps = 2 ** 23 // of a layer's width
  const inside = new Uint32Array(256)
  const width = new Float32Array(256)
  const height = new Float32Array(256)
  const density = (x) => Math.exp(-0.5 * x * x)
  let [x, before] = [TAIL, TAIL]
  const bottom = AREA / density(x)
  inside[0] = (x / bottom) * steps
  width[0] = bottom / steps
  width[255] = x / steps
  height[0] = 1
  height[255] = density(x)
  for (let layer = 254; layer >= 1; layer--) {
    x = Math.sqrt(-2 * Math.log(AREA / x + density(x)))
    inside[layer + 1] = (x / before) * steps
    before = x
    width[layer] = x / steps
    height[layer] = density(x)
  }
  return [inside, width, height]
}

/** A source of random numbers: `numpy.random.default_rng(numpy.random.SeedSequence(seed, spawn_key=children))`. */
export class Generator {
  #seed
  #children
  #spawned = 0
  #state
  #increment
  #half = null // of 64 bits, drawn and not yet used

  /**
   * @param {number | bigint} seed
   * @param {number[]} children Number of the seed's child, of that one's child, and so on.
   */
  constructor(seed, children) {
    this.#seed = seed
    this.#children = children
    const [high, low, sequenceHigh, sequenceLow] = seedState(seed, children)
    this.#increment = ((((sequenceHigh << 64n) | sequenceLow) << 1n) | 1n) & MASK_128
    this.#state = (this.#increment + ((high << 64n) | low)) & MASK_128
    this.#step()
  }

  /** Make `count` generators whose numbers are their own: `spawn(count)`. */
  spawn(count) {
    return Array.from({ length: count }, () => new Generator(this.#seed, [...this.#children, this.#spawned++]))
  }

  #step() {
    this.#state = (this.#state * MULTIPLIER + this.#increment) & MASK_128
  }

  #next64() {
    this.#step()
    const value = (this.#state >> 64n) ^ (this.#state & MASK_64)
    const turn = this.#state >> 122n
    return ((value >> turn) | (value << (64n - turn))) & MASK_64
  }

  #next32() {
    if (this.#half !== null) {
      const value = this.#half
      this.#half = null
      return value
    }
    const both = this.#next64()
    this.#half = Number(both >> 32n)
    return Number(both & 0xffffffffn)
  }

  /** Draw from 0 to just under 1, of 53 bits: `random()`. */
  random() {
    return Number(this.#next64() >> 11n) / 2 ** 53
  }

  /** Draw from 0 to just under 1, of 24 bits: `random(dtype=float32)`. */
  randomFloat32() {
    return (this.#next32() >>> 8) / 2 ** 24
  }

  /** Draw `size` from N(0, 1): `standard_normal(size, dtype=float32)`. */
  standardNormal(size) {
    return Float32Array.from({ length: size }, () => this.#normal())
  }

  #normal() {
    for (;;) {
      const bits = this.#next32()
      const layer = bits & 0xff
      const place = (bits >>> 9) & 0x7fffff
      const size = Math.fround(place * WIDTH[layer])
      const x = (bits >>> 8) & 1 ? -size : size
      if (place < INSIDE[layer]) return x
      if (layer === 0) return this.#tail((place >>> 8) & 1)
      const rise = Math.fround(HEIGHT[layer - 1] - HEIGHT[layer])
      const height = Math.fround(Math.fround(rise * this.randomFloat32()) + HEIGHT[layer])
      if (height < Math.exp(-0.5 * x * x)) return x
    }
  }

  #tail(isNegative) {
    const log = () => Math.fround(Math.log1p(-this.randomFloat32()))
    for (;;) {
      const beyond = Math.fround(-Math.fround(1 / TAIL) * log())
      const height = -log()
      if (Math.fround(height + height) > Math.fround(beyond * beyond)) {
        const x = Math.fround(Math.fround(TAIL) + beyond)
        return isNegative ? -x : x
      }
    }
  }
}

/**
 * Make a generator for each of `n` melodies; melody i of a seed is the same for every `n`.
 *
 * @param {number} n
 * @param {number} [seed] Any by default.
 */
export function makeGenerators(n, seed) {
  if (seed == null) seed = crypto.getRandomValues(new Uint32Array(1))[0]
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw new RangeError(`seed=${seed} is not a whole number from 0 to 2**53 - 1`)
  }
  return Array.from({ length: n }, (_, child) => new Generator(seed, [child]))
}
