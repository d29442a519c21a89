"""The learned prior and what is done with it: sampling under conditions, completion, variations, its training."""

import json
import sys
from functools import partial
from itertools import groupby

import pytest
import torch

import train_prior
from modeling import MelodyVAEModel
from modeling.arguments_melody_vae import make_generators
from modeling.interpolation_melody_vae import slerp
from modeling.melody_line_melody_vae import ATTRIBUTES, tempo_class
from modeling.options_melody_vae import PRIOR_STEPS
from modeling.prior_melody_vae import FEWEST_ROWS
from tests.builders.models import IDS, SHORT_IDS, N, Z, make_bare_model, make_latent
from tests.builders.training import fit_prior
from training.prior import LONGEST_RETURN, count_returns

CONDITIONS = {"key": ["C major", "A minor", "D minor"], "tempo": ["slow", "fast"]}
SHARE = Z // N


def make_prior_model(**overrides) -> MelodyVAEModel:
    model = make_bare_model(num_prior_layers=2, conditions=CONDITIONS, **overrides)
    with torch.no_grad():
        model.prior.direction_proj.weight.normal_(std=0.3)
        model.prior.mean.normal_()
        model.prior.scale.uniform_(0.5, 2.0)
    return model


@pytest.fixture(scope="module")
def model() -> MelodyVAEModel:
    return make_prior_model()


def complete(model, latent, is_known, seed=0, **options):
    torch.manual_seed(seed)
    labels = options.pop("labels", model.prior.null_labels(len(latent)))
    return model.prior.sample(latent, is_known, labels, **options)


def with_latent(model, ids=None, seed=0, **options) -> dict:
    """Sample latents around the bars of `ids` as every operation does: options of `generate`."""
    generator = make_generators(3, seed)
    ids = torch.full((3, 1), model.config.bos_token_id) if ids is None else ids
    options["conditions"] = model._conditions(options.get("conditions"), 3)
    return model._with_primer_latent(ids, {"generator": generator, **options}, None)


def test_known_bars_stay_and_decide_about_the_others(model):
    latent, other = make_latent(), make_latent(seed=2)
    is_known = torch.tensor([[1, 1, 0, 0, 0, 0, 1], [0] * N, [1] * N], dtype=torch.bool)
    spread = model._spread_over_latent(is_known)
    found = complete(model, latent, is_known)
    torch.testing.assert_close(found[spread], latent[spread])
    assert (found - latent).abs()[~spread].min() > 0
    changed = complete(model, torch.where(spread, other, latent), is_known)
    assert (changed - found).abs()[0, ~spread[0]].max() > 1e-3  # the same noise, other bars known
    torch.testing.assert_close(changed[1], found[1])  # nothing known: the latent does not matter


def test_from_the_end_of_the_flow_nothing_changes_and_from_its_beginning_everything(model):
    latent, is_known = make_latent(), torch.zeros(3, N, dtype=torch.bool)
    torch.testing.assert_close(complete(model, latent, is_known, begin=1.0), latent)
    fresh = complete(model, latent, is_known)
    torch.testing.assert_close(complete(model, -latent, is_known), fresh)
    distances = [(complete(model, latent, is_known, begin=begin) - latent).norm() for begin in (0.9, 0.5, 0.0)]
    assert distances == sorted(distances)


def test_more_steps_come_to_the_same_place(model):
    latent, is_known = make_latent(), torch.zeros(3, N, dtype=torch.bool)
    coarse, fine, finer = (complete(model, latent, is_known, steps=steps) for steps in (16, 64, 256))
    assert (fine - finer).norm() < 0.2 * (coarse - finer).norm()  # Heun's error falls with the square


