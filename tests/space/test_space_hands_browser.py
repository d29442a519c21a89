"""Notes by hand: drawn, dragged, deleted, played and hummed into a roll; and what the model then makes of them."""

import base64
import math

import numpy as np
import pytest
import soundfile
from playwright.sync_api import expect

from tests.builders.space_browser import CHROMIUM, DESKTOP, NEEDS_CHROMIUM, PHONE, choose_tab, drawn, shoot

pytestmark = NEEDS_CHROMIUM

SLOT = """() => {
  const {melody} = document.querySelector('#tab-rework .mv-slot .mv-card').roll;
  return melody.start.map((start, i) => [start, melody.duration[i], melody.pitch[i]]);
}"""
PLACE = """([step, pitch, share]) => {
  const {roll} = document.querySelector('#tab-rework .mv-slot .mv-card');
  const frame = roll.glass.getBoundingClientRect();
  return [frame.left + roll.layout.x(step) + share, frame.top + roll.layout.y(pitch) + roll.layout.row / 2];
}"""
KEYBOARD = """() => {
  const input = {};
  window.press = (pitch) => [[0x90, pitch, 80], [0x80, pitch, 0]].forEach(data => input.onmidimessage?.({data}));
  navigator.requestMIDIAccess = async () => ({inputs: new Map([['keys', input]])});
}"""


@pytest.fixture
def edit(open_page):
    """Open the tab with an empty roll that can be edited."""

    def start(**options):
        page = open_page(**options)
        tab = choose_tab(page, "rework")
        tab.get_by_role("button", name="Edit notes").click()
        tab.get_by_role("button", name="Clear").click()
        assert page.evaluate(SLOT) == []
        tab.locator(".mv-roll-glass").scroll_into_view_if_needed()
        return page, tab

    return start


def place(page, step: int, pitch: int, share: float = 3) -> tuple[float, float]:
    x, y = page.evaluate(PLACE, [step, pitch, share])
    return x, y


def drag(page, begin: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*begin)
    page.mouse.down()
    page.mouse.move(*end, steps=6)
    page.mouse.up()


def test_notes_are_drawn_dragged_lengthened_and_deleted_by_mouse(edit):
    page, tab = edit()
    page.mouse.click(*place(page, 0, 67))
    page.mouse.click(*place(page, 8, 64))
    assert page.evaluate(SLOT) == [[0, 4, 67], [8, 4, 64]]
    drag(page, place(page, 8, 64), place(page, 16, 66))
    assert page.evaluate(SLOT) == [[0, 4, 67], [16, 4, 66]]
    drag(page, place(page, 4, 67, -2), place(page, 10, 67, -2))
    assert page.evaluate(SLOT) == [[0, 10, 67], [16, 4, 66]]
    page.mouse.click(*place(page, 4, 69))  # one note at a time: the one before ends here
    assert page.evaluate(SLOT) == [[0, 4, 67], [4, 4, 69], [16, 4, 66]]
    page.mouse.click(*place(page, 16, 66), button="right")
    page.mouse.dblclick(*place(page, 4, 69))
    assert page.evaluate(SLOT) == [[0, 4, 67]]
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    page.wait_for_function(f"JSON.stringify(({SLOT})()) === '[[0,4,67],[4,4,69],[16,4,66]]'")
    expect(tab.locator(".mv-slot .mv-title")).to_contain_text(", edited")


def test_notes_are_written_by_keys_and_by_a_midi_keyboard(edit):
    page, tab = edit()
    tab.locator(".mv-roll-glass").focus()
    for key in ("Enter", "ArrowUp", "ArrowUp", "+", "+", "Enter", "ArrowDown", "Shift+ArrowRight"):
        page.keyboard.press(key)
    assert page.evaluate(SLOT) == [[0, 6, 69], [7, 6, 68]]
    expect(tab.locator(".mv-slot [aria-live]")).to_have_text("G♯4, bar 1, beat 2")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Delete")
    assert page.evaluate(SLOT) == [[7, 6, 68]]
    page.evaluate(KEYBOARD)
    tab.get_by_role("button", name="MIDI keyboard").click()
    expect(tab.get_by_role("button", name="MIDI keyboard")).to_have_attribute("aria-pressed", "true")
    page.evaluate("[60, 62, 64].forEach(press)")
    assert page.evaluate(SLOT) == [[7, 6, 68], [13, 6, 60], [19, 6, 62], [25, 6, 64]]
    tab.get_by_role("button", name="Edit notes").click()
    page.evaluate("press(72)")  # nobody listens any more
    assert len(page.evaluate(SLOT)) == 4


