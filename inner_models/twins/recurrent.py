"""Recurrent layers that `torch.func.vmap` batches: the functions behind `nn.GRU` and `nn.LSTM`.

torch's own have no batching rule. These take the same arguments and give the same outputs and
gradients. A scan takes one layer over a whole sequence, for many runs at once, with gradients of
its own: autograd would add dozens of small operations to every step, and keep as many small
tensors. Here a step takes 3 to 9 operations forwards and 5 to 16 backwards.

States and gates are laid out as (runs, rows, batch), so that a gate is a block of memory, and
weights are multiplied from the left. Products with the inputs are taken step by step as well: one
product for all steps has left the cache by the time it is used, and a GRU of 128 runs took a
quarter longer. The dimension of runs is of size one where there is no `torch.func.vmap`, and every
level of vmap makes it longer. Gradients are to be taken outside of vmap, as the trainer does it;
``vmap(grad(...))`` is not supported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

_aten = torch.ops.aten
_sigmoid_backward = _aten.sigmoid_backward.grad_input
_tanh_backward = _aten.tanh_backward.grad_input

Grads = tuple[Tensor | None, ...]


def gru(input: Tensor, hx: Any, params: Any, *rest: Any) -> tuple[Tensor, Tensor]:
    """`torch.gru`; raises NotImplementedError for a packed sequence."""
    out, (hidden,) = _run(GRUScan, input, hx, params, *rest)
    return out, hidden


def lstm(input: Tensor, hx: Any, params: Any, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.lstm`; raises NotImplementedError for a packed sequence or a projection."""
    out, (hidden, cell) = _run(LSTMScan, input, hx, params, *rest)
    return out, hidden, cell


