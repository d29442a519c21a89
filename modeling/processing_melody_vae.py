"""MIDI to token ids and back: MidiTok's REMI, one word per bar, and a fast BPE tokenizer over those words.

A *line* is a dict with the columns of the data set's Parquet schema that describe notes: `pitch`, `start` and
`duration` (lists; grid steps from the line's first bar line), `time_signature`, `steps_per_beat`, `bars` and `tempo`.
A step is a `steps_per_beat`th of the beat, the beat being the note that the time signature's denominator names.
"""

from __future__ import annotations  # symusic's Score is a factory, no class

import json
import operator
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import torch
from miditok import REMI, TokSequence
from symusic import Score, types
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin
from transformers.utils import CONFIG_NAME, logging
from transformers.utils.hub import cached_file

from .fingerprint_melody_vae import Fingerprint, check, fingerprint_of_tokens
from .line_writing_melody_vae import (
    FIRST_CHARACTER,
    SPECIAL_TOKENS,
    WORD_PREFIX,
    bar_tokens,
    line_to_score,
    line_to_words,
    make_monophonic,
    make_remi,
    repeat_tokens,
    words_to_text,
)
from .melody_line_melody_vae import MAX_PITCH, MIN_PITCH, TEMPO_CLASSES, is_supported, steps_per_bar
from .midi_reading_melody_vae import MidiInput, each_file
from .options_melody_vae import check_count, check_number
from .token_grammar_melody_vae import SPECIAL_ROW, UNUSABLE, TokenColumn, encode_base_token, summarise_token
from .tune_finding_melody_vae import FASTEST, SLOWEST, choose_tune, describe_line, find_tunes

logger = logging.get_logger(f"transformers.{__name__}")  # under the name whose verbosity transformers sets

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
IF_THERE = dict.fromkeys(
    (f"_raise_exceptions_for_{case}" for case in ("gated_repo", "missing_entries", "connection_errors")), False
)


def check_line(line: Mapping[str, Any], name: str = "line") -> None:
    """Make sure that a line is one: see the module's docstring.

    Args:
        line: What was handed in.
        name: What to call it.

    Raises:
        ValueError: If it is none; says why.
    """
    columns = ("pitch", "start", "duration", "time_signature", "steps_per_beat", "bars")
    if not isinstance(line, Mapping) or (missing := [column for column in columns if column not in line]):
        lacks = f"a {type(line).__name__}" if not isinstance(line, Mapping) else f"without {', '.join(missing)}"
        raise ValueError(f"{name}: {lacks}; a line is a dict with {', '.join(columns)}")
    if not re.fullmatch(r"[1-9]\d?/[1-9]\d?", str(line["time_signature"])):
        raise ValueError(f"{name}: time_signature={line['time_signature']!r} is not such as 3/4")
    for column, least in (("steps_per_beat", 1), ("bars", 0)):
        check_count(f"{name}: {column}", line[column], least)
    pitch, start, duration = line["pitch"], line["start"], line["duration"]
    if not len(pitch) == len(start) == len(duration):
        raise ValueError(f"{name}: {len(pitch)} pitches, {len(start)} starts and {len(duration)} durations")
    if not len(pitch):
        return
    if min(pitch) < MIN_PITCH or max(pitch) > MAX_PITCH:
        raise ValueError(f"{name}: pitches from {min(pitch)} to {max(pitch)}; a line's are {MIN_PITCH} to {MAX_PITCH}")
    ends = [begin + length for begin, length in zip(start, duration, strict=True)]
    if start[0] < 0 or min(duration) < 1 or any(map(operator.gt, ends, start[1:])):
        raise ValueError(f"{name}: its notes are not in order, one at a time, each of a step or more")
    if start[-1] >= line["bars"] * steps_per_bar(line):
        raise ValueError(f"{name}: a note begins at step {start[-1]}, after its {line['bars']} bars")


