"""A folder of melodies as MIDI, sound and pictures, and the page that shows them.

matplotlib, numpy and symusic are imported inside functions, so that `--help` answers at once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from command import make_folder
from rendering.page import Item, Picture, Section, write_page


class OutputPage:
    """The output folder: melodies and pictures are announced, put on a page, and written all at once.

    Args:
        folder: Made if it is not there.
        audio: Ending of sound files, `wav` or `mp3`.

    Raises:
        UserError: If it cannot be made.
    """

    def __init__(self, folder: Path, audio: str = "wav"):
        self.folder, self.audio = folder, audio
        self.jobs: list[Callable[[], object]] = []
        make_folder(folder)

    def melody(self, name: str, title: str, score, bars: int | None = None) -> Item:
        """Announce NAME.mid, NAME.png and its sound, of `bars` bars if given; returns what the page shows of them."""
        from rendering.piano_roll import describe, write_piano_roll
        from rendering.sound import WRITERS, play

        def record() -> None:
            score.dump_midi(str(self.folder / f"{name}.mid"))
            WRITERS[self.audio](self.folder / f"{name}.{self.audio}", play(score))

        self.jobs.append(record)
        picture = self.picture(name, f"Piano roll of {title}: {describe(score)}", write_piano_roll, score, bars=bars)
        text = f"{describe(score)}, {score.tempos[0].qpm:.0f} quarter notes a minute"
        return Item(title, picture, f"{name}.{self.audio}", f"{name}.mid", text)

    def picture(self, name: str, alt: str, write: Callable, *content, caption: str = "", **options) -> Picture:
        """Announce NAME.png and NAME-dark.png, to be drawn by `write(path, *content, theme=..., **options)`."""
        for theme, ending in (("light", ""), ("dark", "-dark")):
            self.jobs.append(partial(write, self.folder / f"{name}{ending}.png", *content, theme=theme, **options))
        return Picture(f"{name}.png", alt, f"{name}-dark.png", caption)

    def publish(self, title: str, introduction: str, sections: Sequence[Section], footer: str) -> Path:
        """Write everything announced, then the page; returns its path."""
        for job in tqdm(self.jobs, desc="Drawing and recording", unit="file"):
            job()
        page = self.folder / "index.html"
        write_page(page, title, introduction, sections, footer=footer)
        return page
