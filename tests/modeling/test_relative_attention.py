"""Relative attention: equal to a double loop over query and key, in less memory, with and without a cache."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import DynamicCache, StaticCache

from modeling import MelodyVAEConfig, MelodyVAEModel, relative_attention
from modeling.musical_position_melody_vae import rotation_of
from modeling.relative_attention import (
    FEWEST_IN_BLOCKS,
    QUERIES_PER_BLOCK,
    BlockwiseRelativeAttention,
    RelativeAttention,
    rotate,
    skew,
)

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
        outputs.append(attention(chunk, attention_mask=mask, cache=cache))
        past += length
    assert (torch.cat(outputs, dim=1) - expected).abs().max() < 1e-10


@given(
    length=st.integers(1, 13),
    num_keys=st.integers(1, 17),
    room=st.integers(0, 5),
    batch=st.integers(1, 3),
)
@settings(max_examples=100)
def test_skew_is_its_definition(length, num_keys, room, batch):
    num_distances = room + num_keys + length  # M = S + L and more
    logits = torch.arange(batch * length * num_distances, dtype=torch.float64).view(batch, length, num_distances)
    skewed = skew(logits, num_keys)
    assert skewed.shape == (batch, length, num_keys)
    for i in range(length):
        for j in range(num_keys):
            assert torch.equal(skewed[:, i, j], logits[:, i, j - i + length - 1])
    assert skewed.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr(), "a copy"


@given(length=st.integers(1, 13), past=st.integers(0, 7))
@settings(max_examples=50)
def test_skew_of_causal_logits_is_right_where_the_mask_leaves_it(length, past):
    num_keys = past + length  # M = S + 1 is enough
    logits = torch.arange(length * (num_keys + 1), dtype=torch.float64).view(length, num_keys + 1)
    skewed = skew(logits, num_keys)
    for i in range(length):
        for j in range(past + i + 1):
            assert skewed[i, j] == logits[i, j - i + length - 1]
    assert skewed.unique().numel() == skewed.numel(), "what is written to one entry shows in another"


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
def test_largest_tensor_in_training_grows_with_the_length_not_its_square(is_causal):
    largest = []
    for length in (2 * QUERIES_PER_BLOCK, 4 * QUERIES_PER_BLOCK, 8 * QUERIES_PER_BLOCK):
        attention = make_attention(is_causal, 307, "sdpa", torch.float32, heads=1, head_size=5)
        with LargestTensor() as mode:
            attention(torch.randn(1, length, 5)).sum().backward()
        largest.append(mode.elements)
    assert largest[2] - largest[1] <= 2.01 * (largest[1] - largest[0])  # a square would give 4


@pytest.mark.parametrize("is_causal", [True, False])
def test_compiled_equals_eager_in_values_and_gradients(is_causal):
    torch.compiler.reset()
    results = []
    for is_compiled in (True, False):
        attention = make_attention(is_causal, 7)
        call = torch.compile(attention, fullgraph=True, backend="aot_eager") if is_compiled else attention
        hidden_states = torch.randn(B, T, H * D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        output = call(hidden_states)
        output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in attention.parameters())])
    for compiled, eager in zip(*results, strict=True):
        assert torch.allclose(compiled, eager, atol=1e-10)


@pytest.mark.parametrize("is_causal", [True, False])
def test_eager_equals_sdpa_in_values_and_gradients(is_causal):
    hidden_states = torch.randn(B, T, H * D, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    results = []
    for implementation in ("eager", "sdpa"):
        attention = make_attention(is_causal, 7, implementation, torch.double)
        output = attend(attention, hidden_states)
        output.square().sum().backward()
        results.append([output, *(parameter.grad for parameter in attention.parameters())])
    assert attention.distance_embedding.grad.abs().max() > 0.1
    for eager, sdpa in zip(*results, strict=True):
        assert (eager - sdpa).abs().max() <= 2e-6 * sdpa.abs().max()  # the softmax of eager is in single precision


@pytest.fixture(params=[1, 3, 7, 13])
def queries_per_block(request, monkeypatch):
    monkeypatch.setattr(relative_attention, "QUERIES_PER_BLOCK", request.param)


def padding_mask(kind: str, is_causal: bool, side: str, dtype: torch.dtype) -> torch.Tensor:
    """Row 0 is whole, the others have 2 and 5 tokens of padding; no row of the mask is empty, as in transformers."""
    place = torch.arange(T)
    pads = torch.tensor([0, 2, 5])[:, None]
    is_token = place >= pads if side == "left" else place < T - pads  # (B, S)
    allowed = is_token[:, None, None, :].expand(B, 1, T, T)
    if is_causal:
        allowed = allowed & torch.ones(T, T, dtype=torch.bool).tril()
    allowed = allowed | torch.eye(T, dtype=torch.bool)
    return allowed if kind == "bool" else torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -1e30)


@pytest.mark.parametrize("mask_kind", ["none", "bool", "float"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("max_relative_distance", [FAR, 3])
@pytest.mark.parametrize("is_causal", [True, False])
def test_blocks_of_queries_change_no_value_and_no_gradient(
    is_causal, max_relative_distance, side, mask_kind, queries_per_block, monkeypatch
):
    mask = None if mask_kind == "none" else padding_mask(mask_kind, is_causal, side, torch.float64)
    inputs = torch.randn(B, T, H * D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results, calls = [], []
    apply = BlockwiseRelativeAttention.apply
    monkeypatch.setattr(BlockwiseRelativeAttention, "apply", lambda *given: calls.append(1) or apply(*given))
    for is_blockwise in (True, False):
        attention = make_attention(is_causal, max_relative_distance)
        if not is_blockwise:
            monkeypatch.setattr(attention, "is_blockwise", lambda *given: False)
        hidden_states = inputs.clone().requires_grad_()
        output = attention(hidden_states, attention_mask=mask)
        output.square().sum().backward()
        results.append([output, hidden_states.grad, *(parameter.grad for parameter in attention.parameters())])
        assert len(calls) == 1, "in blocks where it should not be, or the other way round"
    for blockwise, plain in zip(*results, strict=True):
        assert (blockwise - plain).abs().max() < 1e-10 * plain.abs().max()


@pytest.mark.parametrize("is_causal", [True, False])
def test_blocks_under_autocast_are_nearly_as_exact_as_plain_operations(is_causal, monkeypatch):
    """Longer than a block, so that gradients are sums over blocks."""
    inputs = torch.randn(B, QUERIES_PER_BLOCK + 13, H * D, generator=torch.Generator().manual_seed(1))

    def run(is_blockwise, dtype=torch.float32):
        attention = make_attention(is_causal, 31, dtype=dtype)
        if not is_blockwise:
            monkeypatch.setattr(attention, "is_blockwise", lambda *given: False)
        hidden_states = inputs.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            output = attention(hidden_states)
            output.float().square().sum().backward()
        return [output, hidden_states.grad, *(parameter.grad for parameter in attention.parameters())]

    for exact, blockwise, plain in zip(run(False, torch.float64), run(True), run(False), strict=True):
        allowed = 2 * (plain - exact).norm()
        assert 0 < (blockwise - exact).norm() < allowed


def test_every_size_of_block_is_the_double_loop():
    """At lengths about the block's own size and its multiples."""
    for length in (QUERIES_PER_BLOCK - 1, QUERIES_PER_BLOCK, QUERIES_PER_BLOCK + 1, 2 * QUERIES_PER_BLOCK + 3):
        for is_causal in (True, False):
            attention = make_attention(is_causal, 31, dtype=torch.float32, heads=1)
            hidden_states = torch.randn(1, length, D)
            with torch.no_grad():
                expected = loop_attention(attention, hidden_states)
            output = attention(hidden_states)
            assert output.requires_grad
            assert (output - expected).abs().max() < 1e-5


