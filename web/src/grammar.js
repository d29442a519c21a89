/**
 * What a generated melody must be, token by token, by a state for each melody; as `grammar_state_melody_vae.py` has it.
 *
 * Which tokens fit depends on a few numbers of the state; what was found for them is remembered, so that most tokens
 * cost one lookup.
 */

import {
  AFTER_PITCH,
  AFTER_POSITION,
  COLUMN,
  NO_ONSET,
  RESTING,
  TOKENS_TO_REST,
  UNCHANGED,
  UNUSABLE,
  timeSignatureId,
} from "./token_grammar.js"

const MAX_TOKENS_PER_BAR = 64
const MOST_REMEMBERED = 8192 // masks, of V bytes each
const LONGEST_TO_REST = Math.max(...TOKENS_TO_REST)

const bounded = (value, low, high) => Math.min(Math.max(value, low), high)

/** The grammar's table, with what is looked up in it. */
export class TokenTable {
  /**
   * @param {{shape: number[], data: Int32Array}} table `(V, 12 + W)`, see `token_grammar.js`.
   * @param {number} eosTokenId Token that ends a melody.
   * @param {Map<number, number>} repeats For bars back, the token that says "this bar is that one over again".
   */
  constructor(table, eosTokenId, repeats) {
    const [size, width] = table.shape
    this.size = size
    this.eosTokenId = eosTokenId
    this.repeats = repeats
    this.rows = Array.from({ length: size }, (_, token) => table.data.subarray(token * width, (token + 1) * width))
    this.lagOf = new Map([...repeats].map(([lag, token]) => [token, lag]))
    const column = (name) => Int32Array.from(this.rows, (row) => row[COLUMN[name]])
    this.opensBar = column("OPENS_BAR")
    this.hasNote = column("FIRST_ONSET").map((onset) => (onset < NO_ONSET ? 1 : 0))
    const openings = [...this.opensBar.keys()].filter((token) => this.opensBar[token])
    this.barEnds = Int32Array.from([...openings, ...repeats.values()])
    this.leadDuration = column("LEAD_DURATION")
    this.longestLead = this.leadDuration.reduce((longest, each) => Math.max(longest, each), 0)
    this.slack = column("FIRST_ONSET").map((onset, token) => onset - this.leadDuration[token])
    this.lastOnset = column("LAST_ONSET")
    this.lastEnd = column("LAST_END")
    this.signature = column("TIME_SIGNATURE")
    this.steps = column("BAR_STEPS")
    this.toRest = column("AFTER").map((phase) => TOKENS_TO_REST[Math.max(phase, 0)])
    // A bar that opens without a note still has to have room for one.
    const withoutNote = (token) => (this.opensBar[token] ? 0 : -NO_ONSET)
    this.firstOnset = column("FIRST_ONSET").map((onset, token) => (onset < NO_ONSET ? onset : withoutNote(token)))
    this.needs = new Map()
    this.found = new Map()
  }

  /**
   * Give the phase before each token, `UNUSABLE` for those of other pitches than asked for.
   *
   * @param {[number, number, number]} pitches Pitch classes (12 bits), the lowest pitch, the highest.
   * @throws {RangeError} If no pitch is left.
   */
  usablePhases(pitches) {
    const name = pitches.join()
    if (!this.needs.has(name)) {
      const [classes, low, high] = pitches
      const phases = Int8Array.from(this.rows, (row) => {
        const isUsable =
          !(row[COLUMN.PITCH_CLASSES] & ~classes) && row[COLUMN.LOWEST_PITCH] >= low && row[COLUMN.HIGHEST_PITCH] <= high
        return isUsable ? row[COLUMN.BEFORE] : UNUSABLE
      })
      const isPitch = (row) => row[COLUMN.BEFORE] === AFTER_POSITION && row[COLUMN.AFTER] === AFTER_PITCH
      if (!this.rows.some((row, token) => phases[token] !== UNUSABLE && isPitch(row))) {
        const bits = classes.toString(2).padStart(12, "0")
        const scale = classes === 0xfff ? "" : ` of the scale ${bits} (B down to C)`
        throw new RangeError(`no pitch${scale} from lowestPitch=${low} to highestPitch=${high}`)
      }
      this.needs.set(name, phases)
    }
    return this.needs.get(name)
  }

  /** Time signatures of the vocabulary, such as `6/8`, as numbers of the grammar table. */
  get signatures() {
    return [...new Set(this.signature)].filter((number) => number).sort((a, b) => a - b)
  }

  /**
   * Look up the number of a time signature and the steps of its bar.
   *
   * @throws {RangeError} If the vocabulary lacks it.
   */
  timeSignature(name) {
    const number = timeSignatureId(name)
    const steps = this.steps.filter((_, token) => this.signature[token] === number)
    if (!steps.length) {
      const known = this.signatures.map((each) => `${each >> 6}/${each % 64}`).join(", ")
      throw new RangeError(`time signature ${name} is not in the vocabulary: ${known}`)
    }
    return [number, Math.max(...steps)]
  }

