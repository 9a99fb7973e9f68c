"""Optimizers for N runs at once, with hyperparameters of one number per run.

All parameters of all runs live in one flat buffer of shape (num_runs, num_params). The updates are
those of `torch.optim` (bias correction by ``beta1 ** t`` with the beta1 of the moment included),
so an agent that is trained here meets the same optimizer in a job.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pacesetter.inner_models.task import OptimizerConfig, OptimizerName


class BatchedOptimizer(ABC):
    """Updates a (num_runs, num_params) buffer in place.

    Learning rate and momentum of `config` are given anew at every step.
    """

    def __init__(self, params: Tensor, config: OptimizerConfig) -> None:
        self.params = params
        self.config = config
        self.weight_decay: float | Tensor = config.weight_decay
        self.buffer = torch.zeros_like(params)
        self.steps = params.new_zeros(len(params), 1)
        self._work = torch.empty_like(params)

    @abstractmethod
    def step(self, grads: Tensor, *, lr: Tensor, momentum: Tensor, keep: Tensor | None) -> None:
        """One update.

        Args:
            grads: (num_runs, num_params), may be overwritten; rows that are not kept hold zeros.
            lr: (num_runs, 1).
            momentum: (num_runs, 1).
            keep: (num_runs, 1) of ones and zeros; a run with a zero is skipped, its state and
                step count untouched. None keeps all.
        """

    def state(self) -> list[Tensor]:
        """All that it remembers, tensors of (num_runs, ...) that are written in place."""
        return [self.buffer, self.steps]

    def decay_by(self, weight_decay: Tensor) -> None:
        """Gives each run a weight decay of its own, (num_runs,); to be called before any step."""
        self.weight_decay = weight_decay.to(self.params)[:, None]

    def _add_decay(self, grads: Tensor, keep: Tensor | None) -> None:
        """Adds weight decay to the gradients, as all but AdamW do."""
        if isinstance(self.weight_decay, Tensor) or self.weight_decay:
            # A skipped run's state must not see it; its weights may no longer be finite.
            decayed = self.params if keep is None else torch.where(keep > 0, self.params, 0.0)
            if isinstance(self.weight_decay, Tensor):
                grads.addcmul_(decayed, self.weight_decay)
            else:
                grads.add_(decayed, alpha=self.weight_decay)

    def update_direction(self, momentum: Tensor) -> Tensor:
        """The latest update per unit of learning rate, before weight decay: (num_runs, num_params).

        Derived from the optimizer's own state, and overwritten by the next call or step.
        `momentum`, (num_runs, 1), is that of the latest step.
        """
        return self.buffer


class _WithSecondMoment(BatchedOptimizer):
    def __init__(self, params: Tensor, config: OptimizerConfig) -> None:
        super().__init__(params, config)
        self.second = torch.zeros_like(params)

    def state(self) -> list[Tensor]:
        return [*super().state(), self.second]


class BatchedAdam(_WithSecondMoment):
    """Adam (Kingma & Ba 2015), equal to `torch.optim.Adam` run by run."""

    def step(self, grads: Tensor, *, lr: Tensor, momentum: Tensor, keep: Tensor | None) -> None:
        self._decay(grads, lr=lr, keep=keep)
        beta2 = self.config.beta2
        if keep is None:
            self.steps += 1
            self.buffer.lerp_(grads, 1 - momentum)
            self.second.mul_(beta2)
        else:
            self.steps += keep
            lr = lr * keep
            self.buffer.lerp_(grads, (1 - momentum) * keep)
            self.second.mul_(1 - (1 - beta2) * keep)
        self.second.addcmul_(grads, grads, value=1 - beta2)
        self.params.addcmul_(self.update_direction(momentum), -lr)

    def _decay(self, grads: Tensor, *, lr: Tensor, keep: Tensor | None) -> None:
        self._add_decay(grads, keep)

    def update_direction(self, momentum: Tensor) -> Tensor:
        # A run whose every step was skipped has no step yet: its buffer is zero, as is its update.
        steps = self.steps.clamp(min=1)
        correction2 = (1 - self.config.beta2**steps).sqrt()
        torch.sqrt(self.second, out=self._work).add_(self.config.eps * correction2)
        torch.div(self.buffer, self._work, out=self._work)
        return self._work.mul_(correction2 / (1 - momentum**steps))


class BatchedAdamW(BatchedAdam):
    """AdamW (Loshchilov & Hutter 2019), equal to `torch.optim.AdamW` run by run."""

    def _decay(self, grads: Tensor, *, lr: Tensor, keep: Tensor | None) -> None:
        if isinstance(self.weight_decay, Tensor) or self.weight_decay:
            self.params.mul_(1 - (lr if keep is None else lr * keep) * self.weight_decay)


class BatchedSGD(BatchedOptimizer):
    """SGD with momentum (dampening 0, no Nesterov), equal to `torch.optim.SGD` run by run."""

    def step(self, grads: Tensor, *, lr: Tensor, momentum: Tensor, keep: Tensor | None) -> None:
        self._add_decay(grads, keep)
        if keep is None:
            self.steps += 1
            self.buffer.mul_(momentum)
        else:
            self.steps += keep
            lr = lr * keep
            self.buffer.mul_(torch.where(keep > 0, momentum, 1.0))
        self.buffer.add_(grads)
        self.params.addcmul_(self.buffer, -lr)


class BatchedRMSprop(_WithSecondMoment):
    """RMSprop with momentum (Tieleman & Hinton 2012), equal to `torch.optim.RMSprop` run by run."""

    def step(self, grads: Tensor, *, lr: Tensor, momentum: Tensor, keep: Tensor | None) -> None:
        self._add_decay(grads, keep)
        alpha = self.config.beta2
        if keep is None:
            self.steps += 1
            self.second.mul_(alpha)
            self.buffer.mul_(momentum)
        else:
            self.steps += keep
            lr = lr * keep
            self.second.mul_(1 - (1 - alpha) * keep)
            self.buffer.mul_(torch.where(keep > 0, momentum, 1.0))
        self.second.addcmul_(grads, grads, value=1 - alpha)
        torch.sqrt(self.second, out=self._work).add_(self.config.eps)
        # Where a row is skipped its gradient is zero: nothing is added to its buffer.
        self.buffer.addcdiv_(grads, self._work)
        self.params.addcmul_(self.buffer, -lr)


_OPTIMIZERS: dict[OptimizerName, type[BatchedOptimizer]] = {
    "adamw": BatchedAdamW,
    "adam": BatchedAdam,
    "sgd": BatchedSGD,
    "rmsprop": BatchedRMSprop,
}


def make_optimizer(params: Tensor, config: OptimizerConfig) -> BatchedOptimizer:
    return _OPTIMIZERS[config.name](params, config)
