"""Makes an unmodified module one that `torch.func.vmap` batches, by twins of what it is made of.

Some of torch's functions have no batching rule, a slow one, or (embeddings with padding) a wrong
one. Each has a twin here that takes the same arguments and computes the same. While a model runs,
calls of the one are answered by the other, whoever makes them: torch's own modules, a user's
subclasses of them, the user's loss. A few modules have to be told apart by their class instead,
exactly: what a user derives from them is the user's own.

Convolutions have no twin: torch's rule makes one grouped convolution of those of all runs, and was
1.6 times as fast as the best of three ways of unfolding images into matrix products (on a CPU with
AVX-512; 128 runs, 64 images of 4 x 4, from 8 to 16 channels, forwards and backwards).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pacesetter.inner_models.twins import attention as attention_twins
from pacesetter.inner_models.twins import layers as layer_twins
from pacesetter.inner_models.twins import losses as loss_twins
from pacesetter.inner_models.twins import pooling as pooling_twins
from pacesetter.inner_models.twins import randomness as random_twins
from pacesetter.inner_models.twins import recurrent as recurrent_twins

FUNCTION_TWINS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.gru: recurrent_twins.gru,
    torch.lstm: recurrent_twins.lstm,
    torch.rnn_tanh: recurrent_twins.rnn_tanh,
    torch.rnn_relu: recurrent_twins.rnn_relu,
    torch.gru_cell: recurrent_twins.gru_cell,
    torch.lstm_cell: recurrent_twins.lstm_cell,
    torch.rnn_tanh_cell: recurrent_twins.rnn_tanh_cell,
    torch.rnn_relu_cell: recurrent_twins.rnn_relu_cell,
    torch._pack_padded_sequence: recurrent_twins.pack_padded_sequence,
    F.scaled_dot_product_attention: attention_twins.scaled_dot_product_attention,
    F.multi_head_attention_forward: attention_twins.multi_head_attention_forward,
    F.max_pool1d: pooling_twins.max_pool1d,
    F.max_pool2d: pooling_twins.max_pool2d,
    F.max_pool3d: pooling_twins.max_pool3d,
    torch.max_pool1d: pooling_twins.max_pool1d,
    torch.max_pool2d: pooling_twins.max_pool2d,
    torch.max_pool3d: pooling_twins.max_pool3d,
    F.embedding: layer_twins.embedding,
    F.embedding_bag: layer_twins.embedding_bag,
    F.bilinear: layer_twins.bilinear,
    F.normalize: layer_twins.normalize,
    torch._weight_norm: layer_twins.weight_norm,
    F.mse_loss: loss_twins.mse_loss,
    F.smooth_l1_loss: loss_twins.smooth_l1_loss,
    F.huber_loss: loss_twins.huber_loss,
    F.kl_div: loss_twins.kl_div,
    F.soft_margin_loss: loss_twins.soft_margin_loss,
    F.gaussian_nll_loss: loss_twins.gaussian_nll_loss,
    F.cross_entropy: loss_twins.cross_entropy,
    F.rrelu: random_twins.rrelu,
    F.gumbel_softmax: random_twins.gumbel_softmax,
    Tensor.uniform_: random_twins.uniform_,
    Tensor.normal_: random_twins.normal_,
    Tensor.exponential_: random_twins.exponential_,
    Tensor.bernoulli_: random_twins.bernoulli_,
    torch.normal: random_twins.normal,
    torch.empty: random_twins.empty,
    torch._is_all_true: random_twins.assume_true,
}
"""What is answered by what."""

MODULE_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.GRU: layer_twins.GRUTwin,
    nn.LSTM: layer_twins.LSTMTwin,
    nn.RNN: layer_twins.RNNTwin,
    nn.BatchNorm1d: layer_twins.BatchNorm1dTwin,
    nn.BatchNorm2d: layer_twins.BatchNorm2dTwin,
    nn.BatchNorm3d: layer_twins.BatchNorm3dTwin,
    nn.TransformerEncoder: attention_twins.TransformerEncoderTwin,
    nn.TransformerDecoder: attention_twins.TransformerDecoderTwin,
}
"""Modules of exactly these classes run as subclasses of theirs."""


class _Answer(TorchFunctionMode):
    """Calls twins instead of torch's functions. Within a twin it is off, so torch's are torch's."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return FUNCTION_TWINS.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def twins(model: nn.Module) -> Iterator[None]:
    """Within it, functions and modules are answered by their twins.

    Args:
        model: whose modules run as their twins. Outside of it they are what they were; nothing is
            copied, so that whoever holds one of them (a list, a closure, a hook) holds the same.
    """
    swapped = [(m, type(m)) for m in model.modules() if type(m) in MODULE_TWINS]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        # In evaluation, transformer layers would turn to a fused kernel and to nested tensors.
        torch.backends.mha.set_fastpath_enabled(False)
        for module, kind in swapped:
            module.__class__ = MODULE_TWINS[kind]
        with _Answer():
            yield
    finally:
        for module, kind in swapped:
            module.__class__ = kind
        torch.backends.mha.set_fastpath_enabled(fused)


def swap_twins(model: nn.Module) -> nn.Module:
    """A module that computes what `model` does, by operations that `torch.func.vmap` batches.

    Args:
        model: left as it is. To have twins for a loss as well, or for parts of a model that a loss
            calls by themselves, pass a module that does all of that in its `forward`.

    Returns:
        A module of the same class, parameters and buffers, and with the very same submodules. It
        can be called where there is no vmap, too, but torch's own functions are then often faster.
    """
    kind = MODULE_TWINS.get(type(model), type(model))

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with twins(self):
            return kind.forward(self, *args, **kwargs)

    # The new module shares the old one's table of submodules, and so the submodules themselves.
    own = {"forward": forward, "__doc__": kind.__doc__}
    twin: nn.Module = object.__new__(type(type(model).__name__, (kind,), own))
    twin.__dict__.update(model.__dict__)
    return twin