  /**
   * Compare what tokens ask of a melody with what it offers; those that open bars, or the others.
   *
   * @param {[number, number, number]} pitches As in `usablePhases`.
   * @param {number} opensBar 1 to look at tokens that open a bar, else 0.
   * @param {number} phase Of the melody.
   * @param {number} earliest Onset of the open note, or the first step at which one may begin.
   * @param {number} longest What the open note may last; 0 if none is open.
   * @param {number} steps Of a bar; 0 if the tokens are to say.
   * @param {number} barsLeft Bars, the tokens' own included, until a bar that no note may ring into, or the end.
   * @param {number} signature Time signature, 0 if the tokens are to say.
   * @param {number} room Tokens left in the bar after this one.
   * @param {number} latest Step at which the next note has to begin.
   * @returns {Uint8Array} 1 for each token that fits.
   */
  fits(pitches, opensBar, phase, earliest, longest, steps, barsLeft, signature, room, latest) {
    longest = Math.min(longest, this.longestLead)
    barsLeft = bounded(barsLeft, 1, 64)
    room = Math.min(room, LONGEST_TO_REST)
    latest = bounded(latest, -NO_ONSET, NO_ONSET)
    const name = [pitches, opensBar, phase, earliest, longest, steps, barsLeft, signature, room, latest].join()
    const known = this.found.get(name)
    if (known) return known
    const phases = this.usablePhases(pitches)
    const isFit = new Uint8Array(this.size)
    for (let token = 0; token < this.size; token++) {
      if (phases[token] !== phase || this.opensBar[token] !== opensBar) continue
      const ofBar = Math.max(this.steps[token], steps)
      const isOwn = !signature || this.signature[token] === signature || this.signature[token] === 0
      const isInTime = this.slack[token] >= earliest && this.leadDuration[token] <= longest
      const isInBar = this.lastOnset[token] < ofBar && this.lastEnd[token] <= ofBar * barsLeft
      const isSoon = this.toRest[token] <= room && this.firstOnset[token] <= latest
      if (isOwn && isInTime && isInBar && isSoon) isFit[token] = 1
    }
    if (this.found.size >= MOST_REMEMBERED) this.found.clear()
    this.found.set(name, isFit)
    return isFit
  }
}

/**
 * What a melody is to be.
 *
 * @typedef {object} Wanted
 * @property {number} bars To reach, or where the model decides the most.
 * @property {boolean} modelEnds Whether the model decides where it ends.
 * @property {[number, number]} signature Number of the time signature and steps of its bar; zeros for the model's choice.
 * @property {[number, number, number]} pitches As in `TokenTable.usablePhases`.
 * @property {number | null} maxRest Bars that a rest may last; any where it is null.
 * @property {Map<number, number[]>} kept Tokens of the bars that are to be as they are, by the bar's index.
 */

/**
 * What may come next in a melody.
 *
 * @typedef {object} Offer
 * @property {Uint8Array} allowed Whether each token may, the end aside; of those that open a bar, also where the end
 *   has to come.
 * @property {boolean} [barMayEnd] Whether the melody rests, so that a new bar or the end may follow.
 * @property {boolean} [mustEnd] Whether the end has to come instead of a new bar.
 * @property {boolean} [mayEnd] Whether it may.
 * @property {number} [only] The one token that may, if there is one.
 * @property {number} [nextKept] Token of the template that a new bar begins with, if there is one.
 */

/** What a melody is so far, and from it what may come next. Steps count from the bar line of its last bar. */
export class GrammarState {
  /**
   * @param {TokenTable} table
   * @param {Wanted} wanted
   */
  constructor(table, wanted) {
    this.table = table
    this.wanted = wanted
    this.phase = RESTING
    this.begun = 0 // bars begun
    this.count = 0 // tokens of the last one
    this.onset = 0 // of the latest note
    this.end = 0 // likewise; below 0 where the bar has none
    this.signature = 0 // 0 while it is open, as the next
    this.steps = 0
    this.source = 0 // place of the token to copy next
    this.left = 0 // tokens left to copy
    this.tokens = []
    this.bars = [] // place of the first token, tokens, steps that the last note rings, first onset
  }

