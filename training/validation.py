"""How good the model is on melodies that it has not seen, and what to do when it is not."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from torch.utils.data import DataLoader

from modeling.modeling_melody_vae import NATS_PER_BIT, reconstruction_nats

ACTIVE_UNIT_VARIANCE = 0.01  # Burda et al. 2015, arXiv:1509.00519
TURN = 0.01  # validation has turned when it is so much worse, as a share, than it was
FEWEST_MELODIES = 16  # fewer do not tell which units are active
TURN_EVALUATIONS = 2  # for so many evaluations in a row


def nats_without_latent(model: torch.nn.Module, batch: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """Return -log p(x) of each melody, `(B,)`, for a melody decoder that has learned to do without a latent.

    Args:
        model: With `config.noise_probability`, or what accelerate has wrapped it in.
        batch: `input_ids` and `attention_mask` `(B, T)`.
        labels: `(B, T)`, -100 at padding.
    """
    config: Any = extract_model_from_parallel(model).config
    nothing = torch.zeros(len(labels), config.latent_size, device=labels.device)
    level = torch.ones(len(labels), config.max_bars, device=labels.device)
    return reconstruction_nats(model(**batch, latent=nothing, noise_level=level, use_cache=False).logits, labels)


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader, seed: int) -> dict[str, float]:
    """Measure the ELBO on a split.

    One latent is drawn from each posterior, by a generator of its own: training's random state is left alone.

    Returns:
        Means over melodies of `reconstruction_nats` and `kl_nats`, `bits_per_note`, `active_units`, and the number of
        melodies, `validation_melodies`; where the melody decoder has learned to do without a latent, the bits per
        note that it then needs, `bits_per_note_without_latent`.
    """
    was_training = model.training
    model.eval()
    generator = torch.Generator(accelerator.device).manual_seed(seed)
    rows, means, alone = [], [], []
    whole = accelerator.unwrap_model(model)
    for batch in loader:
        num_notes, labels = batch.pop("num_notes"), batch.pop("labels")
        kl_nats, latent = torch.zeros(len(labels), device=labels.device), None
        # The bound of a model with a latent: one draw of it, and what that costs.
        if whole.config.latent_size:
            posterior = whole.encode(**batch)
            kl_nats, latent = posterior.kl_nats(), posterior.sample(generator)
            means.append(accelerator.gather_for_metrics(posterior.latent_mean))
        nats = reconstruction_nats(model(**batch, latent=latent, use_cache=False).logits, labels)
        # The melody decoder as a language model, at noise level 1.
        if getattr(whole.config, "noise_probability", 0):
            alone.append(accelerator.gather_for_metrics(nats_without_latent(model, batch, labels)))
        rows.append(accelerator.gather_for_metrics(torch.stack([nats, kl_nats, num_notes.to(nats)], dim=1)))
    # The sums are over all processes.
    nats, kl_nats, notes = torch.cat(rows).double().unbind(1)
    active = 0
    if means and len(nats) > 1:
        active = (torch.cat(means).var(0) > ACTIVE_UNIT_VARIANCE).sum().item()
    model.train(was_training)
    unconditional = {}
    if alone:
        nats_without = torch.cat(alone).double().sum()
        unconditional["bits_per_note_without_latent"] = (nats_without / notes.sum() / NATS_PER_BIT).item()
    return {
        "reconstruction_nats": nats.mean().item(),
        "kl_nats": kl_nats.mean().item(),
        "bits_per_note": ((nats + kl_nats).sum() / notes.sum() / NATS_PER_BIT).item(),
        "active_units": active,
        "validation_melodies": len(nats),
        **unconditional,
    }


def best_evaluation(history: list[dict]) -> int:
    """Index of the evaluation with the fewest bits per note; of equal ones the first."""
    return min(range(len(history)), key=lambda index: history[index]["bits_per_note"])


def is_best(history: list[dict]) -> bool:
    """Whether the last evaluation is the best."""
    return best_evaluation(history) == len(history) - 1


def is_time_to_stop(history: list[dict], patience: int) -> bool:
    """Whether so many evaluations in a row have brought nothing better; a patience of 0 never stops."""
    return bool(patience) and len(history) - 1 - best_evaluation(history) >= patience


def warnings_of(history: list[dict], latent_size: int, min_active_units: float, kl_warmup_steps: int) -> list[str]:
    """What the last evaluation warns of: each in one line with its remedy, once, when it first shows.

    Args:
        history: Evaluations so far.
        latent_size: Of the model; 0 has no units to fall asleep.
        min_active_units: Share of the latent's dimensions that has to be in use.
        kl_warmup_steps: The KL weight still rises before.
    """
    found = []
    for sees in (collapse, overfitting):
        options = (latent_size, min_active_units, kl_warmup_steps) if sees is collapse else ()
        message = sees(history, *options)
        if message and not (len(history) > 1 and sees(history[:-1], *options)):
            found.append(message)
    return found


def collapse(history: list[dict], latent_size: int, min_active_units: float, kl_warmup_steps: int) -> str | None:
    """Warn of a collapsing posterior (Bowman et al. 2016, arXiv:1511.06349)."""
    last = history[-1]
    is_known = latent_size and last["step"] >= kl_warmup_steps and last["validation_melodies"] >= FEWEST_MELODIES
    if not is_known or last["active_units"] >= min_active_units * latent_size:
        return None
    return (
        f"posterior collapse: {last['active_units']} of {latent_size} latent dimensions are in use (under "
        f"{min_active_units:.0%}), so the melody decoder writes without its latent; begin again with a smaller "
        "--config_overrides kl_weight, larger free_bits or token_dropout=0.2, or longer --kl_warmup_steps"
    )


def overfitting(history: list[dict]) -> str | None:
    """Warn where validation has turned: it stays worse than it was, and not because the latent carries more."""
    best = history[best_evaluation(history)]
    since = history[best_evaluation(history) + 1 :]
    rising = [
        entry["bits_per_note"] > best["bits_per_note"] * (1 + TURN)
        and entry["reconstruction_nats"] > best["reconstruction_nats"]
        for entry in since[-TURN_EVALUATIONS:]
    ]
    if len(rising) < TURN_EVALUATIONS or not all(rising):
        return None
    return (
        f"overfitting: validation was best at step {best['step']} ({best['bits_per_note']:.2f} bits per note) and has "
        "turned since; stop here, or train with more melodies, --early_stopping_patience, --lora_rank 8, a lower "
        "--learning_rate, or --config_overrides dropout=0.2"
    )
