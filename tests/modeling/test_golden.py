"""Golden numbers: what the model computes today, so that a change of meaning cannot pass unseen.

Weights are a formula, not random numbers, so that the file outlives a change of any generator.
Written anew by `python -m tests.modeling.test_golden`, which is right only where the change is meant: saved models
then mean something else than before.
"""

import json
from pathlib import Path

import torch

from tests.builders.models import IDS, SHORT_IDS, N, make_config, make_latent

GOLDEN = Path(__file__).with_name("golden.json")


def numbers() -> dict[str, list]:
    """Compute logits, posterior, loss terms and the prior's direction of a model whose weights are a formula."""
    from modeling import MelodyVAEModel

    config = make_config(
        num_prior_layers=1, conditions={"key": ["C major", "A minor"]}, attributes=["mean_pitch", "contour"]
    )
    model = MelodyVAEModel(config).eval()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            places = torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)
            parameter.copy_(0.4 * torch.sin(1.3 * places + index))
        output = model(IDS, labels=IDS)
        padded = model(SHORT_IDS, SHORT_IDS.ne(config.pad_token_id).long(), latent=make_latent() / 4)
        labels = {
            "key": torch.tensor([0, 1, 2]),
            "bars": torch.tensor([0, 3, N]),
            "attributes": torch.tensor([[0.5, torch.nan], [-1, 2], [0, 0]]),
        }
        shares = make_latent().unflatten(-1, (N, -1))
        is_known = torch.arange(N).expand(3, N) < torch.tensor([[0], [3], [N - 1]])
        direction = model.prior(shares, torch.tensor([0.0, 0.3, 0.9]), shares.flip(0), is_known, labels)
    return {
        "logits": output.logits[:, ::5, ::9].tolist(),
        "latent_mean": output.latent_mean.tolist(),
        "latent_log_variance": output.latent_log_variance.tolist(),
        "loss": [output.loss.item(), output.reconstruction_nats.item(), output.kl_nats.item()],
        "padded_logits": padded.logits[:, 1::3, ::9].tolist(),
        "prior_direction": direction.tolist(),
    }


def test_the_model_computes_what_it_always_did():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for name, values in numbers().items():
        torch.testing.assert_close(
            torch.tensor(values),
            torch.tensor(golden.pop(name)),
            rtol=1e-4,
            atol=1e-4,
            msg=lambda text, name=name: f"{name}: {text}\nIf this is meant, run python -m tests.modeling.test_golden",
        )
    assert not golden


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(numbers()) + "\n", encoding="utf-8")
