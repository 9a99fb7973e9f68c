"""MLPs that learn from another network: from its soft answers, or from its weights.

Distillation (Hinton et al. 2015, "Distilling the knowledge in a neural network"): no row has a
wrong label, and yet the loss cannot fall below the entropy of the teacher's answers.

Fine-tuning is the commonest training job there is, and its good learning rates are lower than
those of a fresh network. What is best varies with how related the tasks are, how well the weights
were trained, whether the head is new, and how few rows the new task has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw, IntRange, Range
from pacesetter.inner_models.families.base import GeneratedFamily, Problem, Shape
from pacesetter.inner_models.families.teachers.regression import (
    SAMPLE,
    Inputs,
    StudentRanges,
    Teacher,
    draw_inputs,
    draw_student,
    make_teacher,
    teacher_rows,
)
from pacesetter.inner_models.losses import cross_entropy, mean_squared_error, soft_cross_entropy
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp
from pacesetter.inner_models.task import Batch, LossFn, RowsFn

ENTROPY_ROWS = 2**14
"""Rows over which the entropy of a teacher's answers is averaged."""


@dataclass(frozen=True, kw_only=True)
class DistillationRanges(StudentRanges):
    """Ranges of distillation, beside those of the students (`StudentRanges`)."""

    hidden: IntRange = (8, 96)
    depth: IntRange = (0, 3)
    teacher_hidden: IntRange = (16, 128)  # width of the teacher's hidden layers
    teacher_depth: IntRange = (1, 3)  # number of the teacher's hidden layers
    # factor on the teacher's weights, beyond what keeps the spread of its layers
    sharpness: Range = (0.5, 2.0)
    temperature: Range = (1.0, 5.0)  # what scores are divided by, the teacher's and the student's
    # of the teacher's scores at that temperature: at 1 its answers are soft, at 6 sure
    spread: Range = (1.0, 6.0)
    adam_lr: Range = (0.02, 0.3)
    sgd_lr: Range = (0.5, 5.0)
    rmsprop_lr: Range = (3e-4, 3e-3)


