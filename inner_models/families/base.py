"""Base classes of the bundled task families: on generated data and on real data.

A subclass draws a model and a problem. `GeneratedFamily` draws the job around it (`JobRanges`):
batch size, horizon, optimizer, start of the learning rate, factors on weights and loss, and
whether training rows are few or endless. These ranges are the same for every generated family, so
that a policy meets each kind of model under each kind of job.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import nn

from pacesetter.inner_models.draw import Draw, IntRange, Range, check_ranges
from pacesetter.inner_models.losses import ScaledLoss
from pacesetter.inner_models.task import (
    LossFn,
    ModuleTask,
    OptimizerConfig,
    OptimizerName,
    RowsFn,
    Splits,
    Task,
    TaskFamily,
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Sizes and code paths of a job, shared by all tasks of a group."""

    num_train: int  # rows of the train split
    batch_size: int  # rows per inner step
    horizon: int  # inner steps
    optimizer: OptimizerName = "adamw"  # kind of base optimizer
    weight_decay: float = 0.01  # of the base optimizer
    valid_every: int = 0  # intervals between the validation losses that the agent sees; 0: none
    # whether every step sees fresh rows; the train split is then only for evaluation
    endless: bool = False


@dataclass(frozen=True, kw_only=True)
class JobRanges:
    """Ranges that generated families draw a job from; pairs are inclusive, drawn in logarithms.

    Families set the three learning rates to about the quartiles of the best ones that
    ``benchmarks/family_survey.py`` finds.

    Attributes:
        num_train: rows of the train split.
        batch_size: rows per inner step, a power of two.
        horizon: inner steps; long ones are rarer, so that each decade costs about the same.
        gain: factor on the initial weights (tensors of two dimensions or more).
        loss_scale: factor on the loss.
        start_factor: factor by which the start of the learning rate is off from a sensible one.
        adam_lr: a sensible learning rate of AdamW and Adam.
        sgd_lr: the same for SGD with momentum 0.9, at a loss scale of one.
        rmsprop_lr: the same for RMSprop with momentum 0.9.
        adam_share: share of jobs with Adam instead of AdamW.
        sgd_share: share of jobs with SGD-momentum.
        rmsprop_share: share of jobs with RMSprop.
        endless_share: share of jobs where no row is ever seen twice.
        valid_share: share of jobs that show the agent a validation loss, every 1 to 8 intervals.
        work: most multiply-adds of a run's forward passes; it caps the horizon and, where the
            shortest would still be too much, the batch size.
        eval_rows: rows of each of the three other splits.
    """

    num_train: IntRange = (32, 8192)
    batch_size: IntRange = (8, 512)
    horizon: IntRange = (50, 5000)
    gain: Range = (0.5, 2.0)
    loss_scale: Range = (0.01, 100.0)
    start_factor: Range = (0.03, 30.0)
    adam_lr: Range = (3e-3, 3e-2)
    sgd_lr: Range = (0.03, 0.3)
    rmsprop_lr: Range = (3e-4, 3e-3)
    adam_share: float = 0.15
    sgd_share: float = 0.2
    rmsprop_share: float = 0.15
    endless_share: float = 0.15
    valid_share: float = 0.5
    work: float = 6e8
    eval_rows: int = 512

    LEAST: ClassVar[dict[str, int]] = {"num_train": 1, "batch_size": 1, "horizon": 1}
    """Smallest start of a range, by its name."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, least in self.LEAST.items():
            if getattr(self, name)[0] < least:
                raise ValueError(
                    f"{name} must start at {least} or more, but got {getattr(self, name)}"
                )
        if self.batch_size[0] > self.num_train[0]:
            raise ValueError(
                f"the smallest batch_size must not exceed the smallest num_train, "
                f"{self.num_train[0]}, but got {self.batch_size[0]}"
            )
        if self.adam_share + self.sgd_share + self.rmsprop_share > 1:
            raise ValueError("the shares of Adam, SGD and RMSprop must not exceed 1 together")

    def sensible_lr(self, optimizer: OptimizerName) -> tuple[float, float]:
        if optimizer == "sgd":
            return self.sgd_lr
        return self.rmsprop_lr if optimizer == "rmsprop" else self.adam_lr

    def draw_job(self, draw: Draw, *, cost: float) -> Job:
        """Draws a job for a model whose forward pass takes `cost` multiply-adds per row."""
        num_train = draw.log_integer(*self.num_train)
        batch_size = min(draw.power_of_two(*self.batch_size), num_train)
        shares: dict[OptimizerName, float] = {
            "adam": self.adam_share,
            "sgd": self.sgd_share,
            "rmsprop": self.rmsprop_share,
        }
        optimizer = draw.weighted({**shares, "adamw": 1 - sum(shares.values())})
        # Small matrices cost their kernel launches, not their arithmetic: hence the constant.
        cost += 1000
        shortest = self.horizon[0]
        while cost * batch_size * shortest > self.work and batch_size > self.batch_size[0]:
            batch_size = max(self.batch_size[0], batch_size // 2)
        longest = min(self.horizon[1], max(shortest, self.work / (cost * batch_size)))
        return Job(
            num_train=num_train,
            batch_size=batch_size,
            horizon=round(draw.equal_cost(shortest, longest)),
            optimizer=optimizer,
            weight_decay=draw.choice((0.0, 0.01, 0.1)) if optimizer == "adamw" else 0.0,
            # Of the shape, and not of the task: to evaluate one run is to evaluate its group.
            valid_every=draw.integer(1, 8) if draw.chance(self.valid_share) else 0,
            endless=draw.chance(self.endless_share),
        )


Model = TypeVar("Model")
"""What decides a model's tensor sizes and code paths: a frozen dataclass of the family's own."""


@dataclass(frozen=True)
class Shape(Generic[Model]):
    """What all tasks of one group share: the model's sizes and the job around it."""

    model: Model
    job: Job


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One drawn problem.

    Attributes:
        build_model: makes a freshly initialised module; constants of the problem are its buffers.
        loss: the same (``==``) for all problems of a shape.
        rows: ``rows(count, generator)``, independent rows of the training distribution.
        new_rows: the same for the three other splits; None: as `rows`.
        optimum: least possible expected loss on new rows, where it is known.
    """

    build_model: Callable[[], nn.Module]
    loss: LossFn
    rows: RowsFn
    new_rows: RowsFn | None = None
    optimum: float | None = None


class GeneratedFamily(TaskFamily, Generic[Model]):
    """A family on generated data.

    Subclasses are frozen dataclasses with the fields `ranges` and `name`; they draw the model's
    shape (`draw_model`), say what a row of it costs (`cost`), and draw problems (`draw_problem`).
    """

    ranges: JobRanges

    @abstractmethod
    def draw_model(self, draw: Draw) -> Model:
        """Draws what decides the model's tensor sizes and code paths."""

    @abstractmethod
    def cost(self, model: Model) -> float:
        """Multiply-adds of the forward pass of one row."""

    @abstractmethod
    def draw_problem(self, shape: Shape[Model], draw: Draw) -> Problem:
        """Draws one problem of the shape."""

    def sample_shape(self, generator: torch.Generator) -> Shape[Model]:
        draw = Draw(generator)
        model = self.draw_model(draw)
        return Shape(model, self.ranges.draw_job(draw, cost=self.cost(model)))

    def build(self, shape: Shape[Model], generator: torch.Generator) -> Task:
        r, job, draw = self.ranges, shape.job, Draw(generator)
        problem = self.draw_problem(shape, draw)
        new_rows = problem.new_rows or problem.rows
        loss_scale = draw.log_uniform(*r.loss_scale)
        lr = draw.log_uniform(*r.sensible_lr(job.optimizer)) * draw.log_uniform(*r.start_factor)
        if job.optimizer == "sgd":
            lr /= loss_scale  # the others take no notice of the loss's scale
        return ModuleTask(
            AugmentedModel(problem.build_model, draw.log_uniform(*r.gain), loss_scale),
            ScaledLoss(problem.loss),
            Splits(
                problem.rows(job.num_train, generator),
                *(new_rows(r.eval_rows, generator) for _ in range(3)),
                allow_overlap=True,  # independent rows; where there are few kinds, they recur
            ),
            horizon=job.horizon,
            batch_size=job.batch_size,
            optimizer=OptimizerConfig(name=job.optimizer, lr=lr, weight_decay=job.weight_decay),
            name=self.name,
            seed=draw.seed(),
            valid_every=job.valid_every,
            fresh_rows=problem.rows if job.endless else None,
            optimum=None if problem.optimum is None else problem.optimum * loss_scale,
        )


