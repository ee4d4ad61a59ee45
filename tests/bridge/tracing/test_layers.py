"""Each layer, crossed with its options by hypothesis, has torch's value, vjp and jvp in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.bridge.tracing.oracle import assert_carried

pytestmark = pytest.mark.in_turns

few = settings(max_examples=6, deadline=None)
ranks = st.integers(1, 3)
sizes = {1: (9,), 2: (8, 7), 3: (6, 5, 7)}


def images(rank, channels=4, batch=2):
    return torch.randn(batch, channels, *sizes[rank], dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def after_a_convolution(rank, layer):
    """Behind a convolution a layer gets channels-last values."""
    return nn.Sequential((nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1](4, 4, 1), layer)


ACTIVATIONS = [
    nn.ELU(0.5),
    nn.Hardshrink(),
    nn.Hardsigmoid(),
    nn.Hardtanh(),
    nn.Hardswish(),
    nn.LeakyReLU(0.2),
    nn.LogSigmoid(),
    nn.PReLU(4),
    nn.ReLU(),
    nn.ReLU6(),
    nn.RReLU(),
    nn.SELU(),
    nn.CELU(0.7),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.Sigmoid(),
    nn.SiLU(),
    nn.Mish(),
    nn.Softplus(2.0, 3.0),
    nn.Softshrink(),
    nn.Softsign(),
    nn.Tanh(),
    nn.Tanhshrink(),
    nn.Threshold(0.1, 2.0),
    nn.GLU(1),
    nn.Softmin(1),
    nn.Softmax(1),
    nn.LogSoftmax(1),
]


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=lambda layer: type(layer).__name__)
def test_activations_equal_torchs(layer):
    assert_carried(after_a_convolution(2, layer), images(2))


@given(
    rank=ranks,
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_convolutions_equal_torchs(rank, kernel, stride, padding, dilation, groups, mode, bias):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    layer = kind(4, 8, kernel, stride, padding, dilation, groups, bias, mode)
    assert_carried(layer, images(rank))


@given(
    rank=ranks,
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    extra=st.integers(0, 1),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
)
@settings(max_examples=10, deadline=None)
def test_transposed_convolutions_equal_torchs(rank, kernel, stride, padding, extra, dilation, groups):
    assume(extra < max(stride, dilation) and kernel > padding)
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    assert_carried(kind(4, 6, kernel, stride, padding, extra, groups, dilation=dilation), images(rank))


@given(
    rank=ranks,
    kernel=st.integers(2, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    ceil_mode=st.booleans(),
    include=st.booleans(),
)
@settings(max_examples=10, deadline=None)
def test_average_pooling_equals_torchs(rank, kernel, stride, padding, ceil_mode, include):
    kind = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[rank - 1]
    layer = kind(kernel, stride, padding, ceil_mode, count_include_pad=include)
    assert_carried(after_a_convolution(rank, layer), images(rank))


@given(
    rank=ranks,
    kernel=st.integers(2, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    ceil_mode=st.booleans(),
    indices=st.booleans(),
)
@settings(max_examples=10, deadline=None)
def test_max_pooling_equals_torchs(rank, kernel, stride, padding, dilation, ceil_mode, indices):
    kind = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[rank - 1]
    layer = kind(kernel, stride, padding, dilation, return_indices=indices, ceil_mode=ceil_mode)
    assert_carried(after_a_convolution(rank, layer), images(rank))


def test_max_pooling_sends_the_derivative_to_the_first_of_equals():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1, 2, 4, 4))

        def forward(self, x):
            return F.max_pool2d(x * 0 + self.weight.round(), 3, 1)

    assert_carried(Flat(), torch.randn(2, 2, 4, 4, dtype=torch.float64))


@given(rank=ranks, size=st.integers(1, 6), largest=st.booleans())
@few
def test_adaptive_pooling_equals_torchs(rank, size, largest):
    kinds = (
        (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
        if largest
        else (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    )
    assert_carried(after_a_convolution(rank, kinds[rank - 1](size)), images(rank))


NORMS = {
    "batch": lambda: nn.BatchNorm2d(4),
    "batch without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False, affine=False),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
    "instance with statistics": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "group": lambda: nn.GroupNorm(2, 4),
    "layer": lambda: nn.LayerNorm([8, 7]),
    "layer without bias": lambda: nn.LayerNorm(7, bias=False),
    "rms": lambda: nn.RMSNorm(7, eps=1e-3),
    "local response": lambda: nn.LocalResponseNorm(3),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalisation_equals_torchs(name):
    assert_carried(after_a_convolution(2, NORMS[name]()), images(2))


@given(
    mode=st.sampled_from(["nearest", "nearest-exact", "bilinear", "bicubic"]),
    align=st.booleans(),
    factor=st.sampled_from([2, 1.7, 0.6]),
    size=st.sampled_from([None, (11, 5)]),
)
@settings(max_examples=12, deadline=None)
def test_resizing_equals_torchs(mode, align, factor, size):
    corners = align if mode in ("bilinear", "bicubic") else None
    layer = nn.Upsample(size, None if size else factor, mode, corners)
    assert_carried(after_a_convolution(2, layer), images(2))


class TimeFirst(nn.Module):
    """A recurrent layer that takes the batch on axis 1, in a model that has it on axis 0."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        out, state = self.layer(x if self.layer.batch_first else x.transpose(0, 1))
        state = torch.cat(state, -1) if isinstance(state, tuple) else state
        return (out if self.layer.batch_first else out.transpose(0, 1)), state.transpose(0, 1)


