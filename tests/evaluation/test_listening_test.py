"""Listening tests: blind, alike, and analysed by tests that find what was planted and nothing else."""

import json
import random
import wave

import datasets
import numpy as np
import pytest
from scipy import stats

from command import UserError
from evaluation import listening_study
from evaluation.listening_analysis import (
    Votes,
    analyse,
    bradley_terry,
    holm,
    kruskal_wallis,
    pairwise,
    promised_power,
    ranks,
)
from evaluation.listening_study import (
    PREFERENCES,
    Ballot,
    make_trials,
    order_for,
    parse_models,
    read_votes,
    record,
    write_study,
)
from modeling import MelodyProcessor, MelodyVAEModel
from rendering.intervals import draw_intervals
from tests.builders.generation import LINES, save_model

pytestmark = pytest.mark.usefixtures("small_pictures")

SYSTEMS = ("lstm", "test set", "vae")


def trials_of(pairs, systems=SYSTEMS, seed=0):
    return make_trials({system: range(pairs * len(systems)) for system in systems}, pairs, seed)


def vote_of(first, second, preference, voter="a"):
    return {"first": first, "second": second, "preference": preference, "voter": voter}


def simulate(trials, strength, voters, seed, tie_share=0.1, strong_share=0.3):
    """Let voters that follow the Bradley-Terry model judge all trials, some of them without or with much conviction."""
    generator = np.random.default_rng(seed)
    rows = []
    for voter in range(voters):
        for trial in trials:
            chance = 1 / (1 + np.exp(strength[trial["first"]] - strength[trial["second"]]))
            sign = 1 if generator.random() < chance else -1
            size = 0 if generator.random() < tie_share else 2 if generator.random() < strong_share else 1
            rows.append({**trial, "voter": f"voter {voter}", "preference": sign * size})
    return rows


class TestAnalysis:
    def test_holm_by_hand(self):
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
        assert holm([0.9, 0.9]) == [1, 1]
        assert holm([]) == []

    def test_statistic_is_kruskal_and_wallis(self):
        rows = simulate(trials_of(7), {"lstm": 0, "test set": 1, "vae": 0.3}, voters=3, seed=1)
        votes = Votes(rows)
        ratings = {system: [] for system in SYSTEMS}
        for row in rows:
            ratings[row["second"]].append(row["preference"])
            ratings[row["first"]].append(-row["preference"])
        expected = stats.kruskal(*ratings.values()).statistic
        assert kruskal_wallis(votes, shuffles=1)["statistic"] == pytest.approx(expected)

    def test_bradley_terry_of_two_is_the_log_odds(self):
        strength = bradley_terry(np.array([[0, 29.5], [9.5, 0]]))  # and half a win each
        assert strength[0] - strength[1] == pytest.approx(np.log(3))
        assert strength.sum() == pytest.approx(0)

    def test_bradley_terry_finds_the_strengths(self):
        true = dict(zip(("a", "b", "c", "d"), (-1.0, -0.2, 0.3, 0.9), strict=True))
        votes = Votes(simulate(trials_of(53, tuple(true)), true, voters=11, seed=2, tie_share=0))
        found = {row["system"]: row for row in ranks(votes, rounds=100)}
        assert [row["system"] for row in ranks(votes, rounds=2)] == ["d", "c", "b", "a"]
        for system, strength in true.items():
            assert found[system]["strength"] == pytest.approx(strength, abs=0.15)
            low, high = found[system]["interval"]
            assert low < found[system]["strength"] < high

    def test_a_system_that_always_wins_has_a_finite_strength(self):
        found = ranks(Votes([vote_of("a", "b", 2)] * 9), rounds=20)
        assert found[0]["system"] == "b"
        assert found[0]["win_share"] == 1
        assert np.isfinite(found[0]["strength"])

    def test_which_side_is_shown_first_changes_nothing(self):
        rows = simulate(trials_of(5), {"lstm": 0, "test set": 1, "vae": 0.3}, voters=3, seed=1)
        turned = [
            {**row, "first": row["second"], "second": row["first"], "preference": -row["preference"]} for row in rows
        ]
        assert pairwise(Votes(rows)) == pairwise(Votes(turned))
        assert ranks(Votes(rows), rounds=20) == ranks(Votes(turned), rounds=20)

    def test_ties_alone(self):
        found = analyse([vote_of("a", "b", 0), vote_of("b", "a", 0)])
        assert found["kruskal_wallis"]["p_value"] == 1
        assert found["pairwise"][0]["p_value_holm"] == 1
        assert [row["strength"] for row in found["bradley_terry"]] == pytest.approx([0, 0])

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([], "no votes"),
            ([vote_of("a", "b", 3)], "got 3"),
            ([vote_of("a", "a", 1)], "got 'a' twice"),
        ],
    )
    def test_refusals(self, rows, message):
        with pytest.raises(ValueError, match=message):
            analyse(rows)


