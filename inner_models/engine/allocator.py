"""Keeps glibc from handing memory back between inner steps.

Every inner step makes and frees the same megabytes of activations. By default glibc returns blocks
of that size to the kernel at once, and the next step pays for fresh, zeroed pages.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h
_KEPT = 2**30


@cache
def keep_freed_memory() -> bool:
    """Lets the process keep up to 1 GiB of freed memory for its next allocations.

    It holds for the whole process, and only where the C library is glibc.

    Returns:
        Whether it could be done.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # No block is mapped by itself: such blocks go back at once, whatever their size.
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEPT))
    return all(mallopt(name, value) == 1 for name, value in settings)