def test_the_model_goes_on_from_what_was_drawn(edit):
    page, tab = edit()
    for step, pitch in ((0, 60), (4, 64), (8, 67), (12, 72), (16, 71), (20, 67), (24, 62)):
        page.mouse.click(*place(page, step, pitch))
    notes = page.evaluate(SLOT)
    assert [note[2] for note in notes] == [60, 64, 67, 72, 71, 67, 62]
    shoot(page, "edit")
    tab.get_by_role("button", name="Continue", exact=True).click()
    card = tab.locator(".mv-list .mv-card").first
    card.wait_for(timeout=30000)
    assert [list(note) for note in drawn(card)[: len(notes)]] == notes
    tab.get_by_role("button", name="Fill bars").click()
    page.wait_for_function("document.querySelector('#tab-rework .mv-list .mv-card')?.melody.bars === 8", timeout=30000)
    chosen = [
        index + 1 for index in range(8) if tab.locator(".mv-bar").nth(index).get_attribute("aria-pressed") == "true"
    ]
    assert [list(note) for note in drawn(card) if note[0] // 16 + 1 not in chosen] == [
        note for note in notes if note[0] // 16 + 1 not in chosen
    ]


def test_notes_are_drawn_by_touch(edit):
    page, _ = edit(viewport=PHONE, has_touch=True, is_mobile=True)
    page.touchscreen.tap(*place(page, 8, 66))
    assert page.evaluate(SLOT) == [[8, 4, 66]]
    assert page.locator("#tab-rework .mv-roll-glass").evaluate("each => getComputedStyle(each).touchAction") == "none"
    session = page.context.new_cdp_session(page)
    begin, end = place(page, 8, 66), place(page, 24, 70)
    for kind, points in (("touchStart", [begin]), ("touchMove", [end]), ("touchEnd", [])):
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})
    page.wait_for_function(f"JSON.stringify(({SLOT})()) === '[[24,4,70]]'")
    shoot(page, "phone-edit")


RATE = 48_000
TRANSCRIBE = """async ([content, rate]) => {
  const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0));
  return MelodySpace.transcribe(new Float32Array(bytes.buffer), rate);
}"""


def hum(
    notes: list[tuple[float, float, float]], cents: float = 0.0, noise: float = 0.003, rate: int = RATE
) -> np.ndarray:
    """Sing notes of (start, seconds, pitch): a voice with vibrato, glides and breath, out of tune by so many cents."""
    generator = np.random.default_rng(0)
    sound = noise * generator.standard_normal(round(rate * (max(start + held for start, held, _ in notes) + 0.5)))
    for start, held, pitch in notes:
        time = np.arange(round(held * rate)) / rate
        semitones = pitch + cents / 100 - 0.6 * np.exp(-time / 0.02) + 0.25 * np.sin(2 * np.pi * 5.5 * time)
        phase = 2 * np.pi * np.cumsum(440 * 2 ** ((semitones - 69) / 12)) / rate
        voice = sum(np.sin(number * phase) / number**1.5 for number in range(1, 9))
        envelope = np.minimum(1, time / 0.03) * np.minimum(1, (held - time) / 0.04)
        first = round(start * rate)
        sound[first : first + len(time)] += 0.2 * voice * envelope
    return sound.astype(np.float32)


STEP_AND_BAR = """() => {
  const {melody} = document.querySelector('#tab-rework .mv-slot .mv-card').roll;
  const step = MelodySpace.secondsPerStep(melody);
  return [step, step * MelodySpace.stepsPerBar(melody)];
}"""
SUNG = [(0.3, 0.42, 57), (0.8, 0.2, 59), (1.05, 0.2, 59), (1.3, 0.45, 64), (2.3, 0.95, 62), (3.3, 0.2, 50)]


