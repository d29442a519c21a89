// What melodies live in: cards, slots, the blend pad. Each mounts on a gr.HTML component.
(() => {
  const Space = window.MelodySpace;
  const { el, player } = Space;
  const svg = (path) => {
    const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    icon.setAttribute("viewBox", "0 0 24 24");
    icon.setAttribute("aria-hidden", "true");
    const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
    shape.setAttribute("d", path);
    icon.append(shape);
    return icon;
  };
  const ICONS = {
    play: "M8 5v14l11-7z",
    stop: "M7 7h10v10H7z",
    down: "M12 3v10.2l3.6-3.6L17 11l-5 5-5-5 1.4-1.4 3.6 3.6V3zM5 19h14v2H5z",
    link: "M10.6 13.4a3 3 0 0 0 4.2 0l4-4a3 3 0 0 0-4.2-4.2l-1.2 1.2M13.4 10.6a3 3 0 0 0-4.2 0l-4 4a3 3 0 0 0 4.2 4.2l1.2-1.2",
    send: "M5 12h12M12 6l6 6-6 6",
    loop: "M7 7h9a4 4 0 0 1 0 8h-1M17 17H8a4 4 0 0 1 0-8h1M10 4 7 7l3 3M14 14l3 3-3 3",
    undo: "M9 7 5 11l4 4M5 11h9a5 5 0 0 1 0 10h-3",
    sheet: "M3 6h18M3 10h18M3 14h18M3 18h18M9 16V5M9 16a2 1.6 0 1 1-2-1.6M16 18V7M16 18a2 1.6 0 1 1-2-1.6",
    history: "M12 7v5l3 2M12 3a9 9 0 1 1-8.5 6M3 4v5h5",
    close: "M6 6l12 12M18 6 6 18",
  };
  Space.icon = (name) => {
    const icon = svg(ICONS[name]);
    icon.classList.add(["play", "stop", "down"].includes(name) ? "mv-solid" : "mv-line");
    return icon;
  };

  const menu = (name, label, entries) => {
    const list = el("div", { class: "mv-menu-list" });
    const button = el("summary", { "aria-label": label, title: label }, Space.icon(name));
    const box = el("details", { class: "mv-menu" }, button, list);
    for (const [text, act] of entries)
      list.append(el("button", { type: "button", onclick: () => { box.open = false; act(); } }, text));
    box.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { box.open = false; button.focus(); }
    });
    box.addEventListener("toggle", () => {
      if (!box.open) return;
      document.querySelectorAll("details.mv-menu[open]").forEach((other) => other !== box && (other.open = false));
    });
    return box;
  };
  document.addEventListener("click", (event) => {
    document.querySelectorAll("details.mv-menu[open]").forEach((box) => !box.contains(event.target) && (box.open = false));
  });

  const playButton = (melodyOf, small = false) => {
    const button = el("button", { type: "button", class: small ? "mv-play mv-play-small" : "mv-play" });
    const show = () => {
      if (!button.isConnected && button.dataset.seen) return player.removeEventListener("state", show);
      if (button.isConnected) button.dataset.seen = "1";
      const melody = melodyOf();
      const isOn = Boolean(melody) && player.isPlaying && player.melody === melody;
      button.replaceChildren(Space.icon(isOn ? "stop" : "play"));
      button.setAttribute("aria-label", `${isOn ? "Stop" : "Play"} ${melody?.title || ""}`.trim());
      button.classList.toggle("mv-on", isOn);
    };
    button.addEventListener("click", () => melodyOf() && player.toggle(melodyOf()));
    player.addEventListener("state", show);
    show();
    return button;
  };

  // A melody with everything that can be done with it.
  Space.card = (melody, { isBare = false, isPicked = false, colour } = {}) => {
    const title = el("h3", { class: "mv-title" });
    const facts = el("p", { class: "mv-facts" });
    title.textContent = melody.title;
    facts.textContent = Space.describe(melody);
    const tools = el("div", { class: "mv-tools" });
    const hasSheet = Space.offered.includes("sheet");
    if (!isBare)
      tools.append(
        menu("send", `Send ${melody.title} to another tab`, Space.TARGETS.map(([name, label]) => [label, () => Space.send(melody, name)])),
        menu("down", `Download ${melody.title}`, [
          ...(Space.offered.includes("put_back") && Space.canReturn(melody) ? [["Back into your song", () => Space.putBack(melody)]] : []),
          ["MIDI file", () => Space.download(melody, "midi")],
          ["WAV sound", () => Space.download(melody, "wav")],
          ["PNG picture", () => Space.download(melody, "png")],
          ...(hasSheet ? [["MusicXML notes", () => Space.download(melody, "musicxml")]] : []),
          ...(hasSheet ? [["ABC notes", () => Space.download(melody, "abc")]] : []),
        ]),
        ...(hasSheet ? [Space.sheetButton(melody)] : []),
        el("button", { type: "button", class: "mv-tool", "aria-label": `Copy a link to ${melody.title}`, title: "Copy link",
          onclick: () => Space.copyLink(melody) }, Space.icon("link")),
      );
    const card = el("article", { class: isPicked ? "mv-card mv-picked" : "mv-card", "aria-label": melody.title },
      el("header", { class: "mv-card-head" }, playButton(() => melody), el("div", { class: "mv-words" }, title, facts), tools));
    if (melody.originality) {
      const note = el("p", { class: "mv-facts mv-originality" });
      note.textContent = melody.originality;
      facts.after(note);
    }
    const roll = new Space.RollView(card, { colour });
    roll.set(melody);
    card.melody = melody;
    return card;
  };

  // Copy what the server sent: the page may change tempo and instrument of its own.
  const own = (value) => structuredClone(JSON.parse(JSON.stringify(value)));

  // A list of melodies, value {melodies, pick, isBare} or null.
  Space.mountList = (element, props, watch) => {
    const holder = element.querySelector(".mv-list");
    let shown = null;
    const render = (value) => {
      shown = value;
      const melodies = value?.melodies || [];
      if (!melodies.length) {
        holder.replaceChildren(el("p", { class: "mv-empty" }, holder.dataset.empty));
        return;
      }
      const isSame = melodies.some((melody) => melody === player.melody);
      if (player.isPlaying && !isSame && holder.contains(document.activeElement)) player.stop();
      const cards = melodies.map((melody, index) =>
        Space.card(melody, { isBare: value.isBare, isPicked: value.pick === index + 1 }));
      const note = value.note ? [el("p", { class: "mv-note" }, value.note)] : [];
      holder.replaceChildren(...note, ...cards);
      if (value.pick) cards[value.pick - 1]?.scrollIntoView({ block: "center" });
      player.select(melodies[(value.pick || 1) - 1]);
    };
    const arrive = (value, isUndoable = true) => {
      const before = shown;
      render(value);
      if (!value?.isBare) Space.record(value?.melodies || []);
      if (isUndoable && !value?.isBare && JSON.stringify(before) !== JSON.stringify(value))
        Space.remember(() => {
          render(before);
          return holder.dataset.name;
        });
    };
    watch("value", () => {
      arrive(own(props.value));
      const first = holder.firstElementChild;
      if (holder.checkVisibility()) first?.scrollIntoView({ block: "nearest" }); // what was made comes into sight
    });
    const shared = holder.dataset.name === "Make" && sharedMelody();
    arrive(own(props.value || null), false);
    if (shared) arrive({ melodies: [shared, ...(shown?.melodies || [])], pick: 1 }, false);
    holder.show = arrive;
  };

  const sharedMelody = () => {
    if (!location.hash.startsWith("#m=")) return null;
    try {
      return Space.fromCode(location.hash.slice(3));
    } catch {
      Space.toast("The link is damaged: no melody could be read from it", true);
      return null;
    }
  };

  // A place for one melody that a tab works on, value a melody (with `chosen` bars) or null.
  Space.mountSlot = (element, props, watch, trigger, { name, label, picksBars, isSmall }) => {
    const holder = element.querySelector(".mv-slot");
    let melody = null;
    let chosen = [];
    let roll = null;
    const push = () => {
      props.value = melody ? { ...melody, chosen } : null;
    };
    const render = () => {
      if (!melody) {
        holder.replaceChildren(el("p", { class: "mv-empty" }, `${label}: choose a tune below, or send a melody here from another tab.`));
        return;
      }
      const card = el("article", { class: "mv-card mv-card-slot", "aria-label": label });
      const title = el("h3", { class: "mv-title" });
      title.textContent = melody.title;
      const facts = el("p", { class: "mv-facts" });
      facts.textContent = Space.describe(melody);
      card.append(el("header", { class: "mv-card-head" }, el("span", { class: "mv-badge" }, label), playButton(() => melody, true),
        el("div", { class: "mv-words" }, title, facts)));
      if (melody.found) card.append(el("p", { class: "mv-facts mv-found" }, melody.found));
      card.roll = roll = new Space.RollView(card, { chosen: () => chosen, isBare: isSmall });
      roll.set(melody);
      if (picksBars) card.append(barPicker());
      if (!isSmall) card.firstElementChild.append(Space.editTools(roll, (edited) => edit(edited, facts, title)));
      holder.replaceChildren(card);
    };
    // Take what was edited by hand in the roll, which stays as it is.
    const edit = (edited, facts, heading) => {
      const before = melody;
      melody = { ...edited, title: edited.title.replace(/(, edited)?$/, ", edited") };
      heading.textContent = melody.title;
      facts.textContent = Space.describe(melody);
      roll.set(melody);
      push();
      trigger("input");
      if (!player.isPlaying) player.select(melody);
      else if (player.melody === before) player.play(melody, player.position % Space.totalSteps(melody));
      Space.remember(() => {
        take(before, false);
        push();
        return label;
      });
    };
    const barPicker = () => {
      const buttons = [];
      const show = () => {
        buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(chosen.includes(index + 1))));
        roll.draw();
      };
      for (let bar = 1; bar <= melody.bars; bar++)
        buttons.push(el("button", { type: "button", class: "mv-bar", "aria-label": `Bar ${bar}`, onclick: () => {
          chosen = chosen.includes(bar) ? chosen.filter((each) => each !== bar) : [...chosen, bar].sort((a, b) => a - b);
          show();
          push();
        } }, String(bar)));
      const row = el("div", { class: "mv-bars", role: "group", "aria-label": "Bars to write anew" }, ...buttons);
      row.style.setProperty("--bars", String(melody.bars));
      show();
      return row;
    };
    const take = (value, isUndoable = true) => {
      const before = melody;
      melody = value;
      chosen = (value?.chosen || []).filter((bar) => bar <= value.bars);
      render();
      if (isUndoable && melody) player.select(melody);
      if (isUndoable && before)
        Space.remember(() => {
          take(before, false);
          push();
          trigger("input"); // it came from elsewhere than the page's controls say
          return label;
        });
    };
    let settled = 0; // when gradio has surely set the first value of a tab that has just been built
    watch("value", () => {
      const value = own(props.value || null);
      if (JSON.stringify(value) === JSON.stringify(melody ? { ...melody, chosen } : null)) return;
      if (performance.now() < settled) push(); // the first value, late: what was sent here stays
      else take(value);
    });
    take(own(props.value || null), false);
    Space.addSlot(name, {
      take: (value, isNew) => {
        if (isNew) settled = performance.now() + 2000;
        take(value);
        push();
        trigger("input");
      },
    });
  };

  // A map between two or four melodies, value {melodies, side} or null: touch a point and it plays. Melodies that are
  // still to come are null; a value with the `map` of the one before brings some of them, and `touch` is given the
  // point that is wanted.
  Space.mountPad = (element, props, watch, touch = () => {}) => {
    const canvas = element.querySelector("canvas");
    const words = element.querySelector(".mv-pad-words");
    const current = element.querySelector(".mv-pad-current");
    let [melodies, columns, rows, column, row] = [[], 0, 0, 0, 0];
    let map = null;
    let isAwaited = false; // by who touched a point whose melody is still to come
    const corners = () => {
      const style = getComputedStyle(document.body);
      return ["a", "b", "c", "d"].map((each) =>
        style.getPropertyValue(`--mv-corner-${each}`).trim().match(/\w\w/g).map((part) => parseInt(part, 16)));
    };
    const weights = (x, y) => {
      const [u, v] = [columns > 1 ? x / (columns - 1) : 0, rows > 1 ? y / (rows - 1) : 0];
      return [(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v];
    };
    const colourAt = (x, y) => {
      const mix = weights(x, y);
      const ends = corners();
      const parts = [0, 1, 2].map((part) => Math.round(mix.reduce((sum, weight, i) => sum + weight * ends[i][part], 0)));
      return `rgb(${parts.join(" ")})`;
    };
    const share = () => weights(column, row).map((weight, i) => [Math.round(100 * weight), "ABCD"[i]])
      .filter(([percent]) => percent > 0).map(([percent, letter]) => `${percent}% ${letter}`).join(", ");
    const draw = () => {
      const width = canvas.clientWidth;
      if (!melodies.length || !width) return;
      canvas.style.aspectRatio = rows > 1 ? "8 / 7" : "9 / 2";
      canvas.parentElement.classList.toggle("mv-pad-path", rows === 1);
      const height = canvas.clientHeight;
      const ratio = window.devicePixelRatio || 1;
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      const pen = canvas.getContext("2d");
      pen.scale(ratio, ratio);
      const style = getComputedStyle(document.body);
      const [w, h] = [width / columns, height / rows];
      for (let y = 0; y < rows; y++)
        for (let x = 0; x < columns; x++) {
          const isHere = x === column && y === row;
          pen.fillStyle = isHere ? colourAt(x, y) : style.getPropertyValue("--mv-roll").trim();
          pen.beginPath();
          pen.roundRect(x * w + 2, y * h + 2, w - 4, h - 4, 8);
          pen.fill();
          const ink = isHere ? style.getPropertyValue("--mv-card").trim() : colourAt(x, y);
          const melody = melodies[y * columns + x];
          if (melody) Space.drawThumbnail(pen, melody, x * w + 7, y * h + 7, w - 14, h - 14, ink);
        }
    };
    const shown = () => melodies[row * columns + column];
    const show = (isPlayed) => {
      const melody = shown();
      isAwaited = isPlayed && !melody;
      if (!melody) {
        words.textContent = `${share()}. It is being made`;
        return draw();
      }
      melody.title = `Blend: ${share()}`;
      words.textContent = `${share()}. ${Space.describe(melody)}`;
      canvas.setAttribute("aria-valuetext", words.textContent);
      canvas.setAttribute("aria-valuenow", String(row * columns + column + 1));
      draw();
      current.replaceChildren(Space.card(melody, { colour: () => colourAt(column, row) }));
      if (isPlayed) {
        const before = player.melody;
        const goesOn = player.isPlaying && melodies.includes(before);
        const place = goesOn ? player.position % Space.totalSteps(before) : 0;
        player.play(melody, place);
      } else player.select(melody);
    };
    const move = (x, y) => {
      [x, y] = [Math.max(0, Math.min(columns - 1, x)), Math.max(0, Math.min(rows - 1, y))];
      if (x === column && y === row && player.isPlaying && player.melody === shown()) return;
      [column, row] = [x, y];
      touch(y * columns + x);
      show(true);
    };
    let isDown = false;
    const point = (event) => {
      const frame = canvas.getBoundingClientRect();
      move(Math.floor(((event.clientX - frame.left) / frame.width) * columns), Math.floor(((event.clientY - frame.top) / frame.height) * rows));
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (!melodies.length) return;
      isDown = true;
      canvas.setPointerCapture(event.pointerId);
      point(event);
    });
    canvas.addEventListener("pointermove", (event) => isDown && point(event));
    const release = () => {
      if (isDown && shown()) Space.record([shown()]);
      isDown = false;
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!melodies.length || (!step && event.key !== " ")) return;
      event.preventDefault();
      if (step) move(column + step[0], row + step[1]);
      else if (shown()) player.toggle(shown());
    });
    const arrive = () => {
      const value = own(props.value || null);
      if (!value) return;
      if (map && value.map === map) {
        const isNew = !shown();
        melodies = value.melodies.map((melody, index) => melodies[index] || melody);
        return isNew && shown() ? show(isAwaited) : draw();
      }
      map = value.map;
      melodies = value.melodies;
      columns = value.side;
      rows = melodies.length / columns;
      [column, row] = [Math.floor(columns / 2), Math.floor(rows / 2)];
      canvas.setAttribute("aria-valuemax", String(melodies.length));
      show(false);
    };
    watch("value", arrive);
    new ResizeObserver(draw).observe(canvas);
    document.addEventListener("mv-theme", draw);
    arrive();
  };
})();
