"""Play with a trained melody VAE: `python generate.py sample --model DIR_OR_ID --output DIR`.

Every command writes each melody as MIDI, as sound and as a picture, and an `index.html` to see and hear them all. The
model is only a folder or an id on the Hub here, as it is for any other user: its code comes with it.

torch, transformers, datasets and matplotlib are imported inside functions, so that `--help` and a wrong option answer
at once.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from command import UserError, check_links, first_line, run_command
from rendering.page import Item, Picture, Section, write_page

MODEL_FILES = ("config.json", "processor_config.json", "tokenizer.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
LOG_NAME = "training_log.json"  # what train.py leaves beside the weights
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
COLUMNS = {"melody_id", "is_lead", "bars", "tempo", "program", "time_signature"}
COLUMNS |= {"steps_per_beat", "pitch", "start", "duration"}
LIMITS = {  # --bars ends at what the model can hold, see Studio
    "num": (1, 100),
    "steps": (1, 32),
    "bars": (1, 1000),
    "primer_bars": (1, 1000),
    "temperature": (0.01, 100),
    "similarity": (0, 1),
    "amounts": (-5, 5),
    "tempo": (10, 400),
    "program": (0, 127),
    "seed": (0, 2**32 - 1),
}
TEMPO = 120.0  # quarter notes per minute, of melodies that have none of their own


class Album:
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
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{folder}: not a folder, nor can one be made ({error.strerror}); choose another --output"
            ) from error

    def melody(self, name: str, title: str, score, bars: int | None = None) -> Item:
        """Announce NAME.mid, NAME.png and its sound, of `bars` bars if given; returns what the page shows of them."""
        from rendering.piano_roll import describe, write_piano_roll
        from rendering.sound import WRITERS, synthesise

        def record() -> None:
            score.dump_midi(str(self.folder / f"{name}.mid"))
            WRITERS[self.audio](self.folder / f"{name}.{self.audio}", synthesise(score))

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


class Studio:
    """A loaded model with its processor, the album it plays for, and the wishes of the command line.

    Args:
        args: The command line's arguments; `bars` is filled in from the model if it is None.

    Raises:
        UserError: If the model cannot be loaded or cannot do what is asked.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.name = Path(args.model).resolve().name if Path(args.model).exists() else args.model
        self.processor, self.model = load_model(args.model)
        if args.needs_latent and not self.model.config.latent_size:
            raise UserError(
                f"{args.model}: this model has no latent (latent_size=0), which {args.command} needs; "
                "use sample or continue, or another --model"
            )
        longest = self.processor.max_bars
        args.bars = args.bars or longest
        if args.bars > longest:
            raise UserError(f"--bars {args.bars}: {args.model} holds 1 to {longest} bars; choose one of those")
        if args.command in ("continue", "tour") and args.primer_bars >= args.bars:
            raise UserError(
                f"--primer_bars {args.primer_bars}: nothing is left to write of --bars {args.bars}; lower it"
            )
        self.album = Album(Path(args.output), args.audio)
        self.originality = load_originality(index) if (index := vars(args).get("check_originality")) else None

    def lines(self, count: int) -> list[dict]:
        """Get the melodies to start from, with a `name` each: those of --midi, or `count` of --dataset."""
        if self.args.midi:
            return [self.read_midi(file) for file in self.args.midi]
        return self.choose_lines(count)

    def read_midi(self, file: str) -> dict:
        """Find the tune of a MIDI file.

        Raises:
            UserError: If it has none that the model can read.
        """
        try:
            (line,) = self.processor.read(file)
        except ValueError as error:
            raise UserError(str(error)) from error
        return {**line, "name": Path(file).name}

    def choose_lines(self, count: int) -> list[dict]:
        """Choose lead lines of at least --bars bars by the seed; fewer are the beginning of more.

        Raises:
            UserError: If there is no such data set, or it has too few.
        """
        import datasets

        args = self.args
        where = f"{args.dataset}, split {args.split}"
        try:
            lines = datasets.load_dataset(args.dataset, split=args.split)
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
            if is_lead and bars >= args.bars and self.processor.can_read(time_signature, steps_per_beat)
        ]
        if len(fitting) < count:
            raise UserError(
                f"{where}: {count} lead melodies of {args.bars} bars or more are needed, and it has {len(fitting)} "
                "that the model can read; lower --num or --bars, or choose another --split"
            )
        random.Random(args.seed).shuffle(fitting)
        return [{**lines[index], "name": lines[index]["melody_id"]} for index in fitting[:count]]

    def score(self, ids, line: dict):
        """Write one melody's ids as a score, with a line's tempo and program unless the command line says otherwise."""
        tempo = line.get("tempo", TEMPO) if self.args.tempo is None else self.args.tempo
        program = line.get("program", 0) if self.args.program is None else self.args.program
        return self.processor.to_scores([ids.tolist()], tempo=tempo, program=program)[0]

    def with_originality(self, items: Sequence[Item], batch) -> list[Item]:
        """Say and print what melodies of the model have in common with training melodies, where --check_originality."""
        if self.originality is None:
            return list(items)
        from metrics.originality.originality_index import describe

        told = []
        for item, line in zip(items, self.processor.to_lines(batch), strict=True):
            found = describe(self.originality.report(line))
            print(f"{item.title}: {found}")
            told.append(replace(item, text=f"{item.text}. {found}"))
        return told

    @contextmanager
    def progress(self, title: str) -> Iterator[list[Callable]]:
        """Show how many bars are written; gives the `logits_processor` that counts them."""
        with tqdm(total=self.args.bars, desc=title, unit="bar") as meter:

            def count(ids, scores):
                meter.update(int(self.model.is_bar_token[ids].sum(-1).min()) - meter.n)
                return scores

            yield [count]


