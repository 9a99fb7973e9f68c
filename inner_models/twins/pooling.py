"""Max pooling that is fast on a CPU, with torch's own gradients.

torch's kernel processes one window at a time, and took half of a small batched convnet's time. Here
all windows are compared at once: neighbours along the last dimension, then along the one before.
Where a window has its largest value twice, all of the gradient goes to the first of them in reading
order, as in torch; `amax` would divide it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

Sizes = int | Sequence[int]

_LARGEST_WINDOW = 4


class FirstMax(Function):
    """Maxima along a short dimension; of equal ones, the gradient goes to the first.

    Gradients are to be taken outside of `torch.func.vmap`, as the trainer does it.
    """

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        """The largest along `dim`, which is counted from the end."""
        first, *others = x.unbind(dim)
        for other in others:
            first = torch.maximum(first, other)
        return first

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.dim = inputs[1]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, None], x: Tensor, dim: int
    ) -> tuple[Tensor, int]:
        return first_max(x.movedim(in_dims[0] or 0, 0), dim), 0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        parts, d_x = x.unbind(ctx.dim), torch.empty_like(x)
        d_parts = d_x.unbind(ctx.dim)
        # The largest of those before each, to which it loses where they are equal.
        before = [parts[0]]
        for part in parts[1:-1]:
            before.append(torch.maximum(before[-1], part))
        for i in range(len(parts) - 1, 0, -1):
            # A comparison would do, but products with bools are slow on a CPU; and this kernel is
            # slow where its result is not contiguous.
            own = torch.ops.aten.threshold_backward(grad, parts[i] - before[i - 1], 0)
            d_parts[i].copy_(own)
            grad = torch.sub(grad, own, out=d_parts[0]) if i == 1 else grad - own
        return d_x, None


def first_max(x: Tensor, dim: int) -> Tensor:
    maxima: Tensor = FirstMax.apply(x, dim)  # type: ignore[no-untyped-call]
    return maxima


def max_pooling(native: Callable[..., Any], dims: int) -> Callable[..., Any]:
    """`torch.nn.functional.max_pool1d`, 2d or 3d, by the number of dimensions.

    torch's own, `native`, serves other devices, and what is rare: windows that are large, that
    overlap or leave gaps, and padding.
    """

    def max_pool(
        input: Tensor,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        kernel = _each(kernel_size, dims)
        plain = (
            _each(stride or kernel, dims) == kernel
            and _each(padding, dims) == (0,) * dims
            and _each(dilation, dims) == (1,) * dims
            and max(kernel) <= _LARGEST_WINDOW
            and not (ceil_mode or return_indices)
        )
        if not plain or input.device.type != "cpu":
            return native(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
        for dim, size in zip(range(-1, -dims - 1, -1), reversed(kernel), strict=True):
            input = _pool(input, dim, size) if size > 1 else input
        return input

    return max_pool


def _each(sizes: Sizes, dims: int) -> tuple[int, ...]:
    if isinstance(sizes, int):
        return (sizes,) * dims
    return tuple(sizes) * dims if len(sizes) == 1 else tuple(sizes)


def _pool(x: Tensor, dim: int, size: int) -> Tensor:
    """Maxima of `size` neighbours along a dimension; what does not fill a window is left out."""
    whole = x.shape[dim] // size
    if whole * size < x.shape[dim]:
        x = x.narrow(dim, 0, whole * size)
    return first_max(x.unflatten(dim, (whole, size)), dim)


max_pool1d = max_pooling(F.max_pool1d, 1)
max_pool2d = max_pooling(F.max_pool2d, 2)
max_pool3d = max_pooling(F.max_pool3d, 3)
