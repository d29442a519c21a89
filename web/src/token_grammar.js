/**
 * What tokens stand for: a grammar over them, as a table of integers, and what is written and read by it; as
 * `token_grammar_melody_vae.py` has it.
 */

import { BASE_TOKEN_KINDS, BASE_TOKEN_VALUES, tonicOf } from "./melody_line.js"

// Phases: what a melody waits for. An onset is a Position, an open note a Position with or without its Pitch.
export const [RESTING, AFTER_POSITION, AFTER_PITCH, AFTER_PREFIX, AFTER_BAR] = [0, 1, 2, 3, 4]
export const TOKENS_TO_REST = [0, 2, 1, 2, 1] // of each phase, in tokens of one REMI token each
export const UNUSABLE = -1 // as the phase before: never generated
export const UNCHANGED = -1 // as the phase after: a special token, which leaves the melody as it is

/** Columns of the grammar table. Onsets, ends and lengths are grid steps, from the bar line of the token's bar. */
export const COLUMN = {
  BEFORE: 0, // phase that the token needs
  AFTER: 1, // phase that it leaves
  OPENS_BAR: 2, // 1 or 0
  LEAD_DURATION: 3, // of the note that was open before it; 0 if it closes none
  FIRST_ONSET: 4, // NO_ONSET if it has none
  LAST_ONSET: 5, // -1 if it has none
  LAST_END: 6, // of the last note that lies whole in it; 0 if it has none
  LOWEST_PITCH: 7, // 127 if it has none
  HIGHEST_PITCH: 8, // 0 if it has none
  PITCH_CLASSES: 9, // 12 bits, bit 0 is C
  TIME_SIGNATURE: 10, // as `timeSignatureId` has it; 0 if it has none
  BAR_STEPS: 11, // of that time signature
}
export const GRAMMAR_COLUMNS = 12
export const NO_ONSET = 1 << 14

export const MODES = {
  major: [0, 2, 4, 5, 7, 9, 11],
  ionian: [0, 2, 4, 5, 7, 9, 11],
  dorian: [0, 2, 3, 5, 7, 9, 10],
  phrygian: [0, 1, 3, 5, 7, 8, 10],
  lydian: [0, 2, 4, 6, 7, 9, 11],
  mixolydian: [0, 2, 4, 5, 7, 9, 10],
  minor: [0, 2, 3, 5, 7, 8, 10],
  aeolian: [0, 2, 3, 5, 7, 8, 10],
  locrian: [0, 1, 3, 5, 6, 8, 10],
  "harmonic minor": [0, 2, 3, 5, 7, 8, 11],
  "melodic minor": [0, 2, 3, 5, 7, 9, 11],
  "major pentatonic": [0, 2, 4, 7, 9],
  "minor pentatonic": [0, 3, 5, 7, 10],
  blues: [0, 3, 5, 6, 7, 10],
  chromatic: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
}

/** Part a key or a scale such as `Bb  Major` into tonic and mode, `["Bb", "major"]`. */
export function splitKey(name) {
  const [tonic, ...mode] = name.trim().split(/\s+/)
  return [tonic, mode.join(" ").toLowerCase()]
}

/**
 * Look up the pitch classes of a scale such as `D dorian`, `F# harmonic minor` or `Bb major`: 12 bits, bit 0 is C.
 *
 * @throws {RangeError} If the tonic or the mode is unknown.
 */
export function scaleMask(scale) {
  const [name, mode] = splitKey(String(scale))
  const tonic = tonicOf(name)
  if (tonic === null || !Object.hasOwn(MODES, mode)) {
    const known = Object.keys(MODES).join(", ")
    throw new RangeError(
      `unknown scale '${scale}': give a tonic (C, F#, Bb) and a mode, as in 'D dorian'; modes: ${known}`,
    )
  }
  return MODES[mode].reduce((mask, interval) => mask | (1 << ((tonic + interval) % 12)), 0)
}

/**
 * Number that stands for a time signature such as `6/8` in the grammar table.
 *
 * @throws {RangeError} If it is not of that form.
 */
