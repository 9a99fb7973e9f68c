"""The command line, and the comparison of agents with schedules and tuners.

`compare` runs a comparison; `Baseline` and `Space` add a rival of one's own. Names load at first
use.
"""

from typing import TYPE_CHECKING

from pacesetter.inner_models.lookup import lazy_exports

__all__ = ["Baseline", "CompareConfig", "Space", "compare"]

if TYPE_CHECKING:
    from pacesetter.experiments.compare_config import CompareConfig
    from pacesetter.experiments.comparison import compare
    from pacesetter.experiments.rivals.arms import Baseline
    from pacesetter.experiments.rivals.space import Space
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "Baseline": "rivals.arms",
            "CompareConfig": "compare_config",
            "Space": "rivals.space",
            "compare": "comparison",
        },
    )
