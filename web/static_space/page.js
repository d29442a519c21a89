/** The static Space: what its tabs do, with the model in a worker of this page. */

import "./space/player.js"
import "./space/roll.js"
import "./space/melody.js"
import "./space/hum.js"
import "./space/edit.js"
import "./space/stage.js"
import "./space/dock.js"

const Space = window.MelodySpace
Space.files = "space/"
Space.offered = ["midi", "wav"]

const { el } = Space
const { Value, check, folded, number, pair, select, slider, worker } = await import("./controls.js")
const { append, cutBars, files, toModel, toPage } = await import("./melodies.js")
const { load, readMidi } = await import("./src/client.js")

const read = async (path) => (await fetch(path)).text()
const readJson = async (path) => JSON.parse(await read(path))
const find = (selector) => document.querySelector(selector)
const ANY = "any"
const MAX_SEED = 2 ** 31 - 1
const MAX_COUNT = 8
const MAX_AMOUNT = 3 // standard deviations
const FIRST_BARS = 8
const PATH_POINTS = 9
const GRID_SIDE = 7
const CHUNK = 7 // places of the map that are decoded at once

const [instruments, samples, tunes, choices, opening, header, pad] = await Promise.all([
  readJson("space/instruments.json"),
  readJson("space/instruments/samples.json"),
  readJson("space/tunes.json"),
  readJson("space/choices.json"),
  readJson("opening.json"),
  read("space/header.html"),
  read("space/pad.html"),
])
Object.assign(Space, { instruments, samples })
const tuneOf = (title) => ({ ...tunes.find((tune) => tune.title === title), origin: null })
const newSeed = () => Math.floor(Math.random() * 100000)

// The model, which comes while the page is looked at already.

const status = find(".mv-status")
const megabytes = (bytes) => (bytes / 1e6).toFixed(0)
const say = (text, { share = null, isBroken = false } = {}) => {
  status.hidden = !text
  status.classList.toggle("mv-broken", isBroken)
  status.querySelector("p").textContent = text
  const bar = status.querySelector("progress")
  bar.hidden = isBroken
  if (share === null) bar.removeAttribute("value")
  else bar.value = share
}
const complain = (error) => Space.toast(error.message, true)

const onProgress = ({ loaded, total }) => {
  if (model.isReady) return
  if (loaded && loaded === total) return say("The model starts")
  const share = total ? loaded / total : null
  say(`The model comes into your browser, once: ${megabytes(loaded)} of ${megabytes(total)} MB`, { share })
}
const model = { isReady: false }
say("The model comes into your browser, once")
const loading = load("model/", { onProgress, device: "wasm" })
loading.then(
  (loaded) => {
    model.isReady = true
    say("")
    if (navigator.serviceWorker) navigator.serviceWorker.register("sw.js").catch(() => {}) // only for being offline
    const { length } = loaded.meters
    find(".mv-model").textContent =
      `It runs by ${loaded.device === "wasm" ? "WebAssembly" : loaded.device}, holds ${loaded.maxBars} bars in ` +
      `${loaded.latentSize} numbers, and knows ${length} meters.`
  },
  (error) => {
    say(error.message, { isBroken: true })
    for (const button of document.querySelectorAll(".mv-do")) button.disabled = true
  },
)

// What the visitor asks for goes first: a map that is being made waits meanwhile.
let asked = 0
let background = null
async function foreground(work) {
  asked++
  background?.abort()
  try {
    return await work(await loading)
  } finally {
    if (!--asked) document.dispatchEvent(new Event("mv-idle"))
  }
}
const idle = () => asked === 0 || new Promise((done) => document.addEventListener("mv-idle", done, { once: true }))

/** Cut a melody of the page to what the model reads. */
function toRead(loaded, melody) {
  if (!melody) throw new Error("The melody is missing: choose a tune, bring a MIDI file, or send a melody here from another tab")
  const fitted = loaded.fit(toModel(melody))
  if (!fitted.notes.length) throw new Error(`${melody.title} has no notes in its first ${loaded.maxBars} bars`)
  return fitted
}

const numbered = (title, at, count) => (count > 1 ? `${title} ${at + 1}` : title)

// Tabs

