"""Listening tests: blind pairs of melodies, a page to vote on, and what the votes tell.

    python -m evaluation.listening_study prepare --models vae=DIR lstm=DIR --dataset DIR --output STUDY
    python -m evaluation.listening_study vote --study STUDY
    python -m evaluation.listening_study analyse --study STUDY

`STUDY/page` holds the sounds and the order of trials and does not say which system a melody is of; `STUDY/key.json`
does. Votes are appended to `STUDY/votes.jsonl`, which `datasets.load_dataset("json", data_files=...)` reads.
"""

import argparse
import html
import json
import random
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import datasets
import transformers
from tqdm.auto import tqdm

from command import UserError, run_command, write_json
from evaluation.held_out import BARS, STEPS, choose_windows
from evaluation.listening_analysis import analyse, promised_power
from evaluation.measurement import load
from evaluation.reconstruction import fit_to_grid
from modeling.line_writing_melody_vae import line_to_score
from rendering.intervals import write_intervals
from rendering.sound import play, write_wav

TEST_SET = "test set"
TEMPO, PROGRAM = 110.0, 0  # of every melody, whatever its own was
QUESTION = "Which melody is more musical?"
CHOICES = ("The first, by far", "The first, somewhat", "No difference", "The second, somewhat", "The second, by far")
SIDES = ("The first", "The second")
PREFERENCES = dict(zip(CHOICES, range(-2, 3), strict=True))
EFFECT = 0.65  # share of wins for which the power is given


def parse_models(given: Sequence[str]) -> dict[str, str]:
    """Read NAME=DIR pairs.

    Raises:
        UserError: If one is none, or a name comes twice.
    """
    models: dict[str, str] = {}
    for each in given:
        name, equals, path = each.partition("=")
        if not equals or not name or not path:
            raise UserError(f"--models {each}: write NAME=DIR, such as vae=runs/lakh")
        if name in models or name == TEST_SET:
            raise UserError(f"--models {each}: the name {name!r} is taken; choose another")
        models[name] = path
    return models


def make_trials(melodies: Mapping[str, Sequence[Any]], pairs: int, seed: int) -> list[dict[str, Any]]:
    """Pair the melodies of each two systems.

    Args:
        melodies: Of each system, `pairs` for each other system or more; none is heard twice.
        pairs: For each two systems.
        seed: Of the order of trials and of sides.

    Returns:
        Trials in the order in which they are shown: `first`, `second` (systems) and `melodies`, an index of each. Each
        system stands first as often as second, or once more.
    """
    generator = random.Random(seed)
    trials = []
    unheard = {system: generator.sample(range(len(of)), len(of)) for system, of in sorted(melodies.items())}
    for one, other in combinations(sorted(melodies), 2):
        chosen = [[unheard[system].pop() for _ in range(pairs)] for system in (one, other)]
        swapped = [index % 2 == 1 for index in range(pairs)]
        generator.shuffle(swapped)
        for first, second, is_swapped in zip(*chosen, swapped, strict=True):
            sides = [(one, first), (other, second)]
            if is_swapped:
                sides.reverse()
            trials.append({"first": sides[0][0], "second": sides[1][0], "melodies": [sides[0][1], sides[1][1]]})
    generator.shuffle(trials)
    return trials


def gather(models: Mapping[str, str], dataset: str, split: str, count: int, seed: int) -> dict[str, list[dict]]:
    """Sample `count` melodies of 16 bars in 4/4 from each model, and draw as many from the data set's split."""
    windows = choose_windows(dataset, split, count, seed)
    if len(windows) < count:
        raise UserError(f"{dataset}: {len(windows)} windows of {BARS} bars in split '{split}'; lower --pairs")
    melodies = {TEST_SET: [fit(window) for window in windows]}
    for name, path in models.items():
        model, processor = load(path)
        asked = {"bars": BARS} | ({"time_signature": "4/4"} if processor.bar_token_ids else {})
        lines = []
        for at in tqdm(range(0, count, 32), desc=f"Sampling {name}", unit=" batches"):
            lines += processor.to_lines(model.sample(min(32, count - at), seed=seed + at, **asked))
        melodies[name] = [fit(line) for line in lines]
    return melodies


def fit(line: Mapping[str, Any]) -> dict[str, Any]:
    """Leave of a melody only what all are rendered by."""
    return {
        **fit_to_grid(line, STEPS),
        "time_signature": "4/4",
        "steps_per_beat": 4,
        "bars": BARS,
        "tempo": TEMPO,
        "program": PROGRAM,
    }


