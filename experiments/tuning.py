"""Tuning of arms: Optuna proposes settings, and the least mean outer-valid loss wins.

Every arm has the same number of trials on every task. They come in rounds, one of all arms and
tasks at a time, so that those which share an optimizer can run as siblings of one tensor program.
Trial 0 is the arm's default; the rest of the first round is quasi-random, all others are proposed
by TPE. No trial depends on those that follow: a search of 20 trials holds those of 1 and 5. Where
the best setting lies on an edge of the space after a round, that edge is moved for the next ones.

A trial is written to an SQLite file when it is over; a search that was killed goes on with those
that are missing. Seeds are not those of the report, and `test` is not touched.
"""

from __future__ import annotations

import errno
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pacesetter.experiments.rivals.space import Choice, Dimension, Setting, Space
from pacesetter.inner_models.lookup import require

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study as OptunaStudy
    from optuna.trial import FrozenTrial

ROUND = 5
"""Trials of an arm that run side by side; what they found is known to the next round."""
EDGE = 0.05
"""A best setting this close to a bound, as a share of the range, lies on the edge."""
Searches = dict[str, dict[str, "Search"]]
"""What was found, by name of the task and of the arm."""


@dataclass(frozen=True)
class Proposal:
    """A trial to run, with its number within its search, from 0."""

    task: str
    arm: str
    number: int
    setting: Setting


@dataclass(frozen=True)
class Trial:
    """A trial that is over, with its mean outer-valid loss over the tuning seeds.

    The loss is infinite where a seed diverged, or where it crashed: `failed` says why.
    """

    number: int
    setting: Setting
    loss: float
    failed: str | None = None


RunTrials = Callable[[Sequence[Proposal]], Iterable[tuple[Proposal, float, "str | None"]]]
"""Runs trials; says of each, as soon as it is over, its loss, and why it crashed where it did."""


@dataclass(frozen=True)
class Search:
    """What tuning found for one arm on one task.

    Attributes:
        widened: what was given more room on the way, such as ``"lr beyond 0.1"``.
        on_edge: hyperparameters of which the best value still lies on an edge.
    """

    trials: tuple[Trial, ...]
    widened: tuple[str, ...] = ()
    on_edge: tuple[str, ...] = ()

    def best(self, budget: int) -> Trial:
        """The trial of least loss among the first `budget`; of several, the earliest."""
        return _best(self.trials[:budget])


def rounds(trials: int) -> list[int]:
    """Numbers of trials after which a round ends.

    >>> rounds(12)
    [5, 10, 12]
    """
    return [*range(ROUND, trials, ROUND), trials]


def tune(
    tasks: Sequence[str],
    spaces: Mapping[str, Space],
    run: RunTrials,
    *,
    trials: int,
    storage: Path,
    seed: int = 0,
) -> Searches:
    """Searches the spaces of all arms on all tasks, a round at a time.

    The same names of tasks and the same seed propose the same trials; the default is the first. The
    SQLite file `storage` is made where there is none, and gone on with where there is one.

    Raises:
        ImportError: a package of the extra `compare` is missing.
        ValueError: `trials` is not positive, or a space is empty.
    """
    if trials < 1:
        raise ValueError(f"trials must be a positive number, but got {trials}")
    empty = [name for name, space in spaces.items() if not space.dimensions]
    if empty:
        raise ValueError(f"there is nothing to tune in {', '.join(empty)}: their space is empty")
    if not spaces:
        return {task: {} for task in tasks}
    with _open_storage(storage) as found:
        studies = {
            (task, arm): Study(task, arm, space, storage=found, seed=seed)
            for task in tasks
            for arm, space in spaces.items()
        }
        for end in rounds(trials):
            proposals = [proposal for study in studies.values() for proposal in study.propose(end)]
            for proposal, loss, failed in run(proposals) if proposals else ():
                studies[proposal.task, proposal.arm].tell(proposal, loss, failed)
        return {task: {arm: studies[task, arm].result() for arm in spaces} for task in tasks}


@contextmanager
def _open_storage(path: Path) -> Iterator[Any]:
    """Optuna's storage in a file, with Optuna's log kept to warnings; closed afterwards."""
    optuna = require("optuna", extra="compare")
    path.parent.mkdir(parents=True, exist_ok=True)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    errors = require("sqlalchemy.exc", extra="compare")
    storage = None
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}")
        # What is lost when the machine dies (and not the process) is a few trials; waiting for the
        # disk after every word of a trial would cost more than small trials do.
        event = require("sqlalchemy.event", extra="compare")
        off = "PRAGMA synchronous=OFF"
        event.listen(storage.engine, "connect", lambda connection, _: connection.execute(off))
        storage.engine.dispose()
        yield storage
    except (errors.DBAPIError, optuna.exceptions.StorageInternalError) as error:
        orig = getattr(error, "orig", None) or getattr(error.__cause__, "orig", error)
        raise OSError(errno.EIO, str(orig), str(path)) from error
    finally:
        if storage is not None:
            storage.engine.dispose()
        optuna.logging.set_verbosity(verbosity)


