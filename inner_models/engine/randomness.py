"""Torch's global generators, lent for a while: what a run draws is its own, as in a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's global generators of host and device; they are put back afterwards."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            # Not torch.manual_seed: it would seed other devices too, for good.
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
