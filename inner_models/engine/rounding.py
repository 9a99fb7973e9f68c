"""Makes matrix products round alike wherever their numbers lie in memory.

Siblings with the same hyperparameters are to stay the same run. By default MKL, which torch uses on
x86, picks code by the alignment of its arguments, and so rounds one run of a batch unlike another.
"""

from __future__ import annotations

import os


def round_alike() -> None:
    """Asks MKL for strict conditional numerical reproducibility, unless the user has asked already.

    It works only until the process multiplies its first matrices, and costs nothing measurable.
    See "Conditional Numerical Reproducibility" in the oneMKL developer guide.
    """
    os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")
