"""Multilayer perceptrons, and the family of them on generated teacher data.

The teacher family is what the agent learns from, so it is made to differ in what is best for a
task: sizes, conditioning, label noise and training-set sizes range from where a bold learning rate
wins to where it overfits or diverges, and the start of the learning rate is off by a factor that
the agent does not see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from pacesetter.inner_models.task import Batch, OptimizerConfig, Splits, Task, TaskFamily

Activation = Literal["relu", "tanh", "gelu", "silu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


@dataclass(frozen=True, kw_only=True)
class MLPShape:
    """Sizes and code paths of an MLP task, shared by all tasks of a group.

    Attributes:
        widths: of every layer, input and output included.
        activation: between layers.
        layer_norm: whether hidden layers are followed by LayerNorm.
        classification: cross-entropy if true, else mean squared error.
        num_train: rows of the train split.
        batch_size: rows per inner step.
        horizon: inner steps.
        optimizer: kind of base optimizer.
        weight_decay: of the base optimizer.
        valid_every: intervals between the validation losses that the agent sees; 0: none.
    """

    widths: tuple[int, ...]
    activation: Activation
    layer_norm: bool
    classification: bool
    num_train: int
    batch_size: int
    horizon: int
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.01
    valid_every: int = 0

    @property
    def num_params(self) -> int:
        """Weights and biases, LayerNorm aside."""
        pairs = zip(self.widths, self.widths[1:], strict=False)
        return sum(fan_in * fan_out + fan_out for fan_in, fan_out in pairs)


def build_mlp(shape: MLPShape, gain: float = 1.0) -> nn.Sequential:
    """An MLP with torch's default initialisation, its weights multiplied by `gain`."""
    layers: list[nn.Module] = []
    last = len(shape.widths) - 2
    for i, (fan_in, fan_out) in enumerate(zip(shape.widths, shape.widths[1:], strict=False)):
        layers.append(nn.Linear(fan_in, fan_out))
        if i < last:
            if shape.layer_norm:
                layers.append(nn.LayerNorm(fan_out))
            layers.append(_ACTIVATIONS[shape.activation]())
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(gain)
    return model


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of class logits; batch is (inputs, int64 labels).

    Equal to `torch.nn.functional.cross_entropy`, whose log_softmax over few classes is slow on a
    CPU where many runs are batched.
    """
    inputs, labels = batch
    logits: Tensor = model(inputs)
    shifted = logits - logits.detach().amax(-1, keepdim=True)
    right = shifted.gather(-1, labels[..., None])[..., 0]
    return (shifted.exp().sum(-1).log() - right).mean()


def mean_squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error; batch is (inputs, targets)."""
    inputs, targets = batch
    # Not functional.mse_loss: its vmap rule does not broadcast targets that siblings share.
    error: Tensor = model(inputs) - targets
    return error.square().mean()


