"""Losses and gradients of N runs, in the fastest form that the model and its loss allow.

The forms, from the fastest: `torch.func.vmap` over tasks and, within a task, over siblings that
look at one batch; the same with a view of the batch for each sibling; one run after another. Where
a form fails, the next is tried, and stays.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from pacesetter.inner_models.blame import blame
from pacesetter.inner_models.functional import LossModule
from pacesetter.inner_models.memory import is_out_of_memory
from pacesetter.inner_models.run_stack import RunStack
from pacesetter.inner_models.task import Batch, Task
from pacesetter.inner_models.tracing import Program, trace
from pacesetter.inner_models.twins import swap_twins

Form = Callable[[Batch], Tensor]


class LossProgram:
    """What every run's loss and gradient are.

    Args:
        task: any of the tasks; they share model code and loss.
        stack: the runs' parameters and buffers; buffers are updated by training.
        traced: whether to trace the batched program (see `tracing`).
    """

    def __init__(self, task: Task, stack: RunStack, *, traced: bool) -> None:
        self._task, self._stack = task, stack
        self._plain = LossModule(stack.model, task.loss)
        self._twin = LossModule(swap_twins(stack.model), task.loss)
        self._grid = next(iter(stack.leaves.values())).shape[:2]
        self._on_cpu = stack.params.device.type == "cpu"
        self._forms: list[Form] = [self._shared_batch, self._batch_each, self._one_by_one]
        self._traced = traced
        self._program: Program | None = None

    @property
    def batched(self) -> bool:
        """Whether runs go side by side; known once a loss has been computed."""
        return len(self._forms) > 1

    def train(self, mode: bool = True) -> None:
        """Switches all models between training and evaluation."""
        self._plain.train(mode)
        self._twin.train(mode)

    def losses(self, batch: Batch) -> Tensor:
        """Losses on a batch, (num_tasks, siblings).

        Args:
            batch: every tensor (num_tasks, rows, ...).

        Raises:
            ValueError: the loss is not one number.
        """
        while True:
            try:
                with self._kernels():
                    return self._forms[0](batch)
            except (RuntimeError, NotImplementedError) as error:
                # A form that torch.func cannot batch gives way to the next; what the last one
                # raises is the user's own error, and needs no warning about batching.
                if len(self._forms) == 1 or is_out_of_memory(error):
                    raise
                failed = self._forms.pop(0)
                if len(self._forms) == 1:
                    losses = self._forms[0](batch)
                    self._warn(failed, batch, error)
                    return losses

    def gradients(self, batch: Batch) -> Tensor:
        """Losses on a batch, (num_tasks, siblings); writes the gradients into the stack.

        Args:
            batch: every tensor (num_tasks, rows, ...).
        """
        leaves = list(self._stack.leaves.values())
        if self._traced:
            self._traced = False
            self._program = self._trace(batch)
        if self._program is not None:
            inputs = (*(leaf.detach() for leaf in leaves), *self._stack.fixed.values(), *batch)
            losses, *parts = self._program(*inputs)
        else:
            losses = self.losses(batch)
            parts = list(torch.autograd.grad(losses.sum(), leaves))
            losses = losses.detach()
        self._stack.write_gradients(parts)
        return losses

    def _trace(self, batch: Batch) -> Program | None:
        """The program of losses and gradients as a list of operations."""
        # A first look, whose result and effects are dropped, settles which form it is.
        fixed = {name: value.clone() for name, value in self._stack.fixed.items()}
        with torch.random.fork_rng():
            self.losses(batch)
        for name, value in fixed.items():
            self._stack.fixed[name].copy_(value)
        if len(self._forms) == 1:
            return None
        form, num_leaves = self._forms[0], len(self._stack.leaves)
        own = self._stack.leaves, self._stack.fixed

        def program(*inputs: Tensor) -> Sequence[Tensor]:
            leaves = [leaf.detach().requires_grad_() for leaf in inputs[:num_leaves]]
            rest = inputs[num_leaves:]
            self._stack.leaves = dict(zip(own[0], leaves, strict=True))
            self._stack.fixed = dict(zip(own[1], rest, strict=False))
            losses = form(tuple(rest[len(own[1]) :]))
            return losses.detach(), *torch.autograd.grad(losses.sum(), leaves)

        inputs = (*(leaf.detach() for leaf in own[0].values()), *own[1].values(), *batch)
        try:
            with self._kernels():
                return trace(program, inputs)
        finally:
            self._stack.leaves, self._stack.fixed = own

    def _kernels(self) -> AbstractContextManager[object]:
        # The CPU's fused attention has no batching rule; the plain one batches.
        return sdpa_kernel(SDPBackend.MATH) if self._on_cpu else nullcontext()

    def _one_loss(
        self, module: LossModule, params: dict[str, Tensor], fixed: dict[str, Tensor], batch: Batch
    ) -> Tensor:
        loss = functional_call(module, (params, fixed), batch)
        if not isinstance(loss, Tensor) or loss.ndim:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else loss
            raise ValueError(
                f"the loss of task {self._task.name!r} must be one number, the mean over the "
                f"batch, but got {what}"
            )
        return loss

    def _shared_batch(self, batch: Batch) -> Tensor:
        """Siblings see one batch, so that the first layer needs no copies of it."""

        def one(params: dict[str, Tensor], fixed: dict[str, Tensor], own: Batch) -> Tensor:
            return self._one_loss(self._twin, params, fixed, own)

        inner = vmap(one, in_dims=(0, 0, None), randomness="same")
        outer = vmap(inner, randomness="different")
        losses: Tensor = outer(self._stack.leaves, self._stack.fixed, batch)
        return losses

    def _batch_each(self, batch: Batch) -> Tensor:
        """Each sibling sees its own view of the batch, which some batching rules insist on."""

        def one(params: dict[str, Tensor], fixed: dict[str, Tensor], own: Batch) -> Tensor:
            return self._one_loss(self._twin, params, fixed, own)

        siblings = self._grid[1]
        each = tuple(c[:, None].expand(-1, siblings, *c.shape[1:]) for c in batch)
        outer = vmap(vmap(one, randomness="same"), randomness="different")
        losses: Tensor = outer(self._stack.leaves, self._stack.fixed, each)
        return losses

    def _one_by_one(self, batch: Batch) -> Tensor:
        rows, device = [], self._stack.params.device
        for t in range(self._grid[0]):
            own = tuple(column[t] for column in batch)
            state = _random_state(device)
            for s in range(self._grid[1]):
                # Siblings draw the same masks.
                _random_state(device, state)
                params = {name: leaf[t, s] for name, leaf in self._stack.leaves.items()}
                fixed = {name: value[t, s] for name, value in self._stack.fixed.items()}
                rows.append(self._one_loss(self._plain, params, fixed, own))
        return torch.stack(rows).view(self._grid)

    def _warn(self, failed: Form, batch: Batch, error: Exception) -> None:
        culprit = blame(self._twin.model, lambda: failed(batch))
        where = culprit or "its loss"
        warnings.warn(
            f"task {self._task.name!r}: torch.func.vmap cannot batch {where}, so runs go one after "
            f"another ({str(error).splitlines()[0]})",
            stacklevel=4,
        )


def _random_state(device: torch.device, new: Tensor | None = None) -> Tensor:
    """The state of torch's global generator on a device, after setting it to `new` if given."""
    if device.type == "cuda":
        if new is not None:
            torch.cuda.set_rng_state(new, device)
        return torch.cuda.get_rng_state(device)
    if new is not None:
        torch.set_rng_state(new)
    return torch.get_rng_state()
