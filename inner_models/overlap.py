"""Finds rows that two splits share: a test loss on training rows would be worth nothing."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor


def check_disjoint(splits: Mapping[str, tuple[Tensor, ...]]) -> None:
    """Checks that no row is in two splits.

    Splits that share memory overlap, whatever they hold. Equal rows are looked for where the data
    have real numbers in them; rows of integers alone (text, say) recur by nature.

    Args:
        splits: tensors with one row per example, by the split's name.

    Raises:
        ValueError: two splits overlap; the message says by how many rows.
    """
    sums = {name: _fingerprints(batch) for name, batch in splits.items()}
    for (first, left), (second, right) in combinations(splits.items(), 2):
        shared = _shared_memory(left[0], right[0])
        own, other = sums[first], sums[second]
        if not shared and own is not None and other is not None:
            shared = int(torch.isin(own, other).sum())
        if shared:
            raise ValueError(
                f"splits must not overlap, but {first!r} and {second!r} share {shared} rows; where "
                "rows recur by nature, say so with Splits(..., allow_overlap=True)"
            )


def _shared_memory(left: Tensor, right: Tensor) -> int:
    """Rows of `left` that begin where a row of `right` does."""
    if left.device != right.device:
        return 0
    return int(torch.isin(_row_addresses(left), _row_addresses(right)).sum())


def _row_addresses(tensor: Tensor) -> Tensor:
    stride = tensor.stride(0) * tensor.element_size() if tensor.ndim else 0
    return tensor.data_ptr() + stride * torch.arange(len(tensor))


def _fingerprints(batch: tuple[Tensor, ...]) -> Tensor | None:
    """One number per row, equal for equal rows; None where no tensor holds real numbers."""
    if not any(t.is_floating_point() for t in batch):
        return None
    total = torch.zeros(len(batch[0]), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for tensor in batch:
        flat = tensor.detach().reshape(len(tensor), -1).to("cpu", torch.float64)
        weights = torch.randn(flat.shape[1], generator=generator, dtype=torch.float64)
        # Not a matrix product: its rounding may depend on how many rows there are.
        total += (flat * weights).sum(1)
    return total
