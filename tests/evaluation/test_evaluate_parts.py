"""The parts of the evaluation that need no trained model: n-grams, posteriors tempered, paths, groups, sets."""

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.held_out import STEPS
from evaluation.latent_space import LatentSpace, average, bars_of, describe_path, distance, mixed_path
from evaluation.model_evaluation import Evaluation, log_normal, temper
from evaluation.ngram import NgramModel
from evaluation.reconstruction import by_group, compare, density_groups, fit_to_grid, summary
from evaluation.sample_quality import MelodySet, quality
from metrics.originality.originality_index import OriginalityIndex
from modeling import MelodyProcessor, MelodyVAEModel
from modeling.modeling_melody_vae import MelodyVAEPosterior
from tests.builders.onnx_models import LINES, save_model

V = 7


class TestNgram:
    def test_bigrams_by_hand(self):
        # 0 1 2 1 3 and 0 1 2 4: bigrams 01 12 21 13 01 12 24
        model = NgramModel([[0, 1, 2, 1, 3], [0, 1, 2, 4]], order=2, vocab_size=5)
        d2 = Fraction(3, 3 + 2 * 2)  # 21, 13, 24 once; 01 and 12 twice
        # Unigrams count the different tokens before: 1 after 0 and 2; 2, 3 and 4 after one each.
        d1 = Fraction(3, 3 + 2 * 1)
        unigram = {1: Fraction(2, 5) - d1 / 5 + d1 * 4 / 5 / 5, 2: (1 - d1) / 5 + d1 * 4 / 5 / 5, 0: d1 * 4 / 5 / 5}
        after_1 = {2: (2 - d2) / 3 + d2 * 2 / 3 * unigram[2], 1: d2 * 2 / 3 * unigram[1], 0: d2 * 2 / 3 * unigram[0]}
        for token, expected in after_1.items():
            assert model.probability((1,), token) == pytest.approx(float(expected))
        nats = -sum(math.log(model.probability((one,), other)) for one, other in [(0, 1), (1, 2), (2, 1), (1, 3)])
        assert model.nats([0, 1, 2, 1, 3]) == pytest.approx(nats)

    @settings(max_examples=40)
    @given(
        st.lists(st.lists(st.integers(0, V - 1), min_size=2, max_size=9), min_size=1, max_size=5),
        st.integers(1, 4),
    )
    def test_distributions_sum_to_one_and_equal_probabilities(self, sequences, order):
        model = NgramModel(sequences, order, V)
        for context in [(), *product(range(V), repeat=1), (1, 2), (3, 3, 3), (0, 1, 2, 3, 4)]:
            probabilities = model.distribution(context)
            assert probabilities.sum() == pytest.approx(1)
            assert (probabilities > 0).all() or order == 1
            assert probabilities[2] == pytest.approx(model.probability(tuple(context), 2))

    def test_longer_contexts_tell_more(self):
        generator = np.random.default_rng(0)

        def walk():
            sequence = [0]
            for _ in range(53):
                sequence.append(int((sum(sequence[-3:]) + (generator.random() < 0.1)) % V))
            return sequence

        train, test = [walk() for _ in range(101)], [walk() for _ in range(11)]
        nats = [sum(NgramModel(train, order, V).nats(walk) for walk in test) for order in (1, 2, 4)]
        assert nats[2] < 0.7 * nats[1] < 0.9 * nats[0]

    def test_samples_have_the_bars_and_follow_the_model(self):
        bar, note, end = 2, 3, 1
        is_bar = np.arange(V) == bar
        model = NgramModel([[0, bar, note, note, bar, note, end], [0, bar, note, end]], order=4, vocab_size=V)
        for ids in model.sample(31, start=0, end=end, is_bar_token=is_bar, bars=3, seed=5):
            assert ids[0] == 0
            assert ids[-1] == end
            assert ids.count(bar) == 3
            assert ids.count(0) == ids.count(end) == 1
        assert model.sample(3, 0, end, is_bar, 3, seed=5) == model.sample(3, 0, end, is_bar, 3, seed=5)
        assert all(len(ids) <= 11 for ids in model.sample(5, 0, end, is_bar, 97, seed=5, most_tokens=11))

    @pytest.mark.parametrize(
        ("sequences", "order", "message"),
        [([[0, 1]], 0, "order must be at least 1"), ([[0]], 2, "without a token"), ([[0, V]], 2, f"got {V}")],
    )
    def test_refusals(self, sequences, order, message):
        with pytest.raises(ValueError, match=message):
            NgramModel(sequences, order, V)