const TABS = [["make", "Make"], ["change", "Change"], ["blend", "Blend"], ["rework", "Continue & Fill"], ["about", "About"]]
const buttons = TABS.map(([name, label], at) =>
  el("button", { type: "button", role: "tab", id: `tab-${name}-button`, "aria-controls": `tab-${name}`,
    onclick: () => openTab(name),
    onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key]
      if (step) buttons.at((at + step) % TABS.length).focus()
    } }, label),
)
find("#tabs .tab-container").append(...buttons)
function openTab(open) {
  TABS.forEach(([name], at) => {
    buttons[at].classList.toggle("selected", name === open)
    buttons[at].setAttribute("aria-selected", String(name === open))
    buttons[at].tabIndex = name === open ? 0 : -1
    find(`#tab-${name}`).hidden = name !== open
  })
  document.dispatchEvent(new CustomEvent("mv-tab", { detail: open }))
}

// Parts that both Spaces have

const header_ = find(".mv-top")
header_.innerHTML = header
Space.mountHeader(header_)
if (matchMedia("(prefers-color-scheme: dark)").matches) document.body.classList.add("dark")
Space.mountDock(find(".mv-dock-holder"), files)

const mountList = (tab) => {
  const value = new Value(null)
  Space.mountList(find(`#tab-${tab} .mv-right`), value.props, value.watch)
  return value
}
const mountSlot = (holder, first, options) => {
  const value = new Value(first)
  Space.mountSlot(holder, value.props, value.watch, value.trigger, options)
  return value
}
const isNarrow = window.innerWidth < 720

// Make

const makeButton = find("#tab-make .mv-do")
makeButton.disabled = true // until the model says what can be asked for
const made = mountList("make")
made.now = { melodies: structuredClone(opening), note: "To begin with: of the melodies of 32 seeds, the three that measure most like the " +
  "tunes that come with this page. Make new ones when the model has come." }

function makeTab(loaded) {
  const { conditions, attributes, maxBars, meters } = loaded
  const named = (words, names) => [[words, ANY], ...names.map((name) => [name[0].toUpperCase() + name.slice(1), name])]
  const tonics = ["C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"]
  const parts = {
    count: slider("How many", { min: 1, max: MAX_COUNT, value: 3 }),
    bars: slider("Bars", { min: 1, max: 2 * maxBars, value: Math.min(FIRST_BARS, maxBars) }),
    tonic: select("Key", [["Any key", ANY], ...tonics.map((tonic) => [tonic.replace("#", "♯"), tonic])], ANY),
    mode: select("Scale", choices.modes.map((mode) => [mode, mode]), "major"),
    meter: select("Meter", [["Any meter", ANY], ...choices.meters.filter((meter) => meters.includes(meter)).map((meter) => [meter, meter])], ANY),
    tempo: select("Tempo", named("Any tempo", Object.keys(choices.tempos).slice(1)), ANY),
    genre: select("Genre", [["Any genre", ANY], ...(conditions.genre ?? []).map((genre) => [genre.replace("|", " / ").replace("_", " & "), genre])], ANY),
    voice: select("Singable by", named("Any range", Object.keys(choices.voices).slice(1)), ANY),
    temperature: slider("Temperature", { min: 0.1, max: 2, step: 0.05, value: 1, info: "Daring: 1 is as it learned" }),
  }
  const seed = number("Seed", opening[0].origin.seed, MAX_SEED)
  const isNew = check("New seed each time", true)
  const amounts = Object.fromEntries(
    attributes.map((name) => [name, slider(choices.attributes[name] ?? name, { min: -MAX_AMOUNT, max: MAX_AMOUNT, step: 0.25, value: 0 })]),
  )
  parts.genre.element.hidden = !conditions.genre
  let followed = {} // what a link asks for beside the settings
  makeButton.disabled = false
  find("#tab-make .mv-panel").hidden = false
  find("#tab-make .mv-panel").append(
    pair(parts.count, parts.bars),
    folded("Ask for a key, a meter, a voice", !isNarrow, pair(parts.tonic, parts.mode), pair(parts.meter, parts.tempo),
      pair(parts.genre, parts.voice), parts.temperature.element, pair(seed, isNew)),
    folded("More or less of something", false, ...Object.values(amounts).map((amount) => amount.element)),
  )

  const settings = () => ({
    count: parts.count.value,
    bars: parts.bars.value,
    scale: parts.tonic.value === ANY ? ANY : `${parts.tonic.value} ${parts.mode.value}`,
    time_signature: parts.meter.value,
    tempo: parts.tempo.value,
    genre: parts.genre.value,
    voice: parts.voice.value,
    temperature: parts.temperature.value,
    ...Object.fromEntries(Object.entries(amounts).flatMap(([name, { value }]) => (value ? [[name, value]] : []))),
    seed: Math.max(0, Math.min(MAX_SEED, Math.floor(Number(seed.input.value)) || 0)),
  })
  const make = async (wanted, signal, pick = null) => {
    const known = (name, value) => (conditions[name]?.includes(value) ? { [name]: value } : {})
    const [lowestPitch, highestPitch] = choices.voices[wanted.voice] ?? []
    const sampled = await foreground(() =>
      loaded.sample({
        count: wanted.count, bars: wanted.bars, seed: wanted.seed, temperature: wanted.temperature, lowestPitch, highestPitch, signal,
        meter: wanted.time_signature === ANY ? undefined : wanted.time_signature,
        scale: wanted.scale === ANY ? undefined : wanted.scale,
        conditions: { ...known("key", wanted.scale), ...known("genre", wanted.genre), ...known("tempo", wanted.tempo) },
        attributes: Object.fromEntries(attributes.flatMap((name) => (wanted[name] ? [[name, wanted[name]]] : []))),
      }),
    )
    const melodies = sampled.map((melody, at) =>
      toPage(melody, { title: `Melody ${at + 1}`, tempo: choices.tempos[wanted.tempo], origin: { tab: "make", ...wanted, pick: at + 1 } }),
    )
    made.now = { melodies, pick }
  }
  const run = worker(makeButton, async (signal) => {
    if (isNew.input.checked) seed.input.value = String(newSeed())
    const { pick } = followed
    followed = {}
    await make(settings(), signal, pick)
  }, complain)

  /** Set the controls as a link says; an opening melody is one of a seed, as every other. */
  const follow = (query) => {
    for (const name of ["count", "bars", "temperature", "genre", "voice", "tempo"]) if (query.has(name)) parts[name].value = query.get(name)
    if (query.has("time_signature")) parts.meter.value = query.get("time_signature")
    const [tonic, ...mode] = (query.get("scale") ?? ANY).split(" ")
    parts.tonic.value = tonic
    if (mode.length) parts.mode.value = mode.join(" ")
    for (const [name, amount] of Object.entries(amounts)) if (query.has(name)) amount.value = query.get(name)
    seed.input.value = query.get("seed") ?? "0"
    for (const { input } of [parts.tonic, parts.mode, parts.meter, parts.tempo, parts.genre, parts.voice])
      if (!input.value) throw new Error("The link cannot be followed: it asks for what this model does not know")
    isNew.input.checked = false
    followed = { pick: Number(query.get("pick")) || null }
  }
  const query = new URLSearchParams(location.search)
  if (!query.has("seed")) return
  try {
    follow(query)
    run()
  } catch (error) {
    complain(error)
  }
}

