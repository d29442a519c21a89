"""The Space in a real browser: Debian's Chromium, driven by Playwright."""

import pytest
from playwright.sync_api import expect
from symusic import Score

from tests.builders.space_browser import (
    NEEDS_CHROMIUM,
    PAGE_MELODY,
    PHONE,
    choose_tab,
    download,
    drawn,
    make_melodies,
    notes_of,
    player_time,
    shoot,
    steps_per_quarter,
    two_tracks,
)
from tests.builders.space_server import BARS

pytestmark = NEEDS_CHROMIUM


def test_make_play_and_take_home(open_page):
    page = open_page()
    tab = page.locator("#tab-make")
    make_melodies(page, tab)
    expect(tab.locator(".mv-card")).to_have_count(3)
    cards = tab.locator(".mv-card").all()
    # Untrained weights may leave bars empty: the melody that has the most to play, and sound is waited for.
    place = max(range(len(cards)), key=lambda index: len(drawn(cards[index])))
    card = cards[place]

    card.locator(".mv-play").click()
    page.wait_for_function("MelodySpace.player.isPlaying && MelodySpace.player.position > 0")
    sound = page.evaluate("""async () => {
      const {player} = MelodySpace;
      const meter = new AnalyserNode(player.context);
      player.master.connect(meter);
      const data = new Float32Array(meter.fftSize);
      let loudest = 0;
      for (let i = 0; i < 400 && player.isPlaying && loudest < 0.02; i++) {  // it may rest at first
        await new Promise(done => setTimeout(done, 25));
        meter.getFloatTimeDomainData(data);
        loudest = Math.max(loudest, ...data.map(Math.abs));
      }
      return loudest;
    }""")
    assert sound > 0.01
    first = player_time(page)
    page.wait_for_timeout(300)
    assert player_time(page) > first
    expect(card.locator(".mv-play")).to_have_attribute("aria-label", f"Stop Melody {place + 1}")
    card.locator(".mv-play").click()
    assert not page.evaluate("MelodySpace.player.isPlaying")

    page.locator("#mv-tempo").fill("90")
    page.locator("#mv-tempo").press("Enter")
    page.locator("#mv-instrument").select_option("40")
    midi = download(page, card, "MIDI file")
    numerator, denominator = map(int, card.evaluate(PAGE_MELODY)["time_signature"].split("/"))
    assert notes_of(midi, steps_per_quarter(card)) == drawn(card)
    score = Score.from_midi(midi.read_bytes())
    assert round(score.tempos[0].qpm) == 90
    assert score.tracks[0].program == 40
    assert (score.time_signatures[0].numerator, score.time_signatures[0].denominator) == (numerator, denominator)
    assert download(page, card, "WAV sound").read_bytes()[:4] == b"RIFF"
    picture = download(page, card, "PNG picture").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(picture) > 10_000


def test_a_note_sounds_when_it_is_touched_or_reached_by_keys(open_page):
    page = open_page()
    card = page.locator("#tab-make .mv-card").first
    page.evaluate(
        "window.touched = []; MelodySpace.player.touch = (melody, index) => touched.push(melody.pitch[index]); null"
    )
    roll = card.locator(".mv-roll-glass")
    place = card.evaluate("""card => {
      const frame = card.querySelector('.mv-roll-glass').getBoundingClientRect();
      const {melody} = card;
      const total = MelodySpace.totalSteps(melody);
      const rows = Math.max(Math.max(...melody.pitch) - Math.min(...melody.pitch) + 3, 14);
      return [34 + (melody.start[0] + melody.duration[0] / 2) / total * (frame.width - 34), frame.height, rows];
    }""")
    for y in range(18, int(place[1]), 4):
        roll.click(position={"x": place[0], "y": y})
    melody = card.evaluate(PAGE_MELODY)
    assert melody["pitch"][0] in page.evaluate("touched")
    page.evaluate("touched.length = 0")
    roll.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    last = len(melody["pitch"]) - 1
    assert page.evaluate("touched") == [melody["pitch"][0], melody["pitch"][min(1, last)]]
    bar = melody["start"][min(1, last)] // 16 + 1
    assert f"bar {bar}, beat" in card.locator("[aria-live]").inner_text()