class TestTemper:
    @pytest.fixture
    def posterior(self):
        generator = torch.Generator().manual_seed(0)
        mean, log_variance = torch.randn(2, 3, 11, generator=generator)
        return MelodyVAEPosterior(latent_mean=mean, latent_log_variance=log_variance - 3)

    def test_ends(self, posterior):
        prior, same = temper(posterior, 0.0), temper(posterior, 1.0)
        assert prior.latent_mean.abs().max() == prior.latent_log_variance.abs().max() == 0
        assert torch.allclose(same.latent_mean, posterior.latent_mean, atol=1e-6)
        assert torch.allclose(same.latent_log_variance, posterior.latent_log_variance, atol=1e-5)

    @pytest.mark.parametrize("power", [0.3, 0.7, 2.0])
    def test_is_the_product_of_densities(self, posterior, power):
        tempered = temper(posterior, power)
        zero = torch.zeros(3, 11)

        def log_ratio(z):
            of_prior = log_normal(z, zero, zero)
            of_posterior = log_normal(z, posterior.latent_mean, posterior.latent_log_variance)
            wanted = of_prior + power * (of_posterior - of_prior)
            return wanted - log_normal(z, tempered.latent_mean, tempered.latent_log_variance)

        generator = torch.Generator().manual_seed(1)
        one, other = torch.randn(2, 3, 11, generator=generator)
        assert torch.allclose(log_ratio(one), log_ratio(other), rtol=1e-3, atol=1e-2)

    def test_rate_rises(self, posterior):
        rates = [temper(posterior, power).kl_nats().mean().item() for power in (0, 0.25, 0.5, 1, 2, 4)]
        assert rates == sorted(rates)
        assert rates[0] == 0

    def test_wide_dimensions_stay_densities(self, posterior):
        posterior.latent_log_variance[:, 0] = 1.5
        for power in (2.0, 4.0):
            tempered = temper(posterior, power)
            assert torch.isfinite(tempered.latent_log_variance).all()
            assert (tempered.latent_log_variance[:, 0] == 1.5).all()


def line(notes, bars=2, **more):
    """A melody of (start, pitch) pairs on eight steps a bar, each note one step."""
    return {
        "pitch": [pitch for _, pitch in notes],
        "start": [start for start, _ in notes],
        "duration": [1] * len(notes),
        "time_signature": "2/4",
        "steps_per_beat": 4,
        "bars": bars,
        **more,
    }


A = line([(0, 60), (3, 62), (8, 64)])
B = line([(1, 70), (3, 62), (9, 64), (12, 65)])


