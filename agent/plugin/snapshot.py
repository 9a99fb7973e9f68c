"""The last good state of a user's job: weights, buffers and optimizer state, to go back to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import SGD, Optimizer, RMSprop

from pacesetter.agent.plugin.distributed import layout_of

KEPT_BY_DEFAULT = 256 * 2**20
"""Bytes up to which snapshots are taken unless the user says otherwise."""


class JobSnapshot:
    """The last state that has proved good, on the devices where the originals are.

    A loss is that of the weights before its update: what the latest update did is not known yet. So
    a state is kept as a candidate, and is gone back to only when the next interval was good too.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module | None) -> None:
        self._good = _Copy(optimizer, model)
        self._candidate = _Copy(optimizer, model)

    @property
    def taken(self) -> bool:
        return self._good.taken

    def keep(self) -> None:
        """Takes the job as it stands as a candidate, and the last candidate as good.

        The first call takes the untrained job, which is good enough to go back to.
        """
        if not self._good.taken:
            self._good.take()
            return
        if self._candidate.taken:
            self._good, self._candidate = self._candidate, self._good
        self._candidate.take()

    def discard_candidate(self) -> None:
        """Drops the candidate: what came after it was not good."""
        self._candidate.taken = False

    def coverage(self) -> tuple[int, int]:
        """How many weights `restore` would put back, and how many tensors it would leave alone."""
        return self._good.coverage()

    def restore(self) -> None:
        """Puts the job back. What has joined since, or has another shape now, stays as it is."""
        self._good.put_back()
        self.discard_candidate()

    def state_dict(self) -> dict[str, Any]:
        return {"good": self._good.state_dict(), "candidate": self._candidate.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._good.load_state_dict(state["good"])
        self._candidate.load_state_dict(state["candidate"])


class _Copy:
    """One copy of the job's state, by parameter and by name of buffer; its memory is used again."""

    def __init__(self, optimizer: Optimizer, model: nn.Module | None) -> None:
        self.taken = False
        self._optimizer, self._model = optimizer, model
        self._weights: dict[Tensor, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self._states: dict[Tensor, dict[str, Any]] = {}

    @torch.no_grad()
    def take(self) -> None:
        params = [p for p in _params(self._optimizer) if not is_lazy(p)]
        self._weights = {p: _copied(p, self._weights.get(p)) for p in params}
        self._buffers = {n: _copied(b, self._buffers.get(n)) for n, b in self._live_buffers()}
        live = self._optimizer.state
        self._states = {
            p: {n: _copied(v, self._states.get(p, {}).get(n)) for n, v in live.get(p, {}).items()}
            for p in params
        }
        self.taken = True

    def coverage(self) -> tuple[int, int]:
        weights = [_fits(self._weights.get(p), p) for p in _params(self._optimizer)]
        buffers = [_fits(self._buffers.get(n), b) for n, b in self._live_buffers()]
        return sum(weights), [*weights, *buffers].count(False)

    @torch.no_grad()
    def put_back(self) -> None:
        for param in _params(self._optimizer):
            kept = self._weights.get(param)
            if _fits(kept, param):
                param.copy_(kept)
                self._put_back_state(param, self._states[param])
        for name, live in self._live_buffers():
            kept = self._buffers.get(name)
            if _fits(kept, live):
                live.copy_(kept)

    def _put_back_state(self, param: Tensor, kept: dict[str, Any]) -> None:
        if not kept:
            self._optimizer.state.pop(param, None)
            return
        live = self._optimizer.state[param]
        for name in live.keys() - kept.keys():
            del live[name]
        for name, value in kept.items():
            now = live.get(name)
            if isinstance(value, Tensor) and isinstance(now, Tensor) and now.shape == value.shape:
                now.copy_(value)  # in place: compiled steps hold on to it
            else:
                live[name] = cloned(value)

    def _live_buffers(self) -> list[tuple[str, Tensor]]:
        named = () if self._model is None else self._model.named_buffers()
        return [(name, buffer) for name, buffer in named if not is_lazy(buffer)]

    def state_dict(self) -> dict[str, Any] | None:
        if not self.taken or any(layout_of(p) for p in _params(self._optimizer)):
            return None  # others may hold what this process has a shard of
        params = list(_params(self._optimizer))
        return {
            "weights": [cloned(self._weights.get(p)) for p in params],
            "buffers": {n: t.clone() for n, t in self._buffers.items()},
            "states": [{n: cloned(v) for n, v in self._states.get(p, {}).items()} for p in params],
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        self.taken = state is not None
        if state is None:
            return
        rows = zip(_params(self._optimizer), state["weights"], state["states"], strict=False)
        known = [row for row in rows if _fits(row[1], row[0])]
        self._weights = {p: kept.to(p.device, copy=True) for p, kept, _ in known}
        self._states = {p: {n: _moved(v, p) for n, v in found.items()} for p, _, found in known}
        live = dict(self._live_buffers())
        self._buffers = {
            n: t.to(live[n].device, copy=True) for n, t in state["buffers"].items() if n in live
        }


def snapshot_bytes(optimizer: Optimizer, model: nn.Module | None) -> int:
    """Memory that a `JobSnapshot` takes, state that is still to come included; lazy ones: none."""
    total = 0
    for group in optimizer.param_groups:
        slots = _slots(optimizer, group)
        total += sum(_bytes(p) * (1 + slots) for p in group["params"])
    return 2 * (total + sum(map(_bytes, model.buffers() if model is not None else ())))


def _bytes(tensor: Tensor) -> int:
    return 0 if is_lazy(tensor) else tensor.numel() * tensor.element_size()


def _slots(optimizer: Optimizer, group: dict[str, Any]) -> int:
    momentum = bool(group.get("momentum"))
    if isinstance(optimizer, SGD):
        return int(momentum)
    if isinstance(optimizer, RMSprop):
        return 1 + int(momentum) + int(bool(group.get("centered")))
    return 2 + int(bool(group.get("amsgrad")))


def _params(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _fits(kept: Tensor | None, live: Tensor) -> TypeGuard[Tensor]:
    """Whether a copy is that of this tensor as it is now; lazy ones have no shape yet."""
    return kept is not None and not is_lazy(live) and live.shape == kept.shape


def _copied(live: Any, kept: Any) -> Any:
    """A copy, made in what is there already where it fits."""
    if not isinstance(live, Tensor):
        return live
    fits = isinstance(kept, Tensor) and live.shape == kept.shape and live.dtype == kept.dtype
    if not fits or live.device != kept.device:
        return live.detach().clone()
    return kept.copy_(live)


def cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _moved(value: Any, param: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    # Adam's step counter lives on the host unless fused or capturable.
    return value.clone() if value.dim() == 0 else value.to(param.device, copy=True)
