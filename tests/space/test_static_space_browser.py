"""The static Space and the element in a browser: a tiny model's graphs run in the page."""

from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect

from publishing import static_space
from publishing.static_server import serving
from tests.builders.node import install_packages
from tests.builders.onnx_models import N, export_rich
from tests.builders.space_browser import (
    CHROMIUM,
    DESKTOP,
    NEEDS_CHROMIUM,
    PAGE_MELODY,
    PHONE,
    choose_tab,
    download,
    drawn,
    notes_of,
    player_time,
    shoot,
    steps_per_quarter,
    two_tracks,
)

pytestmark = [*NEEDS_CHROMIUM, pytest.mark.xdist_group("static_space")]

BLOG = """<!doctype html><html lang="en"><title>Blog</title><link rel="icon" href="data:,"><p>Melodies:</p>
<script type="module" src="{url}element.js"></script>
<melody-vae bars="3" key="D minor" seed="3" tempo="90"></melody-vae></html>"""
QUARTER = "({meter, stepsPerBeat}) => stepsPerBeat * meter[1] / 4"
NOTES = "({notes}) => notes.map(({pitch, start, duration}) => [start, duration, pitch])"


@pytest.fixture(scope="module")
def files(shared, tmp_path_factory) -> dict[str, Path]:
    install_packages()
    return static_space.gather(shared("onnx-rich", export_rich) / "onnx", tmp_path_factory.mktemp("staging"))


@pytest.fixture(scope="module")
def address(files):
    with serving(files) as url:
        yield url


@pytest.fixture
def visit(browser, address):
    """Open pages whose complaints and requests to other machines fail the test."""
    complaints: list[str] = []
    with ExitStack() as contexts:

        def on_request(request):
            parts = urlsplit(request.url)
            if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
                complaints.append(f"request to {request.url}")

        def make(url: str = address, viewport: dict = DESKTOP, of=browser, **options):
            context = contexts.enter_context(of.new_context(viewport=viewport, **options))
            page = context.new_page()
            page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", on_request)
            page.goto(url)
            return page

        make.complaints = complaints
        yield make
    assert complaints == []


# Memory of WebAssembly is counted where it is made; heap usage is asked of V8.
WATCH_MEMORY = """() => {
  window.memories = []
  WebAssembly.Memory = class extends WebAssembly.Memory {
    constructor(...all) { super(...all); memories.push(this) }
  }
}"""
MAKE_MELODIES = """async (seeds) => {
  const ort = await import("./ort/ort.wasm.min.mjs")
  const { load } = await import("./src/index.js")
  window.model ??= await load("model/", { ort, device: "wasm", threads: 1 })
  for (const seed of seeds) {
    const [melody] = await model.sample({ seed, bars: 3 })
    if (seed % 2) await model.vary(melody, { seed, count: 1 })
    else await model.decode(await model.encode(melody))
  }
  return memories.reduce((sum, { buffer }) => sum + buffer.byteLength, 0)
}"""


def wait_for_model(page):
    expect(page.get_by_role("button", name="Make melodies")).to_be_enabled()
    return page


def run(page, tab, name: str) -> None:
    """Press a button of a tab and wait until its work is done."""
    button = tab.get_by_role("button", name=name, exact=True)
    button.click()
    expect(tab.locator(".mv-busy")).to_have_count(0)
    assert page.locator(".mv-toast-error").count() == 0