@pytest.mark.parametrize("mask_kind", ["none", "bool", "float", "keys"])
@pytest.mark.parametrize("max_relative_distance", [3, 70, 10_000])
@pytest.mark.parametrize("is_causal", [True, False])
@torch.no_grad()
def test_long_sequences_are_read_in_blocks_without_gradients(is_causal, max_relative_distance, mask_kind, monkeypatch):
    length = FEWEST_IN_BLOCKS + 3
    attention = make_attention(is_causal, max_relative_distance)
    hidden_states = torch.randn(B, length, H * D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = None
    if mask_kind != "none":  # some keys are padding
        is_seen = torch.arange(length) < torch.tensor([length, length - 1, 5])[:, None, None, None]  # (B, 1, 1, L)
        if is_causal or mask_kind != "keys":
            is_seen = is_seen & torch.ones(length, length, dtype=torch.bool).tril(length * (not is_causal))
        mask = torch.zeros(is_seen.shape).double().masked_fill(~is_seen, -1e300) if mask_kind == "float" else is_seen
    calls, in_blocks = [], RelativeAttention.attend_in_blocks
    monkeypatch.setattr(RelativeAttention, "attend_in_blocks", lambda *given: calls.append(1) or in_blocks(*given))
    outputs = [
        attention(hidden_states, attention_mask=mask),
        attention(hidden_states, mask, DynamicCache(config=attention.config)),
    ]
    assert len(calls) == 2
    monkeypatch.setattr(attention, "may_use_blocks", lambda *given: False)
    plain = attention(hidden_states, attention_mask=mask)
    assert len(calls) == 2
    for output in outputs:
        assert (output - plain).abs().max() < 1e-12
    attention(hidden_states[:, :FEWEST_IN_BLOCKS])
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("change", "is_blockwise"),
    [
        ("training", True),
        ("no gradient", False),
        ("cache", False),
        ("dropout", False),
        ("eager", False),
        ("bfloat16", True),
        ("float16", False),
    ],
)
def test_blocks_are_for_training(change, is_blockwise):
    dtype = getattr(torch, change) if "float" in change else torch.float32
    attention = make_attention(True, implementation="eager" if change == "eager" else "sdpa", dtype=dtype).train()
    attention.config.dropout = 0.1 if change == "dropout" else 0.0
    cache = DynamicCache(config=attention.config) if change == "cache" else None
    query = torch.randn(B, H, T, D, dtype=dtype, requires_grad=change != "no gradient")
    assert attention.is_blockwise(query, cache) == is_blockwise