@pytest.mark.parametrize("kind", ["settings", "notes"])
def test_a_link_brings_the_melody_back(open_page, kind):
    page = open_page()
    tab = page.locator("#tab-make")
    make_melodies(page, tab)
    card = tab.locator(".mv-card").nth(2)
    if kind == "notes":
        card.evaluate("card => { card.melody.origin = null; }")
    melody = card.evaluate(PAGE_MELODY)
    card.locator("button[aria-label^='Copy a link']").click()
    page.wait_for_selector(".mv-toast")
    link = page.evaluate("navigator.clipboard.readText()")
    assert ("seed=" in link) == (kind == "settings")
    again = open_page(link.split("/", 3)[3].join(["/", ""]))
    again.wait_for_selector(".mv-picked", timeout=30000)
    restored = again.locator(".mv-picked").evaluate(PAGE_MELODY)
    for column in ("pitch", "start", "duration", "bars", "time_signature"):
        assert restored[column] == melody[column]


def test_a_damaged_link_says_so(open_page):
    page = open_page("/?seed=99999999999999&bars=4")
    page.get_by_text("The link cannot be followed: seed must be").wait_for()
    page = open_page("/#m=AAAA")
    page.get_by_text("The link is damaged").wait_for()
    expect(page.locator("#tab-make .mv-card")).to_have_count(3)


def test_change(open_page):
    page = open_page()
    tab = choose_tab(page, "change")
    expect(tab.locator(".mv-slot .mv-title")).to_have_text("Greensleeves")
    tab.get_by_role("button", name="Change it").click()
    card = tab.locator(".mv-list .mv-card").first
    card.wait_for(timeout=30000)
    slider = tab.locator("input[type=range][aria-label*='Likeness']")
    slider.evaluate("""element => {
      element.value = 0.5;
      element.dispatchEvent(new Event('input', {bubbles: true}));
      element.dispatchEvent(new PointerEvent('pointerup', {bubbles: true}));
    }""")
    page.wait_for_function("document.querySelectorAll('#tab-change .mv-list .mv-card').length === 3", timeout=30000)
    assert tab.locator("input[type=range][aria-label*='Notes per bar']").is_visible()
    shoot(page, "change")


def test_bring_a_midi_file(open_page, tmp_path):
    page = open_page()
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    tab = choose_tab(page, "change")
    tab.locator("input[type=file]").first.set_input_files(two_tracks(tmp_path / "two.mid"))
    title = tab.locator(".mv-slot .mv-title")
    page.wait_for_function("document.querySelector('#tab-change .mv-slot .mv-title').textContent.includes('Melody')")
    expect(title).to_have_text("<img src=x onerror=alert(1)> Melody")  # the tune of the two, and its name as text
    expect(page.locator("img[src='x']")).to_have_count(0)
    track = tab.locator("input[aria-label='Track']")
    track.click()
    page.get_by_role("option", name="1. Chords").click()
    page.wait_for_function("document.querySelector('#tab-change .mv-slot .mv-title').textContent === 'Chords'")
    assert dialogs == []


def test_a_file_that_is_no_midi_gets_one_line(open_page, tmp_path):
    page = open_page()
    bomb = tmp_path / "bomb.mid"
    bomb.write_bytes(b"PK\x03\x04" + bytes(10_000))
    tab = choose_tab(page, "change")
    tab.locator("input[type=file]").first.set_input_files(bomb)
    page.get_by_text("This is not a MIDI file.").wait_for()
    expect(tab.locator(".mv-slot .mv-title")).to_have_text("Greensleeves")


