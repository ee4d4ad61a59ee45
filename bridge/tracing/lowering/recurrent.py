"""Recurrent layers as one `lax.scan` a layer and direction: compile time does not grow with the sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax
from jaxtyping import Array

from bridge.tracing.lowering.registry import lowers

aten = torch.ops.aten
State = tuple[Array, ...]
# a cell takes its state, the input's projection and the recurrent weights, and gives its next state; h comes first
Cell = Callable[[State, Array, Sequence[Any]], State]


def lstm_cell(state: State, x: Array, weights: Sequence[Any]) -> State:
    """One step of an LSTM; `weights` are the recurrent matrix, its bias, and perhaps a projection of the output."""
    h, c = state
    i, f, g, o = jnp.split(x + h @ weights[0].T + weights[1], 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h @ weights[2].T if len(weights) > 2 else h), c


def gru_cell(state: State, x: Array, weights: Sequence[Any]) -> State:
    """One step of a GRU; torch applies the reset gate after the recurrent product."""
    (h,) = state
    xr, xz, xn = jnp.split(x, 3, -1)
    hr, hz, hn = jnp.split(h @ weights[0].T + weights[1], 3, -1)
    z = jax.nn.sigmoid(xz + hz)
    n = jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn)
    return ((1 - z) * n + z * h,)


def tanh_cell(state: State, x: Array, weights: Sequence[Any]) -> State:
    """One step of an Elman network."""
    return (jnp.tanh(x + state[0] @ weights[0].T + weights[1]),)


def relu_cell(state: State, x: Array, weights: Sequence[Any]) -> State:
    """One step of an Elman network with rectified units."""
    return (jax.nn.relu(x + state[0] @ weights[0].T + weights[1]),)


@lowers(aten.lstm.input)
def lstm(
    x: Array,
    hx: Sequence[Array],
    params: Sequence[Array],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Array, ...]:
    """An LSTM over whole sequences: outputs, last hidden states, last cell states."""
    _refuse_dropout(dropout, train)
    return _layers(lstm_cell, x, tuple(hx), params, has_biases, num_layers, bidirectional, batch_first)


@lowers(aten.gru.input)
def gru(
    x: Array,
    hx: Array,
    params: Sequence[Array],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Array, ...]:
    """A GRU over whole sequences: outputs and last states."""
    _refuse_dropout(dropout, train)
    return _layers(gru_cell, x, (hx,), params, has_biases, num_layers, bidirectional, batch_first)


@lowers(aten.rnn_tanh.input)
def rnn_tanh(
    x: Array,
    hx: Array,
    params: Sequence[Array],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Array, ...]:
    """An Elman network over whole sequences: outputs and last states."""
    _refuse_dropout(dropout, train)
    return _layers(tanh_cell, x, (hx,), params, has_biases, num_layers, bidirectional, batch_first)


@lowers(aten.rnn_relu.input)
def rnn_relu(
    x: Array,
    hx: Array,
    params: Sequence[Array],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Array, ...]:
    """An Elman network with rectified units: outputs and last states."""
    _refuse_dropout(dropout, train)
    return _layers(relu_cell, x, (hx,), params, has_biases, num_layers, bidirectional, batch_first)


def _layers(
    cell: Cell,
    x: Array,
    states: State,
    params: Sequence[Array],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Array, ...]:
    x = jnp.swapaxes(x, 0, 1) if batch_first else x  # (time, batch, features)
    directions = 2 if bidirectional else 1
    size = len(params) // (num_layers * directions)
    last: list[State] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            i = layer * directions + direction
            out, state = _sequence(
                cell, x, tuple(s[i] for s in states), params[i * size : (i + 1) * size], has_biases, direction == 1
            )
            outputs.append(out)
            last.append(state)
        x = jnp.concatenate(outputs, -1) if bidirectional else outputs[0]
    x = jnp.swapaxes(x, 0, 1) if batch_first else x
    return x, *(jnp.stack(parts) for parts in zip(*last, strict=True))


def _sequence(
    cell: Cell, x: Array, state: State, params: Sequence[Array], has_biases: bool, reverse: bool
) -> tuple[Array, State]:
    """One layer in one direction."""
    w_in, w_rec, *rest = params
    b_in, b_rec, *rest = rest if has_biases else (0.0, 0.0, *rest)
    weights = (w_rec, jnp.asarray(b_rec, x.dtype), *rest)
    projected = x @ w_in.T + b_in  # all steps in one product: only the recurrence is left for the loop

    def step(state: State, at: Array) -> tuple[State, Array]:
        state = cell(state, at, weights)
        return state, state[0]

    state, outputs = lax.scan(step, state, projected, reverse=reverse)
    return outputs, state


def _refuse_dropout(dropout: float, train: bool) -> None:
    if train and dropout > 0:
        raise NotImplementedError("A recurrent layer with dropout in train mode is random. Call .eval() on it.")


@lowers(aten.lstm_cell.default)
def one_lstm_cell(x: Array, hx: Sequence[Array], w_ih: Array, w_hh: Array, b_ih: Any = None, b_hh: Any = None) -> State:
    """`nn.LSTMCell`."""
    return lstm_cell((hx[0], hx[1]), _linear(x, w_ih, b_ih), (w_hh, 0.0 if b_hh is None else b_hh))


@lowers(aten.gru_cell.default)
def one_gru_cell(x: Array, hx: Array, w_ih: Array, w_hh: Array, b_ih: Any = None, b_hh: Any = None) -> Array:
    """`nn.GRUCell`."""
    return gru_cell((hx,), _linear(x, w_ih, b_ih), (w_hh, 0.0 if b_hh is None else b_hh))[0]


@lowers(aten.rnn_tanh_cell.default)
def one_tanh_cell(x: Array, hx: Array, w_ih: Array, w_hh: Array, b_ih: Any = None, b_hh: Any = None) -> Array:
    """`nn.RNNCell`."""
    return tanh_cell((hx,), _linear(x, w_ih, b_ih), (w_hh, 0.0 if b_hh is None else b_hh))[0]


@lowers(aten.rnn_relu_cell.default)
def one_relu_cell(x: Array, hx: Array, w_ih: Array, w_hh: Array, b_ih: Any = None, b_hh: Any = None) -> Array:
    """`nn.RNNCell` with rectified units."""
    return relu_cell((hx,), _linear(x, w_ih, b_ih), (w_hh, 0.0 if b_hh is None else b_hh))[0]


def _linear(x: Array, weight: Array, bias: Any) -> Array:
    return x @ weight.T if bias is None else x @ weight.T + bias
