"""Melody lines to text and tokens: each bar is written as a word once, and windows are tokenised in batches."""

from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from command import UserError
from modeling import MelodyProcessor
from modeling.line_writing_melody_vae import (
    bar_tokens,
    line_to_words,
    make_remi,
    repeat_tokens,
    transposition_table,
    words_to_text,
)
from modeling.processing_melody_vae import is_supported
from modeling.token_grammar_melody_vae import copied_tokens
from training.batches import transposition_limits, uniform_integers

COLUMNS = {"pitch", "start", "duration", "time_signature", "steps_per_beat", "bars", "is_lead"}
LEADS = "leads"  # the configuration of a data set from which tunes are taken: those on the grid that are no junk
KEPT_COLUMNS = ("bars", "steps_per_beat", "complexity", "genre")  # beside the words; the last two where they are there

WindowKey = tuple[int, int, int, int]
"""(line, first bar, bar after the last, semitones up)"""


class MelodyWindows(Dataset):
    """Windows of melody lines, as text for the tokenizer.

    MidiTok has written every bar as a word already; a window is a slice of words, a transposition a translation of
    characters. The words stay in Arrow's memory map: a batch reads its own bars and nothing else.

    Args:
        lines: Columns `words`, a word per bar, and `steps_per_beat`.
    """

    def __init__(self, lines: datasets.Dataset):
        self.lines = lines.select_columns(["words", "steps_per_beat"]).with_format("arrow")

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, key: WindowKey) -> str:
        """Return the text of a window."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[WindowKey]) -> list[str]:
        """Return the texts of a batch of windows; `DataLoader` asks for this where it is there."""
        rows: pa.Table = self.lines[[line for line, *_ in keys]]
        texts = []
        for words, steps, (_, first_bar, end_bar, semitones) in zip(*rows.columns, keys, strict=True):
            window = " ".join(words.values[first_bar:end_bar].to_pylist())
            texts.append(window.translate(transposition_table(steps.as_py(), semitones)) if semitones else window)
        return texts


class Collator:
    """Tokenises texts and pads them to a multiple of 16: each new shape costs the CPU kernels a compilation."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.repeats = repeat_tokens(tokenizer)
        self.repeat_ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(self.repeats.values())))
        self.opens_bar = torch.zeros(len(tokenizer), dtype=torch.bool)
        self.opens_bar[bar_tokens(tokenizer)] = True

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask`, `labels` `(B, T)` and `num_notes` `(B,)`.

        Of a bar that is an earlier one over again the token before it is a label; its own are not.
        """
        marked = [words_to_text(text.split(" "), self.repeats) for text in texts] if self.repeats else texts
        batch = self.tokenizer(
            marked, padding=True, pad_to_multiple_of=16, return_tensors="pt", return_token_type_ids=False
        )
        ids, labels = batch["input_ids"], batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        if self.repeats:
            is_repeat = torch.isin(ids, self.repeat_ids)
            labels[copied_tokens(ids, self.opens_bar, is_repeat, self.tokenizer.eos_token_id)] = -100
        return {**batch, "labels": labels, "num_notes": torch.tensor([count_notes(text) for text in texts])}


def count_notes(text: str) -> int:
    """Count the notes in a window's words: a bar is two characters, a note three, and spaces join the bars."""
    bars = text.count(" ") + 1
    return (len(text) - (bars - 1) - 2 * bars) // 3


def load_lines(dataset: str, split: str, which: str, time_signature: str | None = None) -> datasets.Dataset:
    """Load the melody lines of a split.

    Args:
        dataset: Folder or Hub id.
        split: Its name.
        which: "lead" for each file's tune (see `load_split`), "all" for every line.
        time_signature: The only one that is wanted; by default all that the vocabulary can write.

    Raises:
        UserError: If there is no such data set, or it is none of melodies.
    """
    lines = load_split(dataset, split, which)
    kept = [
        index
        for index, (signature, is_lead) in enumerate(zip(lines["time_signature"][:], lines["is_lead"][:], strict=True))
        if is_wanted({"time_signature": signature, "is_lead": is_lead}, which, time_signature)
    ]
    if not kept:
        raise UserError(f"{dataset}: no melody in split '{split}' that the vocabulary can write")
    return lines.select(kept)


def load_split(dataset: str, split: str, which: str, streaming: bool = False) -> Any:
    """Load a split as it is, or open it as a stream.

    Args:
        dataset: Folder or Hub id.
        split: Its name.
        which: "lead" for the data set's own choice of tunes worth training on, its configuration `leads`, where it has
            one with this split; else every line.
        streaming: Whether to open it as a stream.

    Raises:
        UserError: If there is no such data set, or it is none of melodies.
    """
    try:
        config = LEADS if which == "lead" and has_leads(dataset, split) else None
        lines = datasets.load_dataset(dataset, config, split=split, streaming=streaming)
        names = lines.column_names or next(iter(lines)).keys()  # a stream may not know them beforehand
    except Exception as error:  # a folder without data, an unknown id, a missing split: each has its own class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{dataset}: no data set with a split '{split}' there ({reason}); "
            "put MIDI files there, or build one with python -m dataset_script.build --input ARCHIVE --output DIR"
        ) from error
    if missing := COLUMNS - set(names):
        raise UserError(f"{dataset}: the column {sorted(missing)[0]} is missing; build it with dataset_script.build")
    return lines


def has_leads(dataset: str, split: str) -> bool:
    """Whether a data set has a configuration `leads` with this split; one of a few off-grid recordings may not."""
    return LEADS in datasets.get_dataset_config_names(dataset) and split in datasets.get_dataset_split_names(
        dataset, LEADS
    )


def is_wanted(line: dict, which: str, time_signature: str | None = None) -> bool:
    """Whether a line can be written, and is of the kind ("lead" or "all") and time signature that is trained on."""
    signature = line["time_signature"]
    return is_supported(signature) and time_signature in (None, signature) and (line["is_lead"] or which == "all")


def words_of(line: dict, max_duration: int | None = None) -> dict:
    """Write each bar of a line as a word, and look up its lowest and highest pitch.

    Args:
        line: A row of the data set.
        max_duration: Beats; notes that last longer are cut.
    """
    if max_duration is not None:
        longest = max_duration * line["steps_per_beat"]
        line = {**line, "duration": [min(steps, longest) for steps in line["duration"]]}
    return {"words": line_to_words(line), "low": min(line["pitch"]), "high": max(line["pitch"])}


def write_words(lines: datasets.Dataset, num_proc: int, max_duration: int | None = None) -> datasets.Dataset:
    """Write every bar of a split as a word, once; `datasets` keeps the result in its cache."""
    return lines.map(
        words_of,
        fn_kwargs={"max_duration": max_duration},
        remove_columns=[name for name in lines.column_names if name not in KEPT_COLUMNS],
        num_proc=num_proc if len(lines) > 1000 else None,
        desc="Writing bars as words",
    )


def count_words(words: list[list[str]], tokenizer) -> list[list[int]]:
    """Count the tokens of each bar of each line."""
    ids = iter(
        tokenizer([word for line in words for word in line], add_special_tokens=False, return_attention_mask=False)[
            "input_ids"
        ]
    )
    return [[len(next(ids)) for _ in line] for line in words]


def count_tokens(lines: datasets.Dataset, tokenizer, num_proc: int) -> datasets.Dataset:
    """Add `num_tokens`, the tokens of each bar, by which windows are batched."""

    def count(batch: dict) -> dict:
        return {"num_tokens": count_words(batch["words"], tokenizer)}

    return lines.map(
        count, batched=True, batch_size=100, num_proc=num_proc if len(lines) > 1000 else None, desc="Counting tokens"
    )


def train_tokenizer(lines: datasets.Dataset, vocab_size: int, transpose: int, seed: int) -> MelodyProcessor:
    """Train the BPE on lines in the keys in which training will show them, one key a line.

    Raises:
        UserError: If the vocabulary cannot be so small.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = uniform_integers(*transposition_limits(lines, transpose), generator)
    steps_per_beat = lines[0]["steps_per_beat"]
    if vocab_size <= (smallest := len(make_remi(steps_per_beat))):
        raise UserError(f"--vocab_size {vocab_size}: must be more than {smallest}, the tokens before any are merged")
    words = [
        [word.translate(transposition_table(steps_per_beat, semitones)) for word in line]
        for line, semitones in zip(lines["words"][:], chosen.tolist(), strict=True)
    ]
    return MelodyProcessor.train(words, vocab_size, steps_per_beat)


def check_grid(dataset: str, lines: datasets.Dataset, processor: MelodyProcessor) -> None:
    """Refuse data on another grid than the processor's: its tokens would mean other lengths.

    Raises:
        UserError: If they are.
    """
    for steps in sorted({*lines["steps_per_beat"][:]}):
        if steps != processor.steps_per_beat:
            raise UserError(
                f"{dataset}: {steps} steps per beat, where the tokenizer has {processor.steps_per_beat}; build the "
                f"data with --steps_per_beat {processor.steps_per_beat}"
            )


def evaluation_windows(lines: Iterable[dict], bars: int, count: int, seed: int | None) -> list[str]:
    """Cut lines into windows side by side, choose some, and sort them by length.

    Args:
        lines: Rows with `words`.
        bars: Length of a window.
        count: How many windows, at most.
        seed: Chooses among all windows; None takes the first ones, so that a stream is read no further.
    """
    texts = (" ".join(line["words"][bar : bar + bars]) for line in lines for bar in range(0, len(line["words"]), bars))
    if seed is None:
        chosen = [text for text, _ in zip(texts, range(count), strict=False)]
    else:
        found = list(texts)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:count]
        chosen = [found[index] for index in order.tolist()]
    return sorted(chosen, key=len)