@pytest.mark.parametrize(("octaves", "cents", "rate"), [(0, 0, RATE), (1, 40, 16_000), (-1, -30, 192_000)])
def test_what_is_hummed_comes_back(open_page, octaves, cents, rate):
    """Pitches, beginnings and lengths, repeated notes too; louder or softer, the notes are the same."""
    notes = [(start, held, pitch + 12 * octaves) for start, held, pitch in SUNG]
    page, sound = open_page(), hum(notes, cents, rate=rate)
    heard, softer = (
        page.evaluate(TRANSCRIBE, [base64.b64encode((level * sound).astype(np.float32)).decode(), rate])
        for level in (1, 0.3)
    )
    assert len(heard) == len(notes)
    for note, (start, held, pitch) in zip(heard, notes, strict=True):
        assert note["start"] == pytest.approx(start, abs=0.06)
        assert note["end"] == pytest.approx(start + held, abs=0.06)
        assert note["pitch"] == pytest.approx(pitch + cents / 100, abs=0.2)
    assert [note["pitch"] for note in softer] == pytest.approx([note["pitch"] for note in heard], abs=0.1)


def test_noise_and_silence_are_no_notes(open_page):
    page = open_page()
    for sound in (np.zeros(RATE), 0.1 * np.random.default_rng(1).standard_normal(2 * RATE), np.zeros(10)):
        assert page.evaluate(TRANSCRIBE, [base64.b64encode(sound.astype(np.float32)).decode(), RATE]) == []


def test_a_hummed_tune_is_written_into_the_roll(browser, url, tmp_path):
    """After a bar of clicks, in the singer's tuning; a refused microphone is said.

    The microphone hears the file from the moment that it is opened, which is some time before the clicks end.
    """
    beats = [(0, 1, 60), (1, 1, 62), (2, 0.5, 64), (2.5, 0.5, 64), (3, 2, 67), (5, 1, 65), (6, 1, 64), (7, 1, 62)]
    second = 0.5  # a beat at 120
    notes = [(6 + at * second, 0.9 * held * second, pitch) for at, held, pitch in beats]
    file = tmp_path / "hum.wav"
    soundfile.write(file, hum(notes, cents=-35), RATE, subtype="PCM_16")
    fake = ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={file}%noloop"]
    chromium = browser.browser_type.launch(
        executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required", *fake]
    )
    for permissions in (["microphone"], []):
        page = chromium.new_context(viewport=DESKTOP, permissions=permissions).new_page()
        page.goto(url)
        page.wait_for_selector("#tab-make .mv-card", timeout=30000)
        tab = choose_tab(page, "rework")
        tab.get_by_role("button", name="Edit notes").click()
        before = page.evaluate(SLOT)
        button = tab.get_by_role("button", name="Hum")
        button.click()
        if permissions:  # once stopped before it begins, which says nothing, and in the end for good
            tab.get_by_role("button", name="Get ready").click()
            button.wait_for()
            assert page.evaluate(SLOT) == before
            assert page.get_by_text("Nothing was heard").count() == 0
            button.click()
        if not permissions:
            expect(page.get_by_text("No microphone")).to_be_visible()
            assert page.evaluate(SLOT) == before
            continue
        step, bar = page.evaluate(STEP_AND_BAR)
        stop = tab.get_by_role("button", name=f"Bar {math.ceil(11 / bar)}: stop")
        stop.wait_for(timeout=60_000)
        shoot(page, "hum")
        stop.click()
        button.wait_for(timeout=30_000)
        heard = page.evaluate(SLOT)
        assert [pitch for _, _, pitch in heard] == [pitch for _, _, pitch in beats]
        gaps = step * np.diff([start for start, _, _ in heard])
        assert gaps == pytest.approx(second * np.diff([at for at, _, _ in beats]), abs=1.1 * step)
    chromium.close()
