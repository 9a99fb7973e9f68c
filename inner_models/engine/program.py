"""Losses and gradients of N runs, in the fastest form that the model and its loss allow.

The forms, from the fastest: `torch.func.vmap` over tasks and, within a task, over siblings that
look at one batch; the same with a view of the batch for each sibling; one run after another. Where
a form fails, the next is tried, and stays.
"""

from __future__ import annotations

import gc
import logging
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from pacesetter.inner_models.engine.rewrites import simplify
from pacesetter.inner_models.engine.state import RunStack
from pacesetter.inner_models.task import Batch, LossFn, Task
from pacesetter.inner_models.twins.substitution import swap_twins

TRACE_FROM = 200
"""Shortest horizon for which a trace (about 0.1 to 0.5 seconds) pays."""

Program = Callable[..., Sequence[Tensor]]
"""From tensors, one by one, to a sequence of tensors."""

Form = Callable[[Batch], Tensor]

_log = logging.getLogger(__name__)


class LossModule(nn.Module):
    """A model (under ``model.``) and its loss as one module, for `functional_call`."""

    def __init__(self, model: nn.Module, loss: LossFn) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss_fn(self.model, batch)


class LossProgram:
    """Losses and gradients of all runs of a stack; `task` is any of their tasks."""

    def __init__(self, task: Task, stack: RunStack, *, traced: bool) -> None:
        self._task, self._stack = task, stack
        self._plain = LossModule(stack.model, task.loss)
        self._twin = swap_twins(self._plain)
        self._grid = next(iter(stack.leaves.values())).shape[:2]
        self._forms: list[Form] = [self._shared_batch, self._batch_each, self._one_by_one]
        self._settled: set[bool] = set()
        self._warned = False
        self._traced = traced
        self._program: Program | None = None

    @property
    def batched(self) -> bool:
        """Whether runs go side by side; known once a loss has been computed."""
        return len(self._forms) > 1

    def train(self, mode: bool = True) -> None:
        self._plain.train(mode)
        self._twin.train(mode)

    def losses(self, batch: Batch) -> Tensor:
        """Losses, (num_tasks, siblings), on a batch of tensors (num_tasks, rows, ...).

        Raises:
            ValueError: the loss is not one number.
        """
        if self._plain.training in self._settled:
            return self._forms[0](batch)
        kept = self._effects()
        while True:
            try:
                losses = self._forms[0](batch)
            except (RuntimeError, NotImplementedError) as error:
                # A form that torch.func cannot batch is replaced by the next; what the last one
                # raises is the user's own error, and needs no warning about batching.
                if len(self._forms) == 1 or is_out_of_memory(error):
                    raise
                failed, why = self._forms.pop(0), error
                self._undo(kept)
            else:
                break
        self._settled.add(self._plain.training)
        if not self.batched and not self._warned:
            self._warned = True
            after = self._effects()
            culprit = failing_module(self._stack.model, lambda: failed(batch))
            self._undo(after)
            warnings.warn(
                f"task {self._task.name!r}: torch.func.vmap cannot batch {culprit or 'its loss'}, "
                f"so runs go one after another ({str(why).splitlines()[0]})",
                stacklevel=3,
            )
        return losses

    def _effects(self) -> tuple[Tensor, list[Tensor]]:
        """What a forward pass changes: the state of random numbers, and buffers."""
        state = _random_state(self._stack.params.device)
        return state, [value.clone() for value in self._stack.fixed.values()]

    def _undo(self, effects: tuple[Tensor, list[Tensor]]) -> None:
        _random_state(self._stack.params.device, effects[0])
        for value, old in zip(self._stack.fixed.values(), effects[1], strict=True):
            # Through `data`: a backward pass that is still to come must not take it for a change.
            value.data.copy_(old)

    def gradients(self, batch: Batch) -> Tensor:
        """Losses as `losses` computes them; writes the gradients into the stack."""
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
        # A first look, whose effects are undone, settles which form it is.
        kept = self._effects()
        self.losses(batch)
        self._undo(kept)
        if not self.batched:
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
            return trace(program, inputs)
        finally:
            self._stack.leaves, self._stack.fixed = own

    def _one_loss(
        self, module: nn.Module, params: dict[str, Tensor], fixed: dict[str, Tensor], batch: Batch
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
        return self._side_by_side(batch, None)

    def _batch_each(self, batch: Batch) -> Tensor:
        """Each sibling sees its own view of the batch, which some batching rules require."""
        siblings = self._grid[1]
        return self._side_by_side(
            tuple(c[:, None].expand(-1, siblings, *c.shape[1:]) for c in batch), 0
        )

    def _side_by_side(self, batch: Batch, batch_dim: int | None) -> Tensor:
        def one(params: dict[str, Tensor], fixed: dict[str, Tensor], own: Batch) -> Tensor:
            return self._one_loss(self._twin, params, fixed, own)

        inner = vmap(one, in_dims=(0, 0, batch_dim), randomness="same")
        outer = vmap(inner, randomness="different")
        losses: Tensor = outer(self._stack.leaves, self._stack.fixed, batch)
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


def _random_state(device: torch.device, new: Tensor | None = None) -> Tensor:
    """The state of torch's global generator on a device, after setting it to `new` if given."""
    if device.type == "cuda":
        if new is not None:
            torch.cuda.set_rng_state(new, device)
        return torch.cuda.get_rng_state(device)
    if new is not None:
        torch.set_rng_state(new)
    return torch.get_rng_state()


def trace(program: Program, inputs: Sequence[Tensor]) -> Program | None:
    """A faster program for inputs like these, which stay as they are; None if it cannot be traced.

    What a trace cannot see is fixed in it for good: Python numbers that change from call to call,
    and Python's own random numbers. Tensors, buffers and torch's random numbers are all right.
    """
    try:
        traced = make_fx(program, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
        simplify(traced.graph)
        traced.recompile()
    # Whatever it is that a trace stumbles over, the program itself works without one.
    except Exception as error:
        _log.info("the inner step is not traced: %s", error)
        return None
    forward: Program = traced.forward

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            return forward(*tensors)

    return run


def failing_module(model: nn.Module, call: Callable[[], object]) -> str | None:
    """The innermost module at work when a call failed, such as ``"`encoder.rnn` (MyLayer)"``.

    None where the call succeeds, or fails outside of the model's modules.
    """
    at_work: list[str] = []
    handles = []
    for name, module in model.named_modules():
        label = f"`{name or 'the model'}` ({type(module).__name__})"

        def enter(_: nn.Module, __: Any, label: str = label) -> None:
            at_work.append(label)

        def leave(_: nn.Module, __: Any, ___: Any) -> None:
            at_work.pop()

        handles += [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave),
        ]
    try:
        call()
    except Exception:
        return at_work[-1] if at_work else None
    finally:
        for handle in handles:
            handle.remove()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def out_of_memory(
    error: BaseException, *, num_runs: int, attempt: Callable[[int], None]
) -> torch.OutOfMemoryError:
    """Makes an error that names the number of runs that would fit, found by trying.

    `attempt` trains so many runs for a step, and raises when they do not fit either.
    """
    # The frames that failed still hold their tensors.
    _release_frames(error)
    fits, too_many = 0, num_runs
    while too_many - fits > max(1, fits // 16):
        middle = (fits + too_many) // 2
        try:
            attempt(middle)
            fits = middle
        except (RuntimeError, MemoryError) as failure:
            if not is_out_of_memory(failure):
                break
            _release_frames(failure)
            too_many = middle
    advice = (
        f"{fits} would fit: lower the number of groups, tasks or siblings"
        if fits
        else "not even one would fit: lower the batch size or the model"
    )
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return torch.OutOfMemoryError(
        f"out of memory with {num_runs} runs side by side; {advice} ({first})"
    )


def _release_frames(error: BaseException) -> None:
    """Frees what the frames that raised an error still hold."""
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
