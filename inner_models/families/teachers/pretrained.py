"""MLPs that start from weights trained on a related task: where bold steps undo what is known.

Fine-tuning is the commonest training job there is, and its good learning rates are lower than
those of a fresh network. What is best varies with how related the tasks are, how well the weights
were trained, whether the head is new, and how few rows the new task has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from pacesetter.inner_models.draw import Draw
from pacesetter.inner_models.families.base import GeneratedFamily, JobRanges, Problem, Shape
from pacesetter.inner_models.families.teachers.regression import Inputs, draw_inputs
from pacesetter.inner_models.losses import cross_entropy, mean_squared_error, with_label_noise
from pacesetter.inner_models.networks.mlp import MLPShape, build_mlp, draw_mlp
from pacesetter.inner_models.task import Batch, LossFn, RowsFn


@dataclass(frozen=True, kw_only=True)
class FineTuningShape:
    """Sizes and code paths of an MLP that is fine-tuned.

    Attributes:
        mlp: the network.
        new_head: whether the last layer starts afresh, as for another set of outputs.
        frozen: number of lower linear layers, with the norms that follow them, that stay.
    """

    mlp: MLPShape
    new_head: bool
    frozen: int = 0


@dataclass(frozen=True, kw_only=True)
class FineTuningRanges(JobRanges):
    """Ranges of the fine-tuning family, beside those of every job (`JobRanges`).

    Attributes:
        inputs: width of the input.
        hidden: width of hidden layers.
        depth: number of hidden layers.
        classes: number of classes, for classification.
        outputs: number of outputs, for regression.
        condition: condition number of the inputs' covariance.
        input_scale: factor on the inputs.
        sharpness: factor on the teachers' first layer.
        label_noise: share of wrong labels, or noise over the spread of targets.
        similarity: correlation of the weights of the old and the new teacher.
        steps: steps of Adam on the old task.
        regression_share: share of regression tasks.
        new_head_share: share of networks with a new head.
        frozen_share: share of networks with frozen layers.
    """

    num_train: tuple[int, int] = (32, 1024)
    gain: tuple[float, float] = (0.9, 1.1)
    adam_lr: tuple[float, float] = (5e-3, 0.05)
    sgd_lr: tuple[float, float] = (0.02, 0.3)
    rmsprop_lr: tuple[float, float] = (7e-5, 7e-4)
    inputs: tuple[int, int] = (4, 32)
    hidden: tuple[int, int] = (16, 128)
    depth: tuple[int, int] = (1, 3)
    classes: tuple[int, int] = (2, 10)
    outputs: tuple[int, int] = (1, 4)
    condition: tuple[float, float] = (1.0, 100.0)
    input_scale: tuple[float, float] = (0.5, 2.0)
    sharpness: tuple[float, float] = (0.3, 1.5)
    label_noise: tuple[float, float] = (0.005, 0.05)
    similarity: tuple[float, float] = (0.8, 0.99)
    steps: tuple[int, int] = (40, 160)
    regression_share: float = 0.35
    new_head_share: float = 0.5
    frozen_share: float = 0.25


@dataclass(frozen=True)
class FineTunedMLP(GeneratedFamily[FineTuningShape]):
    """MLPs fine-tuned on a random teacher after training on a related one.

    Both teachers are tanh networks of one hidden layer. With the old head they have the same
    outputs, and correlated weights in both layers; with a new head, only their first layers are
    correlated. The old task has endless clean rows.

    | drawn | range |
    |---|---|
    | input width | 4 to 32 |
    | hidden layers, width | 1 to 3, 16 to 128 |
    | activation, LayerNorm | relu, tanh, gelu, silu; on 30 % |
    | classes, outputs | 2 to 10, or 1 to 4 for the 35 % that are regression |
    | head | new on 50 % |
    | frozen lower layers | 1 to all hidden ones on 25 %, else none |
    | correlation of the teachers' weights | 0.8 to 0.99 |
    | steps on the old task | 40 to 160, of Adam with a cosine |
    | condition number, scale of the inputs | 1 to 100, 0.5 to 2 |
    | sharpness of the teachers | 0.3 to 1.5 |
    | label noise of the new task | 0.005 to 0.05 |
    | rows of the train split | 32 to 1,024 |
    """

    ranges: FineTuningRanges = field(default_factory=FineTuningRanges)
    name: str = "fine-tuned-mlp"

    def draw_model(self, draw: Draw) -> FineTuningShape:
        """See `GeneratedFamily.draw_model`."""
        r = self.ranges
        classification = not draw.chance(r.regression_share)
        mlp = draw_mlp(
            draw,
            inputs=draw.log_integer(*r.inputs),
            hidden=r.hidden,
            depth=r.depth,
            outputs=draw.integer(*(r.classes if classification else r.outputs)),
            classification=classification,
        )
        freezes = draw.chance(r.frozen_share)
        return FineTuningShape(
            mlp=mlp,
            new_head=draw.chance(r.new_head_share),
            frozen=draw.integer(1, len(mlp.widths) - 2) if freezes else 0,
        )

    def cost(self, model: FineTuningShape) -> float:
        """See `GeneratedFamily.cost`; frozen layers are passed through like others."""
        return model.mlp.num_params

    def draw_problem(self, shape: Shape[FineTuningShape], draw: Draw) -> Problem:
        """See `GeneratedFamily.draw_problem`."""
        r, mlp = self.ranges, shape.model.mlp
        loss = cross_entropy if mlp.classification else mean_squared_error
        width, outputs = mlp.widths[0], mlp.widths[-1]
        inputs = draw_inputs(draw, width=width, condition=r.condition, scale=r.input_scale)
        new_head = shape.model.new_head
        classes = r.classes if mlp.classification else r.outputs
        old_outputs = draw.integer(*classes) if new_head else outputs
        first, second = draw_weights(draw, (width, 32, old_outputs))
        first *= draw.log_uniform(*r.sharpness)
        weights = pretrain(
            replace(mlp, widths=(*mlp.widths[:-1], old_outputs)),
            loss=loss,
            rows=_teacher_rows(
                draw, (first, second), inputs=inputs, noise=0.0, classification=mlp.classification
            ),
            steps=draw.log_integer(*r.steps),
            draw=draw,
        )
        similarity = draw.uniform(*r.similarity)
        other_first, other_second = draw_weights(draw, (width, 32, outputs))
        other_first *= first.norm() / other_first.norm()
        teacher = (
            _blend(first, other_first, similarity),
            other_second if new_head else _blend(second, other_second, similarity),
        )
        return Problem(
            build_model=partial(build_fine_tuned, shape.model, weights=weights),
            loss=loss,
            rows=_teacher_rows(
                draw,
                teacher,
                inputs=inputs,
                noise=draw.log_uniform(*r.label_noise),
                classification=mlp.classification,
            ),
        )


def build_fine_tuned(shape: FineTuningShape, *, weights: Mapping[str, Tensor]) -> nn.Sequential:
    """An MLP that starts from trained weights.

    Args:
        shape: sizes; says what is new and what is frozen.
        weights: state of a network that may differ in its last layer, which is not read where the
            head is new.
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
    """Trains an MLP for a while, by Adam under a cosine on 1,024 rows in batches of 64.

    Args:
        shape: sizes.
        loss: what is minimised.
        rows: the data.
        steps: number of updates.
        draw: decides initial weights and batches.
        lr: at the start.

    Returns:
        Its state, without gradients.
    """
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


def draw_weights(draw: Draw, widths: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Weights of a random network of one hidden layer, whose sums have a spread of about one."""
    first, second = (
        torch.randn(n, m, generator=draw.generator) / math.sqrt(n) for n, m in pairwise(widths)
    )
    return first, second


def _blend(old: Tensor, new: Tensor, similarity: float) -> Tensor:
    """Weights with the given correlation to the old ones, and of their size."""
    return similarity * old + math.sqrt(1 - similarity**2) * new


def _teacher_rows(
    draw: Draw,
    weights: tuple[Tensor, Tensor],
    *,
    inputs: Inputs,
    noise: float,
    classification: bool,
) -> RowsFn:
    first, second = weights
    scores = torch.tanh(inputs(1024, draw.generator)[0] @ first) @ second
    mean, std = scores.mean(0), scores.std(0).clamp(min=1e-6)

    def rows(count: int, generator: torch.Generator) -> Batch:
        white, seen = inputs(count, generator)
        scores = (torch.tanh(white @ first) @ second - mean) / std
        if classification:
            return seen, with_label_noise(scores.argmax(1), scores.shape[1], noise, generator)
        return seen, scores + noise * torch.randn(scores.shape, generator=generator)

    return rows
