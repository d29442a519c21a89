/**
 * `<melody-vae>`: makes melodies, plays them and gives them as MIDI files, in any page.
 *
 * ```html
 * <script type="module" src="element.js"></script>
 * <melody-vae bars="8" key="D minor"></melody-vae>
 * ```
 *
 * Attributes, all optional: `model` (address of the graphs, `model/` beside this file by default), `bars`, `key`, `scale`,
 * `meter`, `tempo`, `program` (General MIDI), `temperature`, `seed` (of the first melody; those after it count on).
 * Each new melody is an event `melody` with the melody, as the module `melody-vae` has it, as `detail`. Colours are
 * custom properties such as `--mv-accent`, see `space/space.css`. The model is loaded when the button is pressed first.
 */

import "./space/player.js"
import "./space/roll.js"
import { toPage } from "./melodies.js"
import { load, writeMidi } from "./src/client.js"

const Space = window.MelodySpace
const at = (path) => new URL(path, import.meta.url).href
Space.files ??= at("space/")
Space.chordsOf ??= () => null // the pages that have chords say which

const models = new Map() // loaded once for all elements of a page
const sounds = ["instruments.json", "instruments/samples.json"].map((path) => fetch(at(`space/${path}`)).then((answer) => answer.json()))

const STYLE = `
  :host { display: block; max-width: 720px; container-type: inline-size; font: 400 15px/1.4 system-ui, sans-serif; color: var(--mv-ink);
    --mv-card: #fffdf9; --mv-ink: #211d2e; --mv-muted: #615b70; --mv-line: #ddd6c9; --mv-accent: #5637c8; --mv-on-accent: #ffffff;
    --mv-note: #5637c8; --mv-live: #c42a6d; --mv-roll: #fbf8f2; --mv-roll-key: #f3eee4; --mv-roll-beat: #ebe5d8; --mv-roll-bar: #cfc6b4; }
  .card { padding: 12px; border: 1px solid var(--mv-line); border-radius: 16px; background: var(--mv-card); }
  .row { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; }
  button { min-height: 40px; padding: 0 16px; border: 1px solid var(--mv-line); border-radius: 999px; background: none; color: inherit; font: inherit; font-weight: 600; cursor: pointer; }
  button.make { border-color: var(--mv-accent); background: var(--mv-accent); color: var(--mv-on-accent); }
  button:disabled { opacity: 0.45; cursor: default; }
  button:focus-visible, canvas:focus-visible { outline: 3px solid var(--mv-accent); outline-offset: 2px; }
  p { flex: 1 1 200px; min-width: 0; margin: 0; color: var(--mv-muted); font-size: 14px; }
  .mv-roll { position: relative; height: 150px; margin-top: 10px; border-radius: 10px; overflow: hidden; }
  .mv-roll canvas { position: absolute; inset: 0; width: 100%; height: 100%; touch-action: manipulation; cursor: pointer; }
  .mv-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
`

class MelodyElement extends HTMLElement {
  #made = 0
  #melody = null // as the module has it
  #played = null // as the player has it

  connectedCallback() {
    if (this.shadowRoot) return
    const root = this.attachShadow({ mode: "open" })
    root.innerHTML = `<style>${STYLE}</style><div class="card"><div class="row">
      <button type="button" class="make">Make a melody</button>
      <button type="button" class="play" disabled>Play</button>
      <button type="button" class="midi" disabled>MIDI file</button>
      <p role="status"></p></div></div>`
    const find = (selector) => root.querySelector(selector)
    ;[this.make_, this.play_, this.midi_, this.status_] = ["make", "play", "midi"].map((name) => find(`.${name}`)).concat(find("p"))
    this.make_.addEventListener("click", () => this.make().catch(() => {})) // the element says why
    this.play_.addEventListener("click", () => Space.player.toggle(this.#played))
    this.midi_.addEventListener("click", () => this.#save())
    Space.player.addEventListener("state", () => {
      const isOn = Space.player.isPlaying && Space.player.melody === this.#played
      this.play_.textContent = isOn ? "Stop" : "Play"
    })
  }

  /** The melody that is shown, as the module `melody-vae` has it; null before the first. */
  get melody() {
    return this.#melody
  }

  #number(name, fallback) {
    const number = Number(this.getAttribute(name) ?? Number.NaN)
    return Number.isFinite(number) ? number : fallback
  }

  #load() {
    const url = new URL(this.getAttribute("model") ?? at("model/"), document.baseURI).href
    if (!models.has(url)) {
      const onProgress = ({ loaded, total }) => {
        if (!this.#melody) this.status_.textContent = `The model comes: ${Math.round((100 * loaded) / (total || Infinity))} %`
      }
      const model = load(url, { device: "wasm", onProgress })
      model.catch(() => models.delete(url)) // the next press tries again
      models.set(url, model)
    }
    return models.get(url)
  }

  /** Make a melody, show it, and return it. */
  async make() {
    this.make_.disabled = true
    try {
      const asked = (name) => this.getAttribute(name) ?? undefined
      const [model, instruments, samples] = await Promise.all([this.#load(), ...sounds])
      Object.assign(Space, { instruments, samples })
      this.status_.textContent = "A melody is being made"
      const first = this.#number("seed", null)
      const [melody] = await model.sample({
        bars: this.#number("bars", Math.min(8, model.maxBars)),
        temperature: this.#number("temperature", undefined),
        seed: first === null ? Math.floor(Math.random() * 100000) : first + this.#made,
        key: asked("key"),
        scale: asked("scale"),
        meter: asked("meter"),
      })
      this.#made++
      this.#show(melody)
      return melody
    } catch (error) {
      this.status_.textContent = error.message
      throw error
    } finally {
      this.make_.disabled = false
    }
  }

  #show(melody) {
    const isOn = Space.player.isPlaying && Space.player.melody === this.#played
    this.#melody = melody
    const [tempo, program] = [this.#number("tempo", 115), this.#number("program", 0)]
    this.#played = toPage(melody, { title: `Melody ${this.#made}`, tempo, program })
    this.roll_ ??= new Space.RollView(this.shadowRoot.querySelector(".card"))
    this.roll_.set(this.#played)
    this.status_.textContent = Space.describe(this.#played)
    this.play_.disabled = this.midi_.disabled = !melody.notes.length
    if (isOn) Space.player.play(this.#played)
    this.dispatchEvent(new CustomEvent("melody", { detail: melody, bubbles: true }))
  }

  #save() {
    const { tempo, program, title } = this.#played
    const file = new Blob([writeMidi(this.#melody, { tempo, program, name: title })], { type: "audio/midi" })
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: "melody.mid" })
    link.click()
    setTimeout(() => URL.revokeObjectURL(link.href), 10000)
  }
}

customElements.define("melody-vae", MelodyElement)
