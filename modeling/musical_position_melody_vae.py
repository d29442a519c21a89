"""Where in the music a token is: in bars and in semitones, as an embedding, and as the angle of queries and keys.

Dimension key: B batch, T tokens, L query positions, D head size, C hidden size, P pairs of
entries, V vocabulary.
"""

import math

import torch
from torch import nn

from .relative_attention import ZeroLinear

BAR_HARMONICS = 24  # of the bar-position embedding: 48 positions in a bar can be distinguished
PHRASES = (2.0, 4.0, 8.0, 16.0)  # bars, in which the position is embedded as well
BARS, SEMITONES = (1 / 8, 32.0), (6.0, 96.0)  # shortest and longest period of `rotation_of`


class BarPositionEmbedding(nn.Module):
    """Embedding of a token's position in its bar and in phrases of 2, 4, 8 and 16 bars; starts at zero."""

    def __init__(self, config):
        super().__init__()
        self.proj = ZeroLinear(2 * (BAR_HARMONICS + len(PHRASES)), config.hidden_size, bias=False)

    @staticmethod
    def frequencies(device: torch.device) -> torch.Tensor:
        """Return how often a bar has each of the waves that positions are embedded as."""
        harmonics = torch.arange(1, BAR_HARMONICS + 1, device=device, dtype=torch.float32)
        return torch.cat([harmonics, 1 / torch.tensor(PHRASES, device=device)])

    def forward(self, musical_position: torch.Tensor) -> torch.Tensor:
        """Embed musical positions `(B, T)`, in bars, as `(B, T, C)`."""
        angles = 2 * math.pi * musical_position[..., None] * self.frequencies(musical_position.device)
        return self.proj(torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.proj.weight.dtype))


def periods_of(head_dim: int, device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the periods by which musical positions, in bars, and pitches, in semitones, turn pairs of entries.

    They are D / 4 from `BARS` and D / 8 from `SEMITONES`.
    """
    found = []
    for pairs, (shortest, longest) in ((head_dim // 4, BARS), (head_dim // 8, SEMITONES)):
        steps = torch.arange(pairs, device=device, dtype=torch.float32) / max(pairs - 1, 1)
        found.append(shortest * (longest / shortest) ** steps)
    return found[0], found[1]


def rotation_of(
    head_dim: int, musical_position: torch.Tensor | None, pitch: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Compute what [`rotate`] turns queries and keys by, so that their product depends on how far apart they are.

    These are rotary embeddings (Su et al. 2021, arXiv:2104.09864) of musical position and pitch instead of token
    indices: a bar ago is a bar ago, however many tokens there were in it. The position turns half of each head, pitch a
    quarter, each pair of entries by an angle with a period of its own, from `BARS` and `SEMITONES`.

    Args:
        head_dim: D.
        musical_position: `(B, L)`, in bars.
        pitch: `(B, L)`, in semitones.

    Returns:
        `(2, B, 1, L, P)`: cosines and sines, P up to 3 D / 8; None if there is neither.
    """
    given = [values for values in (musical_position, pitch) if values is not None]
    if not given:
        return None
    periods = zip((musical_position, pitch), periods_of(head_dim, given[0].device), strict=True)
    angles = [2 * math.pi * values[:, None, :, None] / each for values, each in periods if values is not None]
    whole = torch.cat(angles, dim=-1)
    return torch.stack([whole.cos(), whole.sin()])