def load_originality(path: str):
    """Load an index of training melodies.

    Raises:
        UserError: If there is none.
    """
    from metrics.originality.originality_index import OriginalityIndex

    try:
        return OriginalityIndex.load(path)
    except OSError as error:
        raise UserError(
            f"--check_originality {path}: cannot be read ({error.strerror}); "
            "make an index with python -m evaluation.originality build"
        ) from error
    except ValueError as error:
        raise UserError(f"--check_originality {error}") from error


def load_model(name: str) -> tuple[Any, Any]:
    """Load a processor and a model from a folder or the Hub, with the code that lies there.

    Raises:
        UserError: If there is none, or it is another kind of model.
    """
    import huggingface_hub
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()  # no network is one line, not a report of every try
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    check_links(name)
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=True)
        if config.model_type == "melody_vae":
            processor = transformers.AutoProcessor.from_pretrained(name, trust_remote_code=True)
            return processor, transformers.AutoModel.from_pretrained(name, trust_remote_code=True)
    except Exception as error:  # no network, an unknown id, broken JSON or weights: each has its own class
        what = "broken" if Path(name).exists() else "neither a folder nor a model on the Hub that can be reached"
        raise UserError(f"{name}: {what} ({first_line(error)}); give a folder of train.py or a Hub id") from error
    raise UserError(f"{name}: a model of the kind {config.model_type}, no melody VAE; choose another --model")


def check(args: argparse.Namespace) -> None:
    """Check all that can be checked before anything heavy is imported.

    Raises:
        UserError: For the first thing wrong.
    """
    for name, (low, high) in LIMITS.items():
        value = vars(args).get(name)
        for each in value if isinstance(value, list | tuple) else (value,):
            if each is not None and not low <= each <= high:
                raise UserError(f"--{name} {each}: must lie between {low} and {high}")
    folder = Path(args.model)
    if folder.is_dir():
        missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
        if not any((folder / name).is_file() for name in WEIGHTS):
            missing.append(WEIGHTS[0])
        if missing:
            raise UserError(f"{folder}: {missing[0]} is missing; give a folder in which train.py has finished")
    elif folder.exists() or not HUB_ID.fullmatch(args.model) or ("/" in args.model and folder.parent.is_dir()):
        raise UserError(f"{folder}: no such folder; give a folder that train.py wrote, or an id on the Hub")


def sample(studio: Studio) -> Section:
    """Write melodies from nothing, each by a seed of its own."""
    args = studio.args
    seeds = range(args.seed, args.seed + args.num)
    drawn = generators(studio)
    with studio.progress("Writing samples") as counter:
        batch = studio.model.sample(
            args.num, generator=drawn, temperature=args.temperature, bars=args.bars, logits_processor=counter
        )
    items = [
        studio.album.melody(f"sample-seed{seed}", f"Sample of seed {seed}", studio.score(ids, {}), args.bars)
        for seed, ids in zip(seeds, batch, strict=True)
    ]
    items = studio.with_originality(items, batch)
    return Section("Samples", "Melodies from nothing: the model drew a latent from its prior and wrote it out.", items)


