// Notes by hand: drawn, dragged, lengthened and deleted in a roll, by mouse, touch, keys, a MIDI keyboard or the voice.
(() => {
  const Space = window.MelodySpace;
  const EDGE = 7; // pixels of a note's end by which it is lengthened
  const [LOWEST, HIGHEST] = [21, 108]; // what the model reads

  // One note at a time, sorted: each ends where the next begins, and with the melody.
  const tidy = (melody, notes) => {
    const total = Space.totalSteps(melody);
    const byStart = new Map();
    for (const note of notes) {
      const start = Math.max(0, Math.min(total - 1, note.start));
      byStart.set(start, { start, duration: note.duration, pitch: Math.max(LOWEST, Math.min(HIGHEST, note.pitch)) });
    }
    const sorted = [...byStart.values()].sort((a, b) => a.start - b.start);
    sorted.forEach((note, index) => {
      note.duration = Math.max(1, Math.min(note.duration, (sorted[index + 1]?.start ?? total) - note.start));
    });
    return sorted;
  };
  const notesOf = (melody) => melody.start.map((start, i) => ({ start, duration: melody.duration[i], pitch: melody.pitch[i] }));
  const withNotes = (melody, notes) => ({ ...melody, origin: null, found: undefined,
    start: notes.map((note) => note.start), duration: notes.map((note) => note.duration), pitch: notes.map((note) => note.pitch) });

  class Editor {
    // `commit` is given each new melody.
    constructor(roll, commit) {
      this.roll = roll;
      this.commit = commit;
      this.isOn = false;
      this.drag = null;
      const { glass } = roll;
      glass.addEventListener("pointermove", (event) => this.drag && this.move(event));
      for (const name of ["pointerup", "pointercancel"]) glass.addEventListener(name, () => this.drag && this.drop());
      glass.addEventListener("dblclick", () => this.isOn && this.remove(this.roll.focus));
      glass.addEventListener("contextmenu", (event) => {
        if (!this.isOn) return;
        event.preventDefault();
        this.drag = null;
        this.roll.frozen = null;
        this.remove(this.roll.hit(...this.at(event)));
      });
    }

    set(isOn) {
      this.isOn = isOn;
      this.roll.box.classList.toggle("mv-editing", isOn);
      this.roll.draw();
    }

    at(event) {
      const frame = this.roll.glass.getBoundingClientRect();
      return [event.clientX - frame.left, event.clientY - frame.top];
    }

    // The step and the pitch at a point.
    place(x, y) {
      const { left, top, width, total, high, row } = this.roll.layout;
      return [Math.floor(((x - left) / (width - left)) * total), high - Math.floor((y - top) / row)];
    }

    point(event) {
      if (event.button) return;
      const [x, y] = this.at(event);
      const { roll } = this;
      if (x < roll.layout.left) return;
      event.preventDefault();
      roll.glass.focus();
      roll.frozen = roll.layout; // the roll stays as it is while a note is dragged
      roll.glass.setPointerCapture(event.pointerId);
      const notes = notesOf(roll.melody);
      let index = roll.hit(x, y);
      let kind = "move";
      const [step, pitch] = this.place(x, y);
      if (index < 0) {
        const beat = roll.melody.steps_per_beat;
        const grid = Math.max(1, beat / 2); // new notes begin on half beats; dragged ones anywhere
        const note = { start: Math.floor(step / grid) * grid, duration: beat, pitch };
        notes.push(note);
        index = notes.length - 1;
        kind = "add";
      } else {
        const end = roll.layout.x(notes[index].start + notes[index].duration);
        if (end - x < EDGE && end - roll.layout.x(notes[index].start) > 2 * EDGE) kind = "lengthen";
      }
      this.drag = { kind, notes, index, from: [step, pitch], before: { ...notes[index] }, isChanged: kind === "add", x, y };
      this.show();
      this.sound(notes[index].pitch);
    }

    move(event) {
      const { drag } = this;
      const [x, y] = this.at(event);
      if (Math.abs(x - drag.x) + Math.abs(y - drag.y) < 4 && !drag.isChanged) return; // a finger trembles
      const [step, pitch] = this.place(x, y);
      const note = drag.notes[drag.index];
      const heard = note.pitch;
      if (drag.kind === "lengthen") note.duration = Math.max(1, drag.before.duration + step - drag.from[0]);
      else {
        note.start = Math.max(0, drag.before.start + step - drag.from[0]);
        note.pitch = drag.before.pitch + pitch - drag.from[1];
      }
      drag.isChanged = true;
      if (note.pitch !== heard) this.sound(note.pitch);
      this.show();
    }

    show() {
      const { drag, roll } = this;
      const draft = [...drag.notes.filter((_, index) => index !== drag.index), drag.notes[drag.index]];
      const tidied = tidy(roll.melody, draft.map((note) => ({ ...note })));
      drag.draft = withNotes(roll.melody, tidied);
      const { start } = drag.notes[drag.index];
      drag.focus = tidied.findIndex((note) => note.start === Math.min(start, Space.totalSteps(roll.melody) - 1));
      roll.preview(drag.draft, drag.focus);
    }

    drop() {
      const { drag, roll } = this;
      this.drag = null;
      roll.frozen = null;
      if (drag.isChanged) this.finish(drag.draft, drag.focus);
      else roll.preview(roll.melody, drag.focus);
    }

    finish(melody, focus) {
      this.commit(melody);
      this.roll.setFocus(focus);
      this.roll.say();
    }

    change(notes, focused) {
      const tidied = tidy(this.roll.melody, notes);
      const focus = focused ? tidied.findIndex((note) => note.start === focused.start) : -1;
      this.finish(withNotes(this.roll.melody, tidied), focus);
      if (focused) this.sound(focused.pitch);
    }

    remove(index) {
      if (index < 0) return;
      const notes = notesOf(this.roll.melody);
      notes.splice(index, 1);
      this.finish(withNotes(this.roll.melody, notes), Math.min(index, notes.length - 1));
    }

    clear() {
      this.finish(withNotes(this.roll.melody, []), -1);
    }

    // A note after the one that has the focus, or after the last; as keys and a MIDI keyboard write.
    append(pitch) {
      const { roll } = this;
      const notes = notesOf(roll.melody);
      const last = notes[roll.focus >= 0 ? roll.focus : notes.length - 1];
      const duration = last?.duration ?? roll.melody.steps_per_beat;
      const start = last ? last.start + last.duration : 0;
      if (start >= Space.totalSteps(roll.melody)) return Space.toast("The roll is full: choose an earlier note to go on from");
      const note = { start, duration, pitch: pitch ?? last?.pitch ?? 67 };
      this.change([...notes.filter((other) => other.start !== start), note], note);
    }

    key(event) {
      const { roll } = this;
      const notes = notesOf(roll.melody);
      const note = notes[roll.focus];
      const [up, along] = [{ ArrowUp: 1, ArrowDown: -1 }[event.key], { ArrowRight: 1, ArrowLeft: -1 }[event.key]];
      if (event.key === "Enter" || event.key === "Insert") this.append();
      else if (!note) return false;
      else if (event.key === "Delete" || event.key === "Backspace") this.remove(roll.focus);
      else if (up || (along && event.shiftKey) || "+-".includes(event.key)) {
        if (up) note.pitch = Math.max(LOWEST, Math.min(HIGHEST, note.pitch + up * (event.shiftKey ? 12 : 1)));
        else if (along) note.start = Math.max(0, note.start + along);
        else note.duration += event.key === "+" ? 1 : -1;
        const others = notes.filter((other) => other === note || other.start !== note.start);
        this.change(others, note);
      } else return false;
      event.preventDefault();
      return true;
    }

    sound(pitch) {
      const { melody } = this.roll;
      Space.player.touch({ ...melody, pitch: [pitch], duration: [melody.steps_per_beat] }, 0);
    }
  }

  // The buttons of a card whose roll can be edited.
  Space.editTools = (roll, commit) => {
    const { el } = Space;
    const editor = (roll.editor = new Editor(roll, commit));
    const draw = el("button", { type: "button", class: "mv-text-tool", "aria-pressed": "false",
      title: "Click to add a note; drag it, or its end; double-click deletes. Keys: arrows, Shift and arrows, + and -, Enter, Delete" }, "Edit notes");
    const clear = el("button", { type: "button", class: "mv-text-tool", hidden: true, onclick: () => editor.clear() }, "Clear");
    const keyboard = el("button", { type: "button", class: "mv-text-tool", hidden: true, title: "Each key that you play is the next note" }, "MIDI keyboard");
    const hum = el("button", { type: "button", class: "mv-text-tool", hidden: true,
      title: "Hum or sing after a bar of clicks: your notes replace those of the roll. The sound stays on this machine" }, "Hum");
    const show = (isOn) => {
      editor.set(isOn);
      draw.setAttribute("aria-pressed", String(isOn));
      clear.hidden = !isOn;
      keyboard.hidden = !isOn || !navigator.requestMIDIAccess;
      hum.hidden = !isOn || !navigator.mediaDevices;
      if (!isOn) listen(null);
      if (!isOn) humming?.abort();
    };
    let access = null;
    const listen = (now) => {
      for (const input of (access || now)?.inputs.values() || []) input.onmidimessage = now ? hear : null;
      access = now;
      keyboard.setAttribute("aria-pressed", String(Boolean(now)));
    };
    const hear = ({ data: [status, pitch, velocity] }) => {
      if (!roll.box.isConnected) return listen(null);
      if (status >> 4 === 9 && velocity) editor.append(Math.max(LOWEST, Math.min(HIGHEST, pitch)));
    };
    keyboard.addEventListener("click", async () => {
      if (access) return listen(null);
      const given = await navigator.requestMIDIAccess().catch(() => null);
      if (!given?.inputs.size) return Space.toast("No MIDI keyboard was found: connect one, and allow this page to use it", true);
      listen(given);
    });
    let humming = null; // what ends it
    hum.addEventListener("click", async () => {
      if (humming) return humming.abort();
      humming = new AbortController();
      hum.setAttribute("aria-pressed", "true");
      const tell = (bar) => {
        if (!roll.box.isConnected) humming.abort(); // another melody is in its place
        hum.textContent = bar < 1 ? "Get ready…" : `Bar ${bar}: stop`;
      };
      const { signal } = humming;
      try {
        const notes = await Space.hum(roll.melody, signal, tell);
        if (!notes || !roll.box.isConnected || !editor.isOn) return;
        if (notes.length) editor.change(notes);
        else Space.toast("Nothing was heard that has a pitch: hum louder, or nearer to the microphone", true);
      } catch (error) {
        const isRefused = ["NotAllowedError", "NotFoundError"].includes(error.name);
        Space.toast(isRefused ? "No microphone: connect one, and allow this page to use it" : "Humming does not work in this browser", true);
      } finally {
        humming = null;
        hum.setAttribute("aria-pressed", "false");
        hum.textContent = "Hum";
      }
    });
    draw.addEventListener("click", () => show(!editor.isOn));
    return el("div", { class: "mv-edit-tools" }, draw, clear, keyboard, hum);
  };
})();
