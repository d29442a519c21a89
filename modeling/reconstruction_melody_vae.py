"""Latents from which melodies come back, in terms of [`MelodyVAEModel`]'s `encode`, `decode` and `forward`.

Dimension key: B melodies, T tokens, N bars, Z latent size, A melodies that do not come back yet.
"""

import torch
from torch.nn.functional import cross_entropy

from .arguments_melody_vae import check_latent
from .options_melody_vae import Conditions, check_count

REFINEMENT_STEPS = 20


class ReconstructionMixin:
    """Reconstruction of melodies, amortised or refined."""

    @torch.no_grad()
    def reconstruct(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        refinement_steps: int = REFINEMENT_STEPS,
        **generate_kwargs,
    ) -> torch.Tensor:
        """Decode melodies from their posterior's mean, as many bars as they have, `(B, T)` ids.

        The melody decoder is conditioned on the key and the attributes that each melody has, see `conditions_of`.

        Args:
            input_ids: `(B, T)`.
            attention_mask: `(B, T)`, 0 at padding.
            refinement_steps: Of [`refine`] before, for melodies that do not come back whole; 0 for amortised inference.
            generate_kwargs: As in [`generate`].
        """
        latent = self._latent_mean(input_ids, attention_mask)
        if self.config.decoder_conditions:
            generate_kwargs = {"conditions": self.conditions_of(self.read_lines(input_ids)), **generate_kwargs}
        if check_count("refinement_steps", refinement_steps):
            latent = self.refine(latent, input_ids, refinement_steps, conditions=generate_kwargs.get("conditions"))
        return self.decode(latent, bars=self.is_bar_token[input_ids].sum(-1), **generate_kwargs)

    def refine(
        self,
        latent: torch.Tensor,
        input_ids: torch.Tensor,
        steps: int = REFINEMENT_STEPS,
        learning_rate: float = 0.1,
        conditions: Conditions | None = None,
    ) -> torch.Tensor:
        """Move latents to where the melody decoder gives their melodies back: semi-amortised inference.

        As by Kim et al. (2018, arXiv:1802.02550), but of the latent alone: steps of Adam that lower the nats of the
        melody's tokens, until each token is the most likely one after those before it. A melody of which that is so to
        begin with keeps its latent. A step costs as much as one of training.

        Args:
            latent: `(B, Z)` of the melody encoder.
            input_ids: `(B, T)` the melodies.
            steps: At most.
            learning_rate: Of Adam, in standard deviations of the latent.
            conditions: Those under which the latents will be decoded, as in [`generate`].

        Returns:
            `(B, Z)`, of each melody the latent with the fewest nats.

        Raises:
            ValueError: If there is not one latent for each melody, or the model does not know a condition.
        """
        asked = self._conditions(conditions, len(input_ids))
        latent = check_latent(latent, self.config.latent_size, len(input_ids)).to(self.device, self.dtype)
        with torch.inference_mode(False), torch.enable_grad():
            # Adam on the latent alone; tokens that are given or copied cost nothing.
            best, ids = latent.detach().clone(), input_ids.to(self.device).clone()
            moved = best.clone().float().requires_grad_()
            optimizer = torch.optim.Adam([moved], lr=learning_rate)
            padding = self.config.pad_token_id
            is_given = self._copied_tokens(ids) | (ids == self.config.bos_token_id)
            labels = ids.masked_fill(is_given, padding)[:, 1:]
            labels_asked = self._decoder_labels(asked, len(ids))
            least = moved.new_full((len(ids),), torch.inf)
            active = torch.arange(len(ids), device=self.device)  # (A,)
            for step in range(check_count("steps", steps) + 1):
                if not len(active):
                    break
                # One forward pass of those that are not done.
                level = moved.new_zeros(len(active), self.config.max_bars) if self.config.noise_probability else None
                inputs = {"latent": moved[active].to(self.dtype), "noise_level": level}
                inputs["conditions"] = labels_asked and {name: each[active] for name, each in labels_asked.items()}
                logits = self(ids[active], **inputs).logits[:, :-1]  # pyright: ignore[reportCallIssue] - of the model
                wanted = labels[active]
                nats = cross_entropy(logits.mT.float(), wanted, ignore_index=padding, reduction="none").sum(-1)  # (A,)
                # The best so far is kept: a step may lead away.
                is_less = nats.detach() < least[active]
                least[active[is_less]] = nats.detach()[is_less]
                best[active[is_less]] = moved.detach()[active[is_less]].to(best.dtype)
                # Done is what greedy decoding would write.
                is_wrong = ((logits.argmax(-1) != wanted) & (wanted != padding)).any(-1)
                active = active[is_wrong]
                if step < steps and len(active):
                    (moved.grad,) = torch.autograd.grad(nats[is_wrong].sum(), moved)
                    optimizer.step()
        return best