class TestPromises:
    """Simulated voters: what was planted is found as often as promised, and where is nothing, nothing is found."""

    ROUNDS = 150

    def test_level(self):
        trials, wrong = trials_of(4), {"any": 0, "pair": 0}
        for seed in range(self.ROUNDS):
            votes = Votes(simulate(trials, dict.fromkeys(SYSTEMS, 0.0), voters=5, seed=seed))
            wrong["any"] += kruskal_wallis(votes, seed, shuffles=199)["p_value"] <= 0.05
            wrong["pair"] += any(row["p_value_holm"] <= 0.05 for row in pairwise(votes))
        # 0.05 of 150 is 7.5, and more than 14 are less likely than one in a hundred.
        assert max(wrong.values()) <= 14

    def test_intervals_hold_the_truth(self):
        trials, held = trials_of(5), 0
        for seed in range(30):
            found = ranks(Votes(simulate(trials, dict.fromkeys(SYSTEMS, 0.0), voters=20, seed=seed)), seed, rounds=60)
            held += sum(row["interval"][0] <= 0 <= row["interval"][1] for row in found)
        assert 0.85 <= held / 90 < 1

    @pytest.mark.parametrize(("voters", "share"), [(12, 0.65), (8, 0.75)])
    def test_power(self, voters, share):
        pairs = 6
        strength = {"lstm": 0.0, "test set": float(np.log(share / (1 - share))), "vae": 0.0}
        promised = promised_power(voters * pairs, share, 3)
        assert 0.4 < promised < 0.98
        found = 0
        for seed in range(self.ROUNDS):
            rows = simulate(trials_of(pairs), strength, voters, seed, tie_share=0, strong_share=0)
            found += next(
                row["p_value_holm"] <= 0.05 for row in pairwise(Votes(rows)) if row["systems"] == ["lstm", "test set"]
            )
        deviation = (promised * (1 - promised) / self.ROUNDS) ** 0.5
        assert found / self.ROUNDS > promised - 3 * deviation  # Holm gives more than Bonferroni, whose power it is
        assert found / self.ROUNDS < promised + 3 * deviation + 0.15

    def test_power_grows_and_is_the_level_where_is_nothing(self):
        powers = [promised_power(count, 0.65, 3) for count in (20, 40, 80, 160)]
        assert powers == sorted(powers)
        assert promised_power(50, 0.5, 1) == pytest.approx(0.05)
        assert promised_power(5, 1.0, 1) == 0  # five wins out of five are no proof
        assert promised_power(7, 1.0, 1) == 1
        with pytest.raises(ValueError, match=r"got 0\.4"):
            promised_power(5, 0.4, 1)


