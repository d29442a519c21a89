"""Put several models' results side by side: `python -m documents.compare results/vae.json results/lstm.json`.

A table in Markdown with the floors and ceilings beside the models; what a model was not measured on is a dash.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from command import UserError, run_command

DASH = "\N{EN DASH}"
Results = Mapping[str, Any]
FEATURES = "mean overlapped area"
NEEDED = {"parameters", "dataset", "split", "melodies", "bars", "seed"}


def find(results: Results, path: str) -> Any:
    """Follow a path of keys such as `free_running/note_f1/f1`; None where it ends early."""
    value: Any = results
    for key in path.split("/"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def cell(value: float | None, ends: Sequence[float] | None, digits: int) -> str:
    """Write a value with its interval."""
    if value is None:
        return DASH
    text = f"{value:.{digits}f}"
    return f"{text} ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})" if ends else text


class Row:
    """One number of the table.

    Args:
        name: What it is.
        value: Its path in the results.
        interval: That of its interval.
        digits: After the point.
        floor: Its path for a system that has learned next to nothing, and what that system is.
        ceiling: Its path for real melodies, and what these are.
    """

    def __init__(
        self,
        name: str,
        value: str,
        interval: str = "",
        digits: int = 3,
        floor: tuple[str, str] | None = None,
        ceiling: tuple[str, str] | None = None,
    ):
        self.name = name
        self.value = value
        self.interval = interval
        self.digits = digits
        self.ends = {"floor": floor, "ceiling": ceiling}

    def of(self, results: Results) -> str:
        """Write the number of one model."""
        return cell(find(results, self.value), find(results, self.interval), self.digits)

    def end(self, which: str, results: Results) -> str:
        """Write the floor or the ceiling, and what it is."""
        end = self.ends[which]
        value = find(results, end[0]) if end else None
        return DASH if end is None or value is None else f"{cell(value, None, self.digits)} ({end[1]})"


def sample_row(name: str, path: str, interval: str = "", digits: int = 3, ceiling: str = "ceiling: train") -> Row:
    """Describe a number of samples, which the n-gram model and real melodies have as well."""
    sets = "samples/sets"
    return Row(
        name,
        f"{sets}/model/{path}",
        f"{sets}/model/{interval}" if interval else "",
        digits,
        (f"{sets}/floor: 4-gram/{path}", "4-gram"),
        (f"{sets}/{ceiling}/{path}", "test" if ceiling == "split" else "train against test"),
    )


ROWS = [
    Row(
        "bits per note",
        "likelihood/bits_per_note",
        "likelihood/interval",
        2,
        floor=("likelihood_floors/4-gram/bits_per_note", "4-gram"),
    ),
    Row(
        "bits per note, importance-weighted",
        "likelihood/importance_weighted_bits_per_note",
        "likelihood/importance_weighted_interval",
        2,
        floor=("likelihood_floors/unigram/bits_per_note", "unigram"),
    ),
    Row(
        "bits per note, without a latent",
        "likelihood/without_latent_bits_per_note",
        "likelihood/without_latent_interval",
        2,
    ),
    Row(
        "bits per note, with and without a latent, mixed evenly",
        "likelihood/mixture_bits_per_note",
        "likelihood/mixture_interval",
        2,
    ),
    Row(
        "perplexity per token",
        "likelihood/perplexity",
        "",
        1,
        floor=("likelihood_floors/4-gram/perplexity", "4-gram"),
    ),
    Row("KL, nats per melody", "likelihood/kl_nats", "likelihood/kl_interval", 0),
    Row("active units", "likelihood/active_units", "", 0),
    Row(
        "step accuracy, free-running",
        "free_running/step_accuracy/accuracy",
        "free_running/step_accuracy/interval",
        3,
        floor=("free_running/step_accuracy/floor", "silence"),
    ),
    Row(
        "step accuracy, true bars before",
        "teacher_forced_by_bar/step_accuracy/accuracy",
        "teacher_forced_by_bar/step_accuracy/interval",
        3,
        floor=("teacher_forced_by_bar/step_accuracy/floor", "silence"),
    ),
    Row(
        "note F1, free-running",
        "free_running/note_f1/f1",
        "free_running/note_f1/interval",
        3,
        floor=("free_running/note_f1_floor", "another melody"),
    ),
    Row(
        "note BLEU, free-running",
        "free_running/note_bleu/bleu",
        "",
        1,
        floor=("free_running/note_bleu_floor", "another melody"),
    ),
    Row("exact reconstructions", "free_running/step_accuracy/exact"),
    Row("note F1, own conditions", "own_conditions/note_f1/f1", "own_conditions/note_f1/interval", 3),
    Row("exact reconstructions, own conditions", "own_conditions/step_accuracy/exact"),
    Row("note F1, refined latents", "refined/note_f1/f1", "refined/note_f1/interval", 3),
    Row("exact reconstructions, refined latents", "refined/step_accuracy/exact"),
    Row(
        "interpolation: largest step's share",
        "interpolation/latent/largest_share",
        "",
        3,
        floor=("interpolation/mix/largest_share", "mixed steps"),
        ceiling=("interpolation/even_share", "even"),
    ),
    sample_row("samples: " + FEATURES, "overlap/mean/overlapped_area"),
    sample_row("samples: mean KL divergence, nats", "overlap/mean/kl_divergence"),
    sample_row("samples: two-sample AUC", "two_sample/auc", "two_sample/interval"),
    sample_row("samples: 4-bar spans of the training split", "originality/copied", "originality/interval", 4, "split"),
    sample_row("samples: scale consistency", "statistics/scale_consistency", ceiling="split"),
    sample_row("samples: bar self-similarity at lag 4", "statistics/bar_similarity_4", ceiling="split"),
]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]) + "\n"


def way_of_sampling(results: Mapping[str, Any]) -> str:
    """Say in a sentence how the samples of a model were drawn, and against how many melodies they were measured."""
    counts = [find(results, "samples/sets")[name]["melodies"] for name in ("model", "split", "ceiling: train")]
    how = f"at temperature {find(results, 'samples/temperature'):g}"
    if noise := find(results, "samples/sampling_noise"):
        how += f", the prior's flow stopped at t = {1 - noise:g},"
    if (share := find(results, "samples/sampling_top_p") or 1) < 1:
        how += f" top-p {share:g},"
    if (candidates := find(results, "samples/sampling_candidates") or 1) > 1:
        how += f" the critic's best of {candidates},"
    return f"{counts[0]:,} samples {how} against {counts[1]:,} test and {counts[2]:,} training windows."


def comparison(models: Mapping[str, Results]) -> str:
    """Write the table of several models' results, with a note on what they were measured on.

    Rows that no model has are left out. Floors and ceilings are the first model's, in whose tokens n-grams are counted.

    Raises:
        ValueError: If there are no results, or they are of different melodies.
    """
    if not models:
        raise ValueError("nothing to compare: no results")
    # Only results of the same melodies stand side by side.
    measured = {
        name: tuple(results.get(key) for key in ("dataset", "split", "melodies", "bars", "seed"))
        for name, results in models.items()
    }
    if len(set(measured.values())) > 1:
        raise ValueError(
            "results of different melodies do not compare: " + "; ".join(f"{n}: {m}" for n, m in measured.items())
        )
    # Rows that a model has a figure for.
    first = next(iter(models.values()))
    rows = [
        ["parameters, millions", *(f"{results['parameters'] / 1e6:.1f}" for results in models.values()), DASH, DASH]
    ]
    for row in ROWS:
        cells = [row.of(results) for results in models.values()]
        if set(cells) != {DASH}:
            rows.append([row.name, *cells, row.end("floor", first), row.end("ceiling", first)])
    table = markdown(["", *models, "floor", "ceiling"], rows)
    # Below the table, what was measured and how.
    notes = [
        f"Split '{first['split']}', {first['melodies']} windows of {first['bars']} bars in 4/4 from lead lines, "
        f"seed {first['seed']}; in brackets 95 % intervals by bootstrap over melodies."
    ]
    ways = {name: way_of_sampling(results) for name, results in models.items() if find(results, "samples/sets")}
    is_one = len(set(ways.values())) == 1
    notes += set(ways.values()) if is_one else [f"{name}: {way}" for name, way in ways.items()]
    if signature := find(first, "free_running/note_bleu/signature"):
        notes.append(f"BLEU: `{signature}`.")
    if leak := find(first, "leak/lead_lines/leak"):
        notes.append(f"{leak:.1%} of the split's lead lines have a near-duplicate in train.")
    return table + "\n" + " ".join(notes) + "\n"


def groups(results: Results) -> str:
    """Write the table of reconstruction by length, density, genre and time signature; nothing where there is none."""
    titles = {
        "by_bars": "bars",
        "by_density": "density",
        "by_genre": "genre",
        "by_time_signature": "meter",
        "by_data_set": "origin",
    }
    own_conditions = results.get("groups_own_conditions") or {}

    def f1(row: Results | None) -> str:
        return cell(row["note_f1"], row["note_f1_interval"], 3) if row else DASH

    rows = [
        [
            title,
            name.partition(": ")[2] or name,
            str(row["melodies"]),
            f1(row),
            f1(own_conditions.get(key, {}).get(name)),
            f"{row['step_accuracy']:.3f} ({row['step_accuracy_floor']:.3f})",
        ]
        for key, title in titles.items()
        for name, row in (find(results, f"groups/{key}") or {}).items()
    ]
    header = ["by", "group", "melodies", "note F1", "under own conditions", "step accuracy (silence)"]
    return markdown(header, rows) if rows else ""


def read_results(paths: Sequence[str], names: Sequence[str] | None) -> dict[str, Results]:
    """Read results by name, the files' own by default.

    Raises:
        ValueError: If a file is none, or there is not one name for each.
    """
    if names is not None and len(names) != len(paths):
        raise ValueError(f"--names: {len(names)} for {len(paths)} results; give one for each")
    found: dict[str, Results] = {}
    for path, name in zip(paths, names or [Path(path).stem for path in paths], strict=True):
        try:
            results = json.loads(Path(path).read_text(encoding="utf-8"))
            if not set(results) >= NEEDED:
                raise ValueError("keys are missing")
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path}: no results of evaluate_model.py") from error
        if name in found:
            raise ValueError(f"two results are called {name!r}; name them with --names")
        found[name] = results
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m documents.compare", description=__doc__)
    parser.add_argument("results", nargs="+", help="files of evaluate_model.py")
    parser.add_argument("--names", nargs="+", help="of the models, in the same order (default: the files' names)")
    parser.add_argument("--groups", action="store_true", help="the first model's reconstruction by groups of melodies")
    parser.add_argument("--output", type=Path, help="file for the table (default: print it)")
    return run_command(write_table, parser.parse_args(argv))


def write_table(args: argparse.Namespace) -> None:
    """Write or print the table.

    Raises:
        UserError: If the results cannot be read, or the table not be written.
    """
    try:
        models = read_results(args.results, args.names)
        text = groups(next(iter(models.values()))) if args.groups else comparison(models)
        if args.output is None:
            print(text)
        else:
            args.output.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
