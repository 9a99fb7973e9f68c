"""MLPs on small tables of measurements: real data on which training soon overfits.

Three data sets that come with scikit-learn: breast cancer (569 rows of 30 measurements, 2 classes;
Street, Wolberg & Mangasarian 1993), wine (178 rows of 13, 3 classes; Forina et al. 1991) and
diabetes (442 rows of 10, regression; Efron et al. 2004).
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cache, partial

import numpy as np
import torch

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import Job, RealFamily, RealProblem, Shape
from pacesetter.inner_models.lookup import check_name, require
from pacesetter.inner_models.losses import cross_entropy, mean_squared_error
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp, draw_mlp
from pacesetter.inner_models.task import Splits


@dataclass(frozen=True)
class Table:
    """One of the data sets."""

    loader: str  # its function in `sklearn.datasets`
    inputs: int  # columns
    outputs: int  # classes, or 1 for regression
    _: KW_ONLY
    # rows of train, inner_valid, outer_valid and test; together all rows
    sizes: tuple[int, int, int, int]
    # of the split. There are few rows, of which fewer still are hard to tell: a split that
    # has none of them by chance has a loss that vanishes, and the logarithm of that is
    # noise. Of 0 to 299 it is the seed by which the mean losses of a linear model, each
    # row's from folds that leave it out, are most alike in the four splits.
    seed: int

    @property
    def classification(self) -> bool:
        return self.outputs > 1


TABLES = {
    "breast-cancer": Table("load_breast_cancer", 30, 2, sizes=(300, 69, 100, 100), seed=291),
    "wine": Table("load_wine", 13, 3, sizes=(64, 22, 46, 46), seed=58),
    "diabetes": Table("load_diabetes", 10, 1, sizes=(240, 52, 75, 75), seed=2),
}


@dataclass(frozen=True, kw_only=True)
class TabularShape:
    """What decides the sizes of a task."""

    table: str  # name of the data set
    mlp: MLPShape  # the network


class TabularMLP(RealFamily[TabularShape]):
    """Classification and regression of tables by MLPs.

    Networks have 1 to 3 hidden layers of 8 to 64 units; batches 8 to 64 rows; horizons 200 to
    1,500 steps.
    """

    name = "tabular-mlp"

    def draw_model(self, draw: Draw) -> TabularShape:
        name = draw.choice(tuple(TABLES))
        table = TABLES[name]
        mlp = draw_mlp(
            draw,
            inputs=table.inputs,
            hidden=(8, 64),
            depth=(1, 3),
            outputs=table.outputs,
            classification=table.classification,
        )
        return TabularShape(table=name, mlp=mlp)

    def draw_job(self, draw: Draw, model: TabularShape) -> Job:
        return Job(
            num_train=TABLES[model.table].sizes[0],
            batch_size=draw.power_of_two(8, 64),
            horizon=draw.log_integer(200, 1500),
        )

    def draw_problem(self, shape: Shape[TabularShape], draw: Draw) -> RealProblem:
        mlp = shape.model.mlp
        return RealProblem(
            build_model=partial(build_mlp, mlp),
            loss=cross_entropy if mlp.classification else mean_squared_error,
            splits=table_splits(shape.model.table),
        )


@cache
def table_splits(name: str) -> Splits:
    """A data set in its one split; columns have mean 0 and spread 1 over the train split.

    So have the targets of a regression, which have the shape (rows, 1). Of rows whose columns are
    all equal, the first is kept.

    Args:
        name: ``"breast-cancer"``, ``"wine"`` or ``"diabetes"``.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: there is no such data set.
    """
    check_name(name, TABLES, kind="table")
    table = TABLES[name]
    data = getattr(require("sklearn.datasets", extra="train"), table.loader)()
    first = np.sort(np.unique(data.data, axis=0, return_index=True)[1])
    order = np.random.default_rng(table.seed).permutation(first)
    inputs = _standardised(data.data[order], rows=table.sizes[0])
    if table.classification:
        targets = torch.from_numpy(data.target[order]).long()
    else:
        targets = _standardised(data.target[order, None], rows=table.sizes[0])
    return Splits(*zip(inputs.split(table.sizes), targets.split(table.sizes), strict=True))


def _standardised(columns: np.ndarray, *, rows: int) -> torch.Tensor:
    """Columns (all rows, width) with mean 0 and spread 1 over the first `rows`, in float32."""
    train = columns[:rows]
    return torch.from_numpy((columns - train.mean(0)) / train.std(0)).float()
