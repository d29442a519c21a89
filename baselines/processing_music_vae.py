"""MIDI and melody lines to MusicVAE's steps and back, and batches of steps for training.

A melody of 4/4 in sixteenths is a class for each step: 0 nothing begins or ends, 1 a note ends (and none begins), 2 to
89 a note of pitch 21 to 108 begins. Ids have the start (90) before the steps and padding (91) after them.
"""

from __future__ import annotations  # symusic's Score is a factory, no class

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from symusic import types
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import BatchFeature, PreTrainedTokenizerFast

from modeling.line_writing_melody_vae import (
    FIRST_CHARACTER,
    line_to_words,
    make_remi,
)
from modeling.processing_melody_vae import (
    MAX_PITCH,
    MIN_PITCH,
    MelodyProcessor,
    cut_bars,
)

from .flat_code import flatten_code

TIME_SIGNATURE, STEPS_PER_BEAT, STEPS_PER_BAR = "4/4", 4, 16
NO_EVENT, NOTE_OFF, FIRST_ONSET = 0, 1, 2
NUM_CLASSES = FIRST_ONSET + MAX_PITCH - MIN_PITCH + 1  # 90
START, PADDING = NUM_CLASSES, NUM_CLASSES + 1


class CharacterTables(NamedTuple):
    """What the character at each code point stands for; -1 where it stands for nothing of the kind."""

    is_bar: np.ndarray
    is_other_meter: np.ndarray  # a time signature, but not 4/4
    position: np.ndarray
    pitch: np.ndarray
    duration: np.ndarray  # steps


@lru_cache
def character_tables() -> CharacterTables:
    """Read the characters of MidiTok's base vocabulary, on a grid of sixteenths, into arrays."""
    vocabulary = make_remi(STEPS_PER_BEAT).vocab
    size = FIRST_CHARACTER + len(vocabulary)
    tables = CharacterTables(
        np.zeros(size, bool), np.zeros(size, bool), *(np.full(size, -1, dtype=np.int64) for _ in range(3))
    )
    for token, index in vocabulary.items():  # pyright: ignore[reportAttributeAccessIssue] - one vocabulary, so a dict
        kind, _, value = token.partition("_")
        code = FIRST_CHARACTER + index
        if kind == "Bar":
            tables.is_bar[code] = True
        elif kind == "TimeSig":
            tables.is_other_meter[code] = value != TIME_SIGNATURE
        elif kind == "Position":
            tables.position[code] = int(value)
        elif kind == "Pitch":
            tables.pitch[code] = int(value)
        elif kind == "Duration":
            beats, steps, resolution = map(int, value.split("."))
            tables.duration[code] = (beats * resolution + steps) * STEPS_PER_BEAT // resolution
    return tables


class StepBatch(NamedTuple):
    """Melodies as step classes."""

    classes: np.ndarray  # (B, 16 N), padded with PADDING; N the most bars of any
    bars: np.ndarray  # (B,)
    num_notes: np.ndarray  # (B,)


def texts_to_steps(texts: list[str]) -> StepBatch:
    """Read windows' words as step classes, all at once.

    A note that would ring past its window ends with it.

    Args:
        texts: Of each melody the words of its bars, as `line_to_words` writes them, joined by spaces.

    Raises:
        ValueError: If a bar is not in 4/4.
    """
    tables = character_tables()
    codes = np.frombuffer("\n".join([*texts, ""]).encode("utf-32-le"), dtype=np.uint32)
    row_of = np.cumsum(codes == ord("\n")) - (codes == ord("\n"))
    if tables.is_other_meter[codes].any():
        row = row_of[tables.is_other_meter[codes].argmax()]
        raise ValueError(
            f"melody {row} of the batch is not in {TIME_SIGNATURE}, and MusicVAE's steps are: leave it out"
        )
    is_bar = tables.is_bar[codes]
    bars = np.bincount(row_of[is_bar], minlength=len(texts))
    bar_of = np.cumsum(is_bar) - 1 - (np.cumsum(bars) - bars)[np.minimum(row_of, len(texts) - 1)]
    places = np.flatnonzero(tables.position[codes] >= 0)  # a note is Position, Pitch, Duration
    rows = row_of[places]
    starts = STEPS_PER_BAR * bar_of[places] + tables.position[codes[places]]
    ends = starts + tables.duration[codes[places + 2]]
    width = STEPS_PER_BAR * int(bars.max(initial=0))
    classes = np.full((len(texts), width + 1), NO_EVENT, dtype=np.int64)  # one more, for notes that end with the window
    classes[rows, np.minimum(ends, width)] = NOTE_OFF
    classes[rows, starts] = FIRST_ONSET + tables.pitch[codes[places + 1]] - MIN_PITCH
    classes = classes[:, :width]
    classes[np.arange(width) >= STEPS_PER_BAR * bars[:, None]] = PADDING
    return StepBatch(classes, bars, np.bincount(rows, minlength=len(texts)))