// A melody to begin with: a tune that comes with the page, or a track of a MIDI file.

function sources(holder, slot, title, maxBars) {
  const titles = [["", ""], ...tunes.map((tune) => [tune.title, tune.title])]
  const tune = select("A tune", titles, title, () => tune.value && (slot.now = cutBars(tuneOf(tune.value), 0, maxBars())))
  const file = el("input", { type: "file", accept: ".mid,.midi,audio/midi", class: "mv-hidden" })
  const track = select("Track", [], "", () => take(Number(track.value)))
  const from = slider("From bar", { min: 1, max: 1, value: 1, onChange: () => takeFrom() })
  track.element.hidden = from.element.hidden = true
  let read = null
  let melody = null
  const title_ = () => read.file.tracks[read.file.melodyTrack].name.trim() || read.name.replace(/\.midi?$/i, "")
  const takeFrom = async () => {
    const loaded = await loading
    const window = loaded.fit(melody, { firstBar: from.value - 1 })
    slot.now = toPage(window, { title: title_(), tempo: Math.max(30, Math.min(300, read.file.tempo)), program: read.file.tracks[read.file.melodyTrack].program,
      found: `Bars ${from.value} to ${from.value + window.bars - 1} of ${melody.bars} are taken`, chosen: [] })
    tune.value = ""
  }
  const show = async () => {
    melody = read.file.melody
    const starts = Math.max(1, melody.bars - maxBars() + 1)
    from.input.max = String(starts)
    from.value = 1
    from.element.hidden = starts === 1
    await takeFrom()
  }
  const take = async (number) => {
    try {
      const { stepsPerBeat } = await loading
      read.file = readMidi(read.bytes, { stepsPerBeat, track: number })
      await show()
    } catch (error) {
      complain(error)
    }
  }
  file.addEventListener("change", async () => {
    const [chosen] = file.files
    if (!chosen) return
    try {
      const { stepsPerBeat } = await loading
      const bytes = new Uint8Array(await chosen.arrayBuffer())
      const found = readMidi(bytes, { stepsPerBeat })
      if (!found.melody) throw new Error(`${chosen.name}: no tune in it; try a file with a melody of a few bars`)
      read = { bytes, name: chosen.name, file: found }
      const names = found.tracks.flatMap(({ name, notes, isDrum }, at) =>
        notes.length && !isDrum ? [[`${at + 1}. ${name.trim() || "Track"} (${Space.plural(notes.length, "note")})`, String(at)]] : [])
      track.input.replaceChildren(...names.map(([text, value]) => el("option", { value }, text)))
      track.value = String(found.melodyTrack)
      track.element.hidden = false
      await show()
    } catch (error) {
      complain(error)
    }
    file.value = "" // so that the same file can be brought again
  })
  holder.append(tune.element, el("label", { class: "mv-file" }, file, "Your MIDI file"), track.element, from.element)
  slot.onInput = () => (tune.value = "") // it was sent here, or drawn
}