def write_study(folder: Path, melodies: Mapping[str, Sequence[dict]], trials: Sequence[dict], seed: int) -> None:
    """Render every melody of the trials alike, under names by lot, and write the page's trials and the key.

    Raises:
        UserError: If there is a study already.
    """
    if (folder / "key.json").exists():
        raise UserError(f"{folder}: a study is there already; choose another --output")
    page = folder / "page"
    page.mkdir(parents=True, exist_ok=True)
    generator = random.Random(f"names {seed}")
    names: dict[tuple[str, int], str] = {}
    for trial in trials:
        for side, index in zip(("first", "second"), trial["melodies"], strict=True):
            names.setdefault((trial[side], index), f"{generator.getrandbits(64):016x}")
    for (system, index), name in tqdm(names.items(), desc="Recording", unit=" melodies"):
        score = line_to_score(melodies[system][index])
        write_wav(page / f"{name}.wav", play(score))
        score.dump_midi(str(page / f"{name}.mid"))
    shown, key = [], []
    for number, trial in enumerate(trials):
        files = [names[trial[side], index] for side, index in zip(("first", "second"), trial["melodies"], strict=True)]
        shown.append({"trial": number, "first": f"{files[0]}.wav", "second": f"{files[1]}.wav"})
        key.append({"trial": number, "first": trial["first"], "second": trial["second"]})
    write_json({"question": QUESTION, "trials": shown}, page / "trials.json")
    write_json({"seed": seed, "tempo": TEMPO, "trials": key}, folder / "key.json")


def prepare(args: argparse.Namespace) -> None:
    """Make a study."""
    models = parse_models(args.models)
    if (Path(args.output) / "key.json").exists():
        raise UserError(f"{args.output}: a study is there already; choose another --output")
    if args.pairs < 1:
        raise UserError(f"--pairs {args.pairs}: must be at least 1")
    melodies = gather(models, args.dataset, args.split, args.pairs * len(models), args.seed)
    trials = make_trials(melodies, args.pairs, args.seed)
    write_study(Path(args.output), melodies, trials, args.seed)
    compared = len(melodies) * (len(melodies) - 1) // 2
    print(f"{len(trials)} trials between {', '.join(melodies)}: {args.output}. If every voter judges all of them,")
    for voters in (5, 10, 20, 40):
        power = promised_power(voters * args.pairs, EFFECT, compared)
        print(f"  {voters} voters find a system that wins {EFFECT:.0%} of its pairs with a chance of {power:.0%}")


