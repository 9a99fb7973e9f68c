"""What to say when the memory does not hold all runs: how many it would hold."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def out_of_memory(
    error: BaseException, *, num_runs: int, attempt: Callable[[int], None]
) -> torch.OutOfMemoryError:
    """Makes an error that names the number of runs that would fit, found by trying.

    Args:
        error: that all of them did not.
        num_runs: how many they are.
        attempt: trains so many runs for a step; raises when they do not fit either.
    """
    # The frames that failed still hold their tensors.
    _let_go(error)
    fits, too_many = 0, num_runs
    while too_many - fits > max(1, fits // 16):
        middle = (fits + too_many) // 2
        try:
            attempt(middle)
            fits = middle
        except (RuntimeError, MemoryError) as failure:
            if not is_out_of_memory(failure):
                break
            _let_go(failure)
            too_many = middle
    advice = (
        f"{fits} would fit: lower the number of groups, tasks or siblings"
        if fits
        else "not even one would fit: lower the batch size or the model"
    )
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return torch.OutOfMemoryError(
        f"out of memory with {num_runs} runs side by side; {advice} ({first})"
    )


def _let_go(error: BaseException) -> None:
    """Frees what the frames that raised an error still hold."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
