"""The sections of generate.py's page: each plays one thing with the model and says what it did.

torch, transformers and matplotlib are imported inside functions, so that `--help` and a wrong option answer at once.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from command import UserError
from generation.session import TEMPO, Session
from rendering.page import Item, Section, Table

ATTRIBUTE_DIGITS = {  # after the point, of what a shift changes
    "note_density": 1,
    "rhythmic_complexity": 2,
    "pitch_range": 0,
    "mean_pitch": 1,
    "contour": 2,
    "repetition": 2,
    "syncopation": 2,
}
LOG_NAME = "training_log.json"  # what train.py leaves beside the weights


def sample(session: Session) -> Section:
    """Write melodies from nothing, each by a seed of its own."""
    options = session.options
    seeds = range(options.seed, options.seed + options.num)
    drawn, asked = generators(session), session.conditions()
    with session.progress("Writing samples") as counter, refusals():
        batch = session.model.sample(
            options.num,
            generator=drawn,
            temperature=options.temperature,
            bars=session.bars,
            **counter,
            **asked,
        )
    items = [
        session.output_page.melody(f"sample-seed{seed}", f"Sample of seed {seed}", session.score(ids, {}), session.bars)
        for seed, ids in zip(seeds, batch, strict=True)
    ]
    items = session.with_originality(items, batch)
    text = "Melodies from nothing, without a primer."
    if (count := getattr(session.model.config, "sampling_candidates", 1)) > 1:
        text += f" Each is the best of {count} candidates, chosen by a critic."
    return Section("Samples", text + describe_conditions(session), items)


@contextmanager
def refusals() -> Iterator[None]:
    """Say in a line what the model refuses of that which it is asked for."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{error}; ask for another, or for nothing of this kind") from error


def describe_conditions(session: Session) -> str:
    """Say what new notes were asked to be like; nothing if nothing was asked."""
    options = session.options
    asked = [options.key, options.scale and f"only pitches of {options.scale}", options.time_signature, options.genre]
    asked += [f"{name.replace('_', ' ')} {amount:+g}" for name, amount in options.attributes]
    words = [each for each in asked if each]
    return f" Asked for: {', '.join(words)}." if words else ""


def reconstruct(session: Session) -> Section:
    """Squeeze melodies through the latent and compare what comes out."""
    from rendering.piano_roll import agreement, write_piano_roll

    lines = session.lines(session.options.num)
    batch = session.processor(lines=lines, bars=session.bars, return_tensors="pt")
    with session.progress("Reconstructing") as counter:
        rebuilt_ids = session.model.reconstruct(**batch, **counter)
    items = []
    # Each melody beside its reconstruction, with what came back.
    for number, (line, *both) in enumerate(zip(lines, batch["input_ids"], rebuilt_ids, strict=True), start=1):
        name = f"reconstruction-{number}"
        scores = [session.score(ids, line) for ids in both]
        verdicts, bars = agreement(*scores), min(line["bars"], session.bars)
        text = (
            f"{line['name']}: {sum(verdicts[0])} of {len(verdicts[0])} notes came back with the same onset and pitch; "
            f"the reconstruction has {len(verdicts[1])}."
        )
        alt = f"Piano rolls of original {number}, above, and its reconstruction, below. {text}"
        versions = [
            session.output_page.melody(f"{name}-original", f"Original {number}", scores[0], bars),
            session.output_page.melody(f"{name}-rebuilt", f"Reconstruction {number}", scores[1], bars),
        ]
        picture = session.output_page.picture(
            f"{name}-comparison", alt, write_piano_roll, scores, bars=bars, compare=True
        )
        items.append(Item(f"Melody {number}", picture, text=text, versions=versions))
    latent_size = session.model.config.latent_size
    return Section(
        "Reconstructions",
        f"Each melody was squeezed into {latent_size} numbers, the latent, and written anew from them alone.",
        items,
    )


def continue_melody(session: Session) -> Section:
    """Keep the first bars of a melody and write on."""
    options, model = session.options, session.model
    line = session.lines(1)[0]
    if options.primer_bars > line["bars"]:
        raise UserError(f"--primer_bars {options.primer_bars}: {line['name']} has only {line['bars']} bars; lower it")
    primer = session.processor(lines=line, bars=options.primer_bars, primer=True, return_tensors="pt")
    with session.progress("Continuing") as counter, refusals():
        batch = model.continue_melody(
            **{name: value.repeat(options.num, 1) for name, value in primer.items()},
            **session.conditions(),
            bars=session.bars,
            generator=generators(session),
            temperature=options.temperature,
            **counter,
        )
    start = session.score(primer["input_ids"][0], line)
    beginning = session.output_page.melody("continuation-primer", "The beginning", start, session.bars)
    versions = show_versions(session, "continuation", (f"The first {options.primer_bars} bars", start), line, batch)
    text = (
        f"The first {options.primer_bars} bars of {line['name']} are kept; "
        f"the model wrote on, up to bar {session.bars}.{describe_conditions(session)}"
    )
    return Section("Continuations", text, [beginning, *versions])