def bars_of(notes: list[tuple[int, int, int]], bars: list[int]) -> list[tuple[int, int, int]]:
    return [note for note in notes if note[0] // 16 + 1 in bars]


def test_melodies_are_made_in_the_page(visit, tmp_path):
    page = wait_for_model(visit())
    assert page.evaluate("crossOriginIsolated")
    opening = page.locator("#tab-make .mv-card").first
    origin = opening.evaluate("card => card.melody.origin")
    tab = choose_tab(page, "make")
    run(page, tab, "Make melodies")
    cards = tab.locator(".mv-card")
    expect(cards).to_have_count(3)
    file = download(page, cards.first, "MIDI file")
    assert notes_of(file, steps_per_quarter(cards.first)) == drawn(cards.first)
    assert download(page, cards.first, "WAV sound").read_bytes()[:4] == b"RIFF"
    cards.first.get_by_role("button", name="Play").click()
    page.wait_for_function("MelodySpace.player.position > 1")
    # Python has made the first melodies; the page makes the same of their settings.
    link = page.evaluate("origin => MelodySpace.linkTo({origin})", origin)
    again = wait_for_model(visit(link))
    expect(again.locator("#tab-make .mv-picked")).to_have_count(1)
    opened = visit().locator("#tab-make .mv-card").first
    assert drawn(again.locator("#tab-make .mv-picked")) == drawn(opened) != []


def test_a_melody_is_changed_filled_and_continued(visit):
    page = wait_for_model(visit())
    tab = choose_tab(page, "change")
    run(page, tab, "Change it")
    cards = tab.locator(".mv-list .mv-card")
    expect(cards).to_have_count(3)
    assert cards.first.evaluate(PAGE_MELODY)["time_signature"] == "6/8"  # Greensleeves'

    tab = choose_tab(page, "rework")
    notes = drawn_slot(tab.locator(".mv-card-slot"))
    run(page, tab, "Fill bars")
    filled = drawn(tab.locator(".mv-list .mv-card").first)
    kept = [bar for bar in range(1, N + 1) if bar not in (3, 4)]
    assert bars_of(filled, kept) == bars_of(notes, kept)
    assert bars_of(filled, [3, 4]) != bars_of(notes, [3, 4])
    run(page, tab, "Continue")
    longer = tab.locator(".mv-list .mv-card").first
    assert longer.evaluate(PAGE_MELODY)["bars"] == N + N // 2
    assert bars_of(drawn(longer), list(range(1, N + 1))) == bars_of(notes, list(range(1, N + 1)))


def test_a_map_answers_under_the_finger(visit):
    page = wait_for_model(visit())
    tab = choose_tab(page, "blend")
    expect(tab.locator(".mv-busy")).to_have_count(1)
    expect(tab.locator(".mv-busy")).to_have_count(0)
    frame = tab.locator(".mv-pad-map > canvas").bounding_box()
    step = frame["width"] / 7
    page.mouse.move(frame["x"] + step / 2, frame["y"] + step / 2)
    page.mouse.down()
    corner = tab.locator(".mv-pad-current .mv-card")
    assert drawn(corner) == drawn_slot(tab.locator(".mv-card-slot").first)
    titles = []
    for place in range(1, 7):
        page.mouse.move(frame["x"] + (place + 0.5) * step, frame["y"] + step / 2)
        titles.append(corner.evaluate("card => card.melody.title"))
        assert page.evaluate("MelodySpace.player.isPlaying")
    page.mouse.up()
    assert titles[0] == "Blend: 83% A, 17% B"
    assert titles[-1] == "Blend: 100% B"
    tab.get_by_label("Two: a path from A to B").check()
    expect(tab.locator(".mv-busy")).to_have_count(0)
    assert tab.locator("canvas[role=slider]").get_attribute("aria-valuemax") == "9"


def drawn_slot(slot) -> list[tuple[int, int, int]]:
    """Return the notes of a slot's first bars, as many as the model holds."""
    melody = slot.evaluate("card => card.roll.melody")
    notes = sorted(zip(melody["start"], melody["duration"], melody["pitch"], strict=True))
    return [note for note in notes if note[0] < 16 * N]


def test_a_phone_shows_all_of_it(visit):
    page = wait_for_model(visit(viewport=PHONE, has_touch=True, is_mobile=True))
    for name in ("make", "change", "blend", "rework", "about"):
        choose_tab(page, name)
        assert page.evaluate("document.querySelector('#page').scrollWidth <= innerWidth"), name
    tab = choose_tab(page, "blend")
    expect(tab.locator(".mv-busy")).to_have_count(0)
    tab.locator(".mv-pad-map > canvas").tap(position={"x": 60, "y": 60})
    page.wait_for_function("MelodySpace.player.isPlaying")
    assert player_time(page) >= 0
    shoot(page, "static-phone")


def test_midi_files_come_in_and_broken_ones_are_refused(visit, tmp_path):
    page = wait_for_model(visit())
    tab = choose_tab(page, "change")
    upload = tab.locator("input[type=file]")
    upload.set_input_files(two_tracks(tmp_path / "song.mid"))
    expect(tab.locator(".mv-card-slot .mv-title")).to_contain_text("Melody")
    melody = tab.locator(".mv-card-slot").evaluate("card => card.roll.melody")
    assert melody["bars"] == N
    assert melody["pitch"][:4] == [60, 67, 62, 69]
    header = b"MThd\0\0\0\6\0\1\0\1\1\xe0MTrk"
    for content, said in (
        (b"no MIDI", "Export"),
        (header + b"\0\0\1\0\0\x90", "Export"),
        (header + b"\0\0\0\4\0\xff\x2f\0", "no tune in it"),
    ):
        (tmp_path / "broken.mid").write_bytes(content)
        upload.set_input_files(tmp_path / "broken.mid")
        expect(page.locator(".mv-toast-error")).to_contain_text(said)
        page.evaluate("document.querySelectorAll('.mv-toast').forEach(toast => toast.remove())")
    run(page, tab, "Change it")  # the tune from before is still there


def test_without_a_network_all_goes_on(files, visit):
    with serving(files) as url:
        page = wait_for_model(visit(url))
        page.wait_for_function("navigator.serviceWorker.controller")
        page.wait_for_function("caches.open('melody-vae').then(async cache => (await cache.keys()).length >= 6)")
    page.reload()  # from a server that is gone
    wait_for_model(page)
    tab = choose_tab(page, "make")
    run(page, tab, "Make melodies")
    tab.locator(".mv-card").first.get_by_role("button", name="Play").click()
    page.wait_for_function("MelodySpace.player.sounds.size > 0")  # of an instrument
    run(page, choose_tab(page, "change"), "Change it")
    visit.complaints[:] = [text for text in visit.complaints if "ERR_CONNECTION_REFUSED" not in text]


def test_a_call_is_stopped_and_the_page_goes_on_meanwhile(visit):
    page = wait_for_model(visit())
    found = page.evaluate("""async () => {
      const { load } = await import("./src/client.js")
      const model = await load("model/", { device: "wasm" })
      let ticks = 0
      const timer = setInterval(() => ticks++, 5)
      const begin = performance.now()
      const stop = new AbortController()
      const all = model.sample({ count: 200, bars: 40, seed: 1, signal: stop.signal }).catch((error) => error.name)
      setTimeout(() => stop.abort(), 500)
      const name = await all
      const [melody] = await model.sample({ bars: 1, seed: 1 })
      clearInterval(timer)
      const refusal = await model.sample({ bars: -1 }).catch((error) => [error instanceof RangeError, error.message])
      const seconds = (performance.now() - begin) / 1000
      return { name, refusal, notes: melody.notes.length, seconds, ticks }
    }""")
    assert found["name"] == "AbortError"
    assert found["notes"]
    assert found["seconds"] < 30  # all of them would take minutes
    assert found["ticks"] > 20
    assert found["refusal"][0]
    assert "bars=-1" in found["refusal"][1]


def test_memory_is_flat_over_200_melodies(visit):
    page = wait_for_model(visit())
    page.evaluate(WATCH_MEMORY)
    devtools = page.context.new_cdp_session(page)

    def after(seeds: list[int]) -> dict[str, int]:
        wasm = page.evaluate(MAKE_MELODIES, seeds)
        devtools.send("HeapProfiler.collectGarbage")
        usage = devtools.send("Runtime.getHeapUsage")
        return {"wasm": wasm, "heap": usage["usedSize"], "arrays": usage["backingStorageSize"]}

    seeds = list(range(10))
    first = after(seeds * 2)  # what the grammar remembers of these melodies is there then
    last = after(seeds * 20)
    assert first["wasm"] == last["wasm"] > 0
    assert last["heap"] < first["heap"] + 300_000
    assert last["arrays"] < first["arrays"] + 300_000


def test_a_browser_without_webassembly_is_told(browser, visit, address):
    flags = ["--no-sandbox", "--js-flags=--jitless"]  # V8 then has no WebAssembly
    chromium = browser.browser_type.launch(executable_path=CHROMIUM, args=flags)
    page = visit(of=chromium)
    expect(page.locator(".mv-status")).to_contain_text("no WebAssembly with SIMD")
    expect(page.locator("#tab-make .mv-card")).to_have_count(3)  # those that came with the page
    assert page.locator(".mv-do:enabled").count() == 0
    with serving({"index.html": BLOG.format(url=address)}) as blog:
        element = visit(blog, of=chromium)
        element.get_by_role("button", name="Make a melody").click()
        expect(element.locator("melody-vae [role=status]")).to_contain_text("no WebAssembly with SIMD")


def test_a_missing_model_is_said(files, visit):
    with serving({path: file for path, file in files.items() if not path.startswith("model/")}) as url:
        page = visit(url)
        expect(page.locator(".mv-status")).to_contain_text("onnx_config.json cannot be read (HTTP 404)")
    visit.complaints[:] = [text for text in visit.complaints if "404" not in text]


def test_the_element_works_in_a_page_of_another_origin(address, visit):
    with serving({"index.html": BLOG.format(url=address)}) as blog:
        page = visit(blog)
        page.get_by_role("button", name="Make a melody").click()
        page.wait_for_function("document.querySelector('melody-vae').melody")
        melody = page.evaluate(f"({NOTES})(document.querySelector('melody-vae').melody)")
        assert melody
        with page.expect_download() as caught:
            page.get_by_role("button", name="MIDI file").click()
        quarter = page.evaluate(f"({QUARTER})(document.querySelector('melody-vae').melody)")
        assert notes_of(Path(caught.value.path()), quarter) == sorted(map(tuple, melody))
        page.get_by_role("button", name="Play").click()
        page.get_by_role("button", name="Stop").wait_for()
        shoot(page, "static-element")
        page.evaluate("document.addEventListener('melody', (event) => { window.latest = event.detail })")
        page.get_by_role("button", name="Make a melody").click()
        page.wait_for_function("window.latest")
        assert page.evaluate("latest === document.querySelector('melody-vae').melody && latest.bars") == 3