def test_blend_answers_a_touch_at_once(open_page):
    page = open_page()
    tab = choose_tab(page, "blend")
    pad = tab.locator(".mv-pad-map canvas")
    expect(pad).to_have_attribute("aria-valuemax", "49")
    frame = pad.bounding_box()
    for x, y in ((0.07, 0.07), (0.93, 0.07), (0.07, 0.93), (0.93, 0.93)):
        pad.click(position={"x": x * frame["width"], "y": y * frame["height"]})
    corner = tab.locator(".mv-pad-current .mv-card")
    slots = page.evaluate(
        "[...document.querySelectorAll('#tab-blend .mv-slot .mv-title')].map(each => each.textContent)"
    )
    assert len(slots) == 4
    assert corner.evaluate(PAGE_MELODY)["title"] == "Blend: 100% D"
    answer_ms = page.evaluate("""() => new Promise(done => {
      const pad = document.querySelector('.mv-pad-map canvas');
      const frame = pad.getBoundingClientRect();
      const at = (x, y, type) => pad.dispatchEvent(new PointerEvent(type, {bubbles: true, pointerId: 1,
        clientX: frame.left + x * frame.width, clientY: frame.top + y * frame.height}));
      pad.setPointerCapture = () => {};
      const began = performance.now();
      at(0.5, 0.5, 'pointerdown');
      const {player} = MelodySpace;
      requestAnimationFrame(() => setTimeout(() =>
        done(player.isPlaying && player.melody.title.startsWith('Blend: 25% A') ? performance.now() - began : 1e9)));
    })""")
    assert answer_ms < 150
    page.wait_for_function("MelodySpace.player.position > 2")
    place = player_time(page)
    pad.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("MelodySpace.player.isPlaying")
    assert player_time(page) >= place - 1  # it goes on from where it was
    assert "B" in pad.get_attribute("aria-valuetext")
    shoot(page, "blend")
    page.keyboard.press(" ")
    assert not page.evaluate("MelodySpace.player.isPlaying")

    tab.get_by_label("Two: a path from A to B").click()
    page.wait_for_function(
        "document.querySelector('.mv-pad-map canvas').getAttribute('aria-valuemax') === '9'", timeout=30000
    )


def test_fill_and_continue_keep_the_rest(open_page):
    page = open_page()
    tab = choose_tab(page, "rework")
    tab.locator(".mv-bar").nth(2).click()  # 3 and 4 are chosen at first
    tab.locator(".mv-bar").nth(6).click()
    pressed = [
        index + 1 for index in range(8) if tab.locator(".mv-bar").nth(index).get_attribute("aria-pressed") == "true"
    ]
    assert pressed == [4, 7]
    tab.get_by_role("button", name="Fill bars").click()
    cards = tab.locator(".mv-list .mv-card")
    cards.first.wait_for(timeout=30000)
    components = page.evaluate("fetch('/config').then(answer => answer.json())")["components"]
    values = [component["props"].get("value") for component in components]
    tune = next(value for value in values if isinstance(value, dict) and value.get("chosen") == [3, 4])
    kept = sorted(
        note
        for note in zip(tune["start"], tune["duration"], tune["pitch"], strict=True)
        if note[0] // 16 + 1 not in pressed
    )
    filled = [note for note in drawn(cards.first) if note[0] // 16 + 1 not in pressed]
    assert filled == kept
    shoot(page, "continue-and-fill")

    tab.get_by_role("button", name="Continue", exact=True).click()
    page.wait_for_function("document.querySelector('#tab-rework .mv-list .mv-card')?.melody.bars === 12", timeout=30000)
    whole = sorted(zip(tune["start"], tune["duration"], tune["pitch"], strict=True))
    assert drawn(cards.first)[: len(whole)] == whole

    page.get_by_role("button", name="Undo").click()
    page.wait_for_function("document.querySelector('#tab-rework .mv-list .mv-card')?.melody.bars === 8")


def test_send_and_history(open_page):
    page = open_page()
    card = page.locator("#tab-make .mv-card").nth(1)
    notes = drawn(card)
    card.locator("summary[aria-label^='Send']").click()
    card.get_by_role("button", name="Continue & Fill").click()
    tab = page.locator("#tab-rework")
    tab.wait_for(state="visible")
    expect(tab.locator(".mv-slot .mv-title")).to_have_text("Melody 2")
    tab.get_by_role("button", name="Continue", exact=True).click()
    page.wait_for_function("document.querySelector('#tab-rework .mv-list .mv-card')", timeout=30000)
    assert drawn(tab.locator(".mv-list .mv-card").first)[: len(notes)] == notes
    page.get_by_role("button", name="History").click()
    history = page.locator("dialog.mv-history")
    expect(history.locator(".mv-card")).to_have_count(5)  # three at first, two continuations
    history.locator("summary[aria-label^='Send Melody 1']").click()
    history.get_by_role("button", name="Blend, corner B").click()
    page.locator("#tab-blend").wait_for(state="visible")
    expect(page.locator("#tab-blend .mv-slot .mv-title").nth(1)).to_have_text("Melody 1")
    page.keyboard.press("Control+z")
    page.wait_for_function(
        "document.querySelectorAll('#tab-blend .mv-slot .mv-title')[1].textContent === 'Korobeiniki'"
    )


def test_listen(open_page):
    page = open_page()
    tab = choose_tab(page, "listen")
    assert tab.get_by_role("button", name="A person wrote A").is_disabled()
    tab.get_by_role("button", name="Play me a pair").click()
    tab.locator(".mv-card").nth(1).wait_for(timeout=30000)
    assert [each.inner_text() for each in tab.locator(".mv-title").all()] == ["Melody A", "Melody B"]
    expect(tab.locator(".mv-tools *")).to_have_count(0)  # nothing that tells them apart
    tab.locator(".mv-play").first.click()
    page.wait_for_function("MelodySpace.player.position > 1")
    tab.get_by_role("button", name="A person wrote B").click()
    tab.get_by_text("of 1 right").wait_for()
    shoot(page, "listen")


def test_about(open_page):
    page = open_page()
    tab = choose_tab(page, "about")
    tab.get_by_text(f"a melody of up to {BARS} bars").wait_for()
    assert "Lakh MIDI Dataset" in tab.inner_text()


def test_phone(open_page):
    page = open_page(viewport=PHONE, device_scale_factor=2, has_touch=True, is_mobile=True)
    for name in ("make", "change", "blend", "rework", "listen", "about"):
        choose_tab(page, name)
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], name
        shoot(page, f"phone-{name}")
    choose_tab(page, "make")
    first = page.locator("#tab-make .mv-card").first
    assert first.bounding_box()["y"] < PHONE["height"]  # a melody is in sight without scrolling
    first.locator(".mv-play").tap()
    page.wait_for_function("MelodySpace.player.isPlaying")