@dataclass(frozen=True, kw_only=True)
class TeacherRanges:
    """Ranges that the teacher family draws from; pairs are inclusive, sizes and factors in logs.

    Attributes:
        inputs: width of the input.
        hidden: width of hidden layers.
        depth: number of hidden layers.
        classes: number of classes, for classification.
        outputs: number of outputs, for regression.
        num_train: rows of the train split.
        batch_size: rows per inner step, a power of two.
        horizon: inner steps; long ones are rarer, so that each decade costs about the same.
        condition: condition number of the inputs' covariance.
        label_noise: share of wrong labels, or noise over the spread of targets; half have none.
        cluster_share: share of classification tasks whose classes are clusters of points, which a
            network soon learns by heart, rather than the answers of a teacher network.
        separation: distance of the clusters' centres over the spread of points.
        gain: factor on the initial weights.
        input_scale: factor on the inputs.
        adamw_lr: a sensible learning rate of AdamW, centred on what is best in this family.
        sgd_lr: the same for SGD.
        start_factor: factor by which the start of the learning rate is off from that.
        sgd_share: share of tasks trained with SGD-momentum.
        regression_share: share of regression tasks.
        work: most parameters times batch size times horizon; it caps the horizon and, where the
            shortest would still be too much, the batch size.
        eval_rows: rows of each of the three other splits.
    """

    inputs: tuple[int, int] = (4, 64)
    hidden: tuple[int, int] = (8, 128)
    depth: tuple[int, int] = (0, 4)
    classes: tuple[int, int] = (2, 10)
    outputs: tuple[int, int] = (1, 4)
    num_train: tuple[int, int] = (128, 8192)
    batch_size: tuple[int, int] = (8, 128)
    horizon: tuple[int, int] = (80, 2000)
    condition: tuple[float, float] = (1.0, 1e3)
    label_noise: tuple[float, float] = (0.01, 0.3)
    cluster_share: float = 0.4
    separation: tuple[float, float] = (2.0, 8.0)
    gain: tuple[float, float] = (0.5, 2.0)
    input_scale: tuple[float, float] = (0.5, 2.0)
    adamw_lr: tuple[float, float] = (3e-3, 3e-2)
    sgd_lr: tuple[float, float] = (0.03, 0.3)
    start_factor: tuple[float, float] = (0.1, 10.0)
    sgd_share: float = 0.2
    regression_share: float = 0.35
    work: float = 4e7
    eval_rows: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, tuple):
                low, high = value
                if not (0 <= low <= high):
                    raise ValueError(f"range {name} must be ordered and not negative, got {value}")


