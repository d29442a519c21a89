"""Recurrent layers, their state, and what they start from.

Dimension key: B batch, T tokens, C hidden size, R recurrent size.
"""

from collections.abc import Callable
from functools import wraps

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import initialization as init
from transformers.cache_utils import Cache

State = tuple[torch.Tensor, ...]  # the batch is the first dimension of each


class RecurrentCache(Cache):
    """State of a recurrent model after the tokens so far.

    Args:
        state: Tensors whose first dimension is the batch.
        num_tokens: Tokens so far, padding included.
    """

    is_croppable = False  # pyright: ignore[reportAssignmentType] - what a state was before cannot be read from it

    def __init__(self, state: State, num_tokens: int):
        super().__init__(layers=[])
        self.state = state
        self.num_tokens = num_tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens so far."""
        return self.num_tokens

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows of the batch, in the order given."""
        self.state = tuple(each.index_select(0, indices.to(each.device)) for each in self.state)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Give each beam the state of the beam that it continues."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch."""
        self.state = tuple(each.repeat_interleave(repeats, dim=0) for each in self.state)


def in_own_precision(method: Callable) -> Callable:
    """Let a model's method compute in the precision of the weights, whatever autocast asks for.

    Torch has no LSTM in bfloat16 for training on a CPU, and sums over hundreds of steps want single precision.
    """

    @wraps(method)
    def computed(self, *args, **kwargs):
        with torch.autocast(self.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return computed


@torch.no_grad()
def init_recurrent_weights(module: nn.RNNBase | nn.LSTMCell) -> None:
    """Draw weights gate by gate as Glorot and Bengio (2010) do; an LSTM's cells do not forget at first.

    The second is Jozefowicz et al.'s (2015); TensorFlow's cells, which the published models are made of, do both.
    """
    gates = 1 if isinstance(module, nn.RNN) else 4
    for name, parameter in module.named_parameters():
        if name.startswith("weight"):
            for gate in parameter.chunk(gates):
                init.xavier_uniform_(gate)
        else:
            init.zeros_(parameter)
        if name.startswith("bias_ih") and gates == 4:
            init.ones_(parameter[module.hidden_size : 2 * module.hidden_size])


class Recurrence(nn.Module):
    """Stacked layers of torch's own recurrence, with a state whose first dimension is the batch.

    Args:
        recurrence: `nn.RNN` or `nn.LSTM`, batch first, in one direction.
    """

    def __init__(self, recurrence: nn.RNNBase):
        super().__init__()
        self.recurrence = recurrence
        self.num_states = 2 if isinstance(recurrence, nn.LSTM) else 1

    def forward(
        self, inputs: torch.Tensor, state: State | None, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, State]:
        """Read `inputs` `(B, T, C)`, of which the first `lengths` `(B,)` are tokens; None: all.

        Returns:
            Outputs `(B, T, R)`, and the state after the last token.
        """
        batch, length, _ = inputs.shape
        if state is None:
            shape = (batch, self.recurrence.num_layers, self.recurrence.hidden_size)
            state = tuple(inputs.new_zeros(shape) for _ in range(self.num_states))
        before = [each.transpose(0, 1).contiguous() for each in state]  # (layers, B, R)
        initial = tuple(before) if self.num_states > 1 else before[0]
        if lengths is None:
            outputs, after = self.recurrence(inputs, initial)
        else:
            packed = pack_padded_sequence(inputs, lengths.clamp_min(1).cpu(), batch_first=True, enforce_sorted=False)
            outputs, after = self.recurrence(packed, initial)
            outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=length)
        new = [each.transpose(0, 1) for each in (after if self.num_states > 1 else (after,))]
        if lengths is not None:
            has_tokens = (lengths > 0)[:, None, None]
            new = [torch.where(has_tokens, each, old) for each, old in zip(new, state, strict=True)]
        return outputs, tuple(new)
