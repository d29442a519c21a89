"""What a musician hears, sees and takes home from the Space: chords, sheet music, the sound of an instrument."""

import io
import json
import sys
import wave
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
from playwright.sync_api import expect
from symusic import Score

from tests.builders.space_browser import NEEDS_CHROMIUM, PAGE_MELODY, choose_tab, download, drawn, shoot, two_tracks
from tests.builders.space_server import ROOT

sys.path.append(str(ROOT / "space"))

import sampler
import sound
from harmony import harmonize
from melody import check_melody, steps_per_bar

pytestmark = NEEDS_CHROMIUM

RENDER = """async ({melody, seconds, chords}) => {
  const {player} = MelodySpace;
  const offline = new OfflineAudioContext(1, Math.ceil(seconds * 32000), 32000);
  player.context = offline;
  await player.load(melody.program);
  if (chords) await player.load(0);
  const step = MelodySpace.secondsPerStep(melody);
  const bus = new GainNode(offline, {gain: 1});
  bus.connect(offline.destination);
  const play = (part, program, level) => part.start.forEach((start, i) =>
    player.voice(part.pitch[i], start * step, part.duration[i] * step, program, bus, level));
  play(melody, melody.program, 1);
  if (chords) play(chords, 0, 0.4);
  return [...(await offline.startRendering()).getChannelData(0)];
}"""


