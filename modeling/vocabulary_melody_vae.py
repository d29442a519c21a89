"""What a model knows of its tokens: what each stands for, and so where in the music they are.

Dimension key: B batch, T tokens, V vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import nn

from .arguments_melody_vae import check_buffers
from .fingerprint_melody_vae import Fingerprint, check, hash_grammar
from .token_grammar_melody_vae import MAX_TOKENS_PER_BAR, NO_ONSET, SPECIAL_ROW, TokenColumn, copied_tokens


class VocabularyMixin:
    """The tokens of [`MelodyVAEModel`]: its grammar, bars that are repeated, musical position and pitch."""

    def _bar_token_mask(self) -> torch.Tensor:
        """Whether each token opens a bar, `(V,)`."""
        mask = torch.zeros(self.config.vocab_size, dtype=torch.bool)
        mask[self.config.bar_token_ids] = True
        return mask

    def set_grammar(self, table: torch.Tensor, fingerprint: Fingerprint | None = None) -> None:
        """Set what each token stands for, `MelodyProcessor.grammar_table()` and `.fingerprint()`.

        From then on it generates valid melodies only, `generate` takes a scale, a range, a time signature and bars to
        keep (see [`MelodyLogitsProcessor`]), and the model can read what it wrote.

        Raises:
            ValueError: If the table is of another vocabulary.
        """
        if table.dim() != 2 or table.shape[0] != self.config.vocab_size or table.shape[1] < len(SPECIAL_ROW):
            raise ValueError(f"a table of {tuple(table.shape)} is no grammar of {self.config.vocab_size} tokens")
        if fingerprint:
            check(self.config.fingerprint, fingerprint, "a grammar of another tokenizer or grid")
            self.config.fingerprint = (self.config.fingerprint or {}) | fingerprint
        if grammar := hash_grammar(table):  # now: weights that are sharded cannot be read when they are saved
            self.config.fingerprint = (self.config.fingerprint or {}) | {"grammar": grammar}
        self.config.grammar_columns = table.shape[1]
        self.register_buffer("token_grammar", table.to(self.device, torch.int32))

    def _grammar(self) -> torch.Tensor:
        """What each token stands for, `(V, grammar_columns)`.

        Raises:
            ValueError: If neither the weights nor [`MelodyVAEModel.set_grammar`] have said it.
        """
        check_buffers(self)
        if not self._has_grammar and not torch.compiler.is_compiling():
            table = self._buffers.get("token_grammar")
            self._has_grammar = table is not None and (table.is_meta or bool(table.any()))
            if not self._has_grammar:
                raise ValueError("this model does not know its tokens: model.set_grammar(processor.grammar_table())")
        return self.token_grammar

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Embedding:
        """Resize the vocabulary as transformers does; new tokens open no bar, and the grammar never allows them."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        size = self.config.vocab_size
        if size != len(self.is_bar_token):
            self.config.fingerprint = None  # the tokens are others now
        self.config.bar_token_ids = [token for token in self.config.bar_token_ids or [] if token < size]
        repeats = [pair for pair in self._repeats().items() if pair[1] < size]
        self.config.repeat_lags, self.config.repeat_token_ids = [lag for lag, _ in repeats], [id_ for _, id_ in repeats]
        self.is_bar_token = self._bar_token_mask().to(self.device)
        if "token_grammar" in self._buffers:
            columns = self.token_grammar.shape[1]
            table = torch.zeros(size, columns, dtype=torch.int32, device=self.device)
            table[:, : len(SPECIAL_ROW)] = torch.tensor(SPECIAL_ROW, dtype=torch.int32)
            kept = min(size, len(self.token_grammar))
            table[:kept] = self.token_grammar[:kept]
            self.token_grammar = table if self.token_grammar.any() else torch.zeros_like(table)
        return embeddings

    def _repeats(self) -> dict[int, int]:
        """The tokens that say "this bar is the one so many bars earlier over again", by that number of bars."""
        return dict(zip(self.config.repeat_lags or (), self.config.repeat_token_ids or (), strict=True))

    @torch.no_grad()
    def add_repeats(self, repeats: Mapping[int, int]) -> None:
        """Teach a model the tokens of [`MelodyProcessor.add_repeats`], which say that a bar is an earlier one again.

        They begin as the mean of the tokens that open a bar; their use has to be learned.

        Args:
            repeats: For bars back, the token's id, as `MelodyProcessor.repeats` has them.

        Raises:
            ValueError: If a token is one that the model has already.
        """
        if known := [token for token in repeats.values() if token < self.config.vocab_size]:
            raise ValueError(f"repeats: the model has a token {known[0]} already, of {self.config.vocab_size}")
        size = max(repeats.values(), default=self.config.vocab_size - 1) + 1
        embeddings = self.resize_token_embeddings(size, mean_resizing=False).weight
        embeddings[list(repeats.values())] = embeddings[self.config.bar_token_ids].mean(0)
        self.config.repeat_lags, self.config.repeat_token_ids = list(repeats), list(repeats.values())
        self.generation_config.max_length = (MAX_TOKENS_PER_BAR + 1) * self.config.max_bars + 2

    def _is_repeat(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Whether each token says that the bar after it is an earlier one over again."""
        is_repeat = torch.zeros_like(input_ids, dtype=torch.bool)
        for token in self.config.repeat_token_ids or ():
            is_repeat |= input_ids == token
        return is_repeat

    def _copied_tokens(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Whether each token belongs to a bar that is an earlier one over again, as the token before it says."""
        return copied_tokens(input_ids, self.is_bar_token, self._is_repeat(input_ids), self.config.eos_token_id)

    def _without_repeats(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *others: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, *tuple[torch.Tensor | None, ...]]:
        """Move tokens that say that a bar is repeated to the end, and mask them; `others` `(B, T)` move along.

        The melody encoder reads notes: what a bar is called makes no difference to it.
        """
        is_repeat = self._is_repeat(input_ids)
        order = is_repeat.int().argsort(dim=-1, stable=True)
        moved = [None if other is None else other.gather(-1, order) for other in others]
        return input_ids.gather(-1, order), (attention_mask * ~is_repeat).gather(-1, order), *moved

    def musical_position(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Where in the music each token is, `(B, T)`, in bars since the melody began.

        The whole part is the index of the token's bar, -1 before the first. The rest says how far into the bar the
        latest onset is, for models with `config.musical_time`; for others it is 0.

        Raises:
            ValueError: If the model needs to know its tokens and does not.
        """
        bars = self.is_bar_token[input_ids].cumsum(-1) - 1
        if not self.config.musical_time:
            return bars.float()
        rows = self._grammar()[input_ids]
        onset, steps = rows[..., TokenColumn.LAST_ONSET], rows[..., TokenColumn.BAR_STEPS]
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        signature = torch.where(steps > 0, place, 0).cummax(-1).values  # where the latest time signature is
        reached = (bars * NO_ONSET + onset + 1).cummax(-1).values % NO_ONSET  # latest onset of the bar, 0 for none
        return bars + ((reached - 1).clamp_min(0) / steps.gather(-1, signature).clamp_min(1)).clamp_max(0.999)

    def musical_pitch(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """Pitch of the latest note at each token, `(B, T)`, in semitones; None unless `config.musical_pitch` asks.

        It is 0 before the first note, and the middle of its pitches where a token has several.

        Raises:
            ValueError: If the model needs to know its tokens and does not.
        """
        if not self.config.musical_pitch:
            return None
        rows = self._grammar()[input_ids]
        lowest, highest = rows[..., TokenColumn.LOWEST_PITCH], rows[..., TokenColumn.HIGHEST_PITCH]
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        latest = torch.where(highest > 0, place, 0).cummax(-1).values
        return torch.where(highest > 0, (lowest + highest) / 2, 0.0).gather(-1, latest)

    musical_time = musical_position  # the method's name in the first release

    def previous_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The token before each, `(B, T)`; where there is none, or padding, the token itself."""
        previous = torch.cat([input_ids[:, :1], input_ids[:, :-1]], dim=1)
        return torch.where(previous == self.config.pad_token_id, input_ids, previous)
