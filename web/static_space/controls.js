/** Controls of the page's panels, and values that the other Space's parts watch. */

const { el } = window.MelodySpace

/** A value that a part shows; stands where gradio stands in the other Space. */
export class Value {
  /** @param {any} value First. */
  constructor(value) {
    this.props = { value }
    this.watchers = []
    this.onInput = () => {}
  }

  get now() {
    return this.props.value
  }

  set now(value) {
    this.props.value = value
    for (const watcher of this.watchers) watcher()
  }

  watch = (_, watcher) => this.watchers.push(watcher)
  trigger = () => this.onInput()
}

export function slider(label, { min, max, value, step = 1, info, onChange }) {
  const output = el("output", {}, String(value))
  const input = el("input", { type: "range", min, max, step, value })
  const show = () => (output.textContent = input.value)
  input.addEventListener("input", show)
  if (onChange) input.addEventListener("change", onChange)
  const words = el("span", {}, label, output)
  const element = el("label", { class: "mv-control" }, words, input, info ? el("small", {}, info) : null)
  return {
    element,
    input,
    get value() {
      return Number(input.value)
    },
    set value(number) {
      input.value = String(number)
      show()
    },
  }
}

/** @param {[string, string][]} choices Of each its words and its value. */
export function select(label, choices, value, onChange) {
  const input = el("select", {}, ...choices.map(([text, name]) => el("option", { value: name }, text)))
  input.value = value
  if (onChange) input.addEventListener("change", onChange)
  const element = el("label", { class: "mv-control" }, el("span", {}, label), input)
  return {
    element,
    input,
    get value() {
      return input.value
    },
    set value(name) {
      input.value = name
    },
  }
}

export function number(label, value, max) {
  const input = el("input", { type: "number", min: 0, max, step: 1, value })
  return { element: el("label", { class: "mv-control" }, el("span", {}, label), input), input }
}

export function check(label, isOn) {
  const input = el("input", { type: "checkbox", checked: isOn })
  return { element: el("label", { class: "mv-check" }, input, label), input }
}

export const pair = (...controls) => el("div", { class: "mv-pair" }, ...controls.map((control) => control.element))

export function folded(label, isOpen, ...parts) {
  return el("details", { class: "mv-wishes", open: isOpen }, el("summary", {}, label), el("div", {}, ...parts))
}

/**
 * Let a button do some work, and stop it where it is pressed again.
 *
 * @param {HTMLButtonElement} button
 * @param {(signal: AbortSignal) => Promise<void>} work
 * @param {(error: Error) => void} onError
 */
export function worker(button, work, onError) {
  const words = button.textContent
  let control = null
  const run = async () => {
    control?.abort()
    const own = (control = new AbortController())
    button.classList.add("mv-busy")
    button.textContent = "Stop"
    try {
      await work(own.signal)
    } catch (error) {
      if (!own.signal.aborted) onError(error)
    } finally {
      if (control === own) {
        control = null
        button.classList.remove("mv-busy")
        button.textContent = words
      }
    }
  }
  button.addEventListener("click", () => (control ? control.abort() : run()))
  return run
}