def test_conditions_change_what_is_drawn_and_guidance_exaggerates_them(model):
    latent, is_known = make_latent(), torch.zeros(3, N, dtype=torch.bool)
    asked = model._conditions({"key": "A minor", "tempo": ["slow", "fast", "fast"]}, 3)
    told = model._condition_labels(model.prior, asked, 3)
    assert {name: of.tolist() for name, of in told.items()} == {"key": [1, 1, 1], "tempo": [0, 1, 1], "bars": [0] * 3}
    plain, one, two = (
        complete(model, latent, is_known),
        complete(model, latent, is_known, labels=told),
        complete(model, latent, is_known, labels=told, guidance_scale=2.0),
    )
    assert (one - plain).norm() > 1e-3
    assert (two - plain).norm() > (one - plain).norm()
    open_ended = complete(model, latent, is_known, labels=model.prior.null_labels(3), guidance_scale=2.0)
    torch.testing.assert_close(open_ended, plain)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"mood": "sad"}, "unknown condition 'mood'; this model has key, tempo"),
        ({"key": "H major"}, "unknown key 'H major'; this model has C major, A minor, D minor"),
        ({"tempo": ["slow", "fast"]}, "2 values of tempo for 3 melodies"),
    ],
)
def test_wrong_conditions_are_refused(model, conditions, message):
    with pytest.raises(ValueError, match=message):
        model._conditions(conditions, 3)


def test_a_model_without_prior_refuses_conditions():
    plain = make_bare_model()
    for model in (plain, make_bare_model(latent_size=0)):
        for ask in (partial(model.sample, 2), model.generate):
            with pytest.raises(ValueError, match="no learned prior"):
                ask(conditions={"key": "C major"})
    with pytest.raises(ValueError, match="without a latent"):
        make_bare_model(latent_size=0, num_prior_layers=1)


def test_sampling_draws_from_the_prior(model):
    options = {"bars": 3, "conditions": {"key": "D minor"}, "guidance_scale": 1.5}
    one, again = (model.sample(4, seed=5, **options) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, model.sample(4, seed=5, bars=3))


def test_bars_of_a_beginning_stay_in_the_priors_samples(model):
    latent = with_latent(model, IDS, noise_level=0.0)["latent"]
    known = model._spread_over_latent(model._known_bars(IDS))
    mean = model.encode(IDS).latent_mean
    torch.testing.assert_close(latent[known], mean[known])
    assert model._known_bars(SHORT_IDS).sum(1).tolist() == [2, 1, 1]


def test_a_latent_keeps_what_is_known_and_says_how_noisy_the_rest_is():
    noisy = make_prior_model(noise_probability=0.5)
    with torch.no_grad():
        is_known, mean = noisy._known_bars(IDS), noisy.encode(IDS).latent_mean
    spread = noisy._spread_over_latent(is_known)
    drawn = {}
    for level in (0.0, 0.25, 1.0):
        options = with_latent(noisy, IDS, noise_level=level)
        assert torch.equal(options["latent"][spread], mean[spread])
        assert torch.equal(options.get("noise_level", torch.zeros(3, N)), torch.where(is_known, 0.0, level))
        drawn[level] = options["latent"]
    assert torch.equal(drawn[0.0], noisy.sample_latent(3, mean, is_known, seed=0))
    noise = torch.stack([torch.randn(N, SHARE, generator=source) for source in make_generators(3, 0)])
    assert torch.equal(drawn[1.0][~spread], noisy.prior.merge_bars(noise)[~spread])
    stopped = complete(noisy, mean, is_known, noise=noise, end=0.75, steps=PRIOR_STEPS)
    torch.testing.assert_close(drawn[0.25], stopped)
    of_seed = [torch.Generator().manual_seed(seed) for seed in (5, 6, 5)]
    once = noisy.sample_latent(3, generator=of_seed, noise_level=0.5)
    torch.testing.assert_close(once[0], once[2])
    assert (once[0] - once[1]).abs().min() > 0


def test_latents_of_a_seed_are_the_same_in_any_batch(model):
    for drawn in (model, make_bare_model()):
        whole = drawn.sample_latent(7, seed=3)
        assert torch.equal(whole[:2], drawn.sample_latent(2, seed=3))
        assert (whole[0] - whole[1]).abs().min() > 0


