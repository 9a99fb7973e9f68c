"""Tuning of arms on one task: Optuna proposes settings, the least mean outer-valid loss wins.

Every arm has the same number of trials. They come in rounds, one round of all arms at a time, so
that those which share an optimizer can run as siblings of one tensor program. One search of 20
trials holds the searches of 1 and 5 (see `studies`). Seeds are not those of the report, and `test`
is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pacesetter.agent.runs.interruption import safe_point
from pacesetter.experiments.rivals.space import Space
from pacesetter.experiments.studies import ROUND, Proposal, Search, Study, TrialResult, open_storage

TUNING_SEEDS = (1_000_003, 1_000_033)
"""Seeds over which a setting's loss is averaged; far from those that reports use."""
BUDGETS = (1, 5, 20)
"""Numbers of trials that are reported, as far as a search has them, and all that it has."""

RunTrials = Callable[[Sequence[Proposal]], Sequence[TrialResult]]
"""Runs trials of any number of arms, and says in the same order what came of each."""


def budgets(trials: int) -> tuple[int, ...]:
    """The budgets that a search of some trials reports.

    >>> budgets(20), budgets(8), budgets(1)
    ((1, 5, 20), (1, 5, 8), (1,))
    """
    return tuple(sorted({*(budget for budget in BUDGETS if budget < trials), trials}))


def tune(
    task: str,
    spaces: Mapping[str, Space],
    run: RunTrials,
    *,
    trials: int,
    storage: Path,
    seed: int = 0,
) -> dict[str, Search]:
    """Searches the spaces of all arms on one task, a round of every arm at a time.

    Args:
        task: its name; the same name and seed propose the same trials.
        spaces: by name of the arm.
        run: runs trials.
        trials: of each search, the default among them.
        storage: SQLite file; made where there is none, and gone on with where there is one.
        seed: of the proposals.

    Returns:
        What was found, by name of the arm.

    Raises:
        ImportError: a package of the extra `compare` is missing.
        ValueError: `trials` is not positive, or a space is empty.
    """
    check_searches(spaces, trials=trials)
    if not spaces:
        return {}
    with open_storage(storage) as found:
        searches = [
            Study(task, name, space, storage=found, seed=seed) for name, space in spaces.items()
        ]
        for open_trials in rounds(searches, trials=trials):
            proposals = [proposal for _, proposal in open_trials]
            results = run(proposals) if proposals else []
            for (study, proposal), result in zip(open_trials, results, strict=True):
                study.tell(proposal, result)
            safe_point()
        return {study.arm: study.result() for study in searches}


def check_searches(spaces: Mapping[str, Space], *, trials: int) -> None:
    """Refuses searches that cannot be made.

    Raises:
        ValueError: `trials` is not positive, or a space is empty.
    """
    if trials < 1:
        raise ValueError(f"trials must be a positive number, but got {trials}")
    empty = [name for name, space in spaces.items() if not space.dimensions]
    if empty:
        raise ValueError(f"there is nothing to tune in {', '.join(empty)}: their space is empty")


def rounds(searches: Sequence[Study], *, trials: int) -> Iterator[list[tuple[Study, Proposal]]]:
    """The trials that are still to be run, a round of every arm at a time.

    Args:
        searches: of all arms.
        trials: of each.

    Yields:
        A round's trials with their studies, which have to be told of all of them before the next.
    """
    for end in [*range(ROUND, trials, ROUND), trials]:
        yield [(study, proposal) for study in searches for proposal in study.propose(end)]