@pytest.mark.parametrize("is_causal", [True, False])
def test_gradients_are_the_derivatives(is_causal, queries_per_block):
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # transformers' own, as it makes the mask
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("is_padded", [False, True])
@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # torch 2.13 compiles none for so few queries on a CPU
def test_flex_attention_equals_sdpa(is_padded):
    """The relative term as its score_mod; to compile the mask, as transformers would, takes half a minute."""
    fields = {"vocab_size": 53, "bar_token_ids": [5], "hidden_size": 32, "intermediate_size": 13, "latent_size": 32}
    fields |= {"num_attention_heads": 2, "num_encoder_layers": 1, "num_hidden_layers": 2, "dropout": 0.0}
    ids = torch.randint(6, 53, (B, 23), generator=torch.Generator().manual_seed(1))
    ids[:, ::7] = 5
    is_token = torch.arange(23) >= torch.tensor([0, 4, 9])[:, None] * is_padded  # padding on the left
    models = []
    for implementation in ("sdpa", "flex_attention"):
        torch.manual_seed(0)
        config = MelodyVAEConfig(
            **fields, initializer_range=0.5, max_relative_distance=7, attn_implementation=implementation
        )
        models.append(MelodyVAEModel(config).eval())
    sdpa, flex = (model(ids, attention_mask=is_token.long()) for model in models)
    assert (sdpa.latent_mean - flex.latent_mean).abs().max() < 1e-5
    assert (sdpa.logits - flex.logits)[is_token].abs().max() < 1e-4 < sdpa.logits.abs().max() / 1e3
    models[1].layers[0].attention.distance_embedding.zero_()
    assert (sdpa.logits - models[1](ids, attention_mask=is_token.long()).logits)[is_token].abs().max() > 0.1


def test_rotated_products_depend_on_time_and_interval_between():
    """On nothing else of them; the last entries of each head and the lengths of vectors stay as they are."""
    generator = torch.Generator().manual_seed(3)
    head_size = 16
    query, key = torch.randn(2, B, H, T, head_size, generator=generator)
    time = torch.randint(16 * 20, (B, T), generator=generator) / 16
    pitch = torch.randint(40, 90, (B, T), generator=generator).float()

    def products(time: torch.Tensor, pitch: torch.Tensor) -> torch.Tensor:
        rotation = rotation_of(head_size, time, pitch)
        return rotate(query, rotation) @ rotate(key, rotation).transpose(2, 3)

    expected = products(time, pitch)
    assert torch.allclose(products(time + 7.25, pitch - 5), expected, atol=1e-3)
    assert not torch.allclose(products(time.flip(-1), pitch), expected, atol=0.1)
    assert not torch.allclose(products(time, pitch.flip(-1)), expected, atol=0.1)
    turned = rotate(query, rotation_of(head_size, time))
    assert torch.equal(turned[..., head_size // 2 :], query[..., head_size // 2 :])
    turned = rotate(query, rotation_of(head_size, time, pitch))
    assert torch.equal(turned[..., 3 * head_size // 4 :], query[..., 3 * head_size // 4 :])
    assert torch.allclose(turned.norm(dim=-1), query.norm(dim=-1), atol=1e-5)
    assert torch.equal(rotate(query, rotation_of(head_size, torch.zeros(B, T))), query)
    assert rotation_of(head_size, None) is None


@pytest.mark.parametrize("is_causal", [False, True])
def test_rotated_attention_is_the_same_by_blocks_and_with_a_cache(is_causal):
    length = QUERIES_PER_BLOCK + 7
    attention = make_attention(is_causal, head_size=8)
    rotation = rotation_of(8, torch.arange(length)[None].expand(B, -1) / 8)
    hidden_states = torch.randn(B, length, H * 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    mask = causal_mask(length, length, 0, torch.float64) if is_causal else None
    with torch.no_grad():
        plain = attention(hidden_states, mask, rotation=rotation)
    assert torch.allclose(attention(hidden_states.requires_grad_(), mask, rotation=rotation), plain)  # by blocks
    assert not torch.allclose(attention(hidden_states, mask), plain, atol=0.01)
    if is_causal:
        cache = DynamicCache(config=attention.config)
        parts = []
        with torch.no_grad():
            for begin, end in ((0, 40), (40, length)):
                part = causal_mask(end - begin, end, begin, torch.float64)
                parts.append(attention(hidden_states[:, begin:end], part, cache, rotation=rotation[:, :, :, begin:end]))
        assert torch.allclose(torch.cat(parts, dim=1), plain)