def spectra(audio: np.ndarray) -> np.ndarray:
    """Cut sound into tenths of a second and give their spectra up to 4 kHz, in bands of 20 Hz."""
    frames = audio[: len(audio) // 3200 * 3200].reshape(-1, 3200) * np.hanning(3200)
    return np.abs(np.fft.rfft(frames))[:, :400].reshape(len(frames), 200, 2).sum(2)


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of two sounds' spectra."""
    first, second = (spectra(each).ravel() for each in (a, b))
    size = min(len(first), len(second))
    first, second = first[:size], second[:size]
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


def test_what_plays_is_what_downloads(open_page):
    """The browser's sound is the server's: the same samples, notes and envelopes."""
    page = open_page()
    tune = check_melody(json.loads((ROOT / "space/tunes.json").read_text(encoding="utf-8"))[0])
    heard = {}
    for program in (0, 40, 73):
        melody = {**tune, "program": program, "bars": 4}
        kept = [index for index, start in enumerate(tune["start"]) if start < 4 * steps_per_bar(tune)]
        melody |= {name: [tune[name][index] for index in kept] for name in ("pitch", "start", "duration")}
        chords = harmonize(check_melody(melody))
        notes = sound.parts(check_melody(melody), chords)
        seconds = max(note.start + note.duration for note in notes)
        expected = sampler.play(notes, seconds, 32000)
        asked = {"melody": melody, "seconds": seconds, "chords": chords}
        heard[program] = np.array(page.evaluate(RENDER, asked))
        assert likeness(heard[program], expected) > 0.97, program
        loudness = [np.sqrt(np.mean(each**2)) for each in (heard[program], expected)]
        assert 0.9 < loudness[0] / loudness[1] < 1.1
    assert likeness(heard[0], heard[73]) < 0.9  # and another instrument is another sound


def test_chords_are_heard_drawn_and_taken_home(open_page):
    page = open_page()
    tab = choose_tab(page, "rework")
    slot = tab.locator(".mv-slot .mv-card")
    slot.locator(".mv-play").click()
    page.wait_for_function("MelodySpace.player.isPlaying && MelodySpace.player.sounds.size === 1")
    before = slot.locator(".mv-roll-base").evaluate("canvas => canvas.toDataURL()")
    button = page.get_by_role("button", name="Chords", exact=True)
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    page.wait_for_function("MelodySpace.player.notes.length > MelodySpace.player.melody.pitch.length")
    page.wait_for_function(
        "before => document.querySelector('#tab-rework .mv-roll-base').toDataURL() !== before", arg=before
    )
    shoot(page, "chords")
    page.locator(".mv-dock .mv-play").click()
    choose_tab(page, "make")
    card = page.locator("#tab-make .mv-card").first
    score = Score.from_midi(download(page, card, "MIDI file").read_bytes())
    melody = card.evaluate(PAGE_MELODY)
    found = harmonize(check_melody(melody))
    assert [track.name for track in score.tracks] == ["Melody 1", "Chords"]
    assert sorted(note.pitch for note in score.tracks[0].notes) == sorted(melody["pitch"])
    assert sorted(note.pitch for note in score.tracks[1].notes) == sorted(found["pitch"])
    with wave.open(io.BytesIO(download(page, card, "WAV sound").read_bytes())) as file:
        taken = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
    assert likeness(taken, sound.play(sound.parts(check_melody(melody), found))) > 0.99
    button.click()
    assert len(Score.from_midi(download(page, card, "MIDI file").read_bytes()).tracks) == 1


def test_sheet_music_is_engraved_and_taken_home(open_page):
    page = open_page()
    assert page.evaluate("window.ABCJS === undefined")  # it comes when it is needed
    card = page.locator("#tab-make .mv-card").first
    button = card.get_by_role("button", name="Sheet music of Melody 1")
    button.click()
    engraved = card.locator(".mv-sheet svg")
    engraved.wait_for()
    expect(button).to_have_attribute("aria-pressed", "true")
    melody = card.evaluate(PAGE_MELODY)
    notes = card.locator(".mv-sheet svg .abcjs-note").count()
    assert notes >= len(melody["pitch"])  # tied notes have two heads
    assert engraved.bounding_box()["width"] <= card.bounding_box()["width"]
    shoot(page, "sheet")
    page.get_by_role("button", name="Chords", exact=True).click()
    card.locator(".mv-sheet svg .abcjs-chord").first.wait_for()
    root = ET.fromstring(download(page, card, "MusicXML notes").read_bytes())
    sounding = [note for note in root.iter("note") if note.find("pitch") is not None]
    begun = [note for note in sounding if "stop" not in [tie.get("type") for tie in note.iter("tie")]]
    assert len(begun) == len(drawn(card))
    assert root.find(".//harmony") is not None
    abc = download(page, card, "ABC notes").read_text(encoding="utf-8")
    assert abc.startswith("X:1\nT:Melody 1\n")
    page.evaluate("() => { window.printed = 0; window.print = () => { printed++; }; }")
    card.get_by_role("button", name="Print, or save as PDF").click()
    page.wait_for_function("printed === 1")
    page.emulate_media(media="print")
    expect(page.locator(".mv-print svg")).to_be_visible()
    expect(page.locator(".mv-dock")).to_be_hidden()
    shoot(page, "print")
    page.emulate_media(media="screen")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    expect(page.locator(".mv-dock")).to_be_visible()
    button.click()
    expect(card.locator(".mv-sheet")).to_have_count(0)


def test_a_melody_goes_back_into_its_song(open_page, tmp_path):
    page = open_page()
    original = two_tracks(tmp_path / "song.mid")
    tab = choose_tab(page, "rework")
    tab.locator("input[type=file]").first.set_input_files(original)
    page.wait_for_function("document.querySelector('#tab-rework .mv-slot .mv-title').textContent.includes('Melody')")
    expect(tab.locator(".mv-found")).to_contain_text("the tune is track=1")
    tab.locator(".mv-bar").nth(2).click()
    tab.get_by_role("button", name="Fill bars").click()
    card = tab.locator(".mv-list .mv-card").first
    card.wait_for(timeout=30000)
    made = drawn(card)
    card.locator("summary[aria-label^='Download']").click()
    with page.expect_download() as caught:
        card.get_by_role("button", name="Back into your song").click()
    assert caught.value.suggested_filename == "song-new.mid"
    before, after = (Score.from_midi(Path(path).read_bytes()) for path in (original, caught.value.path()))
    assert [track.name for track in after.tracks] == [track.name for track in before.tracks]
    assert list(after.tracks[0].notes) == list(before.tracks[0].notes)
    assert sorted((note.start // 120, note.duration // 120, note.pitch) for note in after.tracks[1].notes) == made
    choose_tab(page, "make")
    page.locator("#tab-make .mv-card summary[aria-label^='Download']").first.click()
    expect(page.locator("#tab-make .mv-card").first.get_by_role("button", name="Back into your song")).to_have_count(0)