def steps_to_line(classes: list[int]) -> dict:
    """Read step classes as a line; a note ends at a note-off, at the next note, or with the last step.

    A note-off where no note sounds means nothing.
    """
    pitches, starts, durations = [], [], []
    is_open = False
    for step, each in enumerate([*classes, NOTE_OFF]):
        if each == NO_EVENT:
            continue
        if is_open:
            durations.append(step - starts[-1])
        is_open = each >= FIRST_ONSET
        if is_open:
            pitches.append(each - FIRST_ONSET + MIN_PITCH)
            starts.append(step)
    return {
        "pitch": pitches,
        "start": starts,
        "duration": durations,
        "time_signature": TIME_SIGNATURE,
        "steps_per_beat": STEPS_PER_BEAT,
        "bars": len(classes) // STEPS_PER_BAR,
    }


def steps_to_tensors(steps: StepBatch) -> dict[str, torch.Tensor]:
    """Put the start before the steps: `input_ids` and `attention_mask`, `(B, 1 + 16 N)`."""
    input_ids = torch.nn.functional.pad(torch.from_numpy(steps.classes), (1, 0), value=START)
    return {"input_ids": input_ids, "attention_mask": (input_ids != PADDING).long()}


class StepCollator:
    """Batches of steps from windows' texts; in the place of the tokenising collator when training MusicVAE.

    It takes the same windows, transposed or not, and gives the same fields.

    Args:
        max_bars: Bars that the model's latent holds.
    """

    def __init__(self, max_bars: int = 16):
        self.max_bars = max_bars

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask`, `labels` `(B, 1 + 16 N)` and `num_notes` `(B,)`.

        Raises:
            ValueError: If a window is not in 4/4, or too long.
        """
        steps = texts_to_steps(texts)
        if (steps.bars > self.max_bars).any():
            raise ValueError(f"a window of {steps.bars.max()} bars does not fit a latent of {self.max_bars}")
        batch = steps_to_tensors(steps)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return {**batch, "labels": labels, "num_notes": torch.from_numpy(steps.num_notes)}


def step_tokenizer() -> PreTrainedTokenizerFast:
    """Name every step class; what a folder's `AutoTokenizer` reads ids with."""
    pitches = [f"note_{pitch}" for pitch in range(MIN_PITCH, MAX_PITCH + 1)]
    names = ["no_event", "note_off", *pitches, "<start>", "<pad>"]
    words = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}))
    words.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue] - a property of the extension
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<start>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )


class StepProcessor(MelodyProcessor):
    """Turns MIDI files and melody lines of 4/4 into steps, and decoded steps into scores.

    Identical to [`MelodyProcessor`] except for what ids are.

    Args:
        tokenizer: Of steps; [`step_tokenizer`] by default.
        max_bars: Bars of one window.
        kwargs: As there.
    """

    def __init__(self, tokenizer=None, max_bars: int = 16, **kwargs):
        super().__init__(step_tokenizer() if tokenizer is None else tokenizer, max_bars=max_bars, **kwargs)

    @property
    def bar_token_ids(self) -> list[int]:
        """No step opens a bar: bars are counted by steps."""
        return []

    def can_read(self, time_signature: str, steps_per_beat: int) -> bool:
        """Whether lines of this time signature and grid can be written as steps."""
        return (time_signature, steps_per_beat) == (TIME_SIGNATURE, STEPS_PER_BEAT)

    def __call__(
        self,
        midi: str | Path | bytes | types.Score | list | None = None,
        lines: dict | list[dict] | None = None,
        first_bar: int = 0,
        bars: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Prepare melodies for the model.

        Args:
            midi: Path, bytes of a MIDI file, score, or a list of them; the tune is found in each.
            lines: Melody lines instead, such as rows of the data set.
            first_bar: Where to cut the window.
            bars: Length of the window, at most and by default `max_bars`.
            return_tensors: `pt` for tensors, else lists.

        Returns:
            `input_ids` and `attention_mask`, `(B, 1 + 16 N)`.

        Raises:
            ValueError: If an input is no melody in 4/4; says which and why.
        """
        if (midi is None) == (lines is None):
            raise ValueError("give either midi= or lines=")
        if lines is None:
            lines = self.read(midi)
        lines = [lines] if isinstance(lines, dict) else lines
        windows = [cut_bars(line, first_bar, min(bars or self.max_bars, self.max_bars)) for line in lines]
        for index, (line, window) in enumerate(zip(lines, windows, strict=True)):
            if not self.can_read(line["time_signature"], line["steps_per_beat"]):
                raise ValueError(
                    f"melody {index} is in {line['time_signature']} with {line['steps_per_beat']} steps per beat; "
                    f"MusicVAE has {TIME_SIGNATURE} with {STEPS_PER_BEAT} only"
                )
            if window["bars"] < 1:
                raise ValueError(f"melody {index} has {line['bars']} bars, so none from bar {first_bar} on")
        batch = steps_to_tensors(texts_to_steps([" ".join(line_to_words(window)) for window in windows]))
        if return_tensors is None:
            return BatchFeature({name: values.tolist() for name, values in batch.items()})
        return BatchFeature(batch, tensor_type=return_tensors)

    def to_lines(self, ids) -> list[dict]:
        """Read decoded ids `(B, 1 + 16 N)` as lines; the start and padding are left out."""
        rows = ids.tolist() if hasattr(ids, "tolist") else ids
        return [steps_to_line([each for each in row if each < NUM_CLASSES]) for row in rows]

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs):
        """Save as the library does, with code that stands alone."""
        saved = super().save_pretrained(save_directory)
        flatten_code(save_directory)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return saved