def read_trials(study: Path) -> list[dict[str, Any]]:
    """Read what the page shows.

    Raises:
        UserError: If there is no study.
    """
    try:
        return json.loads((study / "page" / "trials.json").read_text(encoding="utf-8"))["trials"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{study}: no study; make one with python -m evaluation.listening_study prepare") from error


def order_for(trials: Sequence[dict], voter: str) -> list[dict]:
    """Give each voter an order of trials of their own, and in half of the trials the sides exchanged."""
    generator = random.Random(voter)
    ordered = [{**trial, "is_swapped": generator.random() < 0.5} for trial in trials]
    generator.shuffle(ordered)
    return ordered


def record(votes: Path, voter: str, trial: Mapping[str, Any], choice: str, seconds: float) -> dict[str, Any]:
    """Append a vote; the preference is about the trial's sides as they are in the key."""
    preference = -PREFERENCES[choice] if trial["is_swapped"] else PREFERENCES[choice]
    row = {
        "trial": trial["trial"],
        "voter": voter,
        "preference": preference,
        "is_swapped": trial["is_swapped"],
        "seconds": round(seconds, 1),
        "time": int(time.time()),
    }
    with votes.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return row


class Ballot:
    """The order of events on the page, without the page.

    Args:
        study: Folder of `prepare`.

    Raises:
        UserError: If it is none.
    """

    def __init__(self, study: Path):
        self.page = study / "page"
        self.votes = study / "votes.jsonl"
        self.trials = read_trials(study)

    def begin(self) -> dict[str, Any]:
        """Return the state of a new voter, who is a random number."""
        voter = uuid.uuid4().hex
        return {"voter": voter, "trials": order_for(self.trials, voter), "done": 0, "since": time.time()}

    def choose(self, choice: str, state: dict[str, Any]) -> dict[str, Any]:
        """Keep a vote on the pair that is shown, and go on to the next; after the last pair nothing happens."""
        if state["done"] == len(state["trials"]):
            return state
        record(self.votes, state["voter"], state["trials"][state["done"]], choice, time.time() - state["since"])
        return {**state, "done": state["done"] + 1, "since": time.time()}

    def shown(self, state: dict[str, Any]) -> tuple[str, list[str] | None]:
        """Return a heading and the two sounds, as the voter is to hear them; None when all is done."""
        done, count = state["done"], len(state["trials"])
        if done == count:
            return f"### Thank you. All {count} pairs are judged.", None
        trial = state["trials"][done]
        sides = [str(self.page / trial[side]) for side in ("first", "second")]
        return f"### Pair {done + 1} of {count}", sides[::-1] if trial["is_swapped"] else sides


def make_page(ballot: Ballot):
    """Build the Gradio page on which trials are voted on."""
    import gradio as gr

    def show(state: dict) -> list:
        heading, sounds = ballot.shown(state)
        buttons = [gr.update(interactive=sounds is not None)] * len(CHOICES)
        return [state, heading, *(sounds or [None, None]), *buttons]

    with gr.Blocks(title="Listening test") as demo:
        gr.Markdown(
            f"# {html.escape(QUESTION)}\n\nYou will hear two melodies, played alike. Listen to both to the end, then "
            "say which one you find more musical. Your votes are kept under a random number and nothing else about you."
        )
        state = gr.State({})
        place = gr.Markdown()
        with gr.Row():
            sounds = [gr.Audio(label=side, type="filepath", interactive=False, buttons=[]) for side in SIDES]
        with gr.Row():
            buttons = [gr.Button(choice) for choice in CHOICES]
        outputs = [state, place, *sounds, *buttons]
        for button, choice in zip(buttons, CHOICES, strict=True):
            chosen = partial(ballot.choose, choice)
            button.click(lambda state, chosen=chosen: show(chosen(state)), state, outputs, api_visibility="private")
        demo.load(lambda: show(ballot.begin()), None, outputs, api_visibility="private")
    return demo


def vote(args: argparse.Namespace) -> None:
    """Serve the page until interrupted."""
    ballot = Ballot(Path(args.study))
    make_page(ballot).launch(
        server_name=args.host, server_port=args.port, allowed_paths=[str(ballot.page.resolve())], footer_links=[]
    )


def read_votes(study: Path, files: Sequence[str]) -> list[dict[str, Any]]:
    """Join votes with the key.

    Args:
        study: Folder of `prepare`.
        files: JSON lines; the study's own if there are none.

    Raises:
        UserError: If the key or the votes cannot be read; names the file and the line.
    """
    try:
        key = {
            trial["trial"]: trial for trial in json.loads((study / "key.json").read_text(encoding="utf-8"))["trials"]
        }
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{study}: no key.json of a study; make one with prepare") from error
    rows = []
    for path in files or [str(study / "votes.jsonl")]:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(f"{path}: no votes there ({error.strerror}); collect some with vote") from error
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                rows.append({**key[row["trial"]], "voter": row["voter"], "preference": int(row["preference"])})
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: no vote of this study; take the line out") from error
    return rows


def conclude(args: argparse.Namespace) -> None:
    """Analyse the votes of a study, and keep them as a data set."""
    study = Path(args.study)
    rows = read_votes(study, args.votes)
    try:
        results = analyse(rows, args.seed)
    except ValueError as error:
        raise UserError(f"{study}: {error}") from error
    output = Path(args.output or study / "results.json")
    write_json(results, output)
    datasets.Dataset.from_list(rows).to_parquet(str(study / "votes.parquet"))
    for theme, ending in (("light", ""), ("dark", "-dark")):
        write_intervals(
            output.with_name(f"{output.stem}{ending}.png"),
            [(row["system"], row["strength"], row["interval"]) for row in results["bradley_terry"]],
            title=f"{QUESTION} {results['votes']} votes of {results['voters']} voters",
            x_label="Bradley-Terry strength, logits, 95% interval",
            reference=0.0,
            theme=theme,
        )
    overall = results["kruskal_wallis"]
    print(f"{results['votes']} votes of {results['voters']} voters; any difference: p = {overall['p_value']:.4f}")
    for row in results["bradley_terry"]:
        low, high = row["interval"]
        strength = f"{row['strength']:+.2f} ({low:+.2f} to {high:+.2f})"
        print(f"  {row['system']}: strength {strength}, wins {row['win_share']:.0%}")
    for row in results["pairwise"]:
        counts = ", ".join(f"{system} {wins}" for system, wins in zip(row["systems"], row["wins"], strict=True))
        print(f"  {counts}, ties {row['ties']}: p = {row['p_value_holm']:.4f} (Holm)")
    print(output)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.listening_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    making = commands.add_parser("prepare", help="make blind pairs of melodies")
    making.add_argument("--models", nargs="+", required=True, metavar="NAME=DIR", help="systems to compare")
    making.add_argument("--dataset", required=True, help="folder or Hub id, whose melodies are a system too")
    making.add_argument("--output", required=True, help="folder for the study")
    making.add_argument("--split", default="test", help="of the data set (default: %(default)s)")
    making.add_argument("--pairs", type=int, default=10, help="trials for each two systems (default: %(default)s)")
    making.add_argument("--seed", type=int, default=0, help="of melodies, pairs and order (default: %(default)s)")
    voting = commands.add_parser("vote", help="serve the page to vote on")
    voting.add_argument("--study", required=True, help="folder of prepare")
    voting.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    voting.add_argument("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    telling = commands.add_parser("analyse", help="say what the votes tell")
    telling.add_argument("--study", required=True, help="folder of prepare")
    telling.add_argument(
        "--votes", nargs="+", default=[], metavar="FILE", help="votes.jsonl files (default: the study's)"
    )
    telling.add_argument(
        "--output", help="JSON file to write, a picture beside it (default: results.json in the study)"
    )
    telling.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    args = parser.parse_args(argv)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    return run_command({"prepare": prepare, "vote": vote, "analyse": conclude}[args.command], args)


if __name__ == "__main__":
    sys.exit(main())
