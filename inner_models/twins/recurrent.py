"""Recurrent layers that `torch.func.vmap` batches: the same functions as `torch.gru` and its kin.

torch's own have no batching rule. These take the same arguments (those of the functions that
`nn.GRU`, `nn.LSTM`, `nn.RNN` and their cells call), and give the same outputs and gradients.
The work on a whole sequence is done in
`recurrent_scans`; here are layers, directions, and the cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pacesetter.inner_models.twins.scans import GRUScan, LSTMScan, RNNScan, Scan

State = tuple[Tensor, ...]
"""Hidden state, and for an LSTM its cell state too, each (batch, hidden)."""
Weights = Sequence[Tensor]
"""Of one layer and direction, in torch's order: input, hidden, their biases, projection."""


class Layer(Protocol):
    """One layer in one direction."""

    def __call__(
        self, x: Tensor, state: State, weights: Weights, *, biased: bool, reverse: bool
    ) -> tuple[Tensor, State]:
        """Runs it over a sequence.

        Args:
            x: (steps, batch, features).
            state: at the start.
            weights: of the layer.
            biased: whether there are biases among them.
            reverse: whether it goes from the last step to the first.

        Returns:
            The outputs (steps, batch, hidden), and the state at the end.
        """


def gru(input: Tensor, hx: Any, params: Any, *rest: Any) -> tuple[Tensor, Tensor]:
    """`torch.gru`; a packed sequence is refused with NotImplementedError."""
    out, (hidden,) = _run(_gru_layer, input, hx, params, *rest)
    return out, hidden


