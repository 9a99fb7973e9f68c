"""Families on generated data: a subclass draws a model and a problem, and this does the rest.

The rest is the job around it (`JobRanges`): batch size, horizon, optimizer, the start of the
learning rate, the factor on weights and loss, and whether training rows are few or endless.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.job import Job, JobRanges
from pacesetter.inner_models.task import (
    Batch,
    LossFn,
    OptimizerConfig,
    RowsFn,
    Splits,
    Task,
    TaskFamily,
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
        """See `TaskFamily.sample_shape`."""
        draw = Draw(generator)
        model = self.draw_model(draw)
        return Shape(model, self.ranges.draw_job(draw, cost=self.cost(model)))

    def build(self, shape: Shape[Model], generator: torch.Generator) -> Task:
        """See `TaskFamily.build`."""
        r, job, draw = self.ranges, shape.job, Draw(generator)
        problem = self.draw_problem(shape, draw)
        new_rows = problem.new_rows or problem.rows
        loss_scale = draw.log_uniform(*r.loss_scale)
        lr = draw.log_uniform(*r.sensible_lr(job.optimizer)) * draw.log_uniform(*r.start_factor)
        if job.optimizer == "sgd":
            lr /= loss_scale  # the others take no notice of the loss's scale
        return Task(
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
        """Makes the module."""
        model = self.build_model()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad and parameter.ndim > 1:
                    parameter.mul_(self.gain)
        model.register_buffer("loss_scale", torch.tensor(self.loss_scale))
        return model


@dataclass(frozen=True)
class ScaledLoss:
    """A loss times the model's buffer ``loss_scale``, which differs from task to task."""

    loss: LossFn

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scaled loss on a batch."""
        return self.loss(model, batch) * model.get_buffer("loss_scale")
