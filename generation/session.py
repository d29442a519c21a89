"""A session with a loaded model: the melodies to start from, the page to write, and what was asked for.

datasets is imported inside functions, so that `--help` and a wrong option answer at once.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from command import UserError, first_line
from generation.exported import FOLDER, why_not
from generation.loading import load_model, load_originality
from rendering.output_page import OutputPage
from rendering.page import Item

COLUMNS = {"melody_id", "is_lead", "bars", "tempo", "program", "time_signature"}
COLUMNS |= {"steps_per_beat", "pitch", "start", "duration"}
TEMPO = 120.0  # quarter notes per minute, of melodies that have none of their own


@dataclass
class Options:
    """What to do with a model; the flags of `generate.py`.

    Attributes:
        model: Folder or id on the Hub.
        output: Folder for everything that is written.
        command: Which of generate.py's.
        needs_latent: Whether the command can do nothing with a model that has none.
        midi: MIDI files to take melodies from.
        dataset: Data set to take them from otherwise.
        split: Of the data set.
        num: How many melodies.
        bars: Their length; None is as long as the model holds.
        primer_bars: Bars to keep of a melody that is continued.
        steps: Melodies of an interpolation, ends included.
        similarity: Of variations, from 0, another melody, to 1, the same.
        attribute: To shift, by each of `amounts`, in standard deviations of the training data.
        amounts: See `attribute`.
        fill_bars: Bars to write anew, counted from 1.
        temperature: Of sampling.
        track: Of a MIDI file; None is the likeliest tune.
        key: What new notes shall be like; see `MelodyVAEModel.sample` for this and the next four.
        scale: Their only pitches.
        time_signature: Their meter.
        genre: Their genre.
        attributes: Pairs of an attribute and standard deviations from the training data's mean.
        check_originality: Index of training melodies to compare with.
        tempo: In quarter notes per minute, or a class of tempos; None is the original's.
        program: General MIDI instrument; None is the original's.
        audio: Sound files, `wav` or `mp3`.
        seed: Of everything random.
        runtime: `torch`, `onnx`, or `auto` for onnxruntime where the model has graphs.
    """

    model: str
    output: str
    command: str = "sample"
    needs_latent: bool = False
    midi: list[str] | None = None
    dataset: str | None = None
    split: str = "validation"
    num: int = 4
    bars: int | None = None
    primer_bars: int = 4
    steps: int = 7
    similarity: float = 0.8
    attribute: str | None = None
    amounts: Sequence[float] = (-2.0, -1.0, 1.0, 2.0)
    fill_bars: Sequence[int] = ()
    temperature: float = 1.0
    track: int | None = None
    key: str | None = None
    scale: str | None = None
    time_signature: str | None = None
    genre: str | None = None
    attributes: Sequence[tuple[str, float]] = ()
    check_originality: str | None = None
    tempo: float | str | None = None
    program: int | None = None
    audio: str = "wav"
    seed: int = 0
    runtime: str = "auto"


def choose_runtime(options: Options) -> str:
    """Choose what computes the model; says so where its graphs are there and torch does.

    Raises:
        UserError: If onnxruntime is asked for and cannot.
    """
    if options.runtime == "torch":
        return "torch"
    reason = why_not(options.model, options.command, options.runtime)
    if reason is None:
        return "onnx"
    if options.runtime == "onnx":
        raise UserError(f"--runtime onnx: {reason}")
    if (Path(options.model) / FOLDER).is_dir():
        print(f"With torch: {reason}", flush=True)
    return "torch"


class Session:
    """A loaded model with its processor, the page it writes, and the options.

    Args:
        options: What to do.

    Attributes:
        runtime: `torch` or `onnx`.
        bars: Length of the melodies, which the model decides where the options do not.
        sources: A sentence on each MIDI file that was read.

    Raises:
        UserError: If the model cannot be loaded or cannot do what is asked.
    """

    def __init__(self, options: Options):
        self.options = options
        self.name = Path(options.model).resolve().name if Path(options.model).exists() else options.model
        self.runtime = choose_runtime(options)
        self.processor, self.model = load_model(options.model, self.runtime)
        if options.needs_latent and not self.model.config.latent_size:
            raise UserError(
                f"{options.model}: this model has no latent (latent_size=0), which {options.command} needs; "
                "use sample or continue, or another --model"
            )
        longest = self.processor.max_bars
        self.bars = options.bars or longest
        if self.bars > longest:
            raise UserError(f"--bars {self.bars}: {options.model} holds 1 to {longest} bars; choose one of those")
        if options.command in ("continue", "tour") and options.primer_bars >= self.bars:
            raise UserError(
                f"--primer_bars {options.primer_bars}: nothing is left to write of --bars {self.bars}; lower it"
            )
        self.sources: list[str] = []
        self.output_page = OutputPage(Path(options.output), options.audio)
        self.originality = load_originality(index) if (index := options.check_originality) else None

    def lines(self, count: int) -> list[dict]:
        """Get the melodies to start from, with a `name` each: those of --midi, or `count` of --dataset."""
        if self.options.midi:
            return [self.read_midi(file) for file in self.options.midi]
        return self.choose_lines(count)

    def read_midi(self, file: str) -> dict:
        """Find the tune of a MIDI file.

        Raises:
            UserError: If it has none that the model can read.
        """
        try:
            (line,) = self.processor.read(file, self.options.track)
        except ValueError as error:
            raise UserError(str(error)) from error
        first = line["first_bar"]
        taken = f"bars {first + 1} to {first + min(self.bars, line['bars'])} are taken"
        said = f"{self.processor.describe({**line, 'file': Path(file).name})}; {taken}"
        self.sources.append(said)
        print(said, flush=True)
        if not line["is_lead"] and self.options.track is None:
            print(f"{file}: no track is surely the tune; choose one by --track if it is another", file=sys.stderr)
        return {**line, "name": Path(file).name}

    def choose_lines(self, count: int) -> list[dict]:
        """Choose lead lines of at least --bars bars by the seed; fewer are the beginning of more.

        Raises:
            UserError: If there is no such data set, or it has too few.
        """
        import datasets

        options = self.options
        where = f"{options.dataset}, split {options.split}"
        try:
            lines = datasets.load_dataset(str(options.dataset), split=options.split)
        except Exception as error:  # a folder without data, an unknown id, a missing split: each has its own class
            raise UserError(
                f"{where}: no data set there ({first_line(error)}); "
                "build one with python -m dataset_script.build --input ARCHIVE --output DIR"
            ) from error
        if missing := COLUMNS - set(lines.column_names):
            raise UserError(f"{where}: the column {sorted(missing)[0]} is missing; build it with dataset_script.build")
        about = zip(*(lines[name][:] for name in ("is_lead", "bars", "time_signature", "steps_per_beat")), strict=True)
        fitting = [
            index
            for index, (is_lead, bars, time_signature, steps_per_beat) in enumerate(about)
            if is_lead and bars >= self.bars and self.processor.can_read(time_signature, steps_per_beat)
        ]
        if len(fitting) < count:
            raise UserError(
                f"{where}: {count} lead melodies of {self.bars} bars or more are needed, and it has {len(fitting)} "
                "that the model can read; lower --num or --bars, or choose another --split"
            )
        random.Random(options.seed).shuffle(fitting)
        return [{**lines[index], "name": lines[index]["melody_id"]} for index in fitting[:count]]

    def encode(self, batch):
        """Return latents `(B, Z)` that give melodies back, refined where the runtime has gradients."""
        import torch

        with torch.no_grad():
            latent = self.model.encode(**batch).latent_mean
        return latent if self.runtime == "onnx" else self.model.refine(latent, batch["input_ids"])

    def conditions(self) -> dict[str, Any]:
        """Return what the model is asked for: arguments of `sample`, `infill` and `continue_melody`."""
        from modeling.melody_line_melody_vae import tempo_class

        options, config = self.options, self.model.config
        known = config.conditions or {} if config.num_prior_layers else {}
        asked: dict[str, Any] = {"key": options.key, "genre": options.genre, **dict(options.attributes)}
        pace = options.tempo if options.tempo is None or isinstance(options.tempo, str) else tempo_class(options.tempo)
        if pace in known.get("tempo", ()):  # for others the tempo is how fast it is played
            asked["tempo"] = pace
        constraints = {"scale": options.scale, "time_signature": options.time_signature}
        given = {name: value for name, value in constraints.items() if value is not None}
        return {**given, "conditions": {name: value for name, value in asked.items() if value is not None}}

    def score(self, ids, line: dict):
        """Write one melody's ids as a score, with a line's tempo and program unless the command line says otherwise."""
        tempo = line.get("tempo", TEMPO) if self.options.tempo is None else self.options.tempo
        program = line.get("program", 0) if self.options.program is None else self.options.program
        return self.processor.to_scores([ids.tolist()], tempo=tempo, program=program)[0]

    def with_originality(self, items: Sequence[Item], batch) -> list[Item]:
        """Say and print what melodies of the model have in common with training melodies, where --check_originality."""
        if self.originality is None:
            return list(items)
        from metrics.originality.originality_index import describe

        described = []
        for item, line in zip(items, self.processor.to_lines(batch), strict=True):
            found = describe(self.originality.report(line))
            print(f"{item.title}: {found}")
            described.append(replace(item, text=f"{item.text}. {found}"))
        return described

    @contextmanager
    def progress(self, title: str) -> Iterator[dict[str, Any]]:
        """Show how many bars are written; gives the option of the model's operations that counts them."""
        with tqdm(total=self.bars, desc=title, unit="bar") as meter:

            def count(ids, scores):
                meter.update(int(self.model.is_bar_token[ids].sum(-1).min()) - meter.n)
                return scores

            def update(bars):
                meter.update(bars - meter.n)

            yield {"progress": update} if self.runtime == "onnx" else {"logits_processor": [count]}