// Change

function changeTab(maxBars) {
  const slot = mountSlot(find("#tab-change .mv-slot-holder"), cutBars(tuneOf(choices.first_tune), 0, 16), { name: "change", label: "Your tune" })
  sources(find("#tab-change .mv-sources"), slot, choices.first_tune, maxBars)
  const likeness = slider("Likeness", { min: 0, max: 1, step: 0.05, value: 0.8, onChange: () => run(),
    info: "1: as the model remembers the tune; 0: nothing of it is kept" })
  const count = slider("Versions", { min: 1, max: MAX_COUNT, value: 3 })
  find("#tab-change .mv-panel").append(likeness.element, count.element)
  const list = mountList("change")
  const run = worker(find("#tab-change .mv-do"), async (signal) => {
    const source = slot.now
    const made = await foreground((loaded) => {
      const melody = toRead(loaded, source)
      if (likeness.value === 1) return loaded.reconstruct(melody, { signal }).then((again) => [again])
      return loaded.vary(melody, { similarity: likeness.value, count: count.value, seed: newSeed(), signal })
    })
    const { tempo, program } = source
    list.now = { melodies: made.map((melody, at) =>
      toPage(melody, { title: numbered(`${source.title}, changed`, at, made.length), tempo, program, origin: { tab: "change" } })) }
  }, complain)
}

// Continue and fill

function reworkTab(maxBars) {
  const [title] = choices.first_blend
  const slot = mountSlot(find("#tab-rework .mv-slot-holder"), { ...cutBars(tuneOf(title), 0, FIRST_BARS), chosen: [3, 4] },
    { name: "rework", label: "Your melody", picksBars: true })
  sources(find("#tab-rework .mv-sources"), slot, title, maxBars)
  const count = slider("Versions", { min: 1, max: MAX_COUNT, value: 2 })
  const temperature = slider("Temperature", { min: 0.1, max: 2, step: 0.05, value: 1, info: "Daring" })
  const more = slider("Bars to add", { min: 1, max: 8, value: 4 })
  loading.then(({ maxBars }) => {
    more.input.max = String(Math.floor(maxBars / 2))
    more.value = Math.min(4, Math.floor(maxBars / 2))
  }, () => {})
  find("#tab-rework .mv-panel").append(count.element, temperature.element, more.element)
  const list = mountList("rework")

  // Versions come one after the other and are shown as they come.
  const versions = (write, how) => async (signal) => {
    const source = slot.now
    const { tempo, program } = source ?? {}
    const seed = newSeed()
    const melodies = []
    for (let at = 0; at < count.value; at++) {
      const page = await foreground((loaded) => write(loaded, source, { seed: seed + at, temperature: temperature.value, signal }))
      melodies.push({ ...page, title: numbered(`${source.title}, ${how}`, at, count.value), tempo, program, origin: { tab: "rework" } })
      list.now = { melodies: [...melodies] }
    }
  }
  const fill = async (loaded, source, options) => {
    const melody = toRead(loaded, source)
    const bars = (source.chosen ?? []).map((bar) => bar - 1)
    if (!bars.length) throw new Error("Choose at least one bar to write anew")
    return toPage(await loaded.infill(melody, { bars, ...options }))
  }
  const goOn = async (loaded, source, options) => {
    const [added, most] = [more.value, loaded.maxBars]
    const melody = toPage(toRead(loaded, source))
    const known = Math.min(melody.bars, most - added)
    const end = cutBars(melody, melody.bars - known, known)
    if (!end.pitch.length) throw new Error("The melody ends in silence: there is nothing to go on from")
    const window = toPage(await loaded.continueMelody(toModel(end), { bars: known + added, ...options }))
    return append(melody, cutBars(window, known, added))
  }
  worker(find(".mv-fill"), versions(fill, "filled"), complain)
  worker(find(".mv-continue"), versions(goOn, "continued"), complain)
}

