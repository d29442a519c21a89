// The dock: controls of the melody that plays, undo, and the history of the session. And the light or dark of the page.
(() => {
  const Space = window.MelodySpace;
  const { el, player } = Space;

  Space.mountDock = (element, server) => {
    Space.giveServer(server);
    const dock = element.querySelector(".mv-dock");
    const play = el("button", { type: "button", class: "mv-play" });
    const title = el("span", { class: "mv-dock-title" });
    const time = el("span", { class: "mv-dock-time" });
    const place = el("input", { type: "range", min: "0", max: "1000", value: "0", "aria-label": "Position", class: "mv-place" });
    const loop = el("button", { type: "button", class: "mv-tool", "aria-pressed": "false", "aria-label": "Loop", title: "Loop" }, Space.icon("loop"));
    const tempo = el("input", { type: "number", min: "30", max: "300", step: "1", id: "mv-tempo", class: "mv-tempo" });
    const tone = el("select", { id: "mv-instrument", class: "mv-instrument" },
      ...Space.instruments.map((each) => el("option", { value: String(each.program) }, each.name)));
    const chords = el("button", { type: "button", class: "mv-tool mv-chords", "aria-pressed": "false", title: "An accompaniment, heard, drawn and in the files" }, "Chords");
    chords.addEventListener("click", () => Space.setChords(!Space.hasChords));
    document.addEventListener("mv-chords", () => chords.setAttribute("aria-pressed", String(Space.hasChords)));
    const undo = el("button", { type: "button", class: "mv-tool", "aria-label": "Undo", title: "Undo (Ctrl+Z)", onclick: Space.undo }, Space.icon("undo"));
    const history = el("button", { type: "button", class: "mv-tool mv-history-button", "aria-label": "History", title: "History of this session", "aria-haspopup": "dialog" }, Space.icon("history"));
    const count = el("span", { class: "mv-count", "aria-hidden": "true" });
    history.append(count);
    dock.append(play,
      el("div", { class: "mv-dock-now" }, el("div", { class: "mv-dock-line" }, title, time), place),
      el("div", { class: "mv-dock-tools" },
        el("label", { class: "mv-field", for: "mv-tempo" }, el("span", {}, "bpm"), tempo),
        el("label", { class: "mv-field", for: "mv-instrument" }, el("span", { class: "mv-hidden" }, "Instrument"), tone),
        ...(Space.offered.includes("harmonize") ? [chords] : []), loop, undo, history));

    const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
    const showTime = () => {
      const { melody } = player;
      if (!melody) return;
      const total = Space.totalSteps(melody);
      const step = Space.secondsPerStep(melody);
      const now = Math.min(player.position, total);
      time.textContent = `${clock(now * step)} / ${clock(total * step)}`;
      if (document.activeElement !== place || player.isPlaying) place.value = String(Math.round((1000 * now) / total));
      place.setAttribute("aria-valuetext", time.textContent);
    };
    const show = () => {
      const { melody } = player;
      dock.classList.toggle("mv-idle", !melody);
      play.replaceChildren(Space.icon(player.isPlaying ? "stop" : "play"));
      play.setAttribute("aria-label", player.isPlaying ? "Stop" : "Play");
      play.classList.toggle("mv-on", player.isPlaying);
      for (const control of [play, place, tempo, tone]) control.disabled = !melody;
      title.textContent = melody ? melody.title : "Nothing chosen yet";
      if (!melody) return;
      if (document.activeElement !== tempo) tempo.value = String(Math.round(melody.tempo));
      tone.value = String(Space.instrumentOf(melody.program).program);
      showTime();
    };
    play.addEventListener("click", () => player.melody && player.toggle(player.melody));
    place.addEventListener("input", () => player.seek((place.value / 1000) * Space.totalSteps(player.melody)));
    loop.addEventListener("click", () => {
      player.loop = !player.loop;
      loop.setAttribute("aria-pressed", String(player.loop));
    });
    tempo.addEventListener("change", () => {
      const asked = Math.max(30, Math.min(300, Math.round(Number(tempo.value)) || 120));
      tempo.value = String(asked);
      const at = player.position;
      player.melody.tempo = asked;
      if (player.isPlaying) player.play(player.melody, at % Space.totalSteps(player.melody));
      else player.announce();
    });
    tone.addEventListener("change", () => {
      player.melody.program = Number(tone.value);
      player.refresh();
    });
    const measure = () =>
      document.documentElement.style.setProperty("--mv-dock", `${Math.ceil(window.innerHeight - dock.getBoundingClientRect().top) + 8}px`);
    new ResizeObserver(measure).observe(dock);
    window.addEventListener("resize", measure);
    player.addEventListener("state", show);
    player.addEventListener("tick", showTime);

    const list = el("div", { class: "mv-history-list" });
    const close = el("button", { type: "button", class: "mv-tool", "aria-label": "Close the history" }, Space.icon("close"));
    const dialog = el("dialog", { class: "mv-history", "aria-label": "History of this session" },
      el("header", { class: "mv-card-head" }, el("h2", {}, "History"), el("p", { class: "mv-facts" }, "What you made in this session. It stays in your browser."), close),
      list);
    document.body.append(dialog);
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    const SHOWN = 30;
    const showHistory = () => {
      const melodies = Space.history.slice(0, SHOWN).map((melody) => structuredClone(melody));
      list.replaceChildren(...(melodies.length ? melodies.map((melody) => Space.card(melody))
        : [el("p", { class: "mv-empty" }, "Nothing yet: make a melody.")]));
    };
    history.addEventListener("click", () => {
      showHistory();
      dialog.showModal();
    });
    const sendAndClose = Space.send;
    Space.send = (...all) => {
      dialog.close();
      sendAndClose(...all);
    };
    const showCounts = () => {
      undo.disabled = !Space.canUndo();
      count.textContent = Space.history.length ? String(Space.history.length) : "";
      history.setAttribute("aria-label", `History, ${Space.plural(Space.history.length, "melody").replace("melodys", "melodies")}`);
    };
    document.addEventListener("mv-undo", showCounts);
    document.addEventListener("mv-history", showCounts);
    showCounts();
    show();
    // On a phone the melodies come first: what can be asked for is folded away.
    const fold = (tries) => {
      const label = document.querySelector(".mv-wishes .label-wrap.open");
      if (label) label.click();
      else if (tries) setTimeout(fold, 50, tries - 1); // gradio has not come to it yet
    };
    if (window.innerWidth < 720) fold(100);
  };

  Space.mountHeader = (element) => {
    const button = element.querySelector(".mv-theme");
    const show = () => {
      const isDark = document.body.classList.contains("dark");
      button.setAttribute("aria-label", isDark ? "Light page" : "Dark page");
      button.setAttribute("aria-pressed", String(isDark));
    };
    button.addEventListener("click", () => {
      document.body.classList.toggle("dark");
      show();
    });
    show();
    document.addEventListener("mv-theme", show);
  };
})();