@given(
    kind=st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]),
    layers=st.integers(1, 2),
    bias=st.booleans(),
    batch_first=st.booleans(),
    both=st.booleans(),
)
@few
def test_recurrent_layers_equal_torchs(kind, layers, bias, batch_first, both):
    layer = kind(3, 4, layers, bias=bias, batch_first=batch_first, bidirectional=both)
    assert_carried(TimeFirst(layer), torch.randn(2, 5, 3, dtype=torch.float64))


def test_a_projected_lstm_equals_torchs():
    layer = nn.LSTM(3, 4, 2, batch_first=True, bidirectional=True, proj_size=2)
    assert_carried(TimeFirst(layer), torch.randn(2, 5, 3, dtype=torch.float64))


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells_equal_torchs(kind):
    assert_carried(kind(3, 4), torch.randn(2, 3, dtype=torch.float64))


class SelfAttention(nn.Module):
    def __init__(self, weights, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.weights = weights
        self.register_buffer("mask", torch.ones(5, 5, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x, padding):
        return self.attention(x, x, x, padding, need_weights=self.weights, attn_mask=self.mask)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True, "add_zero_attn": True}], ids=str)
def test_attention_with_masks_equals_torchs(weights, options):
    padding = torch.tensor([[False, False, False, True, True], [False] * 5])
    assert_carried(SelfAttention(weights, **options), (torch.randn(2, 5, 8, dtype=torch.float64), padding))


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_layers_equal_torchs(norm_first):
    x, memory = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 4, 8, dtype=torch.float64)
    options = {"dim_feedforward": 16, "batch_first": True, "norm_first": norm_first}
    assert_carried(nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, **options), 2, enable_nested_tensor=False), x)
    assert_carried(nn.TransformerDecoderLayer(8, 2, **options), (x, memory))


@pytest.mark.parametrize("padding", [None, 2])
def test_embeddings_equal_torchs(padding):
    ids = torch.randint(0, 7, (2, 5))
    assert_carried(nn.Embedding(7, 4, padding_idx=padding), ids)
    for mode in ("sum", "mean", "max"):
        assert_carried(nn.EmbeddingBag(7, 4, mode=mode, padding_idx=padding), ids)