class TestStudy:
    @pytest.fixture
    def study(self, tmp_path):
        melodies = {system: [listening_study.fit(LINES[number]) for number in range(6)] for system in SYSTEMS}
        write_study(tmp_path / "study", melodies, make_trials(melodies, 2, 0), seed=0)
        return tmp_path / "study"

    def test_every_two_systems_meet_equally_often_and_sides_are_balanced(self):
        trials = trials_of(6)
        assert len(trials) == 18
        for one in SYSTEMS:
            assert (
                sum(trial["first"] == one for trial in trials) == sum(trial["second"] == one for trial in trials) == 6
            )
        assert all(trial["first"] != trial["second"] for trial in trials)
        assert trials == trials_of(6)
        assert trials != trials_of(6, seed=1)

    def test_the_page_is_blind_and_melodies_are_alike(self, study):
        page = study / "page"
        shown = json.loads((page / "trials.json").read_text(encoding="utf-8"))["trials"]
        key = json.loads((study / "key.json").read_text(encoding="utf-8"))["trials"]
        assert [trial["trial"] for trial in shown] == [trial["trial"] for trial in key] == list(range(6))
        for file in page.iterdir():
            assert not any(system.split()[0] in file.name for system in SYSTEMS)
            content = file.read_bytes()
            assert not any(system.encode() in content for system in SYSTEMS)
        peaks = set()
        for trial in shown:
            for side in ("first", "second"):
                with wave.open(str(page / trial[side])) as sound:
                    assert (sound.getframerate(), sound.getnchannels()) == (22050, 1)
                    peaks.add(int(np.abs(np.frombuffer(sound.readframes(10**7), "<i2").astype(int)).max()))
        assert len(peaks) == 1

    def test_a_study_is_not_overwritten(self, study):
        with pytest.raises(UserError, match="a study is there already"):
            write_study(study, {}, [], 0)

    def test_votes_come_back_whichever_side_was_left(self, study, tmp_path):
        trials = listening_study.read_trials(study)
        key = json.loads((study / "key.json").read_text(encoding="utf-8"))["trials"]
        for voter in ("one", "two"):
            for trial in order_for(trials, voter):
                left_is_first = not trial["is_swapped"]
                wanted = "test set"
                sides = key[trial["trial"]]
                if wanted not in sides.values():
                    record(study / "votes.jsonl", voter, trial, "No difference", 1.0)
                    continue
                is_left = (sides["first"] == wanted) == left_is_first
                record(study / "votes.jsonl", voter, trial, f"The {'first' if is_left else 'second'}, by far", 2.0)
        rows = read_votes(study, [])
        assert len(rows) == 12
        found = {tuple(row["systems"]): row for row in pairwise(Votes(rows))}
        assert found["lstm", "test set"]["wins"] == [0, 4]
        assert found["test set", "vae"]["wins"] == [4, 0]
        assert found["lstm", "vae"]["ties"] == 4
        assert analyse(rows)["bradley_terry"][0]["system"] == "test set"

    def test_orders_differ_between_voters(self, study):
        trials = listening_study.read_trials(study)
        orders = [[trial["trial"] for trial in order_for(trials, str(voter))] for voter in range(9)]
        assert all(sorted(order) == list(range(6)) for order in orders)
        assert len({tuple(order) for order in orders}) > 5

    def test_analyse_command(self, study, capsys):
        trials, generator = listening_study.read_trials(study), random.Random(0)
        for voter in range(3):
            for trial in order_for(trials, str(voter)):
                record(study / "votes.jsonl", str(voter), trial, generator.choice(list(PREFERENCES)), 3.0)
        assert listening_study.main(["analyse", "--study", str(study)]) == 0
        assert "18 votes of 3 voters" in capsys.readouterr().out
        results = json.loads((study / "results.json").read_text(encoding="utf-8"))
        assert {row["system"] for row in results["bradley_terry"]} == set(SYSTEMS)
        assert (study / "results.png").stat().st_size > 1000
        kept = datasets.load_dataset("parquet", data_files=str(study / "votes.parquet"), split="train")
        assert kept.column_names == ["trial", "first", "second", "voter", "preference"]
        assert (
            len(kept) == len(datasets.load_dataset("json", data_files=str(study / "votes.jsonl"), split="train")) == 18
        )

    def test_the_ballot_shows_each_pair_once_and_keeps_every_vote(self, study):
        ballot = Ballot(study)
        state, seen = ballot.begin(), []
        for number in range(6):
            heading, sounds = ballot.shown(state)
            assert heading == f"### Pair {number + 1} of 6"
            trial = state["trials"][number]
            assert sounds[trial["is_swapped"]] == str(study / "page" / trial["first"])
            seen.append(frozenset(sounds))
            state = ballot.choose("The first, by far", state)
        assert len(set(seen)) == 6
        assert ballot.shown(state) == ("### Thank you. All 6 pairs are judged.", None)
        assert ballot.choose("The first, by far", state) == state  # a vote too many is none
        rows = [json.loads(line) for line in (study / "votes.jsonl").read_text(encoding="utf-8").splitlines()]
        assert sorted(row["trial"] for row in rows) == list(range(6))
        assert all(row["preference"] == (2 if row["is_swapped"] else -2) for row in rows)
        assert ballot.begin()["voter"] != state["voter"]

    def test_refusals(self, study, tmp_path, capsys):
        (study / "votes.jsonl").write_text(
            '{"trial": 0, "voter": "a", "preference": 1}\n{"trial": 99}\n', encoding="utf-8"
        )
        cases = [
            (["analyse", "--study", str(tmp_path)], "no key.json of a study"),
            (["analyse", "--study", str(study)], "votes.jsonl, line 2: no vote of this study"),
            (["analyse", "--study", str(study), "--votes", str(tmp_path / "x")], "x: no votes there"),
            (["vote", "--study", str(tmp_path)], "no study; make one"),
            (["prepare", "--models", "vae", "--dataset", "x", "--output", "y"], "--models vae: write NAME=DIR"),
            (["prepare", "--models", "a=x", "a=y", "--dataset", "x", "--output", "y"], "'a' is taken"),
            (["prepare", "--models", "a=x", "--dataset", "x", "--output", str(study)], "a study is there already"),
        ]
        for argv, message in cases:
            assert listening_study.main(argv) == 2, argv
            error = capsys.readouterr().err.strip().splitlines()[-1]
            assert error.startswith("error: ")
            assert message in error
        assert parse_models(["vae=a=b"]) == {"vae": "a=b"}


