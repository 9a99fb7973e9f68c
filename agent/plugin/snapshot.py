"""The last good state of a user's job: weights, buffers and optimizer state, to go back to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer, RMSprop

from pacesetter.agent.plugin.distributed import layout_of

KEPT_BY_DEFAULT = 256 * 2**20
"""Bytes up to which snapshots are taken unless the user says otherwise."""


class JobSnapshot:
    """The last state that has proved good, on the devices where the originals are.

    A loss is that of the weights before its update: what the latest update did is not known yet. So
    a state is kept as a candidate, and is gone back to only when the next interval was good too.

    Args:
        optimizer: whose parameters and state.
        model: whose buffers; None: there are none that matter.
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

    def restore(self) -> None:
        """Puts the job back. Parameters that have joined since `keep` stay as they are."""
        self._good.put_back()
        self.discard_candidate()

    def state_dict(self) -> dict[str, Any]:
        return {"good": self._good.state_dict(), "candidate": self._candidate.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._good.load_state_dict(state["good"])
        self._candidate.load_state_dict(state["candidate"])


class _Copy:
    """One copy of the job's state; its memory is used again."""

    def __init__(self, optimizer: Optimizer, model: nn.Module | None) -> None:
        self.taken = False
        self._optimizer = optimizer
        self._model = model
        self._weights: list[Tensor] = []
        self._buffers: dict[str, Tensor] = {}
        self._states: list[dict[str, Any]] = []

    @torch.no_grad()
    def take(self) -> None:
        params = list(_params(self._optimizer))
        self._weights = _copies(params, self._weights)
        buffers = self._live_buffers()
        kept = _copies(list(buffers.values()), list(self._buffers.values()))
        self._buffers = dict(zip(buffers, kept, strict=True))
        states = [self._optimizer.state.get(p, {}) for p in params]
        old = self._states if len(self._states) == len(states) else [{} for _ in states]
        self._states = [_kept_state(s, o) for s, o in zip(states, old, strict=True)]
        self.taken = True

    @torch.no_grad()
    def put_back(self) -> None:
        params = list(_params(self._optimizer))
        for param, kept in zip(params, self._weights, strict=False):
            param.copy_(kept)
        live = self._live_buffers()
        for name, kept in self._buffers.items():
            if name in live:
                live[name].copy_(kept)
        for param, state in zip(params, self._states, strict=False):
            self._put_back_state(param, state)

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
                live[name] = _cloned(value)

    def _live_buffers(self) -> dict[str, Tensor]:
        return {} if self._model is None else dict(self._model.named_buffers())

    def state_dict(self) -> dict[str, Any] | None:
        if not self.taken or any(layout_of(p) for p in _params(self._optimizer)):
            return None  # others may hold what this process has a shard of
        return {
            "weights": [t.clone() for t in self._weights],
            "buffers": {n: t.clone() for n, t in self._buffers.items()},
            "states": [{n: _cloned(v) for n, v in s.items()} for s in self._states],
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        self.taken = state is not None
        if state is None:
            return
        params = list(_params(self._optimizer))
        pairs = zip(state["weights"], params, strict=False)
        self._weights = [kept.to(p.device, copy=True) for kept, p in pairs]
        live = self._live_buffers()
        self._buffers = {
            n: t.to(live[n].device, copy=True) for n, t in state["buffers"].items() if n in live
        }
        self._states = [
            {n: _moved(v, p) for n, v in s.items()}
            for s, p in zip(state["states"], params, strict=False)
        ]


def snapshot_bytes(optimizer: Optimizer, model: nn.Module | None) -> int:
    """Memory that a `JobSnapshot` takes, optimizer state that is still to come included."""
    total = 0
    for group in optimizer.param_groups:
        slots = _slots(optimizer, group)
        total += sum(p.numel() * p.element_size() * (1 + slots) for p in group["params"])
    buffers = [] if model is None else list(model.buffers())
    return 2 * (total + sum(b.numel() * b.element_size() for b in buffers))


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


def _copies(live: Sequence[Tensor], kept: Sequence[Tensor]) -> list[Tensor]:
    """Copies into what is there already, where it fits."""
    fits = len(live) == len(kept) and all(
        a.shape == b.shape and a.device == b.device and a.dtype == b.dtype
        for a, b in zip(live, kept, strict=True)
    )
    if not fits:
        return [t.detach().clone() for t in live]
    for source, target in zip(live, kept, strict=True):
        target.copy_(source)
    return list(kept)


def _kept_state(live: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in live.items():
        if isinstance(value, Tensor):
            old = kept.get(name)
            found[name] = _copies([value], [old] if isinstance(old, Tensor) else [])[0]
        else:
            found[name] = value
    return found


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _moved(value: Any, param: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    # Adam's step counter lives on the host unless fused or capturable.
    return value.clone() if value.dim() == 0 else value.to(param.device, copy=True)