@dataclass(frozen=True)
class AugmentedModel:
    """Builds a model, multiplies its initial weights, and gives it the factor on its loss.

    Attributes:
        build_model: makes the module.
        gain: factor on trained tensors of two dimensions or more; biases and norms stay.
        loss_scale: kept in a buffer of that name, where `ScaledLoss` finds it.
    """

    build_model: Callable[[], nn.Module]
    gain: float
    loss_scale: float

    def __call__(self) -> nn.Module:
        model = self.build_model()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.ndim > 1:
                    parameter.mul_(self.gain)
        model.register_buffer("loss_scale", torch.tensor(self.loss_scale))
        return model


@dataclass(frozen=True, kw_only=True)
class RealProblem:
    """One problem on real data, as `Problem`; `optimum` is the least loss known on new rows."""

    build_model: Callable[[], nn.Module]
    loss: LossFn
    splits: Splits
    optimum: float | None = None


class RealFamily(TaskFamily, Generic[Model]):
    """A family on real data, whose tasks start AdamW at its default of 1e-3.

    Tasks of one shape differ in initial weights and batch order, and in what `draw_problem` draws.
    """

    @abstractmethod
    def draw_model(self, draw: Draw) -> Model:
        """Draws what decides the model's tensor sizes and code paths."""

    @abstractmethod
    def draw_job(self, draw: Draw, model: Model) -> Job:
        """Draws training-set size, batch size and horizon."""

    @abstractmethod
    def draw_problem(self, shape: Shape[Model], draw: Draw) -> RealProblem:
        """Draws one problem of the shape."""

    def sample_shape(self, generator: torch.Generator) -> Shape[Model]:
        draw = Draw(generator)
        model = self.draw_model(draw)
        return Shape(model, self.draw_job(draw, model))

    def build(self, shape: Shape[Model], generator: torch.Generator) -> Task:
        job, draw = shape.job, Draw(generator)
        problem = self.draw_problem(shape, draw)
        return ModuleTask(
            problem.build_model,
            problem.loss,
            problem.splits,
            horizon=job.horizon,
            batch_size=job.batch_size,
            optimizer=OptimizerConfig(lr=1e-3, weight_decay=job.weight_decay),
            name=self.name,
            seed=draw.seed(),
            optimum=problem.optimum,
        )
