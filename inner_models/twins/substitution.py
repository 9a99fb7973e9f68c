"""Substitution of functions and layers by twins that `torch.func.vmap` batches.

Some of torch's functions have no batching rule, a slow one, or (embeddings with padding) a wrong
one. Those that bundled families use, and attention, have twins that take the same arguments and
compute the same. While a model runs, twins are called in their place, whoever calls them: torch's
own modules, a user's subclasses of them, the user's loss. A few modules are replaced by their exact
class instead, so subclasses of a user's own are left alone.

Any other function without a batching rule raises an error, and then runs go one after another (see
`LossProgram`). torch would call it once for every run, inside of a batched program, with a warning
of its own for every call.

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

from pacesetter.inner_models.twins import attention, layers, pooling, recurrent

FUNCTION_TWINS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.gru: recurrent.gru,
    torch.lstm: recurrent.lstm,
    F.scaled_dot_product_attention: attention.scaled_dot_product_attention,
    F.multi_head_attention_forward: attention.multi_head_attention_forward,
    F.max_pool1d: pooling.max_pool1d,
    F.max_pool2d: pooling.max_pool2d,
    F.max_pool3d: pooling.max_pool3d,
    torch.max_pool1d: pooling.max_pool1d,
    torch.max_pool2d: pooling.max_pool2d,
    torch.max_pool3d: pooling.max_pool3d,
    F.embedding: layers.embedding,
    F.mse_loss: layers.mse_loss,
    F.cross_entropy: layers.cross_entropy,
    Tensor.bernoulli_: layers.bernoulli_,
}
"""The twin of each function."""

MODULE_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.GRU: layers.GRUTwin,
    nn.LSTM: layers.LSTMTwin,
    nn.BatchNorm1d: layers.BatchNorm1dTwin,
    nn.BatchNorm2d: layers.BatchNorm2dTwin,
    nn.BatchNorm3d: layers.BatchNorm3dTwin,
    nn.TransformerEncoder: attention.TransformerEncoderTwin,
    nn.TransformerDecoder: attention.TransformerDecoderTwin,
}
"""The twin of each module class."""


_functorch: Any = torch._C._functorch


class _CallTwins(TorchFunctionMode):
    """Calls twins instead of torch's functions. It is off within a twin, which may call torch's."""

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
    """A context in which functions and modules are replaced by their twins.

    Args:
        model: whose modules run as their twins. Nothing is copied, so whoever holds one of them (a
            list, a closure, a hook) holds the same, and afterwards they are what they were.
    """
    swapped = [(m, type(m)) for m in model.modules() if type(m) in MODULE_TWINS]
    fused = torch.backends.mha.get_fastpath_enabled()
    looped = _functorch._is_vmap_fallback_enabled()
    try:
        # In evaluation, transformer layers would turn to a fused kernel and to nested tensors.
        torch.backends.mha.set_fastpath_enabled(False)
        _functorch._set_vmap_fallback_enabled(False)
        for module, kind in swapped:
            module.__class__ = MODULE_TWINS[kind]
        with _CallTwins():
            yield
    finally:
        for module, kind in swapped:
            module.__class__ = kind
        torch.backends.mha.set_fastpath_enabled(fused)
        _functorch._set_vmap_fallback_enabled(looped)


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