def reconstruct(studio: Studio) -> Section:
    """Squeeze melodies through the latent and compare what comes out."""
    from rendering.piano_roll import agreement, write_piano_roll

    lines = studio.lines(studio.args.num)
    batch = studio.processor(lines=lines, bars=studio.args.bars, return_tensors="pt")
    with studio.progress("Reconstructing") as counter:
        rebuilt_ids = studio.model.reconstruct(**batch, logits_processor=counter)
    items = []
    for number, (line, *both) in enumerate(zip(lines, batch["input_ids"], rebuilt_ids, strict=True), start=1):
        name = f"reconstruction-{number}"
        scores = [studio.score(ids, line) for ids in both]
        verdicts, bars = agreement(*scores), min(line["bars"], studio.args.bars)
        text = (
            f"{line['name']}: {sum(verdicts[0])} of {len(verdicts[0])} notes came back with the same onset and pitch; "
            f"the reconstruction has {len(verdicts[1])}."
        )
        alt = f"Piano rolls of original {number}, above, and its reconstruction, below. {text}"
        takes = [
            studio.album.melody(f"{name}-original", f"Original {number}", scores[0], bars),
            studio.album.melody(f"{name}-rebuilt", f"Reconstruction {number}", scores[1], bars),
        ]
        picture = studio.album.picture(f"{name}-comparison", alt, write_piano_roll, scores, bars=bars, compare=True)
        items.append(Item(f"Melody {number}", picture, text=text, takes=takes))
    latent_size = studio.model.config.latent_size
    return Section(
        "Reconstructions",
        f"Each melody was squeezed into {latent_size} numbers, the latent, and written anew from them alone.",
        items,
    )


def continue_melody(studio: Studio) -> Section:
    """Keep the first bars of a melody and write on."""
    args, model = studio.args, studio.model
    line = studio.lines(1)[0]
    if args.primer_bars > line["bars"]:
        raise UserError(f"--primer_bars {args.primer_bars}: {line['name']} has only {line['bars']} bars; lower it")
    primer = studio.processor(lines=line, bars=args.primer_bars, primer=True, return_tensors="pt")
    with studio.progress("Continuing") as counter:
        batch = model.continue_melody(
            **{name: value.repeat(args.num, 1) for name, value in primer.items()},
            bars=args.bars,
            generator=generators(studio),
            temperature=args.temperature,
            logits_processor=counter,
        )
    start = studio.score(primer["input_ids"][0], line)
    beginning = studio.album.melody("continuation-primer", "The beginning", start, args.bars)
    takes = show_takes(studio, "continuation", (f"The first {args.primer_bars} bars", start), line, batch)
    text = f"The first {args.primer_bars} bars of {line['name']} are kept; the model wrote on, up to bar {args.bars}."
    return Section("Continuations", text, [beginning, *takes])


def show_takes(
    studio: Studio, kind: str, original: tuple[str, Any], line: dict, batch, titles: Sequence[str] | None = None
) -> list[Item]:
    """Announce what the model made of a melody, each compared with it. `original`: the melody's title and score."""
    from rendering.piano_roll import write_piano_roll

    items, (title, start), bars = [], original, studio.args.bars
    for number, ids in enumerate(batch, start=1):
        name, score = f"{kind}-{number}", studio.score(ids, line)
        take = titles[number - 1] if titles else f"{kind[0].upper()}{kind[1:]} {number}"
        melody = studio.album.melody(name, take, score, bars)
        below = f"{take[0].lower()}{take[1:]}"
        alt = f"Piano rolls of {title[0].lower()}{title[1:]}, above, and of {below}, below: {melody.text}"
        picture = studio.album.picture(
            f"{name}-comparison", alt, write_piano_roll, [start, score], (title, take), bars, compare=True
        )
        items.append(replace(melody, picture=picture))
    return studio.with_originality(items, batch)


def show_beside_melody(
    studio: Studio, kind: str, line: dict, batch, made, titles: Sequence[str] | None = None
) -> list[Item]:
    """Announce a whole melody, and what the model made of it."""
    original = studio.score(batch["input_ids"][0], line)
    first = studio.album.melody("original", "The melody", original, studio.args.bars)
    return [first, *show_takes(studio, kind, ("The melody", original), line, made, titles)]