SIZES = [(1366, 768), (1280, 900), (1920, 1080), (390, 844), (820, 1180)]
COVERED = """() => [...document.querySelectorAll('button, input, select, summary, canvas[tabindex], [role=slider]')]
  .filter(each => each.checkVisibility({visibilityProperty: true}) &&
    !each.closest('.hide, .mv-hidden, dialog, [inert]'))
  .filter(each => {
    const box = each.getBoundingClientRect();
    const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
    if (box.width < 2 || y < 0 || y > innerHeight || x < 0 || x > innerWidth) return false;
    const scroller = document.querySelector('gradio-app').getBoundingClientRect();
    if (!each.closest('.mv-dock') && y >= scroller.bottom) return false;  // out of sight: the page scrolls to it
    const top = document.elementFromPoint(x, y);
    return !(each.contains(top) || top?.contains(each) || each.labels?.[0]?.contains(top));
  })
  .map(each => each.getAttribute('aria-label') || each.innerText || each.outerHTML.slice(0, 80))"""
ACTIONS = {
    "make": ["Make melodies"],
    "change": ["Change it", "At rest"],
    "blend": ["Blend"],
    "rework": ["Fill bars", "Continue"],
    "listen": ["Play me a pair", "A person wrote A", "A person wrote B"],
}


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_player_covers_nothing(open_page, width, height):
    """In each tab, when it opens and after it was used: the page ends where the player begins, actions are in sight."""
    page = open_page(viewport={"width": width, "height": height})
    for name, actions in ACTIONS.items():
        tab = choose_tab(page, name)
        page.wait_for_timeout(200)
        limit = page.locator(".mv-dock").bounding_box()["y"]
        assert page.locator("gradio-app").evaluate("each => each.getBoundingClientRect().bottom") <= limit
        assert page.evaluate(COVERED) == [], name
        for action in actions:
            button = tab.get_by_role("button", name=action, exact=True)
            button.scroll_into_view_if_needed()
            assert button.bounding_box()["y"] + button.bounding_box()["height"] <= limit, action
        if width >= 1000:  # nobody has to scroll for an action
            page.evaluate("document.querySelector('gradio-app').scrollTo(0, 0)")
            for action in actions[:2]:
                box = tab.get_by_role("button", name=action, exact=True).bounding_box()
                assert box["y"] + box["height"] <= limit, action
        tab.get_by_role("button", name=actions[0], exact=True).click()
        page.wait_for_function(f"({COVERED})().length === 0", timeout=30000)
        if name in ("make", "change", "rework"):
            made = tab.locator(".mv-list .mv-card").first
            made.wait_for(timeout=30000)
            page.wait_for_timeout(300)
            assert 0 <= made.bounding_box()["y"] < limit, f"{name}: what was made is in sight"
        shoot(page, f"{width}-{name}")
    verdict = page.locator("#tab-listen")
    verdict.get_by_role("button", name="A person wrote A").click()
    verdict.get_by_text("of 1 right").wait_for()
    box = verdict.get_by_text("of 1 right").bounding_box()
    assert 0 <= box["y"] < page.locator(".mv-dock").bounding_box()["y"]