  /** Go on by one token, allowed or not. */
  advance(token) {
    const place = this.tokens.length
    this.tokens.push(token)
    const row = this.table.rows[token]
    if (row[COLUMN.AFTER] === UNCHANGED) {
      const lag = this.table.lagOf.get(token) ?? 0
      if (lag && this.bars.length) [this.source, this.left] = this.bars[Math.max(this.begun - lag, 0)]
      return
    }
    const opens = row[COLUMN.OPENS_BAR]
    if (opens) {
      this.begun += 1
      this.count = 0
      this.end = Math.max(this.end - this.steps, -NO_ONSET)
      this.bars.push([place, 0, 0, NO_ONSET])
    }
    this.count += 1
    if (row[COLUMN.TIME_SIGNATURE] && !this.signature) {
      this.signature = row[COLUMN.TIME_SIGNATURE]
      this.steps = row[COLUMN.BAR_STEPS]
    }
    if (row[COLUMN.LEAD_DURATION]) this.end = this.onset + row[COLUMN.LEAD_DURATION]
    if (row[COLUMN.LAST_END]) this.end = row[COLUMN.LAST_END]
    if (row[COLUMN.LAST_ONSET] >= 0) this.onset = row[COLUMN.LAST_ONSET]
    this.phase = row[COLUMN.AFTER]
    if (this.left) {
      this.source += 1
      this.left -= 1
    } else if (opens) this.source = 0
    if (this.bars.length) {
      const bar = this.bars.at(-1)
      bar[1] = this.count
      bar[2] = Math.max(this.end - this.steps, 0)
      bar[3] = Math.min(bar[3], row[COLUMN.FIRST_ONSET])
    }
  }

  /**
   * Tell what may come next; `isPrimer` says that what came so far was given.
   *
   * @param {boolean} isPrimer
   * @returns {Offer}
   */
  offer(isPrimer) {
    const { table, wanted } = this
    const kept = wanted.kept.get(this.begun - 1) ?? []
    const none = new Uint8Array(table.size)
    if (this.left) return { allowed: none, only: this.tokens[this.source] }
    if (this.count < kept.length && this.begun) return { allowed: none, only: kept[this.count] }
    const mustOpen = kept.length > 0 || !this.begun || this.source > 0 // or end
    const phase = mustOpen ? RESTING : this.phase
    const isResting = phase === RESTING
    const free = Math.max(this.end, 0)
    const [signature, steps] = this.signature ? [this.signature, this.steps] : wanted.signature
    const mustEnd = isResting && this.begun >= wanted.bars
    const mayEnd = mustEnd || (wanted.modelEnds && isResting && this.begun > 0 && free <= steps)
    const [latest, opensBy] = this.#restsUntil(steps, mustOpen || isPrimer)
    let nextKept = wanted.bars
    for (const bar of wanted.kept.keys()) if (bar >= this.begun && bar < nextKept) nextKept = bar
    const barsLeft = nextKept - this.begun + 1
    let allowed = none
    if (!mustOpen) {
      const isOpen = phase === AFTER_POSITION || phase === AFTER_PITCH
      const longest = isOpen ? Math.max(barsLeft * steps - this.onset, 1) : 0
      const room = Math.max(MAX_TOKENS_PER_BAR - 1 - this.count, TOKENS_TO_REST[phase] - 1)
      const earliest = isOpen ? this.onset : free
      allowed = table.fits(wanted.pitches, 0, phase, earliest, longest, steps, barsLeft, signature, room, latest)
    }
    if (!isResting) return { allowed }
    const opens = this.#opens(free, steps, barsLeft, signature, opensBy)
    allowed = allowed.map((isAllowed, token) => isAllowed | opens[token])
    if (mustEnd) return { allowed, barMayEnd: true, mustEnd, mayEnd }
    for (const [lag, token] of table.repeats) allowed[token] = this.#canRepeat(lag, steps, barsLeft - 2, opensBy) ? 1 : 0
    return { allowed, barMayEnd: true, mustEnd, mayEnd, nextKept: wanted.kept.get(this.begun)?.[0] }
  }

  /** The step at which the next note has to begin, in this bar and in the next one. */
  #restsUntil(steps, beginsAnew) {
    const { maxRest } = this.wanted
    if (maxRest === null) return [NO_ONSET, NO_ONSET]
    const roomToRest = Math.trunc(maxRest * steps)
    const opensBy = this.end + roomToRest - steps
    // Bars that were there may have rested too long already; the next one begins with a note then.
    return [Math.max(this.end + roomToRest, 0), beginsAnew ? Math.max(opensBy, 0) : opensBy]
  }

  /** Whether each token may open the next bar. */
  #opens(free, steps, barsLeft, signature, opensBy) {
    const [earliest, room] = [Math.max(free - steps, 0), MAX_TOKENS_PER_BAR - 1]
    return this.table.fits(
      this.wanted.pitches, 1, RESTING, earliest, 0, steps, barsLeft - 1, signature, room, opensBy,
    ) // prettier-ignore
  }

  /** Whether the next bar can be the one `lag` before it over again; its last note may ring into `barsAfter`. */
  #canRepeat(lag, steps, barsAfter, opensBy) {
    if (lag > this.begun) return false
    const [, , rings, onset] = this.bars[this.begun - lag]
    if (onset >= NO_ONSET || onset < this.end - this.steps) return false
    return rings <= barsAfter * steps && onset <= opensBy
  }
}
