"""Hooks on an optimizer, and other schedulers on it.

The hooks hold their scheduler weakly, so that neither keeps the other alive; when the scheduler
goes, its hooks go.
"""

from __future__ import annotations

import gc
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pacesetter.agent.plugin.updates import only_makes_state

RECIPE = (
    "step() needs the loss of the update just done: step(loss). SequentialLR, ChainedScheduler and "
    "the like cannot drive a LearnedScheduler. For a warm-up of your own before it, step your "
    "warm-up scheduler by itself for N updates and make LearnedScheduler(optimizer, total_steps, "
    "warmup_steps=N)"
)


class Listener(Protocol):
    """What the hooks call, in this order, at every update."""

    def before_update(self) -> None: ...  # with a closure there are no gradients yet
    def on_gradients(self) -> None: ...
    def after_update(self) -> None: ...


# Of all functions that torch puts in the place of an optimizer's ``step``.
_HOOKED_STEP = Optimizer.profile_hook_step(lambda: None).__code__
_LISTENERS: WeakKeyDictionary[Optimizer, weakref.ref[Listener]] = WeakKeyDictionary()


def attach(optimizer: Optimizer, listener: Listener) -> Callable[[], Any]:
    """Registers the only listener, held weakly; returns what takes the hooks off.

    That also runs when the listener goes; further calls of it do nothing.
    """
    held = _LISTENERS.get(optimizer)
    if held is not None and held() is not None:
        raise ValueError(
            "this optimizer has a LearnedScheduler already: take it off with its "
            "detach(restore=True) first, or make the optimizer anew"
        )
    mine = weakref.ref(listener)
    # A subclass that calls ``super().step()`` may come by twice in one update. An update that ends
    # in an exception has no end here: whether one is under way, only the stack can tell.
    under_way = nested = False

    def before(opt: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal under_way, nested
        found = mine()
        nested = under_way and _depth(opt) > 1
        if found is None or nested:
            return None
        under_way = True
        return _begin(found, args, kwargs)

    def after(opt: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal under_way, nested
        if nested and _depth(opt) > 1:
            return
        under_way = nested = False
        found = mine()
        if found is not None:
            found.after_update()

    # A compiled ``optimizer.step`` calls them as they are: traced, they would be compiled anew with
    # every number that changes.
    handles = (
        optimizer.register_step_pre_hook(torch.compiler.disable(before)),
        optimizer.register_step_post_hook(torch.compiler.disable(after)),
    )
    _LISTENERS[optimizer] = mine
    where = weakref.ref(optimizer)

    def take_off() -> None:
        for handle in handles:
            handle.remove()
        found = where()
        if found is not None and _LISTENERS.get(found) is mine:
            del _LISTENERS[found]

    finalizer = weakref.finalize(listener, take_off)
    finalizer.atexit = False
    return finalizer


def _depth(optimizer: Optimizer) -> int:
    """How many calls of the optimizer's ``step`` are under way, one within the other."""
    frame: FrameType | None = sys._getframe(1)
    depth = 0
    while frame is not None:
        if frame.f_code is _HOOKED_STEP:
            depth += frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return depth


def _begin(listener: Listener, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls the listener now or, where a closure makes the gradients, as soon as it has."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        if not only_makes_state(args[0]):
            listener.before_update()
            listener.on_gradients()
        return None
    listener.before_update()

    def with_statistics() -> Any:
        loss = closure()
        listener.on_gradients()
        return loss

    if len(args) > 1:
        return (args[0], with_statistics, *args[2:]), kwargs
    return args, {**kwargs, "closure": with_statistics}


def warn_of_others(optimizer: Optimizer, groups: Sequence[int], *, stacklevel: int) -> None:
    """Warns of whatever else sets the param groups with these numbers."""
    # Slow, but called once.
    others = {
        type(found).__name__
        for found in gc.get_objects()
        if issubclass(type(found), LRScheduler) and getattr(found, "optimizer", None) is optimizer
    }
    warnings.warn(
        f"{', '.join(sorted(others)) or 'something else'} changed the learning rate or momentum of "
        f"param groups {list(groups)}, which LearnedScheduler sets: it overrules such changes. "
        "Take the other scheduler away, or this one with detach()",
        stacklevel=stacklevel,
    )