def luminance(colour: list[float]) -> float:
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (each / 255 for each in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


CONTRASTS = """() => {
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const background = element => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parse(getComputedStyle(each).backgroundColor);
      if (colour[3] === 1) return colour;
    }
    return [255, 255, 255, 1];
  };
  const seen = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    const isSeen = element.checkVisibility({opacityProperty: true, visibilityProperty: true});
    if (!text || !isSeen || element.closest('[disabled]')) continue;
    const box = element.getBoundingClientRect();
    const style = getComputedStyle(element);
    if (box.width < 2 || /SCRIPT|STYLE/.test(element.tagName) || element.closest('.hide')) continue;
    const size = parseFloat(style.fontSize);
    seen.push({text: text.slice(0, 30), colour: parse(style.color), background: background(element),
      large: size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700)});
  }
  return seen;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_aa(open_page, scheme):
    page = open_page(color_scheme=scheme)
    poor = []
    for name in ("make", "change", "blend", "rework", "listen", "about"):
        choose_tab(page, name)
        page.wait_for_timeout(300)
        texts = page.evaluate(CONTRASTS)
        assert len(texts) > 10
        for each in texts:
            light, dark = sorted((luminance(each["colour"][:3]), luminance(each["background"][:3])), reverse=True)
            ratio = (light + 0.05) / (dark + 0.05)
            if ratio < (3 if each["large"] else 4.5):
                poor.append((name, each["text"], round(ratio, 2)))
        if name in ("make", "blend"):
            shoot(page, name if scheme == "light" and name == "make" else f"{name}-{scheme}")
    assert poor == []


def test_everything_has_a_name_and_shows_its_focus(open_page):
    page = open_page()
    for name in ("make", "change", "blend", "rework", "listen"):
        choose_tab(page, name)
        nameless = page.evaluate("""() => [...document.querySelectorAll(
            'button, input, select, summary, canvas[tabindex], [role=slider]')]
          .filter(each => each.checkVisibility() && !each.closest('.hide'))
          .filter(each => !(each.getAttribute('aria-label') || each.getAttribute('title') || each.innerText?.trim()
            || each.labels?.length || each.getAttribute('aria-labelledby')))
          .map(each => each.outerHTML.slice(0, 120))""")
        assert nameless == [], name
    choose_tab(page, "make")
    page.locator("#tab-make-button").focus()
    stops = []
    for _ in range(14):
        page.keyboard.press("Tab")
        stops.append(
            page.evaluate("""() => {
          const style = getComputedStyle(document.activeElement);
          const wrap = document.activeElement.closest('.wrap, .block, label');
          const shown = element => {
            const {outlineStyle, outlineWidth, boxShadow} = getComputedStyle(element);
            return outlineStyle !== 'none' && outlineWidth !== '0px' || boxShadow !== 'none';
          };
          return [document.activeElement.tagName, shown(document.activeElement) || Boolean(wrap && shown(wrap))];
        }""")
        )
    # Gradio's dropdown lets the focus go for a moment when it closes.
    assert all(visible for tag, visible in stops if tag != "BODY"), stops


def test_nothing_jumps(open_page):
    page = open_page()
    page.wait_for_timeout(1500)
    page.evaluate("""() => {
      window.jumps = [];
      new PerformanceObserver(list => list.getEntries().forEach(entry => jumps.push(entry.value)))
        .observe({type: 'layout-shift'});
    }""")
    make_melodies(page, page.locator("#tab-make"))
    page.wait_for_timeout(700)
    page.locator("#tab-make .mv-play").first.click()
    page.wait_for_timeout(300)
    assert sum(page.evaluate("jumps")) < 0.02  # web.dev calls 0.1 good
