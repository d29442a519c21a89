"""The page that a run leaves: `report.html` with its curves, what it sounds like, and its settings."""

import json
from pathlib import Path

from rendering.curves import write_curves
from rendering.page import Item, Picture, Section, Table, write_page
from training.monitoring import LISTENING, Take

PICTURES = "report"  # folder of the curves
CURVES = (
    ("bits_per_note", "What a note costs", "bits per note, the bound (reconstruction + KL)", ("bits_per_note",)),
    (
        "nats",
        "What is left to guess, and what the latent carries",
        "nats per melody",
        ("reconstruction_nats", "kl_nats"),
    ),
    ("active_units", "Dimensions of the latent that are in use", "dimensions", ("active_units",)),
    ("learning_rate", "Learning rate", "of the weights", ("learning_rate",)),
    ("grad_norm", "Length of the gradient", "before it is shortened", ("grad_norm",)),
    ("speed", "Speed", "melodies per second, all processes", ("melodies_per_second",)),
)
"""Name of the picture, its title, its axis, and the series of the log that it shows."""


def write_report(output_dir: Path, log: dict, takes: list[Take], warnings: list[str]) -> None:
    """Write the page and its pictures.

    Args:
        output_dir: Where `report.html` goes.
        log: As `training_log.json` has it.
        takes: What the model sounds like in the end; their files lie below `output_dir`.
        warnings: Each a line.
    """
    (output_dir / PICTURES).mkdir(exist_ok=True)
    history = log["history"]
    # The best evaluation stands above all.
    best = min(history, key=lambda entry: entry["bits_per_note"])
    introduction = (
        f"{log['parameters'] / 1e6:.1f} million parameters, {history[-1]['step']:,} steps, "
        f"{log['melodies_seen']:,} melodies in {log['seconds'] / 60:.0f} minutes on {log['device']}.\n\n"
        f"Best on validation melodies: {best['bits_per_note']:.3f} bits per note at step {best['step']:,}."
    )
    sections = [
        Section("Warnings", "\n\n".join(warnings)) if warnings else None,
        Section(
            "Curves",
            "Measured on validation melodies, each with one draw of its latent.",
            pictures=[draw(output_dir, history, *curve) for curve in CURVES],
        ),
        Section("Listen", "From the last evaluation.", items=[item(output_dir, take) for take in takes])
        if takes
        else None,
        Section("Settings", tables=[Table(("option", "value"), [*sorted(settings(log["arguments"]))])]),
        Section("Evaluations", tables=[evaluations(history)]),
    ]
    name = output_dir.resolve().name
    footer = f"Written by train.py. MIDI, sounds and pictures of each evaluation lie in {LISTENING}/."
    write_page(
        output_dir / "report.html",
        f"Training of {name}",
        introduction,
        [section for section in sections if section],
        footer=footer,
    )


def draw(output_dir: Path, history: list[dict], name: str, title: str, axis: str, series: tuple[str, ...]) -> Picture:
    """Draw series of the log in both themes."""
    steps = [entry["step"] for entry in history]
    curves = {each.replace("_", " "): (steps, [float(entry[each]) for entry in history]) for each in series}
    for theme, ending in (("light", ""), ("dark", "-dark")):
        write_curves(output_dir / PICTURES / f"{name}{ending}.png", curves, title=title, y_label=axis, theme=theme)
    last = ", ".join(f"{label} {values[-1]:.4g}" for label, (_, values) in curves.items())
    return Picture(
        f"{PICTURES}/{name}.png", f"Curve over training steps, ending at {last}", f"{PICTURES}/{name}-dark.png"
    )


def item(output_dir: Path, take: Take) -> Item:
    """Show a take; a reconstruction beside its original."""
    files = take.sound.parent.relative_to(output_dir)
    title = take.name.replace("-", " ").capitalize()
    picture = Picture(files / take.picture.name, f"Piano roll of {take.name}: {take.text}")
    sound, midi = files / take.sound.name, files / f"{take.name}.mid"
    if not (output_dir / files / f"{take.name}-original.wav").is_file():
        return Item(title, picture, sound, midi, take.text)
    original = Item("Original", sound=files / f"{take.name}-original.wav", midi=files / f"{take.name}-original.mid")
    return Item(title, picture, text=take.text, versions=[original, Item("Reconstruction", sound=sound, midi=midi)])


def settings(arguments: dict) -> list[tuple[str, str]]:
    """List the command line's options."""
    return [(f"--{name}", "" if value is None else json.dumps(value).strip('"')) for name, value in arguments.items()]


def evaluations(history: list[dict]) -> Table:
    """Tabulate every evaluation."""
    columns = ("step", "bits_per_note", "reconstruction_nats", "kl_nats", "active_units", "train_loss")
    rows = [[f"{entry[name]:,}" if name == "step" else f"{entry[name]:.4g}" for name in columns] for entry in history]
    return Table([name.replace("_", " ") for name in columns], rows)