@pytest.mark.slow
def test_prepare_samples_from_models(tmp_path, capsys):
    """The tiny models hold 5 bars, the study's melodies 16: what is missing is made window by window."""
    rows = [{**line, "bars": 7} for line in LINES]
    long = [
        {
            **row,
            "bars": 21,
            "start": [start + 112 * part for part in range(3) for start in row["start"]],
            "pitch": row["pitch"] * 3,
            "duration": row["duration"] * 3,
        }
        for row in rows
    ]
    datasets.Dataset.from_list(long).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    models = []
    for name, more in (("vae", {}), ("mt", {"latent_size": 0})):
        folder = save_model(tmp_path / name, steps=20, **more)
        model = MelodyVAEModel.from_pretrained(folder)
        model.set_grammar(MelodyProcessor.from_pretrained(folder).grammar_table())
        model.save_pretrained(folder)
        models.append(f"{name}={folder}")
    argv = ["prepare", "--models", *models, "--dataset", str(tmp_path / "data"), "--output", str(tmp_path / "study")]
    assert listening_study.main([*argv, "--pairs", "2"]) == 0
    assert "6 trials between test set, vae, mt" in capsys.readouterr().out
    assert len(list((tmp_path / "study" / "page").glob("*.wav"))) == 12


def test_intervals_are_drawn():
    figure = draw_intervals([("a $x$", 0.5, [0.1, 0.9]), ("b", -0.2, None)], reference=0.0, title="t")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a $x$", "b"]
    with pytest.raises(ValueError, match="got no rows"):
        draw_intervals([])
