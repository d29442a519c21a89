"""Write the numbers and pictures of results/ into the documents: `python -m documents.report [--check]`.

A document marks a block with `<!-- report:NAME -->` and `<!-- end -->`; what stands between them is replaced by the
result of the function of that name in [`BLOCKS`]. No number in a document is typed by hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from documents import blocks
from documents.browser import browser
from documents.compare import markdown
from documents.compute import compute
from documents.reliability import reliability
from documents.speed import speed
from documents.speed import summary as speed_summary
from rendering.curves import write_curves

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
DOCUMENTS = ["README.md", "results/README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
BLOCK = re.compile(r"(<!-- report:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# R² of the latent's dimension that is tied to an attribute (Pati & Lerch 2021, https://arxiv.org/abs/2004.05485).
AR_VAE = {"rhythmic_complexity": 0.836, "pitch_range": 0.968}
R_SQUARED = ["R² of measured against target", "of a linear probe of the latent", "of AR-VAE's dimension"]

TOP_LEVEL = {  # what the top-level entries are for, a row of README's tree each
    "modeling": "the model as it ships to the Hub: configuration, relative attention, prior, processor",
    "dataset_script": "MIDI files to melody lines in Parquet; README.md is the data set's card",
    "command.py": "what commands share: one-line errors and exit codes, JSON files, the machine",
    "train.py, train_prior.py, training": "train a model, then its prior; data, objective, checkpoints, monitoring",
    "baselines": "MusicVAE, LSTM, RNN, absolute positions, trained by the same train.py",
    "configs": "release.yaml, the recipe of the release; accelerate's configurations: processes on a CPU, GPUs, FSDP2",
    "generate.py, generation": "sample, reconstruct, continue, interpolate, vary, fill in, shift; leaves a page",
    "rendering": "a melody as sound, piano roll and page",
    "metrics": "the nine metrics, pure functions that `evaluate.load` reads as well",
    "evaluate_model.py, evaluation": "measure a model with them: held-out melodies, samples, latent space",
    "documents": "write the numbers of results/ into pages, cards and figures",
    "benchmarks": "speed, ablations and baselines, measured side by side",
    "results": "all published numbers, and the log of experiments",
    "publish.py, export_onnx.py, publishing": "publish model, data set and Space to the Hub; export to ONNX",
    "release": "the trained model, exactly the folder that goes to the Hub",
    "space": "the Gradio app: make, change, blend, continue, fill, listen",
    "web": "melody-vae, the JavaScript module that runs the model in a page",
    "docs": "pages for each task, a notebook, the API reference",
    "tests": "relations first, then golden numbers",
}


def dataset() -> str:
    """Sum up `results/dataset.json`: the data set that was built from the files at hand."""
    results = json.loads((RESULTS / "dataset.json").read_text(encoding="utf-8"))
    total, speed, leak = results["statistics"]["all"], results["speed"], results["leak"]["test"]
    recall = results["near_duplicates"]["copies_in_their_original's_group"]
    lead = results["lead_score"]["results"]["lead_score"]
    worst = min(recall, key=recall.__getitem__)
    rows = [
        ["melody lines, of them leads", f"{total['lines']:,}, {total['lead_lines']:,}"],
        ["notes", f"{total['notes']:,}"],
        ["windows of 16 bars, a bar apart", f"{total['windows']['stride_1']:,}"],
        [
            "the lead is the tune: POP909, Lakh (test files, names hidden)",
            " ".join(f"{lead[f'{name}, with_lines, test']['accuracy']:.1%}" for name in ("pop909", "lakh")),
        ],
        ["copies found, worst kind", f"{recall[worst]:.1%} ({worst.replace('_', ' ')})"],
        [
            "test lines, test leads with a near-duplicate in train",
            ", ".join(f"{leak[name]['leak']:.1%}" for name in ("all_lines", "lead_lines")),
        ],
    ]
    beats = json.loads((RESULTS / "beats.json").read_text(encoding="utf-8"))["results"]
    rows.append(
        [
            "beats of POP909 that are tracked: F-measure; at any metrical level; of the stated tempo",
            "; ".join(
                f"{beats[name]['f_measure']:.3f}"
                for name in ("beats", "beats, any metrical level", "floor: beats of the stated tempo")
            ),
        ]
    )
    ratios = [(name, value) for name, value in speed.items() if isinstance(value, float) and "MiB" not in name]
    rows += [[f"speed: {name}", f"{value:.3g}"] for name, value in ratios]
    source = f"`{results['input']}`, {results['machine']['processor']}"
    return (
        f"What {results['files']['read']:,} files of Lakh give ({source}):\n\n"
        + markdown(["", "value"], rows)
        + "\nWritten by `make report` from `results/dataset.json`.\n"
    )


def operations() -> str:
    """Sum up `results/model.json`: what a model does when it is asked for something."""
    results = json.loads((RESULTS / "model.json").read_text(encoding="utf-8"))
    measured = [*rows_of_attention(results), *rows_of_validity(results), *rows_of_requests(results)]
    return (
        f"What a model of {results['model']['parameters'] / 1e6:.1f} M parameters does when asked "
        f"(`{results['model']['name']}`, {results['machine']['processor']}):\n\n"
        + markdown(["", "measured"], measured)
        + f"\nA request to `shift` {results['attributes']['melodies']['shifted']} test melodies by +1 standard "
        "deviation moved them, in the mean:\n\n"
        + markdown(["attribute", "itself", "the other that moved most", *R_SQUARED], rows_of_shifts(results))
        + "\nWritten by `make report` from `results/model.json`.\n"
    )


def rows_of_attention(results: dict) -> list[list[str]]:
    """What relative attention costs, beside attention without it and the textbook's form."""
    attention = results["attention"]
    longest = attention["memory_mib"][-1]
    memory = longest["causal"]
    return [
        [
            "a training step with relative attention, to one without the term",
            f"{attention['worst_ratio']:.2f} at most",
        ],
        ["largest difference from the textbook's form, fp32", f"{attention['largest_difference']:.1e}"],
        [
            f"memory of one training pass at {longest['tokens']:,} tokens: ours, the textbook's",
            f"{memory['ours']:.0f} MiB, {memory['textbook']:,.0f} MiB",
        ],
    ]


