"""Small things that a visitor of the Space tries: typed numbers, keys, undo, what is said beside what is shown."""

from playwright.sync_api import expect

from tests.builders.space_browser import NEEDS_CHROMIUM, PAGE_MELODY, choose_tab, drawn, shoot, two_tracks

pytestmark = NEEDS_CHROMIUM

CHANGED = "document.querySelectorAll('#tab-change .mv-list .mv-card').length"


def settled(page, card) -> list[tuple[int, int, int]]:
    """What a card shows once answers to earlier requests have come too."""
    while (before := drawn(card)) != (page.wait_for_timeout(1000) or drawn(card)):
        pass
    return before


def test_a_typed_number_is_as_good_as_a_slider(open_page):
    page = open_page()
    tab = choose_tab(page, "change")
    number = tab.locator("input[type=number][aria-label*='Likeness']")
    number.fill("0.4")
    number.press("Enter")
    page.wait_for_function(f"{CHANGED} === 3", timeout=30000)
    expect(tab.locator("input[type=range][aria-label*='Likeness']")).to_have_value("0.4")
    page.keyboard.press("Control+z")  # in the field that was typed in: the page's undo, for the number is entered
    page.wait_for_function(f"{CHANGED} === 0")
    number.fill("7")  # beyond its end
    number.press("Enter")
    page.wait_for_function(f"{CHANGED} === 1", timeout=30000)
    expect(number).to_have_value("1")


def test_one_change_is_undone_and_at_rest_begins_anew(open_page):
    page = open_page()
    tab = choose_tab(page, "change")
    density = tab.locator("input[type=number][aria-label*='Notes per bar']")
    density.fill("2")
    density.press("Enter")
    card = tab.locator(".mv-list .mv-card").first
    card.wait_for(timeout=30000)
    tab.locator("h3").first.click()
    page.keyboard.press("Control+z")
    page.wait_for_function(f"{CHANGED} === 0")
    page.get_by_text("Undone: Change").wait_for()
    tab.get_by_role("button", name="Change it").click()
    page.wait_for_function(f"{CHANGED} === 1", timeout=30000)
    page.evaluate("""() => {
      window.counts = [];
      new MutationObserver(() => counts.push(document.querySelectorAll('#tab-change .mv-list .mv-card').length))
        .observe(document.querySelector('#tab-change .mv-list'), {childList: true});
    }""")
    tab.get_by_role("button", name="At rest").click()
    page.wait_for_function("counts.length >= 2 && counts.at(-1) === 1", timeout=30000)
    assert 0 in page.evaluate("counts")  # what was made before is gone at once
    expect(density).to_have_value("0")
    rested = settled(page, card)
    shoot(page, "at-rest")
    tab.get_by_role("button", name="Change it").click()
    page.wait_for_function("counts.length >= 3 && counts.at(-1) === 1", timeout=30000)
    assert settled(page, card) == rested


def test_the_list_of_tunes_does_not_name_what_is_not_there(open_page, tmp_path):
    page = open_page()
    tab = choose_tab(page, "change")
    tune = tab.locator("input[aria-label='A tune']")
    expect(tune).to_have_value("Greensleeves")
    tab.locator("input[type=file]").first.set_input_files(two_tracks(tmp_path / "two.mid"))
    page.wait_for_function("document.querySelector('#tab-change .mv-slot .mv-title').textContent.includes('Melody')")
    expect(tune).to_have_value("")
    tune.click()
    page.get_by_role("option", name="Yankee Doodle").click()
    expect(tab.locator(".mv-slot .mv-title")).to_have_text("Yankee Doodle")
    expect(tune).to_have_value("Yankee Doodle")
    choose_tab(page, "make")
    card = page.locator("#tab-make .mv-card").first
    card.locator("summary[aria-label^='Send']").click()
    card.get_by_role("button", name="Change", exact=True).click()
    expect(tab.locator(".mv-slot .mv-title")).to_have_text("Melody 1")
    expect(tune).to_have_value("")


def test_the_space_bar_plays(open_page):
    page = open_page()
    playing = "MelodySpace.player.isPlaying"
    page.locator("h1").click()
    page.keyboard.press(" ")
    page.wait_for_function(playing)
    assert page.evaluate("MelodySpace.player.melody.title") == "Melody 1"
    page.keyboard.press(" ")
    assert not page.evaluate(playing)
    tab = choose_tab(page, "change")
    tab.locator("input[type=range]").first.focus()
    page.keyboard.press(" ")
    page.wait_for_function(playing)
    page.keyboard.press(" ")
    page.locator("#mv-tempo").focus()
    page.keyboard.press(" ")  # typed, not played
    assert not page.evaluate(playing)


def test_the_page_opens_on_the_best_of_many_and_says_so(open_page):
    page = open_page()
    tab = page.locator("#tab-make")
    tab.get_by_text("of the melodies of 32 seeds, the three").wait_for()
    card = tab.locator(".mv-card").first
    melody = card.evaluate(PAGE_MELODY)
    origin = card.evaluate("card => card.melody.origin")
    assert origin["count"] == 1
    expect(tab.locator("input[aria-label='Seed']")).to_have_value(str(origin["seed"]))
    again = open_page(f"/?seed={origin['seed']}&count=1")
    again.wait_for_function("document.querySelectorAll('#tab-make .mv-card').length === 1", timeout=30000)
    assert again.locator("#tab-make .mv-card").evaluate(PAGE_MELODY)["pitch"] == melody["pitch"]
