"""What the tests of the Space in a browser do with a page: Debian's Chromium, driven by Playwright."""

import shutil
from pathlib import Path

import pytest
from symusic import Note, Score, Tempo, TimeSignature, Track

from tests.builders.space_server import ROOT

CHROMIUM = shutil.which("chromium")
SCREENSHOTS = ROOT / "outputs/screenshots"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PAGE_MELODY = """element => {
  const melody = element.melody;
  return {pitch: melody.pitch, start: melody.start, duration: melody.duration, bars: melody.bars,
    tempo: melody.tempo, program: melody.program, title: melody.title,
    time_signature: melody.time_signature, steps_per_beat: melody.steps_per_beat};
}"""
NEEDS_CHROMIUM = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]


def shoot(page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def choose_tab(page, name: str):
    page.locator(f"#tab-{name}-button").click()
    tab = page.locator(f"#tab-{name}")
    tab.wait_for(state="visible")
    return tab


def download(page, card, what: str) -> Path:
    card.locator("summary[aria-label^='Download']").click()
    with page.expect_download() as caught:
        card.get_by_role("button", name=what).click()
    return Path(caught.value.path())


def notes_of(path: Path, steps_per_quarter: int = 4) -> list[tuple[int, int, int]]:
    score = Score.from_midi(path.read_bytes())
    assert len(score.tracks) == 1
    step = score.ticks_per_quarter / steps_per_quarter
    return sorted((round(note.start / step), round(note.duration / step), note.pitch) for note in score.tracks[0].notes)


def steps_per_quarter(card) -> int:
    """Return the grid steps of a quarter note in a card's melody, which a meter such as 6/8 makes finer."""
    melody = card.evaluate(PAGE_MELODY)
    return melody["steps_per_beat"] * int(melody["time_signature"].split("/")[1]) // 4


def drawn(card) -> list[tuple[int, int, int]]:
    melody = card.evaluate(PAGE_MELODY)
    return sorted(zip(melody["start"], melody["duration"], melody["pitch"], strict=True))


def player_time(page) -> float:
    return page.evaluate("MelodySpace.player.position")


def make_melodies(page, tab) -> None:
    before = tab.locator(".mv-card").first.evaluate(PAGE_MELODY)
    tab.get_by_role("button", name="Make melodies").click()
    page.wait_for_function(
        "before => JSON.stringify(document.querySelector('#tab-make .mv-card')?.melody.pitch) !== before",
        arg=str(before["pitch"]).replace(" ", ""),
        timeout=30000,
    )


def two_tracks(path: Path) -> Path:
    """Write a MIDI file of chords and a tune, whose name is hostile."""
    score = Score(480)
    score.time_signatures.append(TimeSignature(0, 4, 4))
    score.tempos.append(Tempo(0, 100))
    chords = Track("Chords", 24)
    for bar in range(8):
        for pitch in (48, 52, 55):
            chords.notes.append(Note(bar * 1920, 1920, pitch, 90))
    tune = Track("<img src=x onerror=alert(1)> Melody", 40)
    for step in range(32):
        tune.notes.append(Note(step * 480, 480, 60 + (step * 7) % 12, 90))
    score.tracks.append(chords)
    score.tracks.append(tune)
    score.dump_midi(path)
    return path