def rows_of_validity(results: dict) -> list[list[str]]:
    """What has to hold of every melody, and how far variations go."""
    validity, infill, variations = results["validity"], results["infill"], results["variations"]
    return [
        [
            f"invalid melodies at temperature {validity['temperature']}",
            f"{validity['invalid']} of {validity['samples']:,}",
        ],
        ["notes outside a scale asked for", f"{validity['outside_the_scale']} of {validity['samples_in_d_dorian']:,}"],
        ["infills that changed another bar", f"{infill['other_bars_changed']} of {infill['melodies']}"],
        [
            "distance of variations at similarity " + ", ".join(variations),
            ", ".join(f"{distance:.2f}" for distance in variations.values()),
        ],
    ]


def rows_of_requests(results: dict) -> list[list[str]]:
    """How often conditions are obeyed, how long a melody takes, and whether long pieces repeat as the data do."""
    asked, long, rows = results["conditions"], results["long"], []
    for name, of in asked.items():
        if isinstance(of, dict) and "obeyed_at_once" in of:
            name = f"{name.replace('_', ' ')} as asked for (in the first draw)"
            rows.append([name, f"{of['obeyed']:.1%} ({of['obeyed_at_once']:.1%})"])
    rows.append(["tempo class as asked for, in the score", f"{asked['tempo']['obeyed']:.1%}"])
    if genre := results["genre"]:
        name = f"genre guessed by a classifier ({len(genre['genres'])} genres; real test melodies; by chance)"
        others = f"{genre['guessed_of_test_melodies']:.1%}; {genre['by_chance']:.1%}"
        rows.append([name, f"{genre['guessed']:.1%} ({others})"])
    rows.append(["bars as asked for, 1 to 32", f"{asked['bars']['obeyed']:.1%}"])
    if speed := results.get("speed"):
        name = f"seconds for a melody of {speed['bars']} bars: new; through the latent ({speed['threads']} threads)"
        rows.append([name, f"{speed['sample_seconds']:.2f}; {speed['reconstruct_seconds']:.2f}"])
    ours, of_test = long["bar_pair_similarity"], long["bar_pair_similarity_of_test_lines"]
    name = f"bar self-similarity at lag {', '.join(ours)} in pieces of {long['bars']} bars (in the data)"
    rows.append([name, ", ".join(f"{value:.2f} ({of_test[lag]:.2f})" for lag, value in ours.items())])
    return rows


