"""What an ordinary job is, the registry of all, and what several of them are made of."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...]
"""Rows of a data set, column by column."""


@dataclass
class Setup:
    """A job that is ready to run.

    Attributes:
        model: what is trained; parameters that need no gradient are left out of the optimizer.
        loss: of a batch; a mean over its rows.
        train: all rows that the job may see, or as many as it draws.
        valid: held-out rows, for validation losses.
        test: other held-out rows, for the final loss.
        order: rows of each step's batch, (steps, batch); None: epochs in random order.
        before: called with the number of each step before it, as for a target network.
        held: loss of held-out rows, where it is not `loss`.
    """

    model: nn.Module
    loss: Callable[[Batch], Tensor]
    train: Batch
    valid: Batch
    test: Batch
    order: Tensor | None = None
    before: Callable[[int], None] | None = None
    held: Callable[[Batch], Tensor] | None = None


@dataclass(frozen=True)
class Job:
    """A row of the registry.

    Attributes:
        split: ``"choose"`` or ``"report"``.
        steps: updates of a run.
        batch: rows of a step.
        floor: what is taken off losses before their ratios are formed; below zero where losses come
            near zero (a thousandth of a constant predictor's) or fall below it (under what the best
            density can have).
        build: from the seed of weights and of the order of batches to the job. Data stay the same.
    """

    name: str
    kind: str
    split: str
    steps: int
    batch: int
    floor: float
    build: Callable[[int], Setup]

    def setup(self, seed: int) -> Setup:
        """Builds the job, with `order` filled in."""
        torch.manual_seed(seed)
        made = self.build(seed)
        g = gen(seed)
        if made.order is None:
            rows, need = len(made.train[0]), self.steps * self.batch
            passes = [torch.randperm(rows, generator=g) for _ in range(math.ceil(need / rows))]
            made.order = torch.cat(passes)[:need].view(self.steps, self.batch)
        elif seed:
            made.order = made.order[torch.randperm(len(made.order), generator=g)]
        return made


JOBS: dict[str, Job] = {}
"""All jobs by name, the two of a kind together."""


def job(
    kind: str, split: str, *, steps: int, batch: int, floor: float = 0.0
) -> Callable[[Callable[[int], Setup]], Callable[[int], Setup]]:
    """Registers a function that builds a job, under its own name."""

    def register(build: Callable[[int], Setup]) -> Callable[[int], Setup]:
        name = build.__name__.replace("_", "-")
        JOBS[name] = Job(name, kind, split, steps, batch, floor, build)
        return build

    return register


def version(of: Job) -> str:
    """A digest of the code of a job and of what it may be made of: stored losses belong to it.

    White space and docstrings do not count. Helpers are those of this module and the private ones
    of the job's own. A job with fewer steps than registered has another version.
    """
    module = sys.modules[of.build.__module__]
    helpers = [
        thing
        for place, private in ((module, True), (sys.modules[__name__], False))
        for name, thing in sorted(vars(place).items())
        if getattr(thing, "__module__", None) == place.__name__
        and callable(thing)
        and name.startswith("_") == private
        and name != "job"
    ]
    text = inspect.getsource(of.build)
    used = [of.build, Job.setup, *(h for h in helpers if f"{h.__name__}(" in text)]
    text = "".join(inspect.getsource(part).replace(part.__doc__ or "", "") for part in used)
    digest = hashlib.sha256("".join(text.split()).encode()).hexdigest()[:8]
    return digest if of.steps == JOBS[of.name].steps else f"{digest}-{of.steps}"


def gen(seed: int) -> torch.Generator:
    """A generator with a seed."""
    return torch.Generator().manual_seed(seed)


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A plain perceptron; the last layer is linear."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def cut(columns: Batch, *, valid: int, test: int) -> tuple[Batch, Batch, Batch]:
    """Train, validation and test rows, in this order."""
    rows = len(columns[0])
    sizes = [rows - valid - test, valid, test]
    train, held, last = zip(*(c.split(sizes) for c in columns), strict=True)
    return train, held, last


def normal(x: Tensor) -> Tensor:
    """Columns scaled to mean 0 and spread 1."""
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-6)


@cache
def bundled(name: str) -> Batch:
    """Inputs and targets of a data set that scikit-learn carries, shuffled; inputs scaled."""
    from sklearn import datasets

    data = getattr(datasets, f"load_{name}")()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, y = torch.from_numpy(data.data[order]).float(), torch.from_numpy(data.target[order])
    return (normal(x), y) if name != "digits" else (x / 8 - 1, y)


@cache
def photo(name: str) -> Tensor:
    """A photograph that scikit-learn carries, (427, 640) greys of mean 0 and spread 1."""
    from sklearn.datasets import load_sample_image

    grey = torch.from_numpy(load_sample_image(name).astype(np.float32).mean(-1))
    return (grey - grey.mean()) / grey.std()


def patches(count: int, side: int, *, seed: int, strip: tuple[int, int]) -> Tensor:
    """Patches from random places of both photographs, (count, side, side).

    They lie within the columns `strip`, so that those of two strips have no pixel in common.
    """
    g = gen(seed)
    views = [
        photo(name)[:, slice(*strip)].unfold(0, side, 1).unfold(1, side, 1)
        for name in ("china.jpg", "flower.jpg")
    ]
    which = torch.randint(2, (count,), generator=g)
    at = [torch.randint(n, (count,), generator=g) for n in views[0].shape[:2]]
    return torch.where(which[:, None, None] == 0, views[0][at[0], at[1]], views[1][at[0], at[1]])


@cache
def characters(kind: str, symbols: int) -> Tensor:
    """A text that comes with Python as numbers: its help (``"help"``) or source (``"source"``).

    The most common characters have a number each, all others share the last one.
    """
    if kind == "help":
        from pydoc_data.topics import topics

        text = "\n".join(topics[name] for name in sorted(topics))
    else:
        names = ("argparse", "ast", "calendar", "csv", "fractions", "heapq", "random", "shutil")
        text = "\n".join(inspect.getsource(__import__(name)) for name in names)
    codes = np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8)
    rank = np.empty(256, dtype=np.int64)
    rank[np.argsort(-np.bincount(codes, minlength=256), kind="stable")] = np.arange(256)
    return torch.from_numpy(np.minimum(rank[codes], symbols - 1))


def windows(text: Tensor, length: int, *, valid: int, test: int) -> tuple[Tensor, Tensor, Tensor]:
    """A text cut into rows; every tenth row is held out: validation rows, then test rows."""
    rows = text[: len(text) // length * length].view(-1, length)
    held = torch.arange(len(rows)) % 10 == 9
    spare = rows[held][torch.randperm(int(held.sum()), generator=gen(0))]
    return rows[~held], spare[:valid], spare[valid : valid + test]