def test_the_prior_is_told_how_many_bars_and_which_time_signature(monkeypatch):
    model, told = make_prior_model(), []
    forward = model.prior.forward
    monkeypatch.setattr(model.prior, "forward", lambda *args: told.append(args[-1]) or forward(*args))
    options = {"seed": 0, "max_length": 40}
    short = model.sample_latent(2)
    model.sample(2, bars=3, **options)
    model.sample(2, bars=[2, 5], conditions={"key": "A minor"}, guidance_scale=2.0, **options)
    model.generate(IDS, bars=torch.tensor([4, 3, 6]), max_length=40)
    model.sample(1, bars=2 * N, seed=0)
    lengths = [labels["bars"].tolist() for labels in told]
    assert [length for length, _ in groupby(lengths)] == [
        [0] * FEWEST_ROWS,  # fewer melodies are computed several times over
        [3] * FEWEST_ROWS,
        [2, 5, 2, 5],
        [4, 3, 6, 4],
        [N] * FEWEST_ROWS,
    ]
    assert short.shape == (2, Z)
    torch.manual_seed(0)
    free, two = (
        complete(model, make_latent(), torch.zeros(3, N, dtype=torch.bool), labels=labels)
        for labels in (
            model.prior.null_labels(3),
            model._condition_labels(model.prior, {}, 3, 2),
        )
    )
    assert (free - two).norm() > 1e-3


def test_conditions_leave_less_to_the_melody_decoder():
    noisy = make_prior_model(noise_probability=0.5, sampling_noise=0.8)
    for asked, expected in ((None, 0.8), ({"key": "A minor"}, 0.4)):
        assert with_latent(noisy, conditions=asked)["noise_level"].unique().item() == pytest.approx(expected)
    given = with_latent(noisy, conditions={"key": "A minor"}, noise_level=0.8)["noise_level"]
    assert given.unique().item() == pytest.approx(0.8)


def test_without_a_learned_prior_latents_are_mixed_with_noise():
    plain = make_bare_model(noise_probability=0.5)
    known, is_known = make_latent(400), torch.zeros(400, N, dtype=torch.bool)
    is_known[:, 2:5] = True
    latent = plain.sample_latent(400, known, is_known, noise_level=0.25, seed=0)
    spread = plain._spread_over_latent(is_known)
    assert torch.equal(latent[spread], known[spread])
    assert latent[~spread].std().item() == pytest.approx((0.75**2 + 0.25**2) ** 0.5, rel=0.05)


def test_the_loss_looks_where_samples_are_drawn(monkeypatch):
    times = []
    for amount in (0.0, 0.9):
        model = make_prior_model(noise_probability=0.5, sampling_noise=amount)
        monkeypatch.setattr(
            model.prior, "forward", lambda noisy, time, *_: times.append(time) or torch.zeros_like(noisy)
        )
        torch.manual_seed(0)
        model.prior.loss(make_latent(2000), model.prior.null_labels(2000))
    early = [(time <= 0.1).float().mean().item() for time in times]
    assert early[0] < 0.05
    assert early[1] == pytest.approx(0.5, abs=0.05)


def test_sampling_leaves_a_part_to_the_melody_decoder(model):
    noisy = make_prior_model(noise_probability=0.5)
    with torch.no_grad():
        noisy.bar_conditioner.noise_proj.weight.normal_()
    options = {"seed": 5, "bars": 3, "max_length": 40}
    plain = noisy.sample(4, noise_level=0.0, **options)
    assert torch.equal(plain, noisy.sample(4, **options))
    alone = noisy.sample(4, noise_level=1.0, **options)
    assert not torch.equal(alone, plain)
    noisy.config.sampling_noise = 1.0
    assert torch.equal(alone, noisy.sample(4, **options))
    assert noisy.generate(IDS, do_sample=False, bars=5, max_length=67).shape[0] == len(IDS)
    with pytest.raises(ValueError, match="give the latent, or one number"):
        noisy.generate(IDS, noise_level=torch.full((3, N), 0.5))
    with pytest.raises(ValueError, match=r"noise_level=0.5 and a model trained without \(noise_probability=0\)"):
        model.sample(1, noise_level=0.5)
    with pytest.raises(ValueError, match="noise_level=2 is not a finite number from 0 to 1"):
        noisy.sample(1, noise_level=2)
    with pytest.raises(ValueError, match="this model has no latent"):
        make_bare_model(latent_size=0).sample(1, noise_level=0.5)
    with pytest.raises(ValueError, match=r"sampling_noise=0\.3"):
        make_bare_model(sampling_noise=0.3)