def show_versions(
    session: Session, kind: str, original: tuple[str, Any], line: dict, batch, titles: Sequence[str] | None = None
) -> list[Item]:
    """Announce what the model made of a melody, each compared with it. `original`: the melody's title and score."""
    from rendering.piano_roll import write_piano_roll

    items, (title, start), bars = [], original, session.bars
    for number, ids in enumerate(batch, start=1):
        name, score = f"{kind}-{number}", session.score(ids, line)
        version_title = titles[number - 1] if titles else f"{kind[0].upper()}{kind[1:]} {number}"
        melody = session.output_page.melody(name, version_title, score, bars)
        below = f"{version_title[0].lower()}{version_title[1:]}"
        alt = f"Piano rolls of {title[0].lower()}{title[1:]}, above, and of {below}, below: {melody.text}"
        picture = session.output_page.picture(
            f"{name}-comparison", alt, write_piano_roll, [start, score], (title, version_title), bars, compare=True
        )
        items.append(replace(melody, picture=picture))
    return session.with_originality(items, batch)


def show_beside_melody(
    session: Session, kind: str, line: dict, batch, made, titles: Sequence[str] | None = None
) -> list[Item]:
    """Announce a whole melody, and what the model made of it."""
    original = session.score(batch["input_ids"][0], line)
    first = session.output_page.melody("original", "The melody", original, session.bars)
    return [first, *show_versions(session, kind, ("The melody", original), line, made, titles)]


def generators(session: Session) -> list:
    """Make a generator of random numbers for each melody, so that its neighbours have no say in it."""
    import numpy as np
    import torch

    seeds = range(session.options.seed, session.options.seed + session.options.num)
    if session.runtime == "onnx":
        return [np.random.default_rng(seed) for seed in seeds]
    return [torch.Generator(session.model.device).manual_seed(seed) for seed in seeds]


def vary(session: Session) -> Section:
    """Draw a melody's latent again, as close to it as is asked for."""
    options, line = session.options, session.lines(1)[0]
    batch = session.processor(lines=line, bars=session.bars, return_tensors="pt")
    session.bars = min(line["bars"], session.bars)
    latent = session.encode(batch)
    with session.progress("Varying") as counter:
        varied = session.model.vary(
            latent,
            n=options.num,
            similarity=options.similarity,
            generator=generators(session),
            bars=session.bars,
            **counter,
        )
    text = f"{line['name']} and its variations; similarity {options.similarity:g}, where 1 is the melody itself."
    return Section("Variations", text, show_beside_melody(session, "variation", line, batch, varied))


def infill(session: Session) -> Section:
    """Write some bars of a melody anew, and leave the others as they are."""
    options, line = session.options, session.lines(1)[0]
    session.bars = min(line["bars"], session.bars)
    if missing := [bar for bar in options.fill_bars if bar > session.bars]:
        raise UserError(f"--fill_bars: {line['name']} has {session.bars} bars and no bar {missing[0]}; name others")
    if not session.model.config.grammar_columns:
        raise UserError(f"{options.model}: knows no grammar of its tokens, as models of train.py do; take one of those")
    batch = session.processor(lines=line, bars=session.bars, return_tensors="pt")
    with session.progress("Filling") as counter, refusals():
        filled = session.model.infill(
            **{name: value.repeat(options.num, 1) for name, value in batch.items()},
            **session.conditions(),
            bars=[bar - 1 for bar in options.fill_bars],
            generator=generators(session),
            temperature=options.temperature,
            **counter,
        )
    numbers = ", ".join(map(str, options.fill_bars))
    text = f"Of {line['name']}, bars {numbers} were written anew; the others are as they were."
    text += describe_conditions(session)
    return Section("Fillings", text, show_beside_melody(session, "filling", line, batch, filled))


