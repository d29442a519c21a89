"""Token ids as bars and as notes, read and written; what melodies are like.

Dimension key: B batch, T tokens, A attributes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .arguments_melody_vae import check_buffers
from .conditioning_melody_vae import ConditionEmbedding
from .melody_line_melody_vae import ATTRIBUTES, read_conditions, read_line, write_line
from .token_grammar_melody_vae import NO_ONSET, TokenColumn, TokenWriter, mark_repeats, runs_of_tokens


class ReadingMixin:
    """What [`MelodyVAEModel`] reads in token ids."""

    def read_lines(self, ids: torch.Tensor) -> list[dict[str, Any]]:
        """Read ids `(B, T)` that this model generated as lines, as `MelodyProcessor.to_lines` does.

        Raises:
            ValueError: If the model does not know its tokens' grammar.
        """
        table = self._grammar().cpu()
        signatures = table[table[:, TokenColumn.TIME_SIGNATURE] > 0][0]
        steps_per_beat = int(signatures[TokenColumn.BAR_STEPS]) // (int(signatures[TokenColumn.TIME_SIGNATURE]) // 64)
        runs = runs_of_tokens(table)
        base_tokens = ((base for token in row for base in runs[token]) for row in ids.tolist())
        return [read_line(melody, steps_per_beat) for melody in base_tokens]

    def write_lines(self, lines: Sequence[Mapping[str, Any]], writer: TokenWriter | None = None) -> torch.Tensor:
        """Write lines as ids `(B, T)`, padded at the end; `read_lines` the other way round.

        Args:
            lines: Of the vocabulary's time signatures, pitches and grid; see `melody_line_melody_vae`.
            writer: Of this model's tokens, where it is at hand.

        Raises:
            ValueError: If the vocabulary lacks what a line has.
        """
        writer = writer or TokenWriter(self.token_grammar.cpu())
        return self._join_bars([writer.write(write_line(line)) for line in lines])

    def attributes_of(self, lines: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """Measure `config.attributes` of lines, `(B, A)`, in standard deviations from the training data's mean."""
        embedding = self._attribute_embedding()
        measured = torch.tensor([[ATTRIBUTES[name](line) for name in self.config.attributes or []] for line in lines])
        return (measured.to(embedding.attribute_mean) - embedding.attribute_mean) / embedding.attribute_scale

    def _attribute_embedding(self) -> ConditionEmbedding:
        """What knows the attributes' mean and scale: the melody decoder's embedding, or the prior."""
        is_of_decoder = "attributes" in (self.config.decoder_conditions or [])
        embedding = self.bar_conditioner.condition_embedding if is_of_decoder else self.prior
        check_buffers(embedding)
        return embedding

    def conditions_of(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, list]:
        """Read the conditions of the melody decoder (`config.decoder_conditions`) from melodies.

        Args:
            lines: One for each melody, see `melody_line_melody_vae`.

        Returns:
            What [`generate`] takes as `conditions`, a list with one for each melody. None is what it does not say:
            genre and tempo, a key or time signature that the training data had not, and all of a melody without notes.
        """
        names, known = self.config.decoder_conditions or [], self.config.conditions or {}
        measured = {}
        if "attributes" in names:
            measured = dict(zip(self.config.attributes or [], self.attributes_of(lines).T.tolist(), strict=True))
        return read_conditions(lines, {name: known[name] for name in names if name in known}, measured)

    def _no_ids(self) -> torch.Tensor:
        """Ids of no melodies, `(0, 0)`."""
        return torch.empty(0, 0, dtype=torch.long, device=self.device)

    def _split_bars(self, ids: torch.Tensor) -> list[list[list[int]]]:
        """Return the tokens of each bar of `ids` `(B, T)`; what stands outside bars is left out."""
        special = {self.config.pad_token_id, self.config.bos_token_id, self.config.eos_token_id}
        special |= set(self._repeats().values())
        melodies = []
        for row, opens in zip(ids.tolist(), self.is_bar_token[ids].tolist(), strict=True):
            bars: list[list[int]] = []
            for token, is_opening in zip(row, opens, strict=True):
                if is_opening:
                    bars.append([])
                if bars and token not in special:
                    bars[-1].append(token)
            melodies.append(bars)
        return melodies

    def _join_bars(self, melodies: list[list[list[int]]], is_open: bool = False) -> torch.Tensor:
        """Write bars' tokens as ids `(B, T)`; padded at the end, or where they are left open, at the beginning."""
        end = [] if is_open else [self.config.eos_token_id]
        melodies = [mark_repeats(bars, self._repeats(), self._has_notes) for bars in melodies]
        rows = [[self.config.bos_token_id, *(token for bar in bars for token in bar), *end] for bars in melodies]
        length = max(map(len, rows))
        padding = [[self.config.pad_token_id] * (length - len(row)) for row in rows]
        padded = [pad + row if is_open else row + pad for row, pad in zip(rows, padding, strict=True)]
        return torch.tensor(padded, device=self.device)

    def _has_notes(self, bar: Sequence[int]) -> bool:
        """Whether a note begins in a bar of tokens; where the grammar is not known there are no repeats to mark."""
        return bool((self._grammar()[list(bar), TokenColumn.FIRST_ONSET] < NO_ONSET).any())