def generators(studio: Studio) -> list:
    """Make a generator of random numbers for each melody, so that its neighbours have no say in it."""
    import torch

    seeds = range(studio.args.seed, studio.args.seed + studio.args.num)
    return [torch.Generator(studio.model.device).manual_seed(seed) for seed in seeds]


def vary(studio: Studio) -> Section:
    """Draw a melody's latent again, as close to it as is asked for."""
    import torch

    args, line = studio.args, studio.lines(1)[0]
    batch = studio.processor(lines=line, bars=args.bars, return_tensors="pt")
    args.bars = min(line["bars"], args.bars)
    with torch.no_grad():
        latent = studio.model.encode(**batch).latent_mean
    with studio.progress("Varying") as counter:
        varied = studio.model.vary(
            latent,
            n=args.num,
            similarity=args.similarity,
            generator=generators(studio),
            bars=args.bars,
            logits_processor=counter,
        )
    text = f"{line['name']} and its variations; similarity {args.similarity:g}, where 1 is the melody itself."
    return Section("Variations", text, show_beside_melody(studio, "variation", line, batch, varied))


def infill(studio: Studio) -> Section:
    """Write some bars of a melody anew, and leave the others as they are."""
    args, line = studio.args, studio.lines(1)[0]
    args.bars = min(line["bars"], args.bars)
    if missing := [bar for bar in args.fill_bars if bar > args.bars]:
        raise UserError(f"--fill_bars: {line['name']} has {args.bars} bars and no bar {missing[0]}; name others")
    if not studio.model.config.grammar_columns:
        raise UserError(f"{args.model}: knows no grammar of its tokens, as models of train.py do; take one of those")
    batch = studio.processor(lines=line, bars=args.bars, return_tensors="pt")
    with studio.progress("Filling") as counter:
        filled = studio.model.infill(
            **{name: value.repeat(args.num, 1) for name, value in batch.items()},
            bars=[bar - 1 for bar in args.fill_bars],
            generator=generators(studio),
            temperature=args.temperature,
            logits_processor=counter,
        )
    told = ", ".join(map(str, args.fill_bars))
    text = f"Of {line['name']}, bars {told} were written anew; the others are as they were."
    return Section("Fillings", text, show_beside_melody(studio, "filling", line, batch, filled))


def shift(studio: Studio) -> Section:
    """Give a melody more or less of an attribute, and leave the others as they are."""
    import torch
    from tqdm.auto import tqdm

    args, line = studio.args, studio.lines(1)[0]
    if args.attribute not in (known := studio.model.config.attributes or []):
        remedy = f"knows {', '.join(known)}" if known else "knows no attributes; train its prior with train_prior.py"
        raise UserError(f"--attribute {args.attribute}: {args.model} {remedy}")
    batch = studio.processor(lines=line, bars=args.bars, return_tensors="pt")
    args.bars = min(line["bars"], args.bars)
    latent = studio.model.encode(**batch).latent_mean
    amounts = tqdm(args.amounts, desc="Shifting", unit=" melodies")
    latents = [studio.model.shift(latent, args.attribute, amount, bars=args.bars) for amount in amounts]
    shifted = studio.model.decode(torch.cat(latents), bars=args.bars)
    name = args.attribute.replace("_", " ")
    titles = [f"{name[0].upper()}{name[1:]} {amount:+g}" for amount in args.amounts]
    text = f"{line['name']} with more and less {name}, in standard deviations of the training data; all else as it was."
    return Section("Shifts", text, show_beside_melody(studio, "shift", line, batch, shifted, titles))


def bar_numbers(text: str) -> list[int]:
    """Read bars such as 5-8 or 2,4,7-9, counted from 1."""
    bars: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last:
            raise argparse.ArgumentTypeError(f"{text}: name bars as in 5-8 or 2,4,7-9; the first bar is 1")
        bars.update(range(first, last + 1))
    return sorted(bars)


