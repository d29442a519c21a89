// Melodies in the page: links, files, history, undo, and sending them from tab to tab.
(() => {
  const Space = window.MelodySpace;
  const HISTORY = "melody-space-history";
  const MAX_HISTORY = 120;
  const MAX_UNDO = 60;

  Space.el = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };

  Space.toast = (text, isError = false) => {
    let shelf = document.querySelector(".mv-toasts");
    if (!shelf) {
      shelf = Space.el("div", { class: "mv-toasts", role: "status", "aria-live": "polite" });
      document.body.append(shelf);
    }
    const toast = Space.el("div", { class: isError ? "mv-toast mv-toast-error" : "mv-toast" }, text);
    shelf.append(toast);
    setTimeout(() => toast.remove(), isError ? 7000 : 3000);
  };

  // A melody as text for a link: numbers of 7 bits per byte, the high bit says that more follow.
  const VERSION = 1;
  const write = (bytes, number) => {
    for (; number > 127; number >>>= 7) bytes.push((number & 127) | 128);
    bytes.push(number);
  };
  Space.toCode = (melody) => {
    const [numerator, denominator] = melody.time_signature.split("/").map(Number);
    const bytes = [];
    const head = [VERSION, numerator, denominator, melody.steps_per_beat, melody.bars, Math.round(melody.tempo), melody.program];
    head.forEach((number) => write(bytes, number));
    let now = 0;
    melody.start.forEach((start, index) => {
      [start - now, melody.duration[index], melody.pitch[index]].forEach((number) => write(bytes, number));
      now = start;
    });
    return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  };
  Space.fromCode = (code) => {
    const bytes = [...atob(code.replaceAll("-", "+").replaceAll("_", "/"))].map((each) => each.charCodeAt(0));
    const numbers = [];
    let [number, shift] = [0, 0];
    for (const byte of bytes) {
      number += (byte & 127) * 2 ** shift;
      shift += 7;
      if (byte < 128) {
        numbers.push(number);
        [number, shift] = [0, 0];
      }
    }
    const [version, numerator, denominator, stepsPerBeat, bars, tempo, program] = numbers;
    const notes = numbers.slice(7);
    const isMelody = version === VERSION && numerator >= 1 && numerator <= 32 && [1, 2, 4, 8, 16].includes(denominator) &&
      stepsPerBeat >= 1 && stepsPerBeat <= 48 && bars >= 1 && bars <= 256 && tempo >= 30 && tempo <= 300 &&
      program <= 127 && notes.length % 3 === 0 && notes.length && notes.length <= 3 * 4096;
    if (!isMelody) throw new Error("no melody");
    const melody = { title: "Shared melody", pitch: [], start: [], duration: [], bars, tempo, program,
      time_signature: `${numerator}/${denominator}`, steps_per_beat: stepsPerBeat, origin: null };
    let now = 0;
    for (let i = 0; i < notes.length; i += 3) {
      now += notes[i];
      melody.start.push(now);
      melody.duration.push(notes[i + 1]);
      melody.pitch.push(notes[i + 2]);
    }
    const end = numerator * stepsPerBeat * bars;
    const fits = melody.start.every((start, i) => start + melody.duration[i] <= end && melody.duration[i] > 0 && melody.pitch[i] <= 127);
    if (!fits) throw new Error("no melody");
    return melody;
  };

  // A sampled melody is its settings and its seed; any other is its notes.
  Space.linkTo = (melody) => {
    const page = location.origin + location.pathname;
    if (melody.origin?.tab !== "make") return `${page}#m=${Space.toCode(melody)}`;
    const settings = Object.entries(melody.origin).filter(([name, value]) => name !== "tab" && value !== "any");
    return `${page}?${new URLSearchParams(settings)}`;
  };
  Space.copyLink = async (melody) => {
    const link = Space.linkTo(melody);
    try {
      await navigator.clipboard.writeText(link);
      Space.toast("Link copied: it brings this melody back");
    } catch {
      window.prompt("Copy this link:", link);
    }
    return link;
  };

  const save = (blob, name) => {
    const link = Space.el("a", { href: URL.createObjectURL(blob), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const plain = (melody) => {
    const { title, pitch, start, duration, bars, tempo, program } = melody;
    return { title, pitch, start, duration, bars, tempo, program, time_signature: melody.time_signature,
      steps_per_beat: melody.steps_per_beat, ...(melody.place ? { place: melody.place } : {}) };
  };
  Space.download = async (melody, kind) => {
    if (kind === "png") {
      const stem = melody.title.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replaceAll(/^-|-$/g, "");
      return save(await Space.toPng(melody), `${stem || "melody"}.png`);
    }
    const file = await Space.file(melody, kind);
    const types = { midi: "audio/midi", wav: "audio/wav", abc: "text/vnd.abc", musicxml: "application/vnd.recordare.musicxml+xml" };
    if (file) save(new Blob([file.bytes], { type: types[kind] }), file.name);
  };

  // The visitor's own MIDI files stay in the page, so that a melody can go back into its own.
  const songs = [];
  document.addEventListener("change", (event) => {
    if (event.target.type !== "file") return;
    for (const file of event.target.files) songs.unshift(file);
    songs.splice(4);
  }, true);
  const base64 = (content) => {
    const bytes = new Uint8Array(content);
    let text = "";
    for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
    return btoa(text);
  };
  Space.canReturn = (melody) => Boolean(melody.place && songs.length);
  Space.putBack = async (melody) => {
    const server = await Space.server;
    let answer = {};
    for (const song of songs) {
      answer = await server.put_back([plain(melody), base64(await song.arrayBuffer())]).catch(() => ({}));
      if (!answer.base64) continue;
      const bytes = Uint8Array.from(atob(answer.base64), (each) => each.charCodeAt(0));
      return save(new Blob([bytes], { type: "audio/midi" }), `${song.name.replace(/\.midi?$/i, "")}-new.mid`);
    }
    Space.toast(answer.error || "The server does not answer: try again", true);
  };

  // A file that the server writes, with chords where they are on; null if it says why not.
  Space.file = async (melody, kind) => {
    const server = await Space.server;
    const isSheet = kind === "abc" || kind === "musicxml";
    const asked = [plain(melody), ...(isSheet ? [kind] : []), Space.hasChords];
    const file = await server[isSheet ? "sheet" : kind](asked).catch(() => ({}));
    if (!file.base64) return Space.toast(file.error || "The server does not answer: try again", true), null;
    return { name: file.name, bytes: Uint8Array.from(atob(file.base64), (each) => each.charCodeAt(0)) };
  };

  // Chords under melodies: the server finds them, once for each melody as it is now.
  Space.hasChords = false;
  const chords = new Map();
  Space.chordsOf = (melody) => {
    if (!Space.hasChords || !melody?.pitch.length) return null;
    const code = Space.toCode({ ...melody, tempo: 120, program: 0 });
    if (!chords.has(code)) {
      chords.set(code, null);
      Space.server.then((server) => server.harmonize([plain(melody)])).then((found) => {
        if (found.error) return;
        chords.set(code, found);
        Space.redraw();
        if (Space.player.isPlaying && Space.player.melody === melody) Space.player.refresh();
        else Space.player.announce();
      }).catch(() => chords.delete(code));
    }
    return chords.get(code);
  };
  Space.setChords = (isOn) => {
    Space.hasChords = isOn;
    Space.redraw();
    document.dispatchEvent(new Event("mv-chords"));
    Space.player.refresh();
  };

  // What the server does; the static page, which has none, says before what it does itself.
  Space.offered ||= ["midi", "wav", "sheet", "harmonize", "put_back"];
  // The dock hands over the functions of the server when it is there.
  Space.server = new Promise((ready) => (Space.giveServer = ready));

  // Gradio builds a tab when it is first opened: what is sent to it before waits.
  const slots = new Map();
  const waiting = new Map();
  Space.addSlot = (name, slot) => {
    slots.set(name, slot);
    if (!waiting.has(name)) return;
    setTimeout((melody) => slot.take(melody, true), 60, waiting.get(name)); // when gradio has set the first value
    waiting.delete(name);
  };
  Space.TARGETS = [
    ["change", "Change", "change"],
    ["rework", "Continue & Fill", "rework"],
    ["blend-a", "Blend, corner A", "blend"],
    ["blend-b", "Blend, corner B", "blend"],
    ["blend-c", "Blend, corner C", "blend"],
    ["blend-d", "Blend, corner D", "blend"],
  ];
  Space.openTab = (name) => document.getElementById(`tab-${name}-button`)?.click();
  Space.send = (melody, name) => {
    const [, label, tab] = Space.TARGETS.find(([target]) => target === name);
    const sent = structuredClone({ ...plain(melody), origin: melody.origin || null });
    if (slots.has(name)) slots.get(name).take(sent);
    else waiting.set(name, sent);
    Space.openTab(tab);
    Space.toast(`${melody.title} is in ${label}`);
  };

  const undos = [];
  Space.remember = (undo) => {
    undos.push(undo);
    if (undos.length > MAX_UNDO) undos.shift();
    document.dispatchEvent(new Event("mv-undo"));
  };
  Space.canUndo = () => undos.length > 0;
  Space.undo = () => {
    const undo = undos.pop();
    document.dispatchEvent(new Event("mv-undo"));
    if (undo) Space.toast(`Undone: ${undo()}`);
  };
  // What is being typed has an undo of the browser's own; when it is entered, it is the page's turn again.
  let typedIn = null;
  document.addEventListener("input", (event) => (typedIn = event.target.type === "range" ? null : event.target), true);
  document.addEventListener("change", () => (typedIn = null), true);
  const takesKeys = (element) =>
    element.closest("button, summary, select, textarea, a, canvas, [role=slider], [role=listbox], [contenteditable]") ||
    (element.tagName === "INPUT" && element.type !== "range");
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "z" && !event.shiftKey && typedIn !== event.target && Space.canUndo()) {
      event.preventDefault();
      Space.undo();
    } else if (event.key === " " && !event.defaultPrevented && !takesKeys(event.target) && Space.player.melody) {
      event.preventDefault();
      Space.player.toggle(Space.player.melody);
    }
  });

  // Gradio tells the server of a slider when it is let go; a number that is typed beside it is as good.
  document.addEventListener("change", (event) => {
    const slider = event.target.type === "number" && event.target.closest(".block")?.querySelector("input[type=range]");
    if (!slider) return;
    const [low, high, value] = [slider.min, slider.max, event.target.value].map(Number);
    const inside = Math.max(low, Math.min(high, value));
    if (inside !== value) {
      event.target.value = String(inside);
      event.target.dispatchEvent(new Event("input", { bubbles: true }));
      typedIn = null;
    }
    setTimeout(() => slider.dispatchEvent(new PointerEvent("pointerup", { bubbles: true })), 50); // when it has moved
  });

  const load = () => {
    try {
      return JSON.parse(sessionStorage.getItem(HISTORY)) || [];
    } catch {
      return [];
    }
  };
  Space.history = load();
  Space.record = (melodies) => {
    const known = new Set(Space.history.map((each) => Space.toCode(each)));
    const fresh = melodies.filter((melody) => melody.pitch.length && !known.has(Space.toCode(melody)));
    if (!fresh.length) return;
    const stamped = fresh.map((melody) => ({ ...plain(melody), origin: melody.origin || null }));
    Space.history = [...stamped, ...Space.history].slice(0, MAX_HISTORY);
    try {
      sessionStorage.setItem(HISTORY, JSON.stringify(Space.history));
    } catch {
      // A full or forbidden storage: the history then lasts as long as the page.
    }
    document.dispatchEvent(new Event("mv-history"));
  };
})();