def cut_bars(line: dict, first_bar: int, bars: int) -> dict:
    """Cut `bars` bars out of a line; notes that began earlier are dropped, the last one is cut at the end."""
    bar = steps_per_bar(line)
    bars = min(bars, line["bars"] - first_bar)
    low, high = first_bar * bar, (first_bar + bars) * bar
    kept = [index for index, start in enumerate(line["start"]) if low <= start < high]
    place = {"first_bar": line["first_bar"] + first_bar} if "first_bar" in line else {}
    return {
        **line,
        **place,
        "pitch": [line["pitch"][index] for index in kept],
        "start": [line["start"][index] - low for index in kept],
        "duration": [min(line["duration"][index], high - line["start"][index]) for index in kept],
        "bars": bars,
    }


class MelodyProcessor(ProcessorMixin):
    """Turns MIDI files and melody lines into model inputs, and generated ids into scores.

    Args:
        tokenizer: The fast tokenizer, [`train`] makes one.
        steps_per_beat: Grid steps per beat (4: sixteenths in 4/4).
        max_bars: Bars of one window.
    """

    attributes = ["tokenizer"]  # noqa: RUF012 - the base class's own form
    tokenizer_class = "AutoTokenizer"

    def __init__(self, tokenizer=None, steps_per_beat: int = 4, max_bars: int = 16, **kwargs):
        self.steps_per_beat = steps_per_beat
        self.max_bars = max_bars
        super().__init__(tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Load a processor from a folder or a Hub id; with the class at hand, no remote code is run or asked for.

        Raises:
            ValueError: If the model beside it was trained with other tokens, another grid or other windows.
        """
        kwargs = {"trust_remote_code": False, **kwargs}
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        asked = {name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None}
        if config := cached_file(pretrained_model_name_or_path, CONFIG_NAME, **asked, **IF_THERE):
            beside = json.loads(Path(config).read_text(encoding="utf-8")).get("fingerprint")
            processor.check_fingerprint(beside, str(pretrained_model_name_or_path))
        return processor

    @property
    def remi(self) -> REMI:
        """The MidiTok tokenizer under the BPE."""
        return make_remi(self.steps_per_beat)

    @classmethod
    def train(
        cls, words: list[list[str]], vocab_size: int = 1024, steps_per_beat: int = 4, max_bars: int = 16
    ) -> MelodyProcessor:
        """Train the BPE and build a processor around it.

        Args:
            words: For each melody its bars, as [`line_to_words`] writes them.
            vocab_size: Size of the vocabulary to reach.
            steps_per_beat: Grid steps per beat.
            max_bars: Bars of one window.

        Raises:
            ValueError: If there is nothing to train on.
        """
        if not any(words):
            raise ValueError("no bars to train the tokenizer on")
        remi = make_remi.__wrapped__(steps_per_beat)  # a copy of its own, since training changes it
        remi.train(vocab_size=vocab_size, iterator=words)
        state = json.loads(remi._model.to_str())
        names = {chr(FIRST_CHARACTER + index): f"<{token.lower()}>" for index, token in enumerate(SPECIAL_TOKENS)}
        state["model"]["vocab"] = {names.get(token, token): index for token, index in state["model"]["vocab"].items()}
        for token in state["added_tokens"]:
            token["content"] = names[token["content"]]
            token["special"] = True
        bpe = Tokenizer.from_str(json.dumps(state))
        bpe.post_processor = TemplateProcessing(
            single="<bos> $A <eos>",
            special_tokens=[("<bos>", bpe.token_to_id("<bos>")), ("<eos>", bpe.token_to_id("<eos>"))],
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe,
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            mask_token="<mask>",
            clean_up_tokenization_spaces=False,
        )
        return cls(tokenizer, steps_per_beat=steps_per_beat, max_bars=max_bars)

    @property
    def bar_token_ids(self) -> list[int]:
        """Ids of the tokens that open a bar, for [`MelodyVAEConfig`]."""
        return bar_tokens(self.tokenizer)

    def fingerprint(self) -> Fingerprint:
        """Hash vocabulary, merges, grid and length of windows, for [`MelodyVAEModel.set_grammar`]."""
        return fingerprint_of_tokens(self.tokenizer, self.steps_per_beat, self.max_bars)

    def check_fingerprint(self, fingerprint: Fingerprint | None, name: str = "the model") -> None:
        """Make sure that this is the processor of a model.

        Args:
            fingerprint: The model's `config.fingerprint`.
            name: What to call the model.

        Raises:
            ValueError: If the model was trained with other tokens, another grid or other windows.
        """
        check(fingerprint, self.fingerprint(), f"{name}: a model of another tokenizer or grid")

    @property
    def repeats(self) -> dict[int, int]:
        """Ids of the tokens for "this bar is an earlier one over again", by how many bars earlier."""
        tokens = repeat_tokens(self.tokenizer)
        return dict(zip(tokens, self.tokenizer.convert_tokens_to_ids(list(tokens.values())), strict=True))

    def add_repeats(self, lags: Iterable[int]) -> None:
        """Add tokens with which melodies say that a bar is the one `lag` bars earlier over again.

        From then on they stand before such bars in what the processor writes; the bars' own tokens follow as before.
        For [`MelodyVAEModel.add_repeats`].
        """
        names = [f"<repeat_{check_count('lag', lag, 1)}>" for lag in sorted(lags)]
        new = [name for name in names if name not in repeat_tokens(self.tokenizer).values()]
        tokens = [AddedToken(name, lstrip=True, rstrip=True, special=True) for name in new]
        self.tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)

    def grammar_table(self) -> torch.Tensor:
        """Summarise each token, for [`MelodyVAEModel.set_grammar`].

        Tokens with a pitch above the range are unusable: MidiTok's vocabulary has one pitch more.

        Returns:
            `(V, 12 + W)`: the columns that the module of [`MelodyLogitsProcessor`] names, and the token's REMI tokens
            as [`encode_base_token`] writes them, zeros after them; W is the most that a token has.
        """
        rows = [list(SPECIAL_ROW)] * len(self.tokenizer)
        base_tokens: list[list[int]] = [[]] * len(self.tokenizer)
        for token, index in self.tokenizer.get_vocab().items():
            if index not in self.tokenizer.all_special_ids:
                bases = [self.remi[ord(character) - FIRST_CHARACTER] for character in token.removeprefix(WORD_PREFIX)]
                rows[index] = summarise_token(bases, token.startswith(WORD_PREFIX), self.steps_per_beat)
                base_tokens[index] = [encode_base_token(base, self.steps_per_beat) for base in bases]
        longest = max(map(len, base_tokens))
        table = torch.tensor(
            [row + own + [0] * (longest - len(own)) for row, own in zip(rows, base_tokens, strict=True)]
        )
        table[table[:, TokenColumn.HIGHEST_PITCH] > MAX_PITCH, TokenColumn.BEFORE] = UNUSABLE
        return table

    def can_read(self, time_signature: str, steps_per_beat: int) -> bool:
        """Whether the vocabulary has the time signature and the grid of a line."""
        return is_supported(time_signature) and steps_per_beat == self.steps_per_beat

    def tunes(self, midi: MidiInput) -> list[dict]:
        """List what could be the tune of a MIDI file, best first: whole lines, as [`find_tunes`] describes them."""
        return find_tunes(midi, self.steps_per_beat)

    def read(self, midi: MidiInput | Iterable[MidiInput], track: int | None = None) -> list[dict]:
        """Find the tune of each MIDI file; whole lines, not yet cut into windows.

        What was found is logged, see [`MelodyProcessor.describe`], after `transformers.logging.set_verbosity_info()`;
        as a warning where the best track's lead score is below `LEAD_FLOOR`.

        Args:
            midi: Path, content of a MIDI file, open file, score, ZIP archive of MIDI files, or any number of these in a
                list, generator, ...
            track: Index of the track to take, instead of the best.

        Raises:
            ValueError: If a file has no tune to read; names it and says why.
        """
        lines = []
        for file, content in each_file(midi):
            tunes = find_tunes(content, self.steps_per_beat, file)
            lines.append(choose_tune(tunes, track))
            level = INFO if track is not None or lines[-1]["is_lead"] else WARNING
            if logger.isEnabledFor(level):
                logger.log(level, describe_line(lines[-1], self.max_bars, tunes))
        return lines

    def windows(self, line: dict) -> list[dict]:
        """Cut a line into windows of up to `max_bars` bars, one after the other, the last of which may be shorter."""
        return [cut_bars(line, first, self.max_bars) for first in range(0, line["bars"], self.max_bars)]

    def describe(self, midi: MidiInput | dict, track: int | None = None) -> str:
        """Say in one sentence what was found in a MIDI file, or where a line comes from.

        Args:
            midi: Path, content of a MIDI file, open file, score, or a line.
            track: Index of the track to take, instead of the best.
        """
        if isinstance(midi, dict):
            return describe_line(midi, self.max_bars)
        tunes = self.tunes(midi)
        return describe_line(choose_tune(tunes, track), self.max_bars, tunes)

    def __call__(
        self,
        midi: MidiInput | Iterable[MidiInput] | None = None,
        lines: dict | Iterable[dict] | None = None,
        first_bar: int = 0,
        bars: int | None = None,
        track: int | None = None,
        primer: bool = False,
        return_tensors: str | None = None,
        padding: bool | str = True,
        **kwargs,
    ) -> BatchFeature:
        """Prepare melodies for the model.

        Args:
            midi: One MIDI file or several, see [`MelodyProcessor.read`]; the tune is found in each.
            lines: Melody lines instead, such as rows of the data set.
            first_bar: Where to cut the window; bars of the line before it.
            bars: Length of the window, at most and by default `max_bars`.
            track: Index of the track that has the tune, in a MIDI file; by default it is found.
            primer: Leave the end open and pad on the left, for continuation.
            return_tensors: `pt` for tensors.
            padding: As in tokenizers.
            kwargs: Passed to the tokenizer.

        Returns:
            `input_ids` and `attention_mask`, `(B, T)`.

        Raises:
            ValueError: If an input is no melody; says which and why.
        """
        if (midi is None) == (lines is None):
            raise ValueError("give either midi= or lines=")
        # Read the melodies, and check each before anything is cut.
        first_bar = check_count("first_bar", first_bar)
        bars = self.max_bars if bars is None else min(check_count("bars", bars, 1), self.max_bars)
        given: list[Any] = [lines] if isinstance(lines, Mapping) else list(lines or [])
        given = self.read(midi, track) if midi is not None else given
        if not given:
            raise ValueError("no melodies: what was given is empty")
        for index, line in enumerate(given):
            check_line(line, f"melody {index}")
            if line["steps_per_beat"] != self.steps_per_beat:
                raise ValueError(f"{line['steps_per_beat']} steps per beat; this processor has {self.steps_per_beat}")
        # Cut the window out of each.
        windows = [cut_bars(line, first_bar, bars) for line in given]
        if empty := [index for index, window in enumerate(windows) if window["bars"] < 1]:
            raise ValueError(f"melody {empty[0]} has {given[empty[0]]['bars']} bars, so none from bar {first_bar} on")
        # Words of MidiTok's REMI, then BPE; a primer is padded on the left, so that all go on at one place.
        repeats = repeat_tokens(self.tokenizer)
        texts = [words_to_text(line_to_words(window), repeats) for window in windows]
        if primer:
            kwargs["padding_side"] = "left"
            texts = [self.tokenizer.bos_token + text for text in texts]
        encoded = self.tokenizer(
            texts,
            add_special_tokens=not primer,
            padding=padding,
            return_tensors=return_tensors,
            return_token_type_ids=False,
            **kwargs,
        )
        return BatchFeature(dict(encoded))

    def map_rows(self, rows: dict[str, list]) -> dict[str, list]:
        """Tokenise rows of the data set: `dataset.map(processor.map_rows, batched=True)`.

        Args:
            rows: A batch as `datasets` gives it, a list for each column; lines or windows, cut after `max_bars`.

        Returns:
            `input_ids` and `attention_mask`, a list for each row, not padded.

        Raises:
            ValueError: If a row is no melody for this processor; filter by [`MelodyProcessor.can_read`].
        """
        lines = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        return dict(self(lines=lines, padding=False))

    def to_lines(self, ids) -> list[dict]:
        """Read generated ids as lines, whatever they are: what is no note is left out, what overlaps is cut.

        Args:
            ids: `(B, T)` or a list of lists.

        Returns:
            One line per melody; the time signature is that of its first bar.

        Raises:
            ValueError: If they are not of this form, or one is not in the vocabulary.
        """
        rows = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
        if not all(isinstance(row, list | tuple) for row in rows):
            raise ValueError(f"ids: (B, T) is needed, a list of ids for each melody, not {str(ids)[:60]}")
        for index in set(chain.from_iterable(rows)):
            if check_count("id", index) >= len(self.tokenizer):
                raise ValueError(f"id {index} is not in the vocabulary of {len(self.tokenizer)}")
        return [self._to_line(row) for row in rows]

    def _to_line(self, ids: list[int]) -> dict:
        remi = self.remi
        base_tokens = self.tokenizer.convert_ids_to_tokens(ids, skip_special_tokens=True)
        characters = "".join(base_tokens).replace(WORD_PREFIX, "")
        tokens = [remi[ord(character) - FIRST_CHARACTER] for character in characters]
        signature = next((token for token in tokens if token.startswith("TimeSig")), "TimeSig_4/4")
        tokens = [signature if token.startswith("TimeSig") else token for token in tokens]
        numerator, denominator = map(int, signature.split("_")[1].split("/"))
        bars = tokens.count("Bar_None")
        end = bars * numerator * self.steps_per_beat
        decoded = remi.decode([TokSequence(tokens=tokens)]) if tokens else Score(remi.time_division)
        ticks_per_step = remi.time_division * 4 // (denominator * self.steps_per_beat)
        notes = [
            (note.start // ticks_per_step, note.duration // ticks_per_step, note.pitch)
            for track in decoded.tracks
            for note in track.notes
        ]
        starts, durations, pitches = make_monophonic(notes, end)
        return {
            "pitch": pitches,
            "start": starts,
            "duration": durations,
            "time_signature": f"{numerator}/{denominator}",
            "steps_per_beat": self.steps_per_beat,
            "bars": bars,
        }

    def to_scores(
        self, ids, tempo: float | str | None = None, program: int | None = None, like: dict | list[dict] | None = None
    ) -> list[types.Score]:
        """Write generated ids `(B, T)` as scores.

        Args:
            ids: `(B, T)` or a list of lists.
            tempo: Quarter notes per minute, or a class of tempos that samples can be asked for (`slow`, `medium`,
                `fast`); that of `like`, or 120.
            program: General MIDI program, 0 to 127; that of `like`, or 0.
            like: A line, or one for each melody, from which the tempo, the program, the key signature and the first bar
                are taken: beside the file where [`read`] or [`windows`] found it, the melody is in its own place.

        Raises:
            ValueError: If there are not as many lines as melodies, no such class, or MIDI cannot hold it.
        """
        if isinstance(tempo, str):
            if tempo not in TEMPO_CLASSES:
                raise ValueError(f"tempo={tempo!r} is neither a number nor one of {', '.join(TEMPO_CLASSES)}")
            tempo = TEMPO_CLASSES[tempo][-1]
        if tempo is not None:
            check_number("tempo", tempo, SLOWEST, FASTEST)
        lines = self.to_lines(ids)
        sources = [like or {}] * len(lines) if like is None or isinstance(like, dict) else like
        if len(sources) != len(lines):
            raise ValueError(f"like= has {len(sources)} lines for {len(lines)} melodies")
        given = {name: value for name, value in (("tempo", tempo), ("program", program)) if value is not None}
        scores = []
        for line, source in zip(lines, sources, strict=True):
            sound = {name: source[name] for name in ("tempo", "program", "key") if name in source}
            if "tempo" in sound:  # a file's may be anything
                sound["tempo"] = min(max(float(sound["tempo"]), SLOWEST), FASTEST)
            scores.append(line_to_score({**line, **sound, **given}, first_bar=source.get("first_bar", 0)))
        return scores

    def to_midi_bytes(
        self, ids, tempo: float | str | None = None, program: int | None = None, like: dict | list[dict] | None = None
    ) -> list[bytes]:
        """Write generated ids `(B, T)` as MIDI files; see [`MelodyProcessor.to_scores`]."""
        return [score.dumps_midi() for score in self.to_scores(ids, tempo, program, like)]