def interpolate(studio: Studio) -> Section:
    """Walk from one melody to another through the latent space."""
    import torch

    from rendering.piano_roll import write_piano_roll

    args, model, steps = studio.args, studio.model, studio.args.steps
    items = []
    if args.midi or args.dataset:
        lines = studio.lines(2)
        batch = studio.processor(lines=lines, bars=args.bars, return_tensors="pt")
        with torch.no_grad():
            latents = model.encode(**batch).latent_mean
        for letter, line, ids in zip("AB", lines, batch["input_ids"], strict=True):
            name = f"interpolation-{letter.lower()}-original"
            items.append(studio.album.melody(name, f"Original {letter}", studio.score(ids, line)))
        origin = f"the originals, A ({lines[0]['name']}) and B ({lines[1]['name']})"
    else:
        lines = [{"bars": args.bars, "tempo": TEMPO}] * 2
        ids = model.sample(2, seed=args.seed, bars=args.bars)
        with torch.no_grad():
            latents = model.encode(ids, ids.ne(model.config.pad_token_id).long()).latent_mean
        origin = "two new melodies"
    ends = [min(line["bars"], args.bars) for line in lines]
    weights = torch.linspace(0, 1, steps)
    bars = torch.lerp(torch.tensor(float(ends[0])), torch.tensor(float(ends[1])), weights).round().long()
    with studio.progress("Interpolating") as counter:
        batch = model.interpolate(*latents, steps=steps, bars=bars, logits_processor=counter)
    scores, titles = [], []
    for number, (ids, weight) in enumerate(zip(batch, weights.tolist(), strict=True), start=1):
        tempo = (1 - weight) * lines[0]["tempo"] + weight * lines[1]["tempo"]
        scores.append(studio.score(ids, {**lines[round(weight)], "tempo": tempo}))
        titles.append(f"{number}: {1 - weight:.0%} A, {weight:.0%} B")
        items.append(studio.album.melody(f"interpolation-{number}", titles[-1], scores[-1]))
    strip = studio.album.picture(
        "interpolation",
        f"Piano rolls of the {steps} steps below one another, from A to B",
        write_piano_roll,
        scores,
        titles,
        max(ends),
    )
    return Section(
        "Interpolation",
        f"From A to B in {steps} steps, along the arc between {origin}; every step is written out from its latent.",
        [replace(item, picture=None) for item in items],
        pictures=[strip],
    )