class Draw:
    """Random numbers by name of their distribution, from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def chance(self, share: float) -> bool:
        """True with probability `share`."""
        return self.unit() < share

    def integer(self, low: int, high: int) -> int:
        """Uniform over low..high, both included."""
        return low + int(self.unit() * (high - low + 1))

    def log_uniform(self, low: float, high: float) -> float:
        """Uniform in the logarithm."""
        return float(low * (high / low) ** self.unit())

    def log_integer(self, low: int, high: int) -> int:
        """Log-uniform, rounded."""
        return min(high, max(low, round(self.log_uniform(low, high))))

    def equal_cost(self, low: float, high: float) -> float:
        """Density proportional to 1 / x^2: every factor of x takes the same total."""
        u = self.unit()
        return 1.0 / ((1 - u) / low + u / high)

    def choice(self, options: tuple[str, ...]) -> str:
        """One of the options."""
        return options[self.integer(0, len(options) - 1)]

    def seed(self) -> int:
        """A fresh seed."""
        return int(torch.randint(2**62, (), generator=self.generator))


@dataclass(frozen=True)
class TeacherMLP(TaskFamily):
    """MLP students of random teachers, classification and regression.

    Inputs are Gaussian with a random condition number; targets are those of a random tanh network
    or, for some of the classification tasks, the cluster that a point was drawn from.
    `TeacherRanges` is the table of what is drawn; the learning rate starts from a sensible one
    times a factor that the agent does not see, too low as often as too high. Half of the shapes
    show the agent their validation loss, every 1 to 8 intervals.
    """

    ranges: TeacherRanges = field(default_factory=TeacherRanges)
    name: str = "teacher-mlp"

    def sample_shape(self, generator: torch.Generator) -> MLPShape:
        """Draws architecture, sizes, horizon and kind of optimizer."""
        r, draw = self.ranges, Draw(generator)
        classification = not draw.chance(r.regression_share)
        depth = draw.integer(*r.depth)
        width = draw.log_integer(*r.hidden)
        outputs = draw.integer(*(r.classes if classification else r.outputs))
        widths = (draw.log_integer(*r.inputs), *[width] * depth, outputs)
        num_train = draw.log_integer(*r.num_train)
        low, high = (int(math.log2(b)) for b in r.batch_size)
        shape = MLPShape(
            widths=widths,
            activation=draw.choice(tuple(_ACTIVATIONS)),  # type: ignore[arg-type]
            layer_norm=depth > 0 and draw.chance(0.3),
            classification=classification,
            num_train=num_train,
            batch_size=min(2 ** draw.integer(low, high), num_train),
            horizon=r.horizon[0],
            optimizer="sgd" if draw.chance(r.sgd_share) else "adamw",
            weight_decay=(0.0, 0.01, 0.1)[draw.integer(0, 2)],
            # Of the shape, and not of the task: to evaluate one run is to evaluate its group.
            valid_every=draw.integer(1, 8) if draw.chance(0.5) else 0,
        )
        # Small matrices cost their kernel launches, not their arithmetic: hence the constant.
        cost = shape.num_params + 1000
        while (
            cost * shape.batch_size * r.horizon[0] > r.work and shape.batch_size > r.batch_size[0]
        ):
            shape = replace(shape, batch_size=max(r.batch_size[0], shape.batch_size // 2))
        longest = min(r.horizon[1], max(r.horizon[0], r.work / (cost * shape.batch_size)))
        return replace(shape, horizon=round(draw.equal_cost(r.horizon[0], longest)))

    def build(self, shape: MLPShape, generator: torch.Generator) -> Task:
        """Builds one task: teacher, data, noise, and the start of the learning rate."""
        r, draw = self.ranges, Draw(generator)
        inputs, targets = self._data(shape, draw)
        sizes = [shape.num_train] + [r.eval_rows] * 3
        parts = zip(inputs.split(sizes), targets.split(sizes), strict=True)
        base = draw.log_uniform(*(r.adamw_lr if shape.optimizer == "adamw" else r.sgd_lr))
        return Task(
            partial(build_mlp, shape, draw.log_uniform(*r.gain)),
            cross_entropy if shape.classification else mean_squared_error,
            Splits(*parts),
            horizon=shape.horizon,
            batch_size=shape.batch_size,
            optimizer=OptimizerConfig(
                name=shape.optimizer,
                lr=base * draw.log_uniform(*r.start_factor),
                weight_decay=shape.weight_decay,
            ),
            name=self.name,
            seed=draw.seed(),
            valid_every=shape.valid_every,
        )

    def _data(self, shape: MLPShape, draw: Draw) -> tuple[Tensor, Tensor]:
        r, g = self.ranges, draw.generator
        rows = shape.num_train + 3 * r.eval_rows
        width, outputs = shape.widths[0], shape.widths[-1]
        white = torch.randn(rows, width, generator=g)
        decay = math.log(draw.log_uniform(*r.condition)) / 2
        scales = torch.exp(-decay * torch.linspace(0, 1, width))
        rotation = torch.linalg.qr(torch.randn(width, width, generator=g))[0]
        mixed = white * (scales / scales.square().mean().sqrt()) @ rotation
        noise = draw.log_uniform(*r.label_noise) if draw.chance(0.5) else 0.0
        scale = draw.log_uniform(*r.input_scale)
        if shape.classification and draw.chance(r.cluster_share):
            labels = torch.randint(outputs, (rows,), generator=g)
            centres = torch.randn(outputs, width, generator=g) / math.sqrt(2 * width)
            inputs = (mixed + centres[labels] * draw.log_uniform(*r.separation)) * scale
            return inputs, _with_noise(labels, outputs, noise, g)
        hidden, sharpness = 32, draw.log_uniform(0.5, 3.0)
        first = torch.randn(width, hidden, generator=g) * sharpness / math.sqrt(width)
        second = torch.randn(hidden, outputs, generator=g)
        # The teacher sees white inputs: what matters does not follow what is large.
        seen = white if draw.chance(0.5) else mixed
        scores = torch.tanh(seen @ first) @ second
        scores = (scores - scores.mean(0)) / scores.std(0).clamp(min=1e-6)
        if not shape.classification:
            return mixed * scale, scores + noise * torch.randn(rows, outputs, generator=g)
        return mixed * scale, _with_noise(scores.argmax(1), outputs, noise, g)


def _with_noise(labels: Tensor, classes: int, share: float, generator: torch.Generator) -> Tensor:
    """Labels of which a share is replaced by random ones."""
    wrong = torch.rand(len(labels), generator=generator) < share
    return torch.where(wrong, torch.randint(classes, labels.shape, generator=generator), labels)
