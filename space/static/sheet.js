// Sheet music: the server writes ABC, abcjs engraves it; abcjs comes with the page's server when it is first needed.
(() => {
  const Space = window.MelodySpace;
  const { el } = Space;
  let library = null;
  const engraver = () => {
    library ||= new Promise((ready, fail) => {
      document.head.append(el("script", { src: `${Space.files}vendor/abcjs-basic-min.js`, onload: () => ready(window.ABCJS), onerror: fail }));
    });
    return library;
  };

  // Engrave a melody into an element.
  const engrave = async (melody, holder) => {
    const [file, abcjs] = await Promise.all([Space.file(melody, "abc"), engraver().catch(() => null)]);
    if (!abcjs) return Space.toast("The sheet music cannot be drawn: try again", true);
    if (!file) return;
    abcjs.renderAbc(holder, new TextDecoder().decode(file.bytes), { responsive: "resize", add_classes: true, paddingtop: 4, paddingbottom: 8, paddingleft: 0, paddingright: 0 });
    holder.querySelector("svg")?.setAttribute("role", "img");
    holder.querySelector("svg")?.setAttribute("aria-label", `Sheet music of ${melody.title}`);
  };

  const print = async (melody) => {
    const sheet = el("div", { class: "mv-print" });
    document.body.append(sheet);
    await engrave(melody, sheet);
    document.body.classList.add("mv-printing");
    window.addEventListener("afterprint", () => {
      document.body.classList.remove("mv-printing");
      sheet.remove();
    }, { once: true });
    window.print();
  };

  // A button that shows and hides the sheet music of the card that it stands in.
  Space.sheetButton = (melody) => {
    const button = el("button", { type: "button", class: "mv-tool", "aria-pressed": "false", "aria-label": `Sheet music of ${melody.title}`, title: "Sheet music" });
    button.append(Space.icon("sheet"));
    let sheet = null;
    const draw = () => sheet?.isConnected && engrave(melody, sheet.firstElementChild);
    document.addEventListener("mv-chords", draw);
    button.addEventListener("click", async () => {
      if (sheet) {
        sheet.remove();
        sheet = null;
      } else {
        sheet = el("div", { class: "mv-sheet" }, el("div", {}), el("button", { type: "button", class: "mv-print-button", onclick: () => print(melody) }, "Print, or save as PDF"));
        button.closest(".mv-card").append(sheet);
        await draw();
      }
      button.setAttribute("aria-pressed", String(Boolean(sheet)));
    });
    return button;
  };
})();