class Student(nn.Module):
    """An MLP whose logits are divided by a temperature, kept in a buffer of that name."""

    temperature: Tensor

    def __init__(self, shape: MLPShape, *, temperature: float) -> None:
        super().__init__()
        self.net = build_mlp(shape)
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits at the temperature: (rows, width) -> (rows, classes)."""
        logits: Tensor = self.net(inputs) / self.temperature
        return logits


@dataclass(frozen=True)
class DistilledMLP(GeneratedFamily[MLPShape]):
    """MLP students of the soft answers of MLP teachers; `DistillationRanges` says what is drawn.

    The teacher may be wider and deeper than its student. The optimum is the mean entropy of its
    answers: no student can have less, and one that can represent the teacher reaches it.
    """

    ranges: DistillationRanges = field(default_factory=DistillationRanges)
    name: str = "distilled-mlp"

    def draw_model(self, draw: Draw) -> MLPShape:
        return draw_student(draw, self.ranges)

    def cost(self, model: MLPShape) -> float:
        return model.num_params

    def draw_problem(self, shape: Shape[MLPShape], draw: Draw) -> Problem:
        inputs = draw_inputs(draw, self.ranges, shape.model.widths[0])
        teacher = self._draw_teacher(draw, shape.model)
        rows = partial(_soft_rows, inputs=inputs, teacher=teacher)
        chances = rows(ENTROPY_ROWS, draw.generator)[1].double()
        temperature = draw.log_uniform(*self.ranges.temperature)
        return Problem(
            build_model=partial(Student, shape.model, temperature=temperature),
            loss=soft_cross_entropy,
            rows=rows,
            optimum=float(torch.special.entr(chances).sum(1).mean()),
        )

    def _draw_teacher(self, draw: Draw, student: MLPShape) -> Teacher:
        r, g, width = self.ranges, draw.generator, student.widths[0]
        hidden, depth = draw.log_integer(*r.teacher_hidden), draw.integer(*r.teacher_depth)
        sharpness, spread = draw.log_uniform(*r.sharpness), draw.log_uniform(*r.spread)
        layers = [
            torch.randn(fan_in, hidden, generator=g) * (sharpness / math.sqrt(fan_in))
            for fan_in in (width, *[hidden] * (depth - 1))
        ]
        last = torch.randn(hidden, student.widths[-1], generator=g)
        white = torch.randn(SAMPLE, width, generator=g)
        return make_teacher(*layers, last, white=white, spread=spread)


def _soft_rows(
    count: int, generator: torch.Generator, *, inputs: Inputs, teacher: Teacher
) -> Batch:
    white, seen = inputs(count, generator)
    return seen, teacher(white).softmax(1)


@dataclass(frozen=True, kw_only=True)
class FineTuningShape:
    """Sizes and code paths of an MLP that is fine-tuned."""

    mlp: MLPShape  # the network
    new_head: bool  # whether the last layer starts afresh, as for another set of outputs
    frozen: int = 0  # number of lower linear layers, with the norms that follow them, that stay


@dataclass(frozen=True, kw_only=True)
class FineTuningRanges(StudentRanges):
    """Ranges of the fine-tuning family, beside those of its networks (`StudentRanges`)."""

    num_train: IntRange = (32, 1024)
    gain: Range = (0.9, 1.1)
    adam_lr: Range = (5e-3, 0.05)
    sgd_lr: Range = (0.02, 0.3)
    rmsprop_lr: Range = (7e-5, 7e-4)
    inputs: IntRange = (4, 32)
    hidden: IntRange = (16, 128)
    outputs: IntRange = (1, 4)  # number of outputs, for regression
    condition: Range = (1.0, 100.0)
    sharpness: Range = (0.3, 1.5)  # factor on the teachers' first layer
    label_noise: Range = (0.005, 0.05)  # share of wrong labels, or noise over the spread of targets
    similarity: Range = (0.8, 0.99)  # correlation of the weights of the old and the new teacher
    steps: IntRange = (40, 160)  # steps of Adam on the old task, under a cosine
    regression_share: float = 0.35  # share of regression tasks
    new_head_share: float = 0.5  # share of networks with a new head
    frozen_share: float = 0.25  # share of networks with one to all of the hidden layers frozen


@dataclass(frozen=True)
class FineTunedMLP(GeneratedFamily[FineTuningShape]):
    """MLPs fine-tuned after training on a related task; `FineTuningRanges` says what is drawn.

    Both teachers are tanh networks of one hidden layer. With the old head they have the same
    outputs, and correlated weights in both layers; with a new head, only their first layers are
    correlated. The old task has endless clean rows.
    """

    ranges: FineTuningRanges = field(default_factory=FineTuningRanges)
    name: str = "fine-tuned-mlp"

    def draw_model(self, draw: Draw) -> FineTuningShape:
        r = self.ranges
        regression = draw.chance(r.regression_share)
        mlp = draw_student(draw, r, outputs=r.outputs if regression else None)
        freezes = draw.chance(r.frozen_share)
        return FineTuningShape(
            mlp=mlp,
            new_head=draw.chance(r.new_head_share),
            frozen=draw.integer(1, len(mlp.widths) - 2) if freezes else 0,
        )

    def cost(self, model: FineTuningShape) -> float:
        return model.mlp.num_params

    def draw_problem(self, shape: Shape[FineTuningShape], draw: Draw) -> Problem:
        r, mlp, new_head, g = self.ranges, shape.model.mlp, shape.model.new_head, draw.generator
        loss = cross_entropy if mlp.classification else mean_squared_error
        width, outputs = mlp.widths[0], mlp.widths[-1]
        inputs = draw_inputs(draw, r, width)
        rows = partial(teacher_rows, inputs=inputs, classification=mlp.classification)
        old_outputs = outputs
        if new_head:
            old_outputs = draw.integer(*(r.classes if mlp.classification else r.outputs))
        first, second = _draw_weights(draw, width, old_outputs)
        first *= draw.log_uniform(*r.sharpness)
        old_teacher = make_teacher(first, second, white=inputs(SAMPLE, g)[0])
        weights = pretrain(
            replace(mlp, widths=(*mlp.widths[:-1], old_outputs)),
            loss=loss,
            rows=partial(rows, teacher=old_teacher, noise=0.0),
            steps=draw.log_integer(*r.steps),
            draw=draw,
        )
        similarity = draw.uniform(*r.similarity)
        other_first, other_second = _draw_weights(draw, width, outputs)
        other_first *= first.norm() / other_first.norm()
        first = _blend(first, other_first, similarity)
        second = other_second if new_head else _blend(second, other_second, similarity)
        noise = draw.log_uniform(*r.label_noise)
        teacher = make_teacher(first, second, white=inputs(SAMPLE, g)[0])
        return Problem(
            build_model=partial(build_fine_tuned, shape.model, weights=weights),
            loss=loss,
            rows=partial(rows, teacher=teacher, noise=noise),
        )


def build_fine_tuned(shape: FineTuningShape, *, weights: Mapping[str, Tensor]) -> nn.Sequential:
    """An MLP that starts from trained weights.

    Where the head is new, the last layer of `weights` is not read.
    """
    model = build_mlp(shape.mlp)
    head = f"{len(model) - 1}."
    kept = {k: v for k, v in weights.items() if not (shape.new_head and k.startswith(head))}
    missing, unknown = model.load_state_dict(kept, strict=False)
    assert not unknown, unknown
    assert all(shape.new_head and key.startswith(head) for key in missing), missing
    linear = [i for i, layer in enumerate(model) if isinstance(layer, nn.Linear)]
    model[: linear[shape.frozen]].requires_grad_(requires_grad=False)
    return model


def pretrain(
    shape: MLPShape, *, loss: LossFn, rows: RowsFn, steps: int, draw: Draw, lr: float = 2e-2
) -> dict[str, Tensor]:
    """State of an MLP after training by Adam under a cosine, on 1,024 rows in batches of 64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw.seed())
        model = build_mlp(shape)
    data = rows(1024, draw.generator)
    batches = torch.randint(1024, (steps, 64), generator=draw.generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    with torch.enable_grad():
        for step, batch in enumerate(batches):
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            loss(model, tuple(column[batch] for column in data)).backward()
            optimizer.step()
    return {name: value.detach() for name, value in model.state_dict().items()}


def _draw_weights(draw: Draw, width: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Weights of a random network of 32 hidden units, whose sums have a spread of about one."""
    first, second = (
        torch.randn(n, m, generator=draw.generator) / math.sqrt(n)
        for n, m in ((width, 32), (32, outputs))
    )
    return first, second


def _blend(old: Tensor, new: Tensor, similarity: float) -> Tensor:
    """Weights with the given correlation to the old ones, and of their size."""
    return similarity * old + math.sqrt(1 - similarity**2) * new
