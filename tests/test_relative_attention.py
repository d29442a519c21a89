"""Relative attention: equal to a double loop over query and key, in less memory, with and without a cache."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import DynamicCache, StaticCache

from modeling import MelodyVAEConfig
from modeling.relative_attention import RelativeAttention, skew

B, T, H, D = 3, 11, 2, 5
FAR = 37  # a max_relative_distance that no pair of tokens reaches


def make_attention(
    is_causal: bool,
    max_relative_distance: int = FAR,
    implementation: str = "sdpa",
    dtype: torch.dtype = torch.float64,
    heads: int = H,
    head_size: int = D,
) -> RelativeAttention:
    torch.manual_seed(0)
    config = MelodyVAEConfig(
        vocab_size=53,
        hidden_size=heads * head_size,
        num_attention_heads=heads,
        num_hidden_layers=1,
        max_relative_distance=max_relative_distance,
        latent_size=0,
        dropout=0.0,
        attn_implementation=implementation,
    )
    attention = RelativeAttention(config, layer_idx=0, is_causal=is_causal)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(std=0.5)
    return attention.to(dtype).eval()


def causal_mask(length: int, num_keys: int, past: int, dtype: torch.dtype) -> torch.Tensor:
    allowed = torch.arange(num_keys)[None, :] <= past + torch.arange(length)[:, None]
    return torch.zeros(1, 1, length, num_keys, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)


def loop_attention(attention: RelativeAttention, hidden_states: torch.Tensor) -> torch.Tensor:
    """The definition: for each query and key the one row of E that their distance names."""
    batch, length, size = hidden_states.shape
    heads, head_size, limit = attention.num_heads, attention.head_dim, attention.config.max_relative_distance
    query, key, value = attention.qkv_proj(hidden_states).split(size, dim=-1)
    attended = torch.zeros_like(hidden_states)
    for row in range(batch):
        for head in range(heads):
            part = slice(head * head_size, (head + 1) * head_size)
            for i in range(length):
                seen = range(i + 1) if attention.is_causal else range(length)
                logits = []
                for j in seen:
                    vector = attention.distance_embedding[head, limit + max(-limit, min(limit, j - i))]
                    logits.append(query[row, i, part] @ (key[row, j, part] + vector) / math.sqrt(head_size))
                weights = torch.stack(logits).softmax(0)
                attended[row, i, part] = sum(weights[n] * value[row, j, part] for n, j in enumerate(seen))
    return attention.o_proj(attended)


def attend(attention: RelativeAttention, hidden_states: torch.Tensor) -> torch.Tensor:
    """All positions at once."""
    length = hidden_states.shape[1]
    mask = causal_mask(length, length, 0, hidden_states.dtype) if attention.is_causal else None
    return attention(hidden_states, attention_mask=mask)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("max_relative_distance", [FAR, T - 1, 7, 1])
@pytest.mark.parametrize("is_causal", [True, False])
@torch.no_grad()
def test_equals_a_double_loop_over_query_and_key(is_causal, max_relative_distance, implementation):
    attention = make_attention(is_causal, max_relative_distance, implementation)
    hidden_states = torch.randn(B, T, H * D, dtype=torch.float64)
    expected = loop_attention(attention, hidden_states)
    tolerance = 1e-5 if implementation == "eager" else 1e-10  # eager's softmax is in single precision
    assert (attend(attention, hidden_states) - expected).abs().max() < tolerance
    in_single = attend(attention.float(), hidden_states.float())
    assert (in_single - expected).abs().max() < 1e-5


@torch.no_grad()
def test_the_distance_matters_and_its_sign():
    attention = make_attention(is_causal=False)
    hidden_states = torch.randn(B, T, H * D, dtype=torch.float64)
    forward, backward = attend(attention, hidden_states), attend(attention, hidden_states.flip(1)).flip(1)
    assert (forward - backward).abs().max() > 0.1
    attention.distance_embedding.copy_(attention.distance_embedding.flip(1))  # distance d becomes -d
    assert torch.allclose(attend(attention, hidden_states.flip(1)).flip(1), forward, atol=1e-12)


@torch.no_grad()
def test_max_relative_distance_shares_the_outermost_row():
    near, far = make_attention(True, 7), make_attention(True, FAR)
    far.load_state_dict({**near.state_dict(), "distance_embedding": far.distance_embedding})
    far.distance_embedding[:, -8:] = near.distance_embedding
    far.distance_embedding[:, :-8] = near.distance_embedding[:, :1]
    hidden_states = torch.randn(B, T, H * D, dtype=torch.float64)
    assert torch.allclose(attend(near, hidden_states), attend(far, hidden_states), atol=1e-12)


@pytest.mark.parametrize("max_relative_distance", [FAR, 3])
@pytest.mark.parametrize("chunks", [[1] * T, [7, 1, 3], [2, 9]])
@pytest.mark.parametrize("cache_type", ["dynamic", "static"])
@torch.no_grad()
def test_with_a_cache_equals_without(cache_type, chunks, max_relative_distance):
    attention = make_attention(True, max_relative_distance)
    hidden_states = torch.randn(B, T, H * D, dtype=torch.float64)
    expected = loop_attention(attention, hidden_states)
    room = 17
    is_static = cache_type == "static"
    cache = StaticCache(attention.config, max_cache_len=room) if is_static else DynamicCache(config=attention.config)
    outputs, past = [], 0
    for chunk in hidden_states.split(chunks, dim=1):
        length = chunk.shape[1]
        mask = causal_mask(length, room if is_static else past + length, past, torch.float64)
        outputs.append(attention(chunk, attention_mask=mask, past_key_values=cache))
        past += length
    assert (torch.cat(outputs, dim=1) - expected).abs().max() < 1e-10


@given(
    length=st.integers(1, 13),
    num_keys=st.integers(1, 17),
    room=st.integers(0, 5),
    batch=st.integers(1, 3),
)
@settings(deadline=None, max_examples=100)
def test_skew_is_its_definition(length, num_keys, room, batch):
    num_distances = max(num_keys, room + num_keys + length - 1)  # M = S + L - 1 and more
    logits = torch.arange(batch * length * num_distances, dtype=torch.float64).view(batch, length, num_distances)
    skewed = skew(logits, num_keys)
    assert skewed.shape == (batch, length, num_keys)
    for i in range(length):
        for j in range(num_keys):
            assert torch.equal(skewed[:, i, j], logits[:, i, j - i + length - 1])


@given(length=st.integers(1, 13), past=st.integers(0, 7))
@settings(deadline=None, max_examples=50)
def test_skew_of_causal_logits_is_right_where_the_mask_leaves_it(length, past):
    num_keys = past + length  # M = S is enough
    logits = torch.arange(length * num_keys, dtype=torch.float64).view(length, num_keys)
    skewed = skew(logits, num_keys)
    for i in range(length):
        for j in range(past + i + 1):
            assert skewed[i, j] == logits[i, j - i + length - 1]


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("is_causal", [True, False])
def test_no_tensor_of_length_squared_times_head_size(is_causal, implementation):
    length, head_size = 211, 61
    attention = make_attention(is_causal, 307, implementation, torch.float32, heads=1, head_size=head_size)
    hidden_states = torch.randn(1, length, head_size, requires_grad=True)
    with LargestTensor() as explicit:  # the mode sees what it is meant to see
        attention.distance_embedding[:, torch.zeros(length, length, dtype=torch.long)]
    assert explicit.elements == length * length * head_size
    with LargestTensor() as largest:
        attend(attention, hidden_states).sum().backward()
    assert largest.elements <= 2 * length * length < explicit.elements / 30


@pytest.mark.parametrize("is_causal", [True, False])
def test_eager_equals_sdpa_in_values_and_gradients(is_causal):
    hidden_states = torch.randn(B, T, H * D, generator=torch.Generator().manual_seed(1))
    results = []
    for implementation in ("eager", "sdpa"):
        attention = make_attention(is_causal, 7, implementation, torch.float32)
        output = attend(attention, hidden_states)
        output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in attention.parameters())])
    assert attention.distance_embedding.grad.abs().max() > 0.1
    for eager, sdpa in zip(*results, strict=True):
        assert torch.allclose(eager, sdpa, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("is_causal", [True, False])
def test_gradients_are_the_derivatives(is_causal):
    attention = make_attention(is_causal, 2, heads=1, head_size=3)
    hidden_states = torch.randn(1, 5, 3, dtype=torch.float64, requires_grad=True)

    def call(hidden_states, distance_embedding):
        mask = causal_mask(5, 5, 0, torch.float64) if is_causal else None
        arguments = (hidden_states, mask)
        return torch.func.functional_call(attention, {"distance_embedding": distance_embedding}, arguments)

    embedding = attention.distance_embedding.detach().requires_grad_()
    assert torch.autograd.gradcheck(call, (hidden_states, embedding))
    (gradient,) = torch.autograd.grad(call(hidden_states, embedding).square().sum(), embedding)
    assert (gradient.abs().sum(-1) > 0).all(), "a distance that occurs learns nothing"


def test_only_distances_that_occur_get_a_gradient():
    attention = make_attention(True, FAR)
    attend(attention, torch.randn(B, T, H * D, dtype=torch.float64)).square().sum().backward()
    learns = attention.distance_embedding.grad.abs().sum(-1) > 0  # (H, FAR + 1), distance -FAR first
    assert learns[:, -T:].all()
    assert not learns[:, :-T].any()