def shift(session: Session) -> Section:
    """Give a melody more or less of an attribute, and leave the others as they are."""
    import torch
    from tqdm.auto import tqdm

    options, line = session.options, session.lines(1)[0]
    if options.attribute not in (known := session.model.config.attributes or []):
        remedy = f"knows {', '.join(known)}" if known else "knows no attributes; train its prior with train_prior.py"
        raise UserError(f"--attribute {options.attribute}: {options.model} {remedy}")
    batch = session.processor(lines=line, bars=session.bars, return_tensors="pt")
    session.bars = min(line["bars"], session.bars)
    latent = session.encode(batch)
    amounts = tqdm(options.amounts, desc="Shifting", unit=" melodies")
    latents = [session.model.shift(latent, options.attribute, amount, bars=session.bars) for amount in amounts]
    shifted = session.model.decode(torch.cat(latents), bars=session.bars)
    name = options.attribute.replace("_", " ")
    titles = [f"{name[0].upper()}{name[1:]} {amount:+g}" for amount in options.amounts]
    text = f"{line['name']} with more and less {name}, in standard deviations of the training data; as measured."
    items = show_beside_melody(session, "shift", line, batch, shifted, titles)
    (before,) = session.processor.to_lines(batch["input_ids"])
    after = session.processor.to_lines(shifted)
    table = Table(
        ["", "notes", "kept of the melody's", *(each.replace("_", " ") for each in ATTRIBUTE_DIGITS)],
        [
            [title, len(line["pitch"]), count_kept(before, line), *measured(line)]
            for title, line in zip(["The melody", *titles], [before, *after], strict=True)
        ],
    )
    return Section("Shifts", text, items, tables=[table])


def count_kept(before: dict, after: dict) -> int:
    """Count the notes of a melody that another has with the same onset and pitch."""
    return len(
        set(zip(before["start"], before["pitch"], strict=True)) & set(zip(after["start"], after["pitch"], strict=True))
    )


def measured(line: dict) -> list[str]:
    """Measure the attributes of a melody, with as many digits as each needs."""
    from modeling.melody_line_melody_vae import ATTRIBUTES

    return [f"{ATTRIBUTES[name](line):.{digits}f}" for name, digits in ATTRIBUTE_DIGITS.items()]


def interpolate(session: Session) -> Section:
    """Walk from one melody to another through the latent space."""
    import torch

    from rendering.piano_roll import write_piano_roll

    # Both ends: melodies that are given, or two samples.
    options, model, steps = session.options, session.model, session.options.steps
    items = []
    if options.midi or options.dataset:
        lines = session.lines(2)
        batch = session.processor(lines=lines, bars=session.bars, return_tensors="pt")
        latents = session.encode(batch)
        for letter, line, ids in zip("AB", lines, batch["input_ids"], strict=True):
            name = f"interpolation-{letter.lower()}-original"
            items.append(session.output_page.melody(name, f"Original {letter}", session.score(ids, line)))
        origin = f"the originals, A ({lines[0]['name']}) and B ({lines[1]['name']})"
    else:
        lines = [{"bars": session.bars, "tempo": TEMPO}] * 2
        ids = model.sample(2, seed=options.seed, bars=session.bars)
        with torch.no_grad():
            latents = model.encode(ids, ids.ne(model.config.pad_token_id).long()).latent_mean
        origin = "two new melodies"
    # Length and tempo go from one end to the other too.
    ends = [min(line["bars"], session.bars) for line in lines]
    weights = torch.linspace(0, 1, steps)
    bars = torch.lerp(torch.tensor(float(ends[0])), torch.tensor(float(ends[1])), weights).round().long()
    with session.progress("Interpolating") as counter:
        batch = model.interpolate(*latents, steps=steps, bars=bars, **counter)
    scores, titles = [], []
    for number, (ids, weight) in enumerate(zip(batch, weights.tolist(), strict=True), start=1):
        tempo = (1 - weight) * lines[0]["tempo"] + weight * lines[1]["tempo"]
        scores.append(session.score(ids, {**lines[round(weight)], "tempo": tempo}))
        titles.append(f"{number}: {1 - weight:.0%} A, {weight:.0%} B")
        items.append(session.output_page.melody(f"interpolation-{number}", titles[-1], scores[-1]))
    strip = session.output_page.picture(
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


def training_curves(session: Session) -> Section | None:
    """Draw the curves of the model's training log; None if it has no log.

    Raises:
        UserError: If the log is broken.
    """
    from transformers.utils.hub import cached_file

    from rendering.curves import write_curves

    # A model that was published without its log has no curves.
    path = cached_file(session.options.model, LOG_NAME, _raise_exceptions_for_missing_entries=False)
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
    bits = session.output_page.picture(
        "training-bits",
        f"Curve of bits per note over training steps, ending at {last['bits_per_note']:.3g}",
        write_curves,
        {"validation": curves["bits_per_note"]},
        title="What a note costs",
        y_label="bits per note, the bound (reconstruction + KL)",
    )
    nats = session.output_page.picture(
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
