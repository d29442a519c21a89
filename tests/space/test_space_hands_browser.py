"""Notes by hand: drawn, dragged, deleted and played into a roll; and what the model then makes of them."""

import pytest
from playwright.sync_api import expect

from tests.builders.space_browser import NEEDS_CHROMIUM, PHONE, choose_tab, drawn, shoot

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