def test_sampling_keeps_to_the_likeliest_tokens():
    plain = make_bare_model(latent_size=0)
    options = {"n": 4, "seed": 0, "bars": 3, "max_length": 40}
    free = plain.sample(**options)
    assert len({tuple(row) for row in free.tolist()}) > 1
    plain.config.sampling_top_p = 1e-6
    greedy = plain.sample(**options)
    assert len({tuple(row) for row in greedy.tolist()}) == 1
    assert torch.equal(free, plain.sample(**options, top_p=1.0))
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"sampling_top_p={wrong} must be more than 0, and 1 at most"):
            make_bare_model(sampling_top_p=wrong)


@pytest.mark.slow
def test_the_loss_learns_a_distribution():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.1}
    model = make_bare_model(num_prior_layers=2, conditions={"key": ["low", "high"]}, **sizes)
    prior = model.prior.train()
    optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (1600 - step) / 400))
    losses = []
    for _ in range(1600):
        label = torch.randint(2, (128,))
        latent = (4.0 * label[:, None] - 2.0) + 0.3 * torch.randn(128, Z)
        loss = prior.loss(latent, prior.null_labels(128) | {"key": label})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    prior.eval()
    low, high = (model.sample_latent(64, conditions={"key": value}) for value in ("low", "high"))
    assert (low.mean(1) < 0).float().mean() > 0.9
    assert (high.mean(1) > 0).float().mean() > 0.9
    # One bar known tells which of the two it is.
    is_known = torch.zeros(64, N, dtype=torch.bool)
    is_known[:, 3] = True
    assert (complete(model, torch.full((64, Z), 2.0), is_known).mean(1) > 0).float().mean() > 0.9


def test_vary_from_the_same_to_anything(model):
    latent, options = make_latent(1), {"bars": 3, "max_length": 67}  # the model never ends by itself
    same = model.vary(latent, n=2, similarity=1.0, **options)
    expected = model.decode(latent, **options)
    assert all(torch.equal(row[: expected.shape[1]], expected[0]) for row in same)
    one, again = (model.vary(latent[0], n=3, similarity=0.3, seed=7, **options) for _ in range(2))
    assert torch.equal(one, again)
    assert len(one) == 3
    with pytest.raises(ValueError, match="is not a finite number from 0 to 1"):
        model.vary(latent, similarity=1.5)


def test_vary_leaves_to_the_melody_decoder_what_similarity_leaves_open(monkeypatch):
    noisy, told = make_prior_model(noise_probability=0.5), []
    monkeypatch.setattr(noisy, "generate", lambda **options: told.append(options))
    latent = make_latent(1)
    for similarity in (1.0, 0.75):
        noisy.vary(latent, n=400, similarity=similarity, seed=0)
    same, varied = told
    assert torch.equal(same["latent"], latent.expand(400, -1))
    assert "noise_level" not in same
    assert not same["do_sample"]
    assert varied["noise_level"].unique().tolist() == [0.25]
    assert varied["do_sample"]
    drawn = (varied["latent"] - 0.75 * latent) / 0.25
    assert drawn.std().item() == pytest.approx(1, abs=0.05)
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6, 5)]
    monkeypatch.undo()
    ids = noisy.vary(latent, n=3, similarity=0.5, generator=seeds, bars=3, max_length=40)
    assert torch.equal(ids[0], ids[2])
    assert not torch.equal(ids[0], ids[1])