class TestPaths:
    def test_a_jump_and_an_even_way(self):
        jump = describe_path([A, A, A, B, B], 16)
        assert jump["steps"] == [0, 0, distance(A, B, 16), 0]
        assert jump["largest_share"] == 1
        still = describe_path([A, A, A], 16)
        assert still["largest_share"] is None
        assert still["order"] is None
        notes = [(index, 60) for index in range(8)]
        even = [
            line([(start, 60 + 12 * (index < moved)) for index, (start, _) in enumerate(notes)])
            for moved in range(0, 9, 2)
        ]
        found = describe_path(even, 16)
        assert found["largest_share"] == pytest.approx(1 / 4)
        assert found["order"] == pytest.approx(1)
        assert found["from_start"] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
        backwards = describe_path([A, B, A, B], 16)
        assert backwards["order"] < 1

    def test_distance(self):
        assert distance(A, A, 16) == 0
        assert distance(A, B, 16) == pytest.approx(1 - 2 * 1 / 7)
        assert distance(line([]), line([]), 16) == 0
        assert distance(line([]), A, 16) == 1

    def test_the_mix_begins_and_ends_at_the_melodies_and_never_goes_back(self):
        for seed in range(5):
            path = mixed_path(A, B, 7, 16, np.random.default_rng(seed))
            assert path[0] == {name: A[name] for name in ("pitch", "start", "duration")}
            assert path[-1] == {name: B[name] for name in ("pitch", "start", "duration")}
            distances = describe_path(path, 16)["from_start"]
            assert distances == sorted(distances)

    def test_average_leaves_out_what_is_undefined(self):
        rows = [{"a": [1.0, 3.0], "b": None}, {"a": [3.0, 5.0], "b": 2.0}]
        assert average(rows) == {"a": [2, 4], "b": 2}
        assert average([{"a": None}]) == {"a": None}

    def test_locality_of_a_decoder_that_is_local(self):
        """A decoder whose bar plays the sign of its share, and one whose every bar plays the sum."""

        class Decoder:
            def __init__(self, is_local):
                self.is_local = is_local
                self.config = type("Config", (), {"max_bars": 5})

            def decode(self, latents, bars):
                return latents if self.is_local else latents.sum(1, keepdim=True).expand(-1, bars)

        class Reader:
            @staticmethod
            def to_lines(latents):
                rows = [[(8 * bar, 60 + round(value)) for bar, value in enumerate(row)] for row in latents.tolist()]
                return [line(notes, bars=5) for notes in rows]

        mean = 7.0 * torch.arange(15).view(3, 5) % 17
        for is_local, others in ((True, 0.0), (False, 1.0)):
            space = LatentSpace(Decoder(is_local), Reader, mean, torch.zeros(3, 5), 5, 40, batch_size=2, seed=0)
            change = space.locality(3)["change"]
            assert change[0] == 1
            assert change[1:] == [others] * 4
        assert space.locality(1) is None
        still = LatentSpace(Decoder(True), Reader, mean, torch.full((3, 5), -60.0), 5, 40, batch_size=2, seed=0)
        assert set(still.noise(3)["distance"].values()) == {0}

    def test_bars(self):
        assert bars_of(A, 2) == [{(0, 60), (3, 62)}, {(0, 64)}]
        assert bars_of(A, 1) == [{(0, 60), (3, 62)}]


class TestReconstruction:
    def test_longer_than_the_grid_is_cut(self):
        long = line([(0, 60), (15, 62), (16, 64)], 3)
        long["duration"][1] = 1
        assert fit_to_grid({**long, "duration": [1, 5, 1]}, 16) == {
            "pitch": [60, 62],
            "start": [0, 15],
            "duration": [1, 1],
        }

    def test_compare_and_summary_agree(self):
        found = compare([A, B, A], [A, A, B], 16)
        short = summary([A, B, A], [A, A, B], 16)
        assert short["note_f1"] == found["note_f1"]["f1"] == pytest.approx(2 * 5 / 20)
        assert short["exact"] == pytest.approx(1 / 3)
        low, high = found["note_f1"]["interval"]
        assert low <= found["note_f1"]["f1"] <= high
        assert compare([line([])] * 2, [line([])] * 2, 16)["note_f1"]["interval"] is None

    def test_groups(self):
        originals = [
            line([(start, 60) for start in range(count)], genre="jazz" if count % 2 else None) for count in range(1, 31)
        ]
        found = by_group(originals, originals, density_groups(originals), 32)
        assert [row["melodies"] for row in found.values()] == [10, 10, 10]
        assert [name[0] for name in found] == ["1", "2", "3"]
        assert all(row["note_f1"] == 1 for row in found.values())
        assert list(by_group(originals, originals, lambda each: each["genre"], 32)) == ["jazz"]
        assert by_group(originals[:7], originals[:7], lambda each: "few", 32) == {}

    def test_openings(self):
        tune = line([(0, 60), (14, 62), (16, 64)], bars=16)
        tune["duration"] = [2, 2, 3]
        assert fit_to_grid(tune, 16)["pitch"] == [60, 62]
        assert fit_to_grid({**tune, "duration": [2, 9, 3]}, 16)["duration"] == [2, 2]
        assert {**tune, **fit_to_grid(tune, 256)} == tune


