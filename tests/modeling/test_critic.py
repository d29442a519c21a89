"""The critic: of the candidates for a melody the one is kept that it takes most for a training melody."""

import json
import shutil

import pytest
import torch
from sklearn.metrics import roc_auc_score

from modeling import MelodyVAEConfig, MelodyVAEModel
from modeling.arguments_melody_vae import make_generators
from modeling.critic_melody_vae import MelodyCritic
from modeling.melody_line_melody_vae import key_of
from training.critic import main, roc_auc
from training.prior import with_parts

COUNT = 3


@pytest.fixture(scope="module")
def judged(trained_with_prior) -> MelodyVAEModel:
    """A model whose critic has drawn weights."""
    model = MelodyVAEModel.from_pretrained(trained_with_prior)
    return with_parts(model, 0, critic_size=8, sampling_candidates=COUNT).eval()


def pad_to(ids: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(ids, (0, width - ids.shape[1]))


def test_the_best_candidate_is_kept(judged, monkeypatch):
    drawn = []
    plain = MelodyVAEModel._sample_batch
    monkeypatch.setattr(MelodyVAEModel, "_sample_batch", lambda *given: drawn.append(plain(*given)) or drawn[-1])
    kept = judged.sample(4, seed=0, bars=[2, 3, 4, 4])
    (candidates,) = drawn
    assert len(candidates) == 4 * COUNT
    with torch.no_grad():
        scores = judged.critic(judged.encode(candidates).latent_mean, judged.is_bar_token[candidates].sum(-1))
    best = scores.view(4, COUNT).argmax(-1) + COUNT * torch.arange(4)
    assert torch.equal(pad_to(kept, candidates.shape[1]), candidates[best])
    assert judged.is_bar_token[kept].sum(-1).tolist() == [2, 3, 4, 4]
    with torch.no_grad():
        for weight in judged.critic.down_proj.parameters():
            weight.neg_()
        worst = judged.sample(4, seed=0, bars=[2, 3, 4, 4])
        for weight in judged.critic.down_proj.parameters():
            weight.neg_()
    assert not torch.equal(pad_to(worst, candidates.shape[1]), pad_to(kept, candidates.shape[1]))


def test_a_melody_does_not_depend_on_its_batch(judged):
    many = judged.sample(3, seed=5, bars=2)
    for index, generator in enumerate(make_generators(3, 5, None)):
        one = judged.sample(1, generator=[generator], bars=2)
        assert torch.equal(pad_to(one, many.shape[1])[0], many[index])


def test_one_candidate_is_a_plain_sample(judged, trained_with_prior):
    plain = MelodyVAEModel.from_pretrained(trained_with_prior).eval()
    assert torch.equal(judged.sample(2, seed=1, bars=2, candidates=1), plain.sample(2, seed=1, bars=2))


def test_keys_come_first(judged):
    ids = judged.sample(4, seed=0, bars=4, conditions={"key": "D minor"})
    assert {key_of(line) for line in judged.read_lines(ids)} == {"D minor"}


def test_longer_melodies_are_drawn_once(judged):
    bars = judged.config.max_bars + 1
    assert torch.equal(
        judged.sample(1, seed=0, bars=bars), MelodyVAEModel.sample(judged, 1, 0, bars=bars, candidates=1)
    )
    with pytest.raises(ValueError, match=f"candidates=2 of bars={bars}"):
        judged.sample(1, seed=0, bars=bars, candidates=2)


def test_a_model_without_a_critic_says_so(trained_with_prior):
    plain = MelodyVAEModel.from_pretrained(trained_with_prior)
    with pytest.raises(ValueError, match="candidates=2: this model has no critic"):
        plain.sample(1, candidates=2)
    with pytest.raises(ValueError, match="candidates=0"):
        plain.sample(1, candidates=0)
    with pytest.raises(ValueError, match="sampling_candidates=2 must be positive, and 1 without a critic"):
        MelodyVAEConfig(sampling_candidates=2)
    with pytest.raises(ValueError, match="critic_size=8 without a latent"):
        MelodyVAEConfig(critic_size=8, latent_size=0)


def test_scores_depend_on_the_bars_that_are_there():
    torch.manual_seed(0)
    critic = MelodyCritic(MelodyVAEConfig(latent_size=64, max_bars=8, critic_size=8)).eval()
    latent, bars = torch.randn(3, 64), torch.tensor([8, 5, 1])
    scores, changed = critic(latent, bars), latent.clone()
    changed[1, 5 * 8 :], changed[2, 1 * 8 :] = 9.0, -9.0
    assert torch.equal(critic(changed, bars), scores)
    changed[1, 0] += 1
    assert critic(changed, bars)[1] != scores[1]
    alike = latent[:1, :8].repeat(1, 8)
    features = critic.features(alike, bars[:1])[0]
    assert torch.allclose(features[:28], torch.ones(28))  # each two of eight bars
    assert torch.allclose(features[28 + 8 : -1], torch.zeros(8), atol=1e-3)


def test_training_the_critic(trained_with_prior, dataset, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "model"
    shutil.copytree(trained_with_prior, folder)
    options = ["--dataset", str(dataset), "--melodies", "64", "--candidates", "2", "--num_proc", "1"]
    monkeypatch.setattr("sys.argv", ["critic", "--model", str(folder), *options])
    assert main() == 0
    before, after = (MelodyVAEModel.from_pretrained(path) for path in (trained_with_prior, folder))
    weights = after.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in before.state_dict().items())
    assert after.config.sampling_candidates == 2
    log = json.loads((folder / "critic_log.json").read_text(encoding="utf-8"))
    assert log["best"]["validation_auc"] > 0.6  # twelve steps of training teach no melody
    assert log["best"] == max(log["history"], key=lambda entry: entry["validation_auc"])
    assert after.sample(1, seed=0, bars=2).shape[0] == 1
    monkeypatch.setattr("sys.argv", ["critic", "--model", str(tmp_path / "none"), *options])
    assert main() == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_area_under_the_curve_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randint(5, (size,), generator=generator).float() for size in (30, 50))
    expected = roc_auc_score([1] * 30 + [0] * 50, torch.cat([positive, negative]))
    assert roc_auc(positive, negative) == pytest.approx(expected)
