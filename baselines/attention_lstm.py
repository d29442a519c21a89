"""An LSTM layer that attends to what it put out, with gradients by hand.

Dimension key: B batch, T tokens, C hidden size, R recurrent size, A attention size, W attention length.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .configuration_baselines import MelodyLSTMConfig
from .recurrence import State


class AttentionLSTMSteps(torch.autograd.Function):
    r"""The steps of an [`AttentionLSTM`], in a form with few matrix products.

    The next gates, the output and its key are all linear in :math:`z_t = [a_t; h_t]`, so one product gives them. The
    tanh of the attention is a sigmoid here, :math:`\tanh x = 2 \sigma(2 x) - 1`, which is three times as fast on a CPU:
    keys, queries and scores come doubled, and the softmax does not feel the constant.

    Autograd would add to the gradients of all weights at every step; here one product over all steps makes them in the
    end. What is as large as a step's window of keys is computed again.
    """

    @staticmethod
    def forward(ctx, from_inputs, state, outputs, keys, weight, bias, query_weight, query_bias, score):
        """Take all steps.

        Args:
            ctx: Of autograd.
            from_inputs: The gates' shares that come from the inputs, biases included, `(T, B, 4 R)`.
            state: What was attended to, hidden state and cell before the first step, `(B, A + 2 R)`.
            outputs: The last outputs before the first step, `(B, W, A)`.
            keys: Of those outputs, `(B, W, A)`.
            weight: Of gates, outputs and keys from z, `(4 R + 2 A, A + R)`.
            bias: Of outputs and keys, `(2 A,)`.
            query_weight: Of queries from hidden state and cell, `(A, 2 R)`.
            query_bias: `(A,)`.
            score: What weighs the keys after the sigmoid, `(A,)`.

        Returns:
            States before the first step and after each, `(1 + T, B, A + 2 R)`; the last outputs before the first step
            and those of all steps, `(B, W + T, A)`.
        """
        length, batch, gate_size = from_inputs.shape
        size, window = gate_size // 4, outputs.shape[1]
        attended_size = outputs.shape[2]
        # What all steps need is kept in tensors of their own: a graph of each step would cost more than the step.
        states = state.new_empty(1 + length, *state.shape)
        states[0] = state
        outputs, keys = (
            torch.cat([each, each.new_empty(batch, length, attended_size)], dim=1) for each in (outputs, keys)
        )
        opened = torch.empty_like(from_inputs)  # gates after their sigmoid or tanh
        squashed = states.new_empty(length, batch, size)  # tanh of the cells
        queries = states.new_empty(length, batch, attended_size)
        shares = states.new_empty(length, batch, 1, window)  # of attention
        # One product of a state gives its step's output and key, and the next step's gates.
        for step in range(length + 1):
            from_state = states[step, :, : attended_size + size] @ weight.T  # (B, 4 R + 2 A)
            if step:
                output, key = (from_state[:, gate_size:] + bias).chunk(2, dim=-1)
                outputs[:, window + step - 1], keys[:, window + step - 1] = output, key
            if step == length:
                break
            gates = torch.add(from_inputs[step], from_state[:, :gate_size], out=opened[step])
            gates[:, : 2 * size].sigmoid_()
            gates[:, 2 * size : 3 * size].tanh_()
            gates[:, 3 * size :].sigmoid_()
            enters, stays, candidate, leaves = gates.chunk(4, dim=-1)
            # The LSTM's cell and hidden state.
            attended, hidden, cell = states[step + 1].split([attended_size, size, size], dim=-1)
            torch.mul(stays, states[step, :, attended_size + size :], out=cell).addcmul_(enters, candidate)
            torch.mul(leaves, torch.tanh(cell, out=squashed[step]), out=hidden)
            # Attention over the last outputs.
            torch.addmm(query_bias, states[step + 1, :, attended_size:], query_weight.T, out=queries[step])
            heard = slice(step, step + window)
            matched = (keys[:, heard] + queries[step, :, None]).sigmoid_()  # (B, W, A)
            shares[step] = (matched @ score).softmax(-1)[:, None]
            attended.copy_((shares[step] @ outputs[:, heard]).squeeze(1))
        ctx.save_for_backward(opened, squashed, queries, shares, states, outputs, keys, weight, query_weight, score)
        ctx.set_materialize_grads(False)
        return states, outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_states, grad_outputs):
        """Go back through all steps; a gradient of None is zero."""
        opened, squashed, queries, shares, states, outputs, keys, weight, query_weight, score = ctx.saved_tensors
        length, batch, gate_size = opened.shape
        size, window, attended_size = squashed.shape[2], shares.shape[3], queries.shape[2]
        grad_outputs = torch.zeros_like(outputs) if grad_outputs is None else grad_outputs.clone()
        grad_keys, grad_score = torch.zeros_like(keys), torch.zeros_like(score)
        grad_queries = torch.empty_like(queries)
        grad_from_state = states.new_zeros(length + 1, batch, weight.shape[0])
        grad_state = torch.zeros_like(states[0])
        grad_attended, grad_hidden, grad_cell = grad_state.split([attended_size, size, size], dim=-1)
        for step in reversed(range(length + 1)):
            # Back through the attention of the step.
            if step < length:
                enters, stays, candidate, leaves = opened[step].chunk(4, dim=-1)
                heard = slice(step, step + window)
                grad_shares = grad_attended[:, None] @ outputs[:, heard].transpose(1, 2)  # (B, 1, W)
                grad_outputs[:, heard].addcmul_(shares[step].transpose(1, 2), grad_attended[:, None])
                grad_scores = torch.ops.aten._softmax_backward_data(grad_shares, shares[step], -1, grad_shares.dtype)
                matched = (keys[:, heard] + queries[step, :, None]).sigmoid_()  # (B, W, A)
                grad_score += matched.flatten(0, 1).T @ grad_scores.flatten()
                grad_matched = grad_scores.transpose(1, 2) * score
                torch.ops.aten.sigmoid_backward(grad_matched, matched, grad_input=grad_matched)
                grad_keys[:, heard] += grad_matched
                torch.sum(grad_matched, 1, out=grad_queries[step])
                grad_state[:, attended_size:].addmm_(grad_queries[step], query_weight)
                # Back through its hidden state and gates.
                gates = grad_from_state[step, :, :gate_size]
                of_enters, of_stays, of_candidate, of_leaves = gates.chunk(4, dim=-1)
                torch.mul(grad_hidden, squashed[step], out=of_leaves)
                grad_cell += torch.ops.aten.tanh_backward(grad_hidden * leaves, squashed[step])
                torch.mul(grad_cell, candidate, out=of_enters)
                torch.mul(grad_cell, states[step, :, attended_size + size :], out=of_stays)
                torch.mul(grad_cell, enters, out=of_candidate)
                for gate in (slice(2 * size), slice(3 * size, None)):
                    torch.ops.aten.sigmoid_backward(gates[:, gate], opened[step][:, gate], grad_input=gates[:, gate])
                torch.ops.aten.tanh_backward(of_candidate, candidate, grad_input=of_candidate)
                grad_cell *= stays
            # Back through the product that made output, key and the next step's gates.
            if step:
                last = window + step - 1
                torch.cat([grad_outputs[:, last], grad_keys[:, last]], -1, out=grad_from_state[step, :, gate_size:])
            torch.mm(grad_from_state[step], weight, out=grad_state[:, : attended_size + size])
            if grad_states is not None:
                grad_state += grad_states[step]
        # Weights are used in all steps: one product each for all of them.
        from_state, all_queries = grad_from_state.flatten(0, 1), grad_queries.flatten(0, 1)
        return (
            grad_from_state[:length, :, :gate_size],
            grad_state,
            grad_outputs[:, :window],
            grad_keys[:, :window],
            from_state.T @ states[..., : attended_size + size].flatten(0, 1),
            from_state[:, gate_size:].sum(0),
            all_queries.T @ states[1:, :, attended_size:].flatten(0, 1),
            all_queries.sum(0),
            grad_score,
        )


class AttentionLSTM(nn.Module):
    r"""LSTM layer that attends to what it put out in the last steps.

    .. math::
        x'_t = W_x [x_t; a_{t-1}], \quad h_t, c_t = \mathrm{LSTM}(x'_t), \quad
        a_t = \sum_i \mathrm{softmax}_i(v^\top \tanh(W_k o_i + W_q [c_t; h_t]))\, o_i, \quad o_t = W_o [h_t; a_t]

    with i from t - W to t - 1; the steps before the first are zeros and take part (as in TensorFlow's
    `AttentionCellWrapper`, with which MelodyRNN is made; Waite 2016, "Generating long-term structure in songs and
    stories", after Bahdanau et al. 2014, arXiv:1409.0473, and Vinyals et al. 2014, arXiv:1412.7449).

    Args:
        config: A [`MelodyLSTMConfig`].
    """

    def __init__(self, config: MelodyLSTMConfig):
        super().__init__()
        self.attention_length = config.attention_length
        self.attention_size = config.attention_size
        self.input_proj = nn.Linear(config.hidden_size + config.attention_size, config.hidden_size)
        self.cell = nn.LSTMCell(config.hidden_size, config.recurrent_size)
        self.query_proj = nn.Linear(2 * config.recurrent_size, config.attention_size)
        self.key_proj = nn.Linear(config.attention_size, config.attention_size, bias=False)
        self.score_proj = nn.Linear(config.attention_size, 1, bias=False)
        self.output_proj = nn.Linear(config.recurrent_size + config.attention_size, config.attention_size)

    @torch.compiler.disable  # it would unroll the steps, for every length anew
    def forward(
        self, inputs: torch.Tensor, state: State | None, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, State]:
        """Read `inputs` `(B, T, C)`, of which the first `lengths` `(B,)` are tokens; None: all.

        Returns:
            Outputs `(B, T, A)`, and the state after the last token: hidden `(B, R)`, cell `(B, R)`, attended `(B, A)`
            and the last outputs `(B, W, A)`.
        """
        batch, length, hidden_size = inputs.shape
        size, attended_size = self.cell.hidden_size, self.attention_size
        if state is None:
            zeros = inputs.new_zeros(batch, size)
            attended = inputs.new_zeros(batch, attended_size)
            state = (zeros, zeros, attended, attended[:, None].expand(-1, self.attention_length, -1))
        hidden, cell, attended, window = state
        # The way from an input to the gates is linear, so all steps take it at once, what is attended to aside.
        input_weight, attended_weight = self.input_proj.weight.split([hidden_size, attended_size], dim=1)
        from_inputs = nn.functional.linear(inputs.transpose(0, 1), input_weight, self.input_proj.bias)
        from_inputs = nn.functional.linear(from_inputs, self.cell.weight_ih, self.cell.bias_ih + self.cell.bias_hh)
        gate_weight = torch.cat([self.cell.weight_ih @ attended_weight, self.cell.weight_hh], dim=1)  # (4 R, A + R)
        output_weight = self.output_proj.weight.roll(attended_size, 1)  # of what is attended to first
        # tanh(x) = 2 sigmoid(2 x) - 1, and softmax does not see the constant: keys, queries and scores are doubled.
        key_weight = 2 * self.key_proj.weight
        states, outputs = AttentionLSTMSteps.apply(  # pyright: ignore[reportGeneralTypeIssues] - what apply returns
            from_inputs,
            torch.cat([attended, hidden, cell], dim=-1),
            window,
            window @ key_weight.T,
            torch.cat([gate_weight, output_weight, key_weight @ output_weight]),
            torch.cat([self.output_proj.bias, key_weight @ self.output_proj.bias]),
            2 * self.query_proj.weight.roll(size, 1),  # of the hidden state first
            2 * self.query_proj.bias,
            2 * self.score_proj.weight[0],
        )
        # The state after the last token of each row.
        lengths = torch.full((batch,), length, device=inputs.device) if lengths is None else lengths
        rows = torch.arange(batch, device=inputs.device)
        attended, hidden, cell = states[lengths, rows].split([attended_size, size, size], dim=-1)
        places = lengths[:, None] + torch.arange(self.attention_length, device=lengths.device)  # (B, W)
        window = outputs[rows[:, None], places]
        return outputs[:, self.attention_length :], (hidden, cell, attended, window)