def training_curves(studio: Studio) -> Section | None:
    """Draw the curves of the model's training log; None if it has no log.

    Raises:
        UserError: If the log is broken.
    """
    from transformers.utils.hub import cached_file

    from rendering.curves import write_curves

    path = cached_file(studio.args.model, LOG_NAME, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    try:
        history = json.loads(Path(path).read_text(encoding="utf-8"))["history"]
        steps = [entry["step"] for entry in history]
        curves = {
            name: (steps, [float(entry[name]) for entry in history])
            for name in ("bits_per_note", "reconstruction_nats", "kl_nats")
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a log of train.py; take it away for a page without curves") from error
    if not history:
        return None
    last = {name: values[-1] for name, (_, values) in curves.items()}
    bits = studio.album.picture(
        "training-bits",
        f"Curve of bits per note over training steps, ending at {last['bits_per_note']:.3g}",
        write_curves,
        {"validation": curves["bits_per_note"]},
        title="What a note costs",
        y_label="bits per note, the bound (reconstruction + KL)",
    )
    nats = studio.album.picture(
        "training-nats",
        f"Curves over training steps, ending at {last['reconstruction_nats']:.3g} nats per melody of reconstruction "
        f"and {last['kl_nats']:.3g} of KL",
        write_curves,
        {"reconstruction": curves["reconstruction_nats"], "KL": curves["kl_nats"]},
        title="What is left to guess, and what the latent carries",
        y_label="nats per melody",
    )
    text = f"Measured on validation melodies during {steps[-1]:,} training steps, each with one draw of its latent."
    return Section("Training", text, pictures=[bits, nats])


COMMANDS: dict[str, tuple[Sequence[Callable[[Studio], Section | None]], str, str]] = {
    "sample": ([sample], "New melodies", "write melodies from nothing"),
    "reconstruct": ([reconstruct], "Melodies through the latent", "squeeze melodies through the latent, and compare"),
    "continue": ([continue_melody], "A melody, continued", "keep the first bars of a melody and write on"),
    "infill": ([infill], "Bars written anew", "write some bars of a melody anew, the others stay as they are"),
    "vary": ([vary], "A melody and its variations", "write variations of a melody"),
    "shift": ([shift], "A melody with more or less of something", "give a melody more or less of an attribute"),
    "interpolate": ([interpolate], "From one melody to another", "walk from one melody to another"),
    "tour": (
        [sample, reconstruct, continue_melody, interpolate, training_curves],
        "What the model can do",
        "all of it on one page, with the curves of training",
    ),
}
"""Of each command: its sections, the page's title, and a line of help."""


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description="Play with a trained melody VAE: MIDI, sound, pictures and a page.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, _, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(midi=None, dataset=None, needs_latent=name not in ("sample", "continue", "infill"))
        command.add_argument("--model", required=True, metavar="DIR_OR_ID", help="folder or Hub id of the model")
        command.add_argument("--output", required=True, metavar="DIR", help="folder for everything that is written")
        if name == "tour":
            command.add_argument("--dataset", required=True, metavar="DIR", help="data set to take melodies from")
        elif name != "sample":
            source = command.add_mutually_exclusive_group(required=name != "interpolate")
            several = {"reconstruct": ("+", "FILE"), "interpolate": (2, ("A", "B"))}
            nargs, metavar = several.get(name, (1, "FILE"))
            source.add_argument("--midi", nargs=nargs, metavar=metavar, help="MIDI files; the tune is found in each")
            source.add_argument("--dataset", metavar="DIR", help="take melodies of this data set, chosen by the seed")
        if name != "sample":
            splits = ("validation", "test", "train")
            command.add_argument("--split", choices=splits, default=splits[0], help="of the data set (%(default)s)")
        if name not in ("interpolate", "shift"):
            num = {"continue": 2, "infill": 2, "tour": 3}.get(name, 4)
            command.add_argument("--num", type=int, default=num, help="how many melodies (%(default)s)")
        if name in ("continue", "tour"):
            command.add_argument("--primer_bars", type=int, default=4, help="bars to keep (%(default)s)")
        if name in ("interpolate", "tour"):
            command.add_argument(
                "--steps", type=int, default=7, help="melodies on the way, ends included (%(default)s)"
            )
        if name == "vary":
            help_ = "from 0, another melody, to 1, the melody itself (%(default)s)"
            command.add_argument("--similarity", type=float, default=0.8, help=help_)
        if name == "shift":
            help_ = "such as note_density, pitch_range or syncopation; a wrong one is answered with all that there are"
            command.add_argument("--attribute", required=True, help=help_)
            help_ = "standard deviations of the training data (%(default)s)"
            command.add_argument("--amounts", type=float, nargs="+", default=(-2.0, -1.0, 1.0, 2.0), help=help_)
        if name == "infill":
            help_ = "bars to write anew, as in 5-8 or 2,4,7-9"
            command.add_argument("--fill_bars", required=True, type=bar_numbers, metavar="BARS", help=help_)
        if name in ("sample", "continue", "infill", "tour"):
            help_ = "below 1 tamer, above 1 bolder (%(default)s)"
            command.add_argument("--temperature", type=float, default=1.0, help=help_)
        if name in ("sample", "continue", "infill", "vary", "shift", "tour"):
            help_ = "say what each melody has in common with training melodies (evaluation.originality build makes it)"
            command.add_argument("--check_originality", metavar="INDEX", help=help_)
        command.add_argument("--bars", type=int, help="length of the melodies (as many as the model holds, often 16)")
        command.add_argument("--tempo", type=float, help="quarter notes per minute (the original's, or 120)")
        command.add_argument(
            "--program", type=int, help="General MIDI instrument, 0 to 127 (the original's, or 0: piano)"
        )
        command.add_argument("--audio", choices=("wav", "mp3"), default="wav", help="sound files (%(default)s)")
        command.add_argument("--seed", type=int, default=0, help="same seed, same melodies (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(write, make_parser().parse_args(argv))


def write(args: argparse.Namespace) -> None:
    """Load the model, let it write, and put what it wrote on a page."""
    check(args)
    print(f"Loading {args.model}", flush=True)
    studio = Studio(args)
    compose, title, _ = COMMANDS[args.command]
    sections = [section for make in compose if (section := make(studio))]
    size = f"{studio.model.num_parameters() / 1e6:.1f} million parameters"
    introduction = f"Melodies of {studio.name}, a variational autoencoder of {size}. Nothing was picked out or mended."
    footer = f"Written by generate.py {args.command}, seed {args.seed}. The same seed gives the same melodies."
    page = studio.album.publish(title, introduction, sections, footer)
    print(f"Listen and look: {page}")


if __name__ == "__main__":
    sys.exit(main())