class TestSamples:
    @staticmethod
    def make(seed, count, low=60, notes=40):
        generator = np.random.default_rng(seed)
        lines = []
        for number in range(count):
            start = np.sort(generator.choice(STEPS, notes, replace=False))
            pitch = generator.integers(low, low + 12, notes)
            lines.append(
                {
                    "melody_id": f"{seed}-{number}",
                    "pitch": pitch.tolist(),
                    "start": start.tolist(),
                    "duration": np.diff(start, append=STEPS).tolist(),
                    "time_signature": "4/4",
                    "steps_per_beat": 4,
                    "bars": 16,
                }
            )
        return lines

    def test_like_unlike_and_copied(self):
        reference = MelodySet(self.make(0, 17), 16, STEPS)
        training = self.make(1, 17)
        index = OriginalityIndex.build(training)
        like = quality(MelodySet(self.make(2, 17), 16, STEPS), reference, index, 0, "like")
        unlike = quality(MelodySet(self.make(3, 17, low=40, notes=9), 16, STEPS), reference, index, 0, "unlike")
        copies = quality(MelodySet(training, 16, STEPS), reference, index, 0, "copies")
        area = [each["overlap"]["mean"]["overlapped_area"] for each in (like, unlike)]
        assert area[0] > area[1] + 0.2
        assert unlike["two_sample"]["auc"] > 0.95 > like["two_sample"]["auc"]
        assert like["originality"]["copied"] == 0
        assert copies["originality"]["copied"] == 1
        assert copies["originality"]["longest_bars"]["most"] == 16
        assert copies["originality"]["longest_bars"]["mean"] > 15  # silence at an end does not count
        assert set(like["overlap"]["features"]) == set(reference.features[0])

    def test_silence_and_single_notes(self):
        """A model that writes nothing: what can be told is told, the rest is null."""
        reference = MelodySet(self.make(0, 11), 16, STEPS)
        index = OriginalityIndex.build(self.make(1, 3))
        empty = {**self.make(2, 1)[0], "pitch": [], "start": [], "duration": []}
        single = {**empty, "pitch": [60], "start": [3], "duration": [1]}
        found = quality(MelodySet([empty] * 5 + [single] * 6, 16, STEPS), reference, index, 0, "silence")
        assert found["overlap"]["features"]["pitch_interval"] is None
        assert found["overlap"]["features"]["pitch_range"] is not None
        assert found["originality"]["copied"] is None
        assert found["two_sample"]["auc"] > 0.9
        windows_of_a_song = [{**line, "group": 7} for line in self.make(4, 17)]
        assert quality(MelodySet(windows_of_a_song, 16, STEPS), reference, index, 0, "song")["two_sample"] is None
        few = quality(MelodySet([empty] * 3, 16, STEPS), reference, index, 0, "few")
        assert few["two_sample"] is None
        assert few["overlap"]["mean"] == {"overlapped_area": None, "kl_divergence": None}


def test_a_teacher_forced_bar_is_not_told_that_it_repeats_another(tmp_path, monkeypatch):
    folder = save_model(tmp_path / "model", learnt=False, repeats=(1, 2, 3))
    model, processor = MelodyVAEModel.from_pretrained(folder).eval(), MelodyProcessor.from_pretrained(folder)
    ids = processor(lines=LINES, return_tensors="pt")["input_ids"]
    assert torch.isin(ids, torch.tensor(model.config.repeat_token_ids)).any()
    evaluation, seen, generate = Evaluation(model, processor, LINES, 4, 0), [], model.generate
    monkeypatch.setattr(model, "generate", lambda prefix, **more: seen.append(prefix) or generate(prefix, **more))
    found = evaluation.teacher_forced()
    assert found["step_accuracy"]["count"] == len(LINES) == len(seen)
    assert sorted(map(len, seen)) == sorted(line["bars"] for line in LINES)
    for prefixes in seen:
        assert not set(prefixes[:, -1].tolist()) & set(model.config.repeat_token_ids)