class Study:
    """One search. All it knows is in the study: a new process goes on where another stopped."""

    def __init__(self, task: str, arm: str, space: Space, *, storage: Any, seed: int) -> None:
        self._optuna = optuna = require("optuna", extra="compare")
        self._task, self._arm = task, arm
        self._start = space
        # Equal spaces of one task get equal quasi-random points, whatever the arm.
        digest = hashlib.sha256(f"{seed}/{task}".encode()).digest()
        self._seed = int.from_bytes(digest[:4], "big") % 2**31
        self._study: OptunaStudy = optuna.create_study(
            storage=storage, study_name=f"{task} | {arm}", load_if_exists=True
        )

    def propose(self, end: int) -> list[Proposal]:
        """Trials below `end` that are not over: those that a killed process left, and new ones."""
        space, probes = self._widened(upto=end)
        probe = probes.get(self._first(end))
        known = len(self._trials())
        for number in range(known, end):
            self._ask(number, space, probe if number == self._first(end) else None)
        return [
            Proposal(self._task, self._arm, trial.number, dict(trial.params))
            for trial in self._trials()
            if not trial.state.is_finished()
        ]

    def tell(self, proposal: Proposal, loss: float, failed: str | None) -> None:
        if failed is not None:
            trial = self._trials()[proposal.number]
            # A trial of Optuna's can say why only while it is open.
            self._study._storage.set_trial_user_attr(trial._trial_id, "failed", failed)
            self._study.tell(proposal.number, state=self._optuna.trial.TrialState.FAIL)
            return
        # TPE goes by the order of losses alone, so that infinity is as good as any other number.
        self._study.tell(proposal.number, loss if math.isfinite(loss) else math.inf)

    def result(self) -> Search:
        found = self._found()
        space, _ = self._widened(upto=len(found))
        widened = []
        for name, dimension in self._start.dimensions.items():
            now = space.dimensions[name]
            if isinstance(dimension, Dimension) and isinstance(now, Dimension):
                widened += [f"{name} beyond {dimension.high:g}"] * (now.high > dimension.high)
                widened += [f"{name} below {dimension.low:g}"] * (now.low < dimension.low)
        edges = _edges(_best(found), space)
        return Search(tuple(found), tuple(widened), tuple(dict.fromkeys(name for name, _ in edges)))

    def _first(self, end: int) -> int:
        """The first trial of the round that ends with `end`."""
        return (end - 1) // ROUND * ROUND

    def _widened(self, *, upto: int) -> tuple[Space, dict[int, Setting]]:
        """The space before the round that ends with `upto`, and what to try first where it grew."""
        space = self._start
        probes: dict[int, Setting] = {}
        found = self._found()
        for start in range(ROUND, upto, ROUND):
            best = _best(found[:start])
            probe = dict(best.setting)
            for name, up in _edges(best, space):
                wider = space.widened(name, up=up)
                old, new = space.dimensions[name], wider.dimensions[name]
                assert isinstance(old, Dimension)
                assert isinstance(new, Dimension)
                if new == old:
                    continue
                # In the middle of the new room, so that the next round knows more of it.
                ends = (old.high, new.high) if up else (new.low, old.low)
                logarithmic = new.log and ends[0] > 0
                probe[name] = math.sqrt(ends[0] * ends[1]) if logarithmic else sum(ends) / 2
                space = wider
            if probe != best.setting:
                probes[start] = probe
        return space, probes

    def _ask(self, number: int, space: Space, probe: Setting | None) -> None:
        fixed = _quasi_random(space, number, seed=self._seed) if number < ROUND else probe
        trials = self._study.get_trials(deepcopy=False)
        waiting = any(t.state == self._optuna.trial.TrialState.WAITING for t in trials)
        if fixed is not None and not waiting:
            self._study.enqueue_trial(dict(fixed))
        # A sampler for each trial: a search that was stopped proposes what it would have.
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=self._seed + number, n_startup_trials=ROUND, constant_liar=True
        )
        self._study.ask({name: _distribution(d) for name, d in space.dimensions.items()})

    def _trials(self) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=False)
        return [t for t in trials if t.state != self._optuna.trial.TrialState.WAITING]

    def _found(self) -> list[Trial]:
        return [
            Trial(
                number=t.number,
                setting=dict(t.params),
                loss=math.inf if t.value is None else t.value,
                failed=t.user_attrs.get("failed"),
            )
            for t in self._trials()
            if t.state.is_finished()
        ]


def _best(trials: Sequence[Trial]) -> Trial:
    return min(trials, key=lambda trial: (trial.loss, trial.number))


def _edges(best: Trial, space: Space) -> list[tuple[str, bool]]:
    """Numbers of a setting that lie on an edge which could be moved, and whether on the upper."""
    if not math.isfinite(best.loss):
        return []
    edges = []
    for name, dimension in space.dimensions.items():
        value = best.setting[name]
        if isinstance(dimension, Choice) or isinstance(value, str):
            continue
        low, high = dimension.low, dimension.high
        if dimension.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        for up, distance in ((False, value - low), (True, high - value)):
            movable = dimension.widened(up=up) != dimension
            if movable and distance <= EDGE * (high - low) * (1 + 1e-9):
                edges.append((name, up))
    return edges


def _quasi_random(space: Space, number: int, *, seed: int) -> Setting:
    """Point `number` of a quasi-random sequence over a space; the default comes first."""
    if number == 0:
        return space.default
    qmc = require("scipy.stats.qmc", extra="compare")
    # A shift keeps the spread of the sequence and makes it another one for another seed.
    shift = np.random.default_rng(seed).random(len(space.dimensions))
    point = qmc.Halton(len(space.dimensions), scramble=False).random(number + 1)[number]
    setting: dict[str, float | str] = {}
    for (name, d), share in zip(space.dimensions.items(), (point + shift) % 1, strict=True):
        if isinstance(d, Choice):
            setting[name] = d.options[int(share * len(d.options))]
        elif d.log:
            setting[name] = float(min(d.high, d.low * (d.high / d.low) ** share))
        else:
            setting[name] = float(d.low + share * (d.high - d.low))
    return setting


def _distribution(d: Dimension | Choice) -> BaseDistribution:
    kinds = require("optuna.distributions", extra="compare")
    found: BaseDistribution = (
        kinds.CategoricalDistribution(d.options)
        if isinstance(d, Choice)
        else kinds.FloatDistribution(d.low, d.high, log=d.log)
    )
    return found