// Blend

function blendTab() {
  const holder = find(".mv-pad-holder")
  holder.innerHTML = pad
  const ends = choices.first_blend.map((title, at) => {
    const letter = "abcd"[at]
    const box = el("div", { class: `mv-end mv-end-${letter}` }, el("div", { class: "mv-small" }, el("div", { class: "mv-slot" })))
    const slot = mountSlot(box, cutBars(tuneOf(title), 0, FIRST_BARS), { name: `blend-${letter}`, label: letter.toUpperCase(), isSmall: true })
    const tune = select(`Tune at ${letter.toUpperCase()}`, [["", ""], ...tunes.map((each) => [each.title, each.title])], title, () => {
      if (tune.value) slot.now = cutBars(tuneOf(tune.value), 0, FIRST_BARS)
    })
    tune.element.firstChild.className = "mv-hidden"
    slot.onInput = () => (tune.value = "")
    box.append(tune.element)
    find("#tab-blend .mv-panel").append(box)
    return slot
  })
  const map = new Value(null)
  let wanted = null
  Space.mountPad(holder, map.props, map.watch, (place) => {
    wanted = place
    if (map.now && !map.now.melodies[place]) background?.abort()
  })

  const blend = async (signal) => {
    const ways = Number(find("input[name=ways]:checked").value)
    const sources = ends.slice(0, ways).map((end) => end.now)
    const side = ways === 2 ? PATH_POINTS : GRID_SIDE
    const rows = ways === 2 ? 1 : GRID_SIDE
    const key = crypto.randomUUID?.() ?? String(Math.random())
    const last = side * rows - 1
    const corners = ways === 2 ? [0, last] : [0, side - 1, last - side + 1, last]
    const { tempo, program } = sources[0] ?? {}
    const melodies = new Array(last + 1).fill(null)
    const show = () => (map.now = { map: key, side, melodies: [...melodies] })
    const { loaded, prepared } = await foreground(async (loaded) => {
      const fitted = sources.map((source) => toRead(loaded, source))
      const meters = new Set(fitted.map((melody) => melody.meter.join("/")))
      if (meters.size > 1) throw new Error(`These melodies differ in meter (${[...meters].join(", ")}). Choose melodies of one meter to blend.`)
      fitted.forEach((melody, at) => (melodies[corners[at]] = toPage(melody, { title: "Blend", tempo, program })))
      return { loaded, prepared: await loaded.prepareMap(fitted, { signal }) }
    })
    wanted = Math.floor(rows / 2) * side + Math.floor(side / 2)
    show()
    const point = (place) => [(place % side) / (side - 1), ...(rows > 1 ? [Math.floor(place / side) / (rows - 1)] : [])]
    const distance = (place) => Math.hypot((place % side) - (wanted % side), Math.floor(place / side) - Math.floor(wanted / side))
    for (;;) {
      signal.throwIfAborted()
      const left = [...melodies.keys()].filter((place) => !melodies[place]).sort((a, b) => distance(a) - distance(b))
      if (!left.length) break
      await idle()
      // What is under the finger first, alone; then what lies around it.
      const chunk = left.slice(0, left[0] === wanted ? 1 : CHUNK)
      const control = (background = new AbortController())
      try {
        const made = await loaded.decodeMap(prepared, chunk.map(point), { signal: AbortSignal.any([signal, control.signal]) })
        made.forEach((melody, at) => (melodies[chunk[at]] = toPage(melody, { title: "Blend", tempo, program, origin: { tab: "blend" } })))
        show()
      } catch (error) {
        if (!control.signal.aborted) throw error
      }
    }
  }
  const run = worker(find("#tab-blend .mv-do"), blend, complain)
  for (const radio of document.querySelectorAll("input[name=ways]")) radio.addEventListener("change", run)
  document.addEventListener("mv-tab", ({ detail }) => detail === "blend" && !map.now && run())
}

// The tabs that begin with a tune are there at once; what Make can ask for, the model says.
let most = 16
loading.then(({ maxBars }) => (most = maxBars), () => {})
changeTab(() => most)
reworkTab(() => most)
blendTab()
openTab("make")
loading.then(makeTab, () => {})
