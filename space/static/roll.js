// Piano roll: a picture that is played, read and pointed at. Pictures of melodies are drawn here and nowhere else.
(() => {
  const Space = window.MelodySpace;
  const BLACK_KEYS = new Set([1, 3, 6, 8, 10]);
  const NAMES = ["C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B"];
  const FEWEST_SEMITONES = 14;
  const ROOM = 5; // semitones above and below the notes while they are edited
  const views = new Set();

  Space.pitchName = (pitch) => NAMES[pitch % 12] + (Math.floor(pitch / 12) - 1);
  Space.plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  Space.describe = (melody) => {
    const size = `${Space.plural(melody.bars, "bar")} of ${melody.time_signature}`;
    if (!melody.pitch.length) return `${size}, silent`;
    const [low, high] = [Math.min(...melody.pitch), Math.max(...melody.pitch)].map(Space.pitchName);
    return `${size}, ${Space.plural(melody.pitch.length, "note")}, ${low} to ${high}`;
  };

  const colours = (element = document.body) => {
    const style = getComputedStyle(element);
    const of = (name) => style.getPropertyValue(`--mv-${name}`).trim();
    return { paper: of("roll"), key: of("roll-key"), beat: of("roll-beat"), bar: of("roll-bar"), ink: of("muted"),
      note: of("note"), live: of("live"), chosen: of("chosen"), title: of("ink") };
  };

  const layout = (melody, width, height, isBare, chords = null, room = 1) => {
    const pitches = melody.pitch.length ? [...melody.pitch, ...(chords?.pitch || [])] : [60, 72];
    let low = Math.min(...pitches) - room;
    let high = Math.max(...pitches) + room;
    while (high - low + 1 < FEWEST_SEMITONES) (high - low) % 2 ? low-- : high++;
    const left = isBare ? 0 : 34;
    const top = isBare ? 0 : 16;
    const rows = high - low + 1;
    const row = (height - top) / rows;
    const total = Space.totalSteps(melody);
    return { left, top, low, high, row, total, width, height,
      x: (step) => left + (step / total) * (width - left),
      y: (pitch) => top + (high - pitch) * row };
  };

  const paintGrid = (pen, melody, box, paint, chords = null) => {
    pen.fillStyle = paint.paper;
    pen.fillRect(box.left, box.top, box.width - box.left, box.height - box.top);
    pen.fillStyle = paint.key;
    for (let pitch = box.low; pitch <= box.high; pitch++)
      if (BLACK_KEYS.has(((pitch % 12) + 12) % 12))
        pen.fillRect(box.left, box.y(pitch), box.width - box.left, box.row);
    const bar = Space.stepsPerBar(melody);
    pen.font = "600 10px Manrope, system-ui, sans-serif";
    pen.textBaseline = "top";
    const narrow = (box.width - box.left) / melody.bars < 22;
    for (let step = 0; step <= box.total; step += melody.steps_per_beat) {
      const isBar = step % bar === 0;
      pen.fillStyle = isBar ? paint.bar : paint.beat;
      const x = Math.min(Math.round(box.x(step)), box.width - 1);
      if (isBar || (box.width - box.left) / box.total > 1.6) pen.fillRect(x, box.top, 1, box.height - box.top);
      const number = step / bar + 1;
      if (box.left && isBar && step < box.total && (!narrow || number % 2 === 1)) {
        pen.fillStyle = paint.ink;
        pen.fillText(String(number), x + 3, 2);
      }
      if (box.left && isBar && step < box.total && chords && chords.chords[number - 1] !== chords.chords[number - 2]) {
        pen.fillStyle = paint.live;
        const name = chords.chords[number - 1].replace("#", "♯").replace(/^(.)b/, "$1♭");
        pen.fillText(name, x + (narrow ? 1 : 16), narrow ? box.top + 1 : 2);
      }
    }
    pen.fillStyle = paint.bar;
    chords?.pitch.forEach((_, index) => {
      const [left, top, long, high] = noteBox(chords, index, box);
      pen.fillRect(left, top, long, high);
    });
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    pen.fillStyle = paint.ink;
    for (let pitch = box.low; box.left && pitch <= box.high; pitch++)
      if (pitch % 12 === 0 || (pitch % 12 === 7 && box.row > 7))
        pen.fillText(Space.pitchName(pitch), box.left - 6, box.y(pitch) + box.row / 2);
    pen.textAlign = "left";
  };

  const noteBox = (melody, index, box) => {
    const x = box.x(melody.start[index]);
    const end = box.x(melody.start[index] + melody.duration[index]);
    const height = Math.max(3, Math.min(box.row - 1, 11));
    return [x + 0.5, box.y(melody.pitch[index]) + (box.row - height) / 2, Math.max(2.5, end - x - 1.5), height];
  };

  const drawNote = (pen, melody, index, box, colour) => {
    const [x, y, width, height] = noteBox(melody, index, box);
    pen.fillStyle = colour;
    pen.beginPath();
    pen.roundRect(x, y, width, height, Math.min(3, height / 2));
    pen.fill();
  };

  // A picture with nothing but notes, for small places.
  Space.drawThumbnail = (pen, melody, x, y, width, height, colour) => {
    const box = layout(melody, width, height, true);
    pen.save();
    pen.translate(x, y);
    pen.fillStyle = colour;
    pen.strokeStyle = colour;
    pen.lineWidth = 1;
    pen.globalAlpha = 0.35; // a thin line leads the eye from note to note
    pen.beginPath();
    melody.pitch.forEach((_, index) => {
      const [left, top, long, high] = noteBox(melody, index, box);
      pen.lineTo(left, top + high / 2);
      pen.lineTo(left + long, top + high / 2);
    });
    pen.stroke();
    pen.globalAlpha = 1;
    melody.pitch.forEach((_, index) => {
      const [left, top, long, high] = noteBox(melody, index, box);
      const thick = Math.max(2, Math.min(high, 4));
      pen.fillRect(left, top + (high - thick) / 2, Math.max(long, 2), thick);
    });
    pen.restore();
  };

  class RollView {
    constructor(holder, options = {}) {
      this.options = options;
      this.box = document.createElement("div");
      this.box.className = "mv-roll";
      this.base = document.createElement("canvas");
      this.glass = document.createElement("canvas");
      this.base.className = "mv-roll-base";
      this.glass.tabIndex = 0;
      this.glass.className = "mv-roll-glass";
      this.glass.setAttribute("role", "application");
      this.glass.setAttribute("aria-roledescription", "piano roll");
      this.voice = document.createElement("span");
      this.voice.className = "mv-hidden";
      this.voice.setAttribute("aria-live", "polite");
      this.box.append(this.base, this.glass, this.voice);
      holder.append(this.box);
      this.focus = -1;
      this.glass.addEventListener("pointerdown", (event) => this.point(event));
      this.glass.addEventListener("keydown", (event) => this.key(event));
      this.glass.addEventListener("blur", () => this.setFocus(-1));
      this.onTick = () => this.isShown && this.drawGlass();
      Space.player.addEventListener("tick", this.onTick);
      new ResizeObserver(() => this.draw()).observe(this.box);
      views.add(this);
    }

    set(melody) {
      this.melody = melody;
      this.focus = -1;
      this.glass.setAttribute(
        "aria-label",
        `${melody.title}: ${Space.describe(melody)}. Arrow keys go from note to note, Space plays.`,
      );
      this.draw();
    }

    // Show what notes would be, without being given them.
    preview(melody, focus) {
      const own = this.melody;
      this.melody = melody;
      this.focus = focus;
      this.draw();
      this.melody = own;
    }

    get isShown() {
      return this.melody && this.box.isConnected && this.box.clientWidth > 0;
    }

    draw() {
      if (!this.box.isConnected) return this.wasShown && this.forget(); // a card is drawn when it has its place
      if (!this.isShown) return;
      this.wasShown = true;
      const width = this.box.clientWidth;
      const height = this.box.clientHeight;
      const ratio = window.devicePixelRatio || 1;
      for (const canvas of [this.base, this.glass]) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
      }
      const chords = this.options.isBare ? null : Space.chordsOf(this.melody);
      this.layout = this.frozen || layout(this.melody, width, height, this.options.isBare, chords, this.editor?.isOn ? ROOM : 1);
      this.paint = colours(this.box);
      const pen = this.base.getContext("2d");
      pen.scale(ratio, ratio);
      pen.clearRect(0, 0, width, height);
      paintGrid(pen, this.melody, this.layout, this.paint, chords);
      const bar = Space.stepsPerBar(this.melody);
      pen.fillStyle = this.paint.chosen;
      for (const number of this.options.chosen?.() || []) {
        const x = this.layout.x((number - 1) * bar);
        pen.fillRect(x, this.layout.top, this.layout.x(number * bar) - x, height);
      }
      const colour = this.options.colour?.() || this.paint.note;
      this.melody.pitch.forEach((_, index) => drawNote(pen, this.melody, index, this.layout, colour));
      this.drawGlass();
    }

    drawGlass() {
      if (!this.layout) return; // not drawn yet
      const pen = this.glass.getContext("2d");
      const ratio = window.devicePixelRatio || 1;
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, this.layout.width, this.layout.height);
      const { player } = Space;
      if (player.melody === this.melody && (player.isPlaying || player.resting)) {
        const now = Math.min(player.position, this.layout.total);
        this.melody.pitch.forEach((_, index) => {
          const start = this.melody.start[index];
          if (player.isPlaying && start <= now && now < start + this.melody.duration[index])
            drawNote(pen, this.melody, index, this.layout, this.paint.live);
        });
        pen.fillStyle = this.paint.live;
        pen.fillRect(this.layout.x(now) - 0.75, this.layout.top, 1.5, this.layout.height);
      }
      if (this.focus >= 0) {
        const [x, y, width, height] = noteBox(this.melody, this.focus, this.layout);
        drawNote(pen, this.melody, this.focus, this.layout, this.paint.live);
        pen.strokeStyle = this.paint.live;
        pen.lineWidth = 2;
        pen.strokeRect(x - 3, y - 3, width + 6, height + 6);
      }
    }

    setFocus(index) {
      this.focus = index;
      if (this.isShown) this.drawGlass();
    }

    hit(x, y) {
      const slack = 4;
      return this.melody.pitch.findIndex((_, index) => {
        const [left, top, width, height] = noteBox(this.melody, index, this.layout);
        return x >= left - slack && x <= left + width + slack && y >= top - slack && y <= top + height + slack;
      });
    }

    point(event) {
      if (this.editor?.isOn) return this.editor.point(event);
      const frame = this.glass.getBoundingClientRect();
      const x = event.clientX - frame.left;
      const index = this.hit(x, event.clientY - frame.top);
      Space.player.select(this.melody);
      if (index >= 0) this.sound(index);
      else if (x > this.layout.left && Space.player.melody === this.melody)
        Space.player.seek(((x - this.layout.left) / (this.layout.width - this.layout.left)) * this.layout.total);
    }

    sound(index) {
      Space.player.touch(this.melody, index);
      this.setFocus(index);
      this.say();
    }

    // Tell who cannot see it which note has the focus.
    say() {
      const index = this.focus;
      if (index < 0) return;
      const bar = Space.stepsPerBar(this.melody);
      const start = this.melody.start[index];
      const beat = Math.floor((start % bar) / this.melody.steps_per_beat) + 1;
      this.voice.textContent = `${Space.pitchName(this.melody.pitch[index])}, bar ${Math.floor(start / bar) + 1}, beat ${beat}`;
    }

    key(event) {
      if (this.editor?.isOn && this.editor.key(event)) return;
      const last = this.melody.pitch.length - 1;
      const next = { ArrowRight: this.focus + 1, ArrowLeft: this.focus - 1, Home: 0, End: last }[event.key];
      if (next !== undefined && last >= 0) this.sound(Math.max(0, Math.min(next, last)));
      else if (event.key === " ") Space.player.toggle(this.melody);
      else return;
      event.preventDefault();
    }

    forget() {
      Space.player.removeEventListener("tick", this.onTick);
      views.delete(this);
    }
  }
  Space.RollView = RollView;

  // A large picture with a title, as a PNG.
  Space.toPng = (melody) => {
    const [width, height, margin] = [1600, 560, 48];
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const pen = canvas.getContext("2d");
    const paints = colours();
    pen.fillStyle = getComputedStyle(document.body).getPropertyValue("--mv-card").trim();
    pen.fillRect(0, 0, width, height);
    pen.fillStyle = paints.title;
    pen.font = "700 34px Manrope, system-ui, sans-serif";
    pen.fillText(melody.title, margin, 66);
    pen.fillStyle = paints.ink;
    pen.font = "500 20px Manrope, system-ui, sans-serif";
    pen.fillText(`${Space.describe(melody)} · ${Math.round(melody.tempo)} bpm`, margin, 100);
    pen.translate(margin, 124);
    const chords = Space.chordsOf(melody);
    const box = layout(melody, width - 2 * margin, height - 124 - margin, false, chords);
    paintGrid(pen, melody, box, paints, chords);
    melody.pitch.forEach((_, index) => drawNote(pen, melody, index, box, paints.note));
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  };

  // Colours come from the style sheet: when the theme changes, so do the pictures.
  Space.redraw = () => views.forEach((view) => view.draw());
  document.addEventListener("DOMContentLoaded", () => {
    new MutationObserver(() => {
      Space.redraw();
      document.dispatchEvent(new Event("mv-theme"));
    }).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    document.fonts?.ready.then(Space.redraw);
  });
})();