def test_vary_without_a_prior_moves_on_the_great_circle(monkeypatch):
    plain, drawn = make_bare_model(), []
    monkeypatch.setattr(plain, "decode", lambda latents, **options: drawn.append(latents))
    latent = make_latent(1)
    for similarity in (1.0, 0.7, 0.2):
        plain.vary(latent, n=13, similarity=similarity, seed=0)
    cosine = [torch.nn.functional.cosine_similarity(latents, latent).mean().item() for latents in drawn]
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[0] == pytest.approx(1.0)


def test_a_grid_has_its_corners_and_its_edges(model, monkeypatch):
    corners, drawn = make_latent(4), []
    monkeypatch.setattr(model, "decode", lambda latents, **options: drawn.append(latents))
    model.interpolate_grid(corners, size=3)
    (points,) = drawn
    torch.testing.assert_close(points[[0, 2, 6, 8]], corners)
    half = torch.tensor([0.5])
    torch.testing.assert_close(points[1:2], slerp(corners[0], corners[1], half))
    torch.testing.assert_close(points[3:4], slerp(corners[0], corners[2], half))
    with pytest.raises(ValueError, match="4 corners, not 3"):
        model.interpolate_grid(corners[:3])


def test_training_the_prior(trained, dataset, trained_with_prior, tmp_path):
    rows = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    assert rows.get("num_prior_layers", 0) == 0
    before, after = MelodyVAEModel.from_pretrained(trained), MelodyVAEModel.from_pretrained(trained_with_prior)
    assert (trained_with_prior / "training_log.json").read_bytes() == (trained / "training_log.json").read_bytes()
    weights = after.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in before.state_dict().items())
    assert set(after.config.conditions) == {"key", "tempo", "time_signature"}
    log = json.loads((trained_with_prior / "prior_log.json").read_text(encoding="utf-8"))
    assert [entry["step"] for entry in log["history"]] == [*range(0, 41, 2)]
    assert log["history"][-1]["loss"] < log["history"][1]["loss"]
    assert log["history"][-1]["validation_loss"] < log["history"][0]["validation_loss"]
    assert after.config.attributes == list(ATTRIBUTES)
    assert all(after.prior.attribute_scale > 0)
    assert len(after.config.section_returns) == LONGEST_RETURN
    assert after.sample(2, seed=0, bars=2, conditions={"time_signature": "4/4"}).shape[0] == 2
    fit_prior(trained, dataset, tmp_path / "again")
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (trained_with_prior / "model.safetensors").read_bytes()


def test_a_wrong_model_is_one_line(capsys, monkeypatch, dataset):
    monkeypatch.setattr(sys, "argv", ["train_prior.py", "--model", "nowhere/at-all", "--dataset", str(dataset)])
    assert train_prior.main() == 2
    assert "nowhere/at-all" in capsys.readouterr().err


def test_tempo_classes():
    assert [tempo_class(tempo) for tempo in (60, 90, 129.9, 130)] == ["slow", "medium", "medium", "fast"]


def melody(sections: str) -> dict:
    """Write a line of 2 bars for each letter; the same letter, the same notes."""
    notes = [
        (index * 32 + step, 60 + (ord(letter) * step) % 24)
        for index, letter in enumerate(sections)
        for step in (0, 3, 8, 21)
    ]
    return {
        "start": [start for start, _ in notes],
        "pitch": [pitch for _, pitch in notes],
        "bars": 2 * len(sections),
        "time_signature": "4/4",
        "steps_per_beat": 4,
    }


def test_returns_are_counted_at_the_nearest_section_that_is_alike():
    returns = count_returns([melody("ABAB"), melody("CC")], bars=2)
    # One section back: 1 of 4. Two back, where one back was another: 2 of 2.
    assert returns[:3] == [0.25, 0.75, 0.0]
    assert count_returns([melody("A"), melody("")], bars=2) == [0.0] * LONGEST_RETURN
    assert sum(count_returns([melody("ABCABCAABB")], bars=2)) <= 1