export function timeSignatureId(timeSignature) {
  const match = /^(\d{1,3})\/(\d{1,2})$/.exec(timeSignature)
  if (!match || Number(match[2]) < 1 || Number(match[2]) >= 64) {
    throw new RangeError(`time signature '${timeSignature}' is not of the form 6/8`)
  }
  return 64 * Number(match[1]) + Number(match[2])
}

/**
 * Put before each bar that is an earlier one over again the token that says so.
 *
 * @param {number[][]} bars Of a melody, each its tokens.
 * @param {Map<number, number>} repeats For bars back, nearest first, the token.
 * @param {(bar: number[]) => boolean} hasNotes Whether a bar has notes; a silent one repeats none.
 */
export function markRepeats(bars, repeats, hasNotes) {
  const isEqual = (a, b) => a.length === b.length && a.every((token, at) => token === b[at])
  return bars.map((bar, index) => {
    const lag = [...repeats.keys()].find((lag) => lag <= index && isEqual(bars[index - lag], bar))
    return lag === undefined || !hasNotes(bar) ? [...bar] : [repeats.get(lag), ...bar]
  })
}

/** Return the REMI tokens that each token stands for, as integers; of the rows of the grammar table. */
export function runsOfTokens(rows) {
  return rows.map((row) => Array.from(row.subarray(GRAMMAR_COLUMNS)).filter((baseToken) => baseToken))
}

/**
 * Writes REMI tokens with a vocabulary's tokens, as its tokenizer does, from the grammar table alone.
 *
 * BPE numbers its tokens in the order in which it learned them, so what a token was made of is how the tokens before
 * it write its run.
 */
export class TokenWriter {
  static #PREFIX = 0 // stands before each bar; no REMI token

  /** @param {Int32Array[]} rows Of the grammar table. */
  constructor(rows) {
    this.single = new Map() // of a REMI token, or the prefix
    this.merged = new Map() // of two tokens next to each other, see `#pair`
    const runs = runsOfTokens(rows)
    rows.forEach((row, token) => {
      if (row[COLUMN.BEFORE] === UNUSABLE) return
      const run = row[COLUMN.OPENS_BAR] ? [TokenWriter.#PREFIX, ...runs[token]] : runs[token]
      if (run.length === 1) return this.single.set(run[0], token)
      const parts = this.merge(run)
      if (parts.length === 2) this.merged.set(this.#pair(...parts), token)
    })
  }

  #pair(first, second) {
    return first * 2 ** 24 + second
  }

  /** Return the values of a kind of REMI token (`Pitch`, ...) that there are, ascending. */
  values(kind) {
    const first = BASE_TOKEN_KINDS[kind] * BASE_TOKEN_VALUES
    const own = [...this.single.keys()].filter((base) => first <= base && base < first + BASE_TOKEN_VALUES)
    return own.map((base) => base - first).sort((a, b) => a - b)
  }

  /** Write a run of REMI tokens, merging what was learned first first. */
  merge(run) {
    const tokens = run.map((baseToken) => {
      if (!this.single.has(baseToken)) {
        const kind = Math.floor(baseToken / BASE_TOKEN_VALUES)
        const name = Object.keys(BASE_TOKEN_KINDS).find((each) => BASE_TOKEN_KINDS[each] === kind) ?? kind
        throw new RangeError(`the vocabulary has no ${name} of ${baseToken % BASE_TOKEN_VALUES}`)
      }
      return this.single.get(baseToken)
    })
    for (;;) {
      let [first, at] = [Infinity, -1]
      for (let place = 0; place + 1 < tokens.length; place++) {
        const token = this.merged.get(this.#pair(tokens[place], tokens[place + 1])) ?? Infinity
        if (token < first) [first, at] = [token, place]
      }
      if (at < 0) return tokens
      tokens.splice(at, 2, first)
    }
  }

  /**
   * Write each bar, a list of REMI tokens.
   *
   * @param {number[][]} bars
   * @throws {RangeError} If the vocabulary lacks one of them.
   */
  write(bars) {
    return bars.map((bar) => this.merge([TokenWriter.#PREFIX, ...bar]))
  }
}
