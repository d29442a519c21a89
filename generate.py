"""Play with a trained melody VAE: `python generate.py sample --model DIR_OR_ID --output DIR`.

Every command writes each melody as MIDI, as sound and as a picture, and an `index.html` to see and hear them all. The
model is only a folder or an id on the Hub here, as it is for any other user: its code comes with it.

torch and the like are imported when the model is loaded, so that `--help` and a wrong option answer at once.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence

from command import UserError, run_command
from generation.loading import check_model
from generation.sections import (
    continue_melody,
    infill,
    interpolate,
    reconstruct,
    sample,
    shift,
    training_curves,
    vary,
)
from generation.session import Options, Session
from rendering.page import Section

LIMITS = {  # --bars ends at what the model can hold, see Session
    "num": (1, 100),
    "steps": (1, 32),
    "bars": (1, 1000),
    "primer_bars": (1, 1000),
    "temperature": (0.01, 100),
    "similarity": (0, 1),
    "amounts": (-5, 5),
    "track": (0, 10_000),
    "tempo": (10, 400),
    "program": (0, 127),
    "seed": (0, 2**32 - 1),
}

TEMPO_NAMES = ("slow", "medium", "fast")
MOST_DEVIATIONS = 5

COMMANDS: dict[str, tuple[Sequence[Callable[[Session], Section | None]], str, str]] = {
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


def tempo(text: str) -> float | str:
    """Read a tempo: quarter notes per minute, or a class of tempos."""
    return text if text in TEMPO_NAMES else float(text)


def attribute(text: str) -> tuple[str, float]:
    """Read an attribute such as note_density=1.5, in standard deviations of the training data."""
    found = re.fullmatch(r"([a-z_]+)=([+-]?\d+(?:\.\d+)?)", text)
    if found is None or abs(float(found[2])) > MOST_DEVIATIONS:
        raise argparse.ArgumentTypeError(
            f"{text}: name an attribute and standard deviations from -{MOST_DEVIATIONS} to {MOST_DEVIATIONS}, "
            "as in note_density=1.5"
        )
    return found[1], float(found[2])


def check(args: argparse.Namespace) -> None:
    """Check all that can be checked before anything heavy is imported.

    Raises:
        UserError: For the first thing wrong.
    """
    for name, (low, high) in LIMITS.items():
        value = vars(args).get(name)
        for each in value if isinstance(value, list | tuple) else (value,):
            if each is not None and not isinstance(each, str) and not low <= each <= high:
                raise UserError(f"--{name} {each}: must lie between {low} and {high}")
    check_model(args.model)


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description="Play with a trained melody VAE: MIDI, sound, pictures and a page.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, _, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(midi=None, dataset=None, needs_latent=name not in ("sample", "continue", "infill"))
        command.add_argument("--model", required=True, metavar="DIR_OR_ID", help="folder or Hub id of the model")
        command.add_argument("--output", required=True, metavar="DIR", help="folder for everything that is written")
        add_source_options(command, name)
        add_command_options(command, name)
        if name in ("sample", "continue", "infill"):
            add_conditions(command, name)
        add_output_options(command)
    return parser


def add_source_options(command: argparse.ArgumentParser, name: str) -> None:
    """Say where the melodies to start from are."""
    if name == "tour":
        command.add_argument("--dataset", required=True, metavar="DIR", help="data set to take melodies from")
    elif name != "sample":
        source = command.add_mutually_exclusive_group(required=name != "interpolate")
        several = {"reconstruct": ("+", "FILE"), "interpolate": (2, ("A", "B"))}
        nargs, metavar = several.get(name, (1, "FILE"))
        source.add_argument("--midi", nargs=nargs, metavar=metavar, help="MIDI files; the tune is found in each")
        source.add_argument("--dataset", metavar="DIR", help="take melodies of this data set, chosen by the seed")
        help_ = "of the MIDI file, counted from 0, that has the tune (by default the likeliest, which is named)"
        command.add_argument("--track", type=int, help=help_)
    if name != "sample":
        splits = ("validation", "test", "train")
        command.add_argument("--split", choices=splits, default=splits[0], help="of the data set (%(default)s)")


def add_command_options(command: argparse.ArgumentParser, name: str) -> None:
    """Say what the model is to do with them."""
    if name not in ("interpolate", "shift"):
        num = {"continue": 2, "infill": 2, "tour": 3}.get(name, 4)
        command.add_argument("--num", type=int, default=num, help="how many melodies (%(default)s)")
    if name in ("continue", "tour"):
        command.add_argument("--primer_bars", type=int, default=4, help="bars to keep (%(default)s)")
    if name in ("interpolate", "tour"):
        command.add_argument("--steps", type=int, default=7, help="melodies on the way, ends included (%(default)s)")
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


def add_conditions(command: argparse.ArgumentParser, name: str) -> None:
    """Say what new notes are to be like; the names are those of the model's `sample`, the pipeline and the Space."""
    conditions = command.add_argument_group("conditions", "what is written shall be like this")
    conditions.add_argument("--key", help='such as "D minor"')
    conditions.add_argument("--scale", help='the only pitches, such as "D dorian" or "A minor pentatonic"')
    if name == "sample":
        conditions.add_argument("--time_signature", help="such as 3/4 or 6/8")
    conditions.add_argument("--genre", help="a wrong one is answered with all that there are")
    help_ = "standard deviations from the training data's mean, as in note_density=1 syncopation=-0.5"
    conditions.add_argument("--attributes", type=attribute, nargs="+", default=(), metavar="NAME=NUMBER", help=help_)


def add_output_options(command: argparse.ArgumentParser) -> None:
    """Say what the melodies are to be like, whatever the command."""
    command.add_argument("--bars", type=int, help="length of the melodies (as many as the model holds, often 16)")
    help_ = "quarter notes per minute, or slow, medium or fast; new notes are written for it (the original's, or 120)"
    command.add_argument("--tempo", type=tempo, help=help_)
    command.add_argument("--program", type=int, help="General MIDI instrument, 0 to 127 (the original's, or 0: piano)")
    command.add_argument("--audio", choices=("wav", "mp3"), default="wav", help="sound files (%(default)s)")
    command.add_argument("--seed", type=int, default=0, help="same seed, same melodies (%(default)s)")
    command.add_argument(
        "--runtime",
        choices=("auto", "torch", "onnx"),
        default="auto",
        help="what computes; each has its own melody for a seed. auto is onnxruntime, which is faster, where the "
        "model's folder has onnx/ (see export_onnx.py) and the command does without torch's gradients (%(default)s)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(write, make_parser().parse_args(argv))


def write(args: argparse.Namespace) -> None:
    """Load the model, let it write, and put what it wrote on a page."""
    check(args)
    print(f"Loading {args.model}", flush=True)
    session = Session(Options(**vars(args)))
    sections, title, _ = COMMANDS[args.command]
    written = [section for write_section in sections if (section := write_section(session))]
    size = f"{session.model.num_parameters() / 1e6:.1f} million parameters"
    introduction = f"Melodies of {session.name}, a variational autoencoder of {size}. Not picked by hand, not edited."
    introduction += "".join(f"\n\nRead from {source}." for source in session.sources)
    footer = f"Written by generate.py {args.command} --runtime {session.runtime}, seed {args.seed}. "
    footer += "The same seed gives the same melodies."
    page = session.output_page.publish(title, introduction, written, footer)
    print(f"Listen and look: {page}")


if __name__ == "__main__":
    sys.exit(main())
