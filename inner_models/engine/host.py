"""Settings of the process in which runs are trained, made by one explicit call.

They hold for the whole process, whatever else runs in it. So no import and no constructor of this
package makes them: `prepare_process` does, and a program that trains tasks of its own decides
whether to call it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h
_KEPT = 2**30


def prepare_process() -> None:
    """Makes this process round reproducibly and reuse its memory.

    Two settings, each for the whole process:

    - The environment variable ``MKL_CBWR`` becomes ``AVX2,STRICT`` unless it is set already, so
      child processes inherit it. MKL, which torch uses on x86, otherwise picks code by the
      alignment of its arguments, so siblings with equal hyperparameters drift apart in their last
      digits. See "Conditional Numerical Reproducibility" in the oneMKL developer guide. It costs
      nothing measurable, and has an effect only before the first matrix product of the process.
    - Where the C library is glibc, up to 1 GiB of freed memory is kept for later allocations
      (``mallopt``). Every inner step allocates and frees the same megabytes of activations, and
      glibc otherwise returns blocks of that size to the kernel, which has to zero new pages.

    Call it once, at the start of a process that trains inner runs. The command ``pacesetter``, the
    worker processes of this package, `pacesetter.agent.train` and `pacesetter.experiments.compare`
    call it by themselves. It needs no torch, and calling it again changes nothing.
    """
    os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")
    _keep_freed_memory()


@cache
def _keep_freed_memory() -> None:
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return
    mallopt(_M_MMAP_MAX, 0)  # blocks that are mapped one by one go back at once
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