def rows_of_shifts(results: dict) -> list[list[str]]:
    """How far each attribute moved, what moved most with it, and how well measured and target agree."""
    attributes, rows = results["attributes"], []
    for name, row in attributes["mean_response"]["+1.0"].items():
        most = max((value for other, value in row.items() if other != name), key=lambda value: (abs(value), value))
        r_squared = [attributes[which][name] for which in ("r_squared_of_shifts", "r_squared")]
        ar_vae = f"{AR_VAE[name]:.2f}" if name in AR_VAE else ""
        rows.append(
            [name.replace("_", " "), f"{row[name]:+.2f}", f"{most:+.2f}", *(f"{of:.2f}" for of in r_squared), ar_vae]
        )
    return rows


def draw_baselines() -> None:
    """Draw the validation curves of all model types that were trained with one budget."""
    path = RESULTS / "baselines.json"
    if not path.is_file():
        return
    models = json.loads(path.read_text(encoding="utf-8"))["models"]
    histories = {blocks.NAMES[kind]: model["training"]["history"] for kind, model in models.items()}
    curves = {
        name: ([entry["melodies"] for entry in history], [entry["bits_per_note"] for entry in history])
        for name, history in histories.items()
    }
    write_curves(
        RESULTS / "figures" / "baselines.png",
        curves,
        title="Validation",
        x_label="melodies seen",
        y_label="bits per note",
    )


def tree() -> str:
    """List the top level, with what its entries are for."""
    width = max(map(len, TOP_LEVEL))
    rows = [f"{names:{width}}  {purpose}" for names, purpose in TOP_LEVEL.items()]
    return "```text\n" + "\n".join(rows) + "\n```\n"


BLOCKS: dict[str, Callable[[], str]] = {
    "ablations": lambda: blocks.ablations(RESULTS),
    "baselines": lambda: blocks.baselines(RESULTS),
    "browser": lambda: browser(RESULTS),
    "compute": lambda: compute(RESULTS),
    "dataset": dataset,
    "release": lambda: blocks.release(RESULTS),
    "reliability": lambda: reliability(RESULTS),
    "operations": operations,
    "speed": lambda: speed(RESULTS),
    "speed_summary": lambda: speed_summary(RESULTS),
    "originality": lambda: blocks.originality_index(RESULTS),
    "summary": lambda: blocks.summary(RESULTS),
    "training_time": lambda: blocks.training_time(RESULTS),
    "architecture": blocks.architecture,
    "tree": tree,
}


def render(document: str) -> str:
    """Fill a document's blocks anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{BLOCKS[match[2]]()}{match[3]}", document)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Write the numbers of results/ into the documents.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a document is out of date")
    args = parser.parse_args(argv)
    if not args.check:
        draw_baselines()
    stale = []
    for name in DOCUMENTS:
        old = (ROOT / name).read_text(encoding="utf-8")
        new = render(old)
        if new != old:
            stale.append(name)
            if not args.check:
                (ROOT / name).write_text(new, encoding="utf-8")
    if args.check and stale:
        print(f"{', '.join(stale)}: not what results/ says; run make report", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
