"""What surrounds a model in a training job, and how generated families draw it.

Batch size, horizon, optimizer, and how far the user's learning rate is off: the same for every
family, so that a policy meets each kind of model under each kind of job.
"""

from __future__ import annotations

from dataclasses import dataclass

from pacesetter.inner_models.draw import Draw, check_ranges
from pacesetter.inner_models.task import OptimizerName

ADAM_LRS = (3e-3, 3e-2)
"""Where the best learning rate of Adam lies for most small models; families centre it on theirs."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Sizes and code paths of a job, shared by all tasks of a group.

    Attributes:
        num_train: rows of the train split.
        batch_size: rows per inner step.
        horizon: inner steps.
        optimizer: kind of base optimizer.
        weight_decay: of the base optimizer.
        valid_every: intervals between the validation losses that the agent sees; 0: none.
        endless: whether every step sees fresh rows; the train split is then only for evaluation.
    """

    num_train: int
    batch_size: int
    horizon: int
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.01
    valid_every: int = 0
    endless: bool = False


@dataclass(frozen=True, kw_only=True)
class JobRanges:
    """Ranges that generated families draw a job from; pairs are inclusive, drawn in logarithms.

    Attributes:
        num_train: rows of the train split.
        batch_size: rows per inner step, a power of two.
        horizon: inner steps; long ones are rarer, so that each decade costs about the same.
        gain: factor on the initial weights (tensors of two dimensions or more).
        loss_scale: factor on the loss.
        start_factor: factor by which the start of the learning rate is off from a sensible one.
        adam_lr: a sensible learning rate of AdamW and Adam, centred on the family's best.
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

    num_train: tuple[int, int] = (32, 8192)
    batch_size: tuple[int, int] = (8, 512)
    horizon: tuple[int, int] = (50, 5000)
    gain: tuple[float, float] = (0.5, 2.0)
    loss_scale: tuple[float, float] = (0.01, 100.0)
    start_factor: tuple[float, float] = (0.03, 30.0)
    adam_lr: tuple[float, float] = ADAM_LRS
    sgd_lr: tuple[float, float] = (0.03, 0.3)
    rmsprop_lr: tuple[float, float] = (3e-4, 3e-3)
    adam_share: float = 0.15
    sgd_share: float = 0.2
    rmsprop_share: float = 0.15
    endless_share: float = 0.15
    valid_share: float = 0.5
    work: float = 6e8
    eval_rows: int = 512

    def __post_init__(self) -> None:
        check_ranges(self)
        for name in ("num_train", "batch_size", "horizon"):
            if getattr(self, name)[0] < 1:
                raise ValueError(f"{name} must start at 1 or more, but got {getattr(self, name)}")
        if self.batch_size[0] > self.num_train[0]:
            raise ValueError(
                f"the smallest batch_size must not exceed the smallest num_train, "
                f"{self.num_train[0]}, but got {self.batch_size[0]}"
            )
        if self.adam_share + self.sgd_share + self.rmsprop_share > 1:
            raise ValueError("the shares of Adam, SGD and RMSprop must not exceed 1 together")

    def sensible_lr(self, optimizer: OptimizerName) -> tuple[float, float]:
        """The range of sensible learning rates of an optimizer."""
        if optimizer == "sgd":
            return self.sgd_lr
        return self.rmsprop_lr if optimizer == "rmsprop" else self.adam_lr

    def draw_job(self, draw: Draw, *, cost: float) -> Job:
        """Draws a job.

        Args:
            draw: the random numbers.
            cost: multiply-adds of the forward pass of one row.
        """
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
