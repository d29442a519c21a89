"""The data set's card: statistics against plain Python, and what the card says, shows and escapes."""

import json
import re
import shlex
from bisect import bisect_right
from collections import Counter
from copy import deepcopy
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from dataset_script import card, configs
from dataset_script.build import parse_arguments
from dataset_script.features import KEY_NAMES
from dataset_script.schema import COLUMN_DESCRIPTIONS, FEATURES, SPLITS
from dataset_script.statistics import HISTOGRAMS, MODES, PROGRAM_FAMILIES, statistics
from dataset_script.windows import windows
from rendering.histograms import Histogram, draw_histograms, percent, write_histograms

LINES = 113
UNTRUSTED = "a|b <script>alert(1)</script> *c* `d` [e](f) &lt; _g_"


def synthetic_lines(seed=0, lines=LINES, genres=("Pop_Rock", "Folk|Jazz", None)):
    """Random lines in three meters and two grids, sorted by melody_id; each file has one genre and one group."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(lines):
        file = number // 3
        notes, steps_per_beat = int(random.integers(80, 500)), int(random.choice([4, 12]))
        signature = str(random.choice(["4/4", "6/8", "7/16"], p=[0.5, 0.3, 0.2]))
        numerator = int(signature.split("/")[0])
        duration = random.geometric(0.2, notes)
        start = np.cumsum(duration + random.integers(0, 3, notes)) - duration
        wide = 87 if number % 7 == 0 else 30
        pitch = random.integers(21, 22 + wide, notes)
        end = int(start[-1] + duration[-1])
        md5 = f"{file:032x}"
        rows.append(
            {
                "melody_id": f"{md5}:{number}:0",
                "md5": md5,
                "track": number,
                "program": int(random.integers(0, 128)),
                "lead_score": float(random.choice([0, 0.05, 0.7, 1, random.random()])),
                "is_lead": number % 3 == 0,
                "time_signature": signature,
                "tempo": float(random.choice([7, 15, 25, 120, 305, 400])),
                "key": str(random.choice(KEY_NAMES)),
                "key_confidence": float(random.random()),
                "genre": genres[file % len(genres)],
                "bars": -(-end // (numerator * steps_per_beat)),
                "pitch": pitch.tolist(),
                "start": start.tolist(),
                "duration": duration.tolist(),
                "steps_per_beat": steps_per_beat,
                "complexity": float(random.random()),
                "group": f"{file // 2:032x}",
                **{name: float(random.random()) for name in ("grid_fit", "file_grid_fit", "silence", "distinct_bars")},
                **{name: float(random.random()) for name in ("repeated_pitches", "arpeggio", "quality")},
                "has_time_signature": number % 2 == 0,
                "title": None,
                "artist": None,
                "msd_id": None,
            }
        )
    return rows


def split_lines(rows, splits=SPLITS):
    """Deal lines out to splits by group."""
    dealt = {name: [] for name in splits}
    for row in rows:
        dealt[splits[int(row["group"], 16) % len(splits)]].append(row)
    return dealt


def write_data(folder, dealt, files=1, row_group_size=50):
    folder.mkdir(parents=True)
    for name, rows in dealt.items():
        pieces = np.array_split(np.arange(len(rows)), files)
        for number, piece in enumerate(pieces):
            table = pa.Table.from_pylist([rows[place] for place in piece], schema=FEATURES.arrow_schema)
            path = folder / f"{name}-{number:05d}-of-{files:05d}.parquet"
            pq.write_table(table, path, row_group_size=row_group_size)
    return folder


def stored(folder):
    """The lines as they lie on disk, with 32-bit floats, by split."""
    return {
        name: [row for path in sorted(folder.glob(f"{name}-*")) for row in pq.read_table(path).to_pylist()]
        for name in SPLITS
    }


def report_of(data, **more):
    """A build's report about a data set, in which every figure is different."""
    dealt = stored(data)
    kept = sum(map(len, dealt.values()))
    return {
        "input": "lmd_full_subset.tar.gz",
        "steps_per_beat": 5,
        "files": {"read": 1931, "with_melody": 1801, "dropped": {"web page": 101, "no notes": 29}},
        "tracks": {"read": 7919, "with_melody": 5003, "dropped": {"chords": 2017, "drums": 899}},
        "lines": {"read": kept + 3511, "kept": kept, "dropped": {"shorter than 4 bars": 3511}, "lead": kept // 3},
        "splits": {name: len(rows) for name, rows in dealt.items()},
        "groups": {"count": 1723, "largest_files": 37},
        "is_resumed": False,
        "quantisation": {"notes": 654321, "mean_displacement_steps": 0.0712},
        "seconds": {"extraction": 6.28, "to_parquet": 8.64},
        "files_per_second": 307.5,
        "num_proc": 13,
        "machine": {"cores": 43, "processor": "Some CPU"},
        "versions": {"python": "3.97.1", "symusic": "0.89.2"},
        "version": card.content_version(data),
        "configs": configs.describe_configs(data.parent),
        "statistics": statistics(data),
        **more,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("synthetic") / "melodies" / "data", split_lines(synthetic_lines()))


@pytest.fixture(scope="module")
def report(data):
    return report_of(data)


@pytest.fixture(scope="module")
def built(data, report):
    """A data set as the build leaves it, in a folder `melodies`."""
    folder = data.parent
    (folder / "build.json").write_text(json.dumps(report), encoding="utf-8")
    card.write_card(folder)
    return folder


# --- statistics ------------------------------------------------------------------------------------------------------


def plain_summary(rows):
    """`Part.summary` in loops over rows."""
    files, signatures, programs, families, modes, keys = set(), Counter(), Counter(), Counter(), Counter(), Counter()
    genres = {}
    for row in rows:
        files.add(row["md5"])
        signatures[row["time_signature"]] += 1
        programs[str(row["program"])] += 1
        families[PROGRAM_FAMILIES[row["program"] // 8]] += 1
        modes[row["key"].split()[1]] += 1
        keys[row["key"]] += 1
        if row["genre"] is not None:
            genres.setdefault(row["genre"], []).append(row["md5"])
    return {
        "lines": len(rows),
        "lead_lines": len([row for row in rows if row["is_lead"]]),
        "notes": sum(len(row["pitch"]) for row in rows),
        "bars": sum(row["bars"] for row in rows),
        "files": len(files),
        "groups": len({row["group"] for row in rows}),
        "windows": {
            "bars": 16,
            "stride_1": sum(len(range(0, row["bars"] - 15)) for row in rows),
            "stride_16": sum(len(range(0, row["bars"] - 15, 16)) for row in rows),
        },
        "time_signatures": dict(signatures),
        "genres": {name: {"lines": len(of), "files": len(set(of))} for name, of in genres.items()},
        "program_families": {name: families[name] for name in PROGRAM_FAMILIES},
        "programs": dict(programs),
        "modes": {name: modes[name] for name in MODES},
        "keys": {name: keys[name] for name in KEY_NAMES},
    }


def plain_values(rows):
    """The values that each histogram counts, in exact fractions where they are lengths."""
    values = {name: [] for name in HISTOGRAMS}
    for row in rows:
        numerator, denominator = map(int, row["time_signature"].split("/"))
        step = Fraction(4, denominator * row["steps_per_beat"])
        for name in ("bars", "tempo", "complexity", "lead_score", "key_confidence", "grid_fit", "quality"):
            values[name].append(row[name])
        values["notes"].append(len(row["pitch"]))
        values["notes_per_quarter"].append(
            float(len(row["pitch"]) / Fraction(4 * row["bars"] * numerator, denominator))
        )
        values["pitch_range"].append(max(row["pitch"]) - min(row["pitch"]))
        values["pitch"] += row["pitch"]
        values["interval"] += [after - before for before, after in pairwise(row["pitch"])]
        values["note_quarters"] += [length * step for length in row["duration"]]
        values["onset_quarters"] += [(after - before) * step for before, after in pairwise(row["start"])]
    return values


def plain_histogram(edges, values):
    counts, below, above = [0] * (len(edges) - 1), 0, 0
    for value in values:
        if value < edges[0]:
            below += 1
        elif value > edges[-1]:
            above += 1
        else:
            counts[min(bisect_right(edges, value), len(counts)) - 1] += 1
    return {"edges": edges, "counts": counts, "below": below, "above": above}


def test_statistics_equal_the_plain_computation(data):
    dealt = stored(data)
    found = statistics(data)
    rows = [row for part in dealt.values() for row in part]
    assert len(rows) == LINES
    assert found["splits"] == {name: plain_summary(part) for name, part in dealt.items()}
    assert found["all"] == plain_summary(rows)
    assert list(found["splits"]) == list(SPLITS)
    for name, values in plain_values(rows).items():
        assert found["histograms"][name] == plain_histogram(HISTOGRAMS[name].tolist(), values), name
    assert any(histogram["above"] for histogram in found["histograms"].values())
    assert any(histogram["below"] for histogram in found["histograms"].values())
    assert json.loads(json.dumps(found)) == found


def test_windows_are_those_that_are_cut(data):
    rows = stored(data)["test"]
    counted = statistics(data)["splits"]["test"]["windows"]
    # Of a random line a window could be without notes; these have at least a note per bar or two.
    assert counted["stride_16"] == sum(1 for row in rows for _ in windows(row, bars=16, stride=16))


def test_statistics_do_not_depend_on_files_and_batches(data, tmp_path, monkeypatch):
    expected = json.dumps(statistics(data))
    again = write_data(tmp_path / "data", stored(data), files=3, row_group_size=7)
    monkeypatch.setattr("dataset_script.statistics.LINES_AT_ONCE", 11)
    assert json.dumps(statistics(again)) == expected


def test_statistics_of_one_split_without_genres(tmp_path):
    data = write_data(tmp_path / "data", {"train": synthetic_lines(lines=3, genres=(None,))})
    found = statistics(data)
    assert list(found["splits"]) == ["train"]
    assert found["all"] == found["splits"]["train"] == plain_summary(stored(data)["train"])
    assert found["all"]["genres"] == {}


# --- the card --------------------------------------------------------------------------------------------------------


def tables(text):
    """The cells of every table row after the first column, with the heading above; no header rows."""
    heading = ""
    for line, following in pairwise([*text.splitlines(), ""]):
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if line.startswith("| ") and "| --- |" not in line + following:
            first, *cells = re.split(r"(?<!\\)\|", line.strip("|"))
            yield heading, first.strip(), [cell.strip() for cell in cells if cell.strip()]


def other_figures(values, random):
    """The report with other figures; the histograms' edges and the windows' length, which are the program's, stay."""
    if isinstance(values, dict):
        is_length = values.keys() >= {"bars", "stride_1"}
        return {
            name: value if name == "edges" or (is_length and name == "bars") else other_figures(value, random)
            for name, value in values.items()
        }
    if isinstance(values, list):
        return [other_figures(value, random) for value in values]
    if isinstance(values, int | float):
        return int(random.integers(10_000, 90_000))
    return re.sub(r"(?<=\.)\d+", lambda found: str(int(found[0]) + 1), values)  # versions


def test_every_figure_comes_from_the_report(report):
    one, other = card.render_card(report), card.render_card(other_figures(report, np.random.default_rng(0)))
    checked = 0
    for (heading, name, cells), (_, _, others) in zip(tables(one), tables(other), strict=True):
        if heading == "Configurations":  # what a row or a column is, in words
            cells, others = ([cell for cell in row if re.fullmatch(r"[\d,]+", cell)] for row in (cells, others))
        if heading != "One row is one melody line":  # the schema
            pairs = [pair for pair in zip(cells, others, strict=True) if re.search("[1-9]", pair[0])]
            assert all(cell != changed for cell, changed in pairs), (heading, name, pairs)
            checked += len(pairs)
    assert checked > 180

    def figures(text):
        """Numbers in prose: not in code, tables, definitions, the changelog, addresses or the names of bins."""
        elsewhere = (
            r"^```.*?^```|^\| .*?$|^## (?:Definitions|Versions).*?(?=^## )|`[^`]*`|\(https?:[^)]*\)|most at [^(]*"
        )
        text = re.sub(elsewhere, "", text, flags=re.DOTALL | re.MULTILINE)
        return set(re.findall(r"(?<!\w)(?:\d[\d,.]*\d|\d)", text))

    # Constants of the program (lines of 4 bars, splits 80/10/10, windows of 16 bars, runs of 8 notes, what
    # leads must have), 4/4, CC BY 4.0.
    # Five reports: between fewer of them some percentages agree by chance.
    more = [card.render_card(other_figures(report, np.random.default_rng(seed))) for seed in (1, 2, 3)]
    assert set.intersection(*map(figures, (one, other, *more))) <= {
        "4",
        "80",
        "10",
        "16",
        "8",
        "4.0",
        "50",
        "3",
        "0.5",
        "0.6",
    }


def test_yaml_and_load_dataset(built, report, tmp_path):
    from datasets import load_dataset

    head = DatasetCard.load(built / "README.md").data
    assert (head.license, head.pretty_name) == ("cc-by-4.0", "Melody lines of the Lakh MIDI Dataset")
    assert head.size_categories == ["n<1K"]
    assert head.configs[0]["version"] == report["version"]
    assert [part["split"] for part in head.configs[0]["data_files"]] == list(SPLITS)
    loaded = load_dataset(str(built), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in loaded.items()} == report["splits"]
    assert loaded["train"].features == FEATURES
    pictures = sorted(built.glob("card/*.png"))
    text = (built / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in pictures] == sorted(re.findall(r'"card/(.*?\.png)"', text))
    assert all(path.stat().st_size < 60 * 1024 for path in pictures)
    assert len(re.findall(r'<img alt="Histograms\. [^"]{40,}"', text)) == len(pictures) // 2


def test_the_quickstart_runs(built, monkeypatch):
    monkeypatch.chdir(built.parent)
    names = {}
    for block in re.findall(
        r"^```python\n(.*?)^```", (built / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        exec(block, names)
    assert len(names["quarters"]) == len(names["line"]["start"])
    assert next(names["cut"])["bars"] == 16


def test_version_is_made_from_the_content(data, tmp_path):
    again = write_data(tmp_path / "same" / "data", stored(data))
    assert card.content_version(again) == card.content_version(data)
    other = write_data(tmp_path / "other" / "data", split_lines(synthetic_lines(seed=1)))
    assert card.content_version(other) != card.content_version(data)


def test_a_data_set_with_an_empty_split_and_without_genres(tmp_path):
    dealt = split_lines(synthetic_lines(lines=23, genres=(None,)), ("train", "test"))
    text = card.render_card(report_of(write_data(tmp_path / "data", dealt)))
    assert "path: data/validation" not in text
    assert "| validation |" not in text
    assert "No line has a genre" in text
    assert "**Genre**: unknown" in text


def test_optional_parts(report):
    bare = card.render_card(report)
    assert bare.count("not measured in this build") == 3
    full = card.render_card(
        report
        | {
            "leak": {"definition": "share | of lines", "test_lines": 12345, "nested": {"share": 0.012341}},
            "near_duplicates": {"precision": 0.9876, "pairs": [3, 0.25], "bins": [{"from": 1}]},
            "lead_score": {"is_fitted": True, "accuracy": 0.8765},
            "speed": {"files_per_second": 98765},
        }
    )
    assert "not measured" not in full
    for row in (
        r"| definition | share \| of lines |",
        "| test lines | 12,345 |",
        "| nested, share | 0.01234 |",
        "| precision | 0.9876 |",
        "| pairs | 3, 0.25 |",
        "| bins, 1, from | 1 |",
        "| is fitted | True |",
        "| accuracy | 0.8765 |",
        "| files per second | 98,765 |",
    ):
        assert row in full, row
    assert "| leak | 0.25 |" in card.render_card(report | {"leak": 0.25})
    without_groups = {name: value for name, value in report.items() if name != "groups"}
    assert "the largest has" in bare
    assert "the largest has" not in card.render_card(without_groups)


def test_calibration_is_a_table_and_a_picture(report, tmp_path):
    bins = [{"from": 0.8, "files": 3, "mean_score": 0.85, "is_tune": 0.75}]
    of = {"files": 1213, "without_lead": 0.1271, "lead_is_tune": 0.9389, "lead_is_tune_without_floor": 0.9043}
    measured = {"what": "words", "floor": 0.8, "lakh": {**of, "calibration_error": 0.0213, "reliability": bins}}
    with_it = report | {"lead_score": {"what": "share of files", "calibration": measured}}
    assert "| lakh | 1,213 | 12.7% | 93.9% | 90.4% | 0.021 |" in card.render_card(with_it)
    assert card.calibration_curves(with_it)["lakh"] == ([85], [75])
    names = {path.name for path in card.picture_paths(with_it, tmp_path).values()}
    assert names - {path.name for path in card.picture_paths(report, tmp_path).values()} == {
        "calibration-light.png",
        "calibration-dark.png",
    }


def test_changes_are_those_of_the_data(report, tmp_path, monkeypatch):
    path = tmp_path / "CHANGELOG.md"
    path.write_text(
        "# Log\n\n## [2.1.0]\n- Data: one\n  thing.\n- Space: another.\n\n## [2.0.0]\n- Space: more.\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(card, "CHANGELOG", path)
    assert card.changes() == [("2.1.0", ["one thing."])]
    assert "- 2.1.0\n  - one thing.\n" in card.render_card(report)


def test_lead_score_accuracies_are_a_table_of_scores_and_test_files(report):
    of = {"accuracy": 0.8907, "interval_95": [0.8508, 0.9277], "files": 2471}
    names = ("lakh, with_lines, train", "lakh, with_lines, test", "pop909, with_lines, test")
    results = {score: dict.fromkeys(names, of) for score in ("lead_score", "most | notes")}
    text = card.render_card(report | {"lead_score": {"what": "share of files", "results": results}})
    cells = "89.1% (85.1 to 92.8) | 89.1% (85.1 to 92.8) |"
    assert "On the test files, with the 95% interval: share of files." in text
    assert "| score | lakh, with lines | pop909, with lines |\n| --- | ---: | ---: |\n" in text
    assert f"| *files* | 2,471 | 2,471 |\n| lead_score | {cells}\n| most \\| notes | {cells}\n" in text


def test_a_missing_figure_is_an_error(report):
    from jinja2 import UndefinedError

    incomplete = deepcopy(report)
    del incomplete["statistics"]["splits"]["test"]["notes"]
    with pytest.raises(UndefinedError, match="notes"):
        card.render_card(incomplete)


@pytest.mark.parametrize(
    ("source", "licence", "sentence"),
    [
        ("lmd_full.tar.gz", "cc-by-4.0", "Attribution of single songs is infeasible"),
        ("embedded tunes", "apache-2.0", "The tunes are in the public domain"),
        ("my songs", "other", "The lines have the licence of the files that they were taken from"),
    ],
)
def test_licence_is_that_of_the_source(report, source, licence, sentence):
    text = card.render_card(report | {"input": source})
    assert DatasetCard(text).data.license == licence
    assert sentence in text
    assert ("CC BY 4.0" in text) == ("Raffel, Colin" in text) == (licence == "cc-by-4.0")


def test_names_from_outside_are_escaped(tmp_path):
    data = write_data(tmp_path / "data", split_lines(synthetic_lines(genres=(UNTRUSTED, "Pop_Rock"))))
    name = "```\n\"x | <b>y</b>'; `rm`.tar"
    text = card.render_card(report_of(data, input=name))
    escaped = r"a\|b \<script\>alert(1)\</script\> \*c\* \`d\` \[e\](f) \&lt; \_g\_"
    rows = [line for line in text.splitlines() if line.startswith(f"| {escaped} |")]
    assert len(rows) == 1
    assert len(re.split(r"(?<!\\)\|", rows[0])) == 2 + 1 + 2 + len(SPLITS)
    assert "<script>" not in text
    assert "| Pop_Rock |" in text
    assert "```` ```" in text  # as code in a line, in more backticks than it has itself
    block = re.search(r"^````bash\n(.*?)^````$", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    assert shlex.split(block[1])[3:5] == ["--input", name]
    assert DatasetCard(text).data.pretty_name == "Melody lines"


def test_rebuild_command_is_understood_by_the_builder(report):
    options = parse_arguments(shlex.split(card.rebuild_command(report))[3:])
    assert (options.input, options.steps_per_beat, options.num_proc) == (["lmd_full_subset.tar.gz"], 5, 13)
    given = {"input": "a b.tar", "metadata": "genres.csv", "steps_per_beat": 12, "overwrite": False, "num_proc": None}
    command = card.rebuild_command(report | {"options": given})
    assert command == (
        "python -m dataset_script.build --input 'a b.tar' --metadata genres.csv --steps_per_beat 12 --output melodies"
    )
    assert "--input" not in card.rebuild_command(report | {"input": card.TUNES})


def test_every_column_is_described():
    assert list(COLUMN_DESCRIPTIONS) == list(FEATURES)


def test_lengths_are_all_lines(report):
    assert sum(count for _, count in card.lengths(report["statistics"]["histograms"]["bars"])) == LINES


@pytest.mark.parametrize(
    ("lines", "name"), [(999, "n<1K"), (1000, "1K<n<10K"), (92_978, "10K<n<100K"), (2_000_000, "1M<n<10M")]
)
def test_size_category(lines, name):
    assert card.size_category(lines) == name


def test_check(report, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(card, "write_histograms", lambda path, *arguments, **keywords: path.touch())
    source, output = tmp_path / "report.json", tmp_path / "README.md"
    source.write_text(json.dumps(report), encoding="utf-8")
    arguments = ["--report", str(source), "--output", str(output)]
    assert card.main([*arguments, "--check"]) == 1
    assert not output.exists()
    assert card.main(arguments) == 0
    assert card.main([*arguments, "--check"]) == 0
    (tmp_path / "card" / "notes-dark.png").unlink()
    assert card.main([*arguments, "--check"]) == 1
    assert "notes-dark.png" in capsys.readouterr().err
    (tmp_path / "card" / "notes-dark.png").touch()
    source.write_text(json.dumps(report | {"steps_per_beat": 7}), encoding="utf-8")
    assert card.main([*arguments, "--check"]) == 1
    assert "does not say what" in capsys.readouterr().err
    source.write_text("no report", encoding="utf-8")
    assert card.main(arguments) == 2
    assert "cannot be read as a report" in capsys.readouterr().err
    for missing in ("statistics", "files"):
        source.write_text(
            json.dumps({name: value for name, value in report.items() if name != missing}), encoding="utf-8"
        )
        assert card.main(arguments) == 2
        error = capsys.readouterr().err
        assert "lacks a figure" in error
        assert f"'{missing}'" in error


# --- pictures --------------------------------------------------------------------------------------------------------


def test_histograms_are_drawn_as_shares_of_all(tmp_path):
    histogram = Histogram(
        "A $title$", "steps", "share of all", [-0.5, 0.5, 1.5], [3, 1], below=0, above=4, is_centred=True
    )
    (axes,) = draw_histograms([histogram]).axes
    (bars,) = axes.patches
    assert max(bars.get_data().values) == 3 / 8
    assert histogram.outside() == "50.0% above 1"
    assert [text.get_text() for text in axes.texts] == ["A $title$", "share of all", "50.0% above 1"]
    for name in ("one.png", "other.png"):
        write_histograms(tmp_path / name, [histogram], theme="dark")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()


def test_histograms_of_nothing_and_of_nonsense():
    assert len(draw_histograms([Histogram("Nothing", "", "", [0, 1], [0])]).axes) == 1
    with pytest.raises(ValueError, match="2 edges and 2 counts"):
        draw_histograms([Histogram("Nonsense", "", "", [0, 1], [0, 1])])


@pytest.mark.parametrize(("share", "words"), [(0, "0%"), (0.0001, "< 0.1%"), (0.1234, "12.3%"), (1, "100.0%")])
def test_percent(share, words):
    assert percent(share) == words