def _run(
    kind: type[Scan],
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
    """All layers and directions: outputs, laid out as the input is, and the stacked last states."""
    # Of a packed sequence, torch passes (data, batch_sizes, hx, params, ...).
    if isinstance(has_biases, list | tuple):
        raise NotImplementedError("a PackedSequence cannot be batched; padded sequences can")
    given = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    directions = 2 if bidirectional else 1
    width = len(params) // (num_layers * directions)
    x = input.transpose(0, 1) if batch_first else input
    ends: list[list[Tensor]] = []
    for number in range(num_layers):
        outs = []
        for direction in range(directions):
            i = number * directions + direction
            weights = params[i * width : (i + 1) * width]
            start = [state[i] for state in given]
            out, end = _layer(kind, x, start, weights, biased=has_biases, reverse=direction == 1)
            outs.append(out)
            ends.append(end)
        x = torch.cat(outs, -1) if bidirectional else outs[0]
        if dropout and train and number < num_layers - 1:
            x = F.dropout(x, dropout)
    output = x.transpose(0, 1) if batch_first else x
    return output, [torch.stack(states) for states in zip(*ends, strict=True)]


def _layer(
    kind: type[Scan],
    x: Tensor,
    start: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    biased: bool,
    reverse: bool,
) -> tuple[Tensor, list[Tensor]]:
    """One layer in one direction over a sequence (steps, batch, features) of one run.

    It starts from the hidden state, and for an LSTM its cells too, each (batch, hidden). Weights
    are in torch's order: input, hidden, and their biases. Returns the outputs (steps, batch,
    hidden), and the states at the end.
    """
    if len(weights) > (4 if biased else 2):
        raise NotImplementedError("an LSTM with proj_size cannot be batched")
    zeros = torch.zeros_like(weights[0][:, 0])
    biases = weights[2:4] if biased else (zeros, zeros)
    tensors = (t[None] for t in (x, *weights[:2], *biases, *start))
    results = kind.apply(*tensors, reverse)  # type: ignore[no-untyped-call]
    states = [s[0] for s in results[: kind.states]]
    out = states[0][:-1] if reverse else states[0][1:]
    return out, [s[0] if reverse else s[-1] for s in states]


class Scan(Function):
    """What the layers share: how vmap makes the dimension of runs longer.

    Arguments begin with x (runs, steps, batch, inputs), the weights of input (runs, rows, inputs)
    and hidden state (runs, rows, hidden), where rows are gates times hidden, their biases (runs,
    rows), and the state at the start (runs, batch, hidden); the last says whether to go from the
    last step to the first. Results begin with all states, (runs, steps + 1, batch, hidden); the
    state before the first step is the first of them, or the last if reversed.
    """

    states: ClassVar[int]
    """How many results are states; the others are kept for the backward pass only."""

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:3], *output)
        ctx.mark_non_differentiable(*output[cls.states :])
        ctx.set_materialize_grads(False)
        ctx.reverse = inputs[-1]

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        merged = []
        for arg, dim in zip(args, in_dims, strict=True):
            if isinstance(arg, Tensor):
                every = arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
                merged.append(every.flatten(0, 1))
            else:
                merged.append(arg)
        outs = cls.apply(*merged)  # type: ignore[no-untyped-call]
        return tuple(t.unflatten(0, (size, len(t) // size)) for t in outs), (0,) * len(outs)


class GRUScan(Scan):
    """A GRU in one direction (Cho et al. 2014, in cuDNN's form, as torch has it)."""

    states = 1

    @staticmethod
    def forward(
        x: Tensor,
        w_in: Tensor,
        w_hidden: Tensor,
        b_in: Tensor,
        b_hidden: Tensor,
        start: Tensor,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Runs it.

        Returns:
            All states; and, for the backward pass: the gates reset, update and new; and what new
            takes from the hidden state.
        """
        hidden = w_hidden.shape[2]
        states, gates, parts = _room(x, start, reverse=reverse), _room(x, b_in), _room(x, start)
        added = torch.empty_like(gates[0])
        for t, before, after in _order(x.shape[1], reverse=reverse):
            torch.baddbmm(b_in[..., None], w_in, x[:, t].mT, out=gates[t])
            torch.baddbmm(b_hidden[..., None], w_hidden, states[before], out=added)
            gates[t, :, : 2 * hidden].add_(added[:, : 2 * hidden]).sigmoid_()
            reset, update, new = gates[t].split(hidden, 1)
            parts[t] = added[:, 2 * hidden :]
            new.addcmul_(reset, parts[t]).tanh_()
            torch.lerp(new, states[before], update, out=states[after])
        return _turned(states), _turned(gates), _turned(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Grads:
        x, w_in, w_hidden, *saved = ctx.saved_tensors
        grad, states, gates, parts = (_turned(t) for t in (grad, *saved))
        hidden = w_hidden.shape[2]
        # Gradients of what enters new, reset, update, and of what new takes from the hidden state:
        # the input enters the first three, the hidden state the last three.
        d_gates = states.new_empty(states.shape[1], 4 * hidden, states.shape[3])
        total = torch.zeros_like(d_gates)
        d_new, d_reset, d_update, d_part = d_gates.split(hidden, 1)
        into = _Weights(ctx, x, w_in.roll(hidden, 1), w_hidden)
        d_state = None
        for t, before, after in reversed(_order(x.shape[1], reverse=ctx.reverse)):
            d_state = grad[after] if d_state is None else d_state
            reset, update, new = gates[t].split(hidden, 1)
            kept = d_state * update
            _tanh_backward(d_state - kept, new, grad_input=d_new)
            _sigmoid_backward((states[before] - new).mul_(d_state), update, grad_input=d_update)
            _sigmoid_backward(d_new * parts[t], reset, grad_input=d_reset)
            torch.mul(d_new, reset, out=d_part)
            total.add_(d_gates)
            into.input(t, d_gates[:, : 3 * hidden])
            d_state = into.state(states[before], d_gates[:, hidden:], kept.add_(grad[before]))
        d_b = total.sum(2)
        d_b_in = d_b[:, : 3 * hidden].roll(-hidden, 1)
        d_w = into.d_in.roll(-hidden, 1), into.d_hidden
        return into.d_x, *d_w, d_b_in, d_b[:, hidden:], _transposed(d_state), None


class LSTMScan(Scan):
    """An LSTM in one direction (Hochreiter & Schmidhuber 1997, with a forget gate)."""

    states = 2

    @staticmethod
    def forward(
        x: Tensor,
        w_in: Tensor,
        w_hidden: Tensor,
        b_in: Tensor,
        b_hidden: Tensor,
        start: Tensor,
        cell: Tensor,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Runs it.

        Returns:
            All hidden states; all cells, laid out as they are; and, for the backward pass: the
            gates write, forget, new and show; tanh of the cells.
        """
        hidden, bias = w_hidden.shape[2], (b_in + b_hidden)[..., None]
        states, cells = (_room(x, s, reverse=reverse) for s in (start, cell))
        gates, shown = _room(x, b_in), _room(x, start)
        for t, before, after in _order(x.shape[1], reverse=reverse):
            torch.baddbmm(bias, w_in, x[:, t].mT, out=gates[t])
            gates[t].baddbmm_(w_hidden, states[before])
            gates[t, :, : 2 * hidden].sigmoid_()
            write, forget, new, show = gates[t].split(hidden, 1)
            new.tanh_()
            show.sigmoid_()
            torch.mul(forget, cells[before], out=cells[after]).addcmul_(write, new)
            torch.tanh(cells[after], out=shown[t])
            torch.mul(show, shown[t], out=states[after])
        return _turned(states), _turned(cells), _turned(gates), _turned(shown)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_cells: Tensor | None, *_: Any) -> Grads:
        x, w_in, w_hidden, *saved = ctx.saved_tensors
        none = w_in.new_zeros(()).expand_as(saved[0])
        grad, grad_cells = (none if g is None else g for g in (grad, grad_cells))
        grad, grad_cells, states, cells, gates, shown = (
            _turned(t) for t in (grad, grad_cells, *saved)
        )
        hidden = w_hidden.shape[2]
        d_gates = torch.empty_like(gates[0])
        total = torch.zeros_like(d_gates)
        d_write, d_forget, d_new, d_show = d_gates.split(hidden, 1)
        into = _Weights(ctx, x, w_in, w_hidden)
        d_state = d_cell = None
        for t, before, after in reversed(_order(x.shape[1], reverse=ctx.reverse)):
            if d_state is None or d_cell is None:
                d_state, d_cell = grad[after], grad_cells[after]
            write, forget, new, show = gates[t].split(hidden, 1)
            _sigmoid_backward(d_state * shown[t], show, grad_input=d_show)
            d_cell = d_cell + _aten.tanh_backward(d_state * show, shown[t])
            _sigmoid_backward(d_cell * new, write, grad_input=d_write)
            _sigmoid_backward(d_cell * cells[before], forget, grad_input=d_forget)
            _tanh_backward(d_cell * write, new, grad_input=d_new)
            total.add_(d_gates)
            into.input(t, d_gates)
            d_state = into.state(states[before], d_gates, grad[before])
            d_cell = torch.addcmul(grad_cells[before], d_cell, forget)
        d_b = total.sum(2)
        d_start = _transposed(d_state), _transposed(d_cell)
        return into.d_x, into.d_in, into.d_hidden, d_b, d_b, *d_start, None


class _Weights:
    """Passes gradients back through the weights of a layer, and adds up those of the weights."""

    def __init__(self, ctx: Any, x: Tensor, w_in: Tensor, w_hidden: Tensor) -> None:
        self._x, self._w_in, self._w_hidden = x, w_in, w_hidden
        self.d_in, self.d_hidden = torch.zeros_like(w_in), torch.zeros_like(w_hidden)
        self.d_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None

    def input(self, step: int, d_rows: Tensor) -> None:
        """Takes in the gradients (runs, rows, batch) of what came from the input of a step."""
        self.d_in.baddbmm_(d_rows, self._x[:, step])
        if self.d_x is not None:
            self.d_x[:, step] = torch.bmm(d_rows.mT, self._w_in)

    def state(self, before: Tensor, d_rows: Tensor, grad: Tensor) -> Tensor:
        """The same for what came from the state before it; returns `grad` plus its gradient."""
        self.d_hidden.baddbmm_(d_rows, before.mT)
        return torch.baddbmm(grad, self._w_hidden.mT, d_rows)


def _order(length: int, *, reverse: bool) -> list[tuple[int, int, int]]:
    """Steps in their order: number of the step, and of the states before and after it."""
    if reverse:
        return [(t, t + 1, t) for t in range(length - 1, -1, -1)]
    return [(t, t, t + 1) for t in range(length)]


def _room(x: Tensor, like: Tensor, *, reverse: bool | None = None) -> Tensor:
    """Room for (steps, runs, rows, batch), rows as the last dimension of `like`.

    With `reverse` given, there is one more step, and `like` (runs, batch, rows) is in it at once.
    """
    runs, steps, batch, _ = x.shape
    room = x.new_empty(steps + (reverse is not None), runs, like.shape[-1], batch)
    if reverse is not None:
        room[-1 if reverse else 0] = like.mT
    return room


def _turned(sequence: Tensor) -> Tensor:
    """From (steps, runs, rows, batch) to (runs, steps, batch, rows), or the way back."""
    return sequence.permute(1, 0, 3, 2)


def _transposed(matrices: Tensor | None) -> Tensor | None:
    return None if matrices is None else matrices.mT