def lstm(input: Tensor, hx: Any, params: Any, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.lstm`; a packed sequence is refused with NotImplementedError."""
    out, (hidden, cell) = _run(_lstm_layer, input, hx, params, *rest)
    return out, hidden, cell


def rnn_tanh(input: Tensor, hx: Any, params: Any, *rest: Any) -> tuple[Tensor, Tensor]:
    """`torch.rnn_tanh`; a packed sequence is refused with NotImplementedError."""
    out, (hidden,) = _run(partial(_rnn_layer, relu=False), input, hx, params, *rest)
    return out, hidden


def rnn_relu(input: Tensor, hx: Any, params: Any, *rest: Any) -> tuple[Tensor, Tensor]:
    """`torch.rnn_relu`; a packed sequence is refused with NotImplementedError."""
    out, (hidden,) = _run(partial(_rnn_layer, relu=True), input, hx, params, *rest)
    return out, hidden


def pack_padded_sequence(*_: Any) -> NoReturn:
    """`torch._pack_padded_sequence`: refused, since packed sequences have no shape to share.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError("a PackedSequence cannot be batched; padded sequences can")


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """`torch.gru_cell`: input (batch, features), hx (batch, hidden)."""
    reset_in, update_in, new_in = F.linear(input, w_ih, b_ih).chunk(3, -1)
    reset_hid, update_hid, new_hid = F.linear(hx, w_hh, b_hh).chunk(3, -1)
    new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_hid) * new_hid)
    return torch.lerp(new, hx, torch.sigmoid(update_in + update_hid))


def lstm_cell(
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`torch.lstm_cell`: input (batch, features), hx a pair of (batch, hidden)."""
    gates = F.linear(input, w_ih, b_ih) + F.linear(hx[0], w_hh, b_hh)
    return _lstm_step(gates, hx[1])


def rnn_tanh_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """`torch.rnn_tanh_cell`: input (batch, features), hx (batch, hidden)."""
    return torch.tanh(F.linear(input, w_ih, b_ih) + F.linear(hx, w_hh, b_hh))


def rnn_relu_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """`torch.rnn_relu_cell`: input (batch, features), hx (batch, hidden)."""
    return torch.relu(F.linear(input, w_ih, b_ih) + F.linear(hx, w_hh, b_hh))


def _run(
    layer: Layer,
    input: Tensor,
    hx: Any,
    params: Any,
    has_biases: Any,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """All layers and directions.

    Returns:
        The outputs, laid out as the input is, and the stacked states at the end.
    """
    # Of a packed sequence, torch passes (data, batch_sizes, hx, params, ...).
    if isinstance(has_biases, list | tuple):
        pack_padded_sequence()
    given = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    directions = 2 if bidirectional else 1
    width = len(params) // (num_layers * directions)
    x = input.transpose(0, 1) if batch_first else input
    ends: list[State] = []
    for number in range(num_layers):
        outs = []
        for direction in range(directions):
            i = number * directions + direction
            out, end = layer(
                x,
                tuple(state[i] for state in given),
                params[i * width : (i + 1) * width],
                biased=has_biases,
                reverse=direction == 1,
            )
            outs.append(out)
            ends.append(end)
        x = torch.cat(outs, -1) if bidirectional else outs[0]
        if dropout and train and number < num_layers - 1:
            x = F.dropout(x, dropout)
    output = x.transpose(0, 1) if batch_first else x
    return output, [torch.stack(states) for states in zip(*ends, strict=True)]


def _scan(
    kind: type[Scan], x: Tensor, state: State, weights: Weights, biased: bool, *options: bool
) -> tuple[Tensor, ...]:
    """Applies a scan to one run."""
    zeros = torch.zeros_like(weights[0][:, 0])
    biases = weights[2:4] if biased else (zeros, zeros)
    tensors = (t[None] for t in (x, *weights[:2], *biases, *state))
    results: tuple[Tensor, ...] = kind.apply(*tensors, *options)  # type: ignore[no-untyped-call]
    return results


def _unpack(states: Tensor, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """Outputs (steps, batch, hidden) and last state of all the states of a scan."""
    own = states[0]
    return (own[:-1], own[0]) if reverse else (own[1:], own[-1])


def _gru_layer(
    x: Tensor, state: State, weights: Weights, *, biased: bool, reverse: bool
) -> tuple[Tensor, State]:
    states, *_ = _scan(GRUScan, x, state, weights, biased, reverse)
    out, last = _unpack(states, reverse=reverse)
    return out, (last,)


def _rnn_layer(
    x: Tensor, state: State, weights: Weights, *, biased: bool, reverse: bool, relu: bool
) -> tuple[Tensor, State]:
    (states,) = _scan(RNNScan, x, state, weights, biased, relu, reverse)
    out, last = _unpack(states, reverse=reverse)
    return out, (last,)


def _lstm_layer(
    x: Tensor, state: State, weights: Weights, *, biased: bool, reverse: bool
) -> tuple[Tensor, State]:
    if len(weights) > (4 if biased else 2):
        return _projected_lstm(x, state, weights, biased=biased, reverse=reverse)
    states, cells, *_ = _scan(LSTMScan, x, state, weights, biased, reverse)
    out, last = _unpack(states, reverse=reverse)
    return out, (last, _unpack(cells, reverse=reverse)[1])


def _projected_lstm(
    x: Tensor, state: State, weights: Weights, *, biased: bool, reverse: bool
) -> tuple[Tensor, State]:
    """LSTM with ``proj_size``: rare, so it is left to autograd."""
    hidden, cell = state
    inputs = F.linear(x, weights[0], weights[2] + weights[3] if biased else None).unbind()
    outs = []
    for step in reversed(inputs) if reverse else inputs:
        shown, cell = _lstm_step(step + F.linear(hidden, weights[1]), cell)
        hidden = F.linear(shown, weights[-1])
        outs.append(hidden)
    return torch.stack(outs[::-1] if reverse else outs), (hidden, cell)


def _lstm_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden and cell state after one step; the gates are (batch, 4 * hidden)."""
    write, forget, new, show = gates.chunk(4, -1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(write) * torch.tanh(new)
    return torch.sigmoid(show) * torch.tanh(cell), cell
