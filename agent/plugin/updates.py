"""The gradients of every update: their statistics, their clipping, and updates that are skipped.

The order of operations within an update is that of the environments' trainer, step for step. The
parameters of a user's job may lie on several devices, in several dtypes and in shards, and have
sparse gradients or none. Nothing here waits for a device, but for the cases that say so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from pacesetter.agent.plugin.directions import SHORT, read_directions
from pacesetter.agent.plugin.distributed import across_shards, by_layout, local_part
from pacesetter.agent.plugin.optimizer_state import Setting
from pacesetter.inner_models.watch.signals import (
    NO_GRADIENT,
    HostSignals,
    IntervalStatistics,
    Reduce,
    TrainingSignals,
)

_HOST = torch.device("cpu")
_KEPT_FLAG = "_pacesetter_found_inf"


class UpdateMonitor:
    """Watches the updates of one optimizer, clips and skips them; in a dry run it only watches.

    `clip_ratio` is the clip threshold over the running mean of gradient norms; infinite: none.
    """

    def __init__(self, clip_ratio: float, *, dry_run: bool = False) -> None:
        self._device, self._dtype = _HOST, torch.float64
        self._dry_run = dry_run
        self._signals: HostSignals | TrainingSignals = HostSignals()
        self._clip_ratio = clip_ratio
        self._ratio = torch.tensor([clip_ratio], dtype=self._dtype)
        self._threshold: float | Tensor = math.inf
        self._thresholds: list[float | Tensor] = []
        self._skipped = 0
        self._skipped_on_device = torch.zeros(1, dtype=torch.int64)
        self._updated = False

    @property
    def threshold(self) -> float:
        """Clip threshold of the latest update. Waits for the device."""
        return float(self._threshold)

    @property
    def skipped(self) -> int:
        """Updates skipped so far, by us or by a `GradScaler`. Waits for the device."""
        return self._skipped + int(self._skipped_on_device)

    def set_clip_ratio(self, clip_ratio: float) -> None:
        self._clip_ratio = clip_ratio
        self._ratio.fill_(clip_ratio)

    @torch.no_grad()
    def on_gradients(
        self, optimizer: Optimizer, *, in_window: bool, latest: Sequence[Setting]
    ) -> bool:
        """Takes the statistics of one update, clips its gradients, or has it skipped.

        Under a `GradScaler` all numbers are those of the unscaled gradients. An update that the
        scaler leaves out is counted as skipped, and as nothing else: it says nothing of the run.
        Directions are compared `in_window`, with the settings of the `latest` update, if there was
        one. Returns whether there are any gradients.
        """
        params = with_gradients(optimizer, coalesce=not self._dry_run)
        if not params:
            return False
        self._updated = True
        grads = gradients_of(params)
        if grads[0].device != self._device:
            self._move_to(grads[0].device)
        # A `GradScaler` tells a fused optimizer what factor its gradients still carry, and whether
        # the update is to be left out. It calls any other with unscaled, finite gradients only.
        carried, found_inf = (optimizer.__dict__.get(n) for n in ("grad_scale", "found_inf"))
        # Squares of scaled numbers may be too great for their own type.
        wide = self._dtype if carried is not None else None
        norm = total_norm(grads, device=self._device, dtype=self._dtype, wide=wide)
        if carried is not None:
            norm = norm / carried.to(self._device, self._dtype)
        left_out = None
        if found_inf is not None:
            left_out = found_inf.to(self._device).reshape(1) > 0
            norm = torch.where(left_out, NO_GRADIENT, norm)
        directions = size = None
        if in_window:
            size = total_norm(params, device=self._device, dtype=self._dtype)
            directions = read_directions(
                optimizer, latest, device=self._device, dtype=self._dtype, carried=carried
            )
        if isinstance(self._signals, HostSignals):
            scale, finite = self._record_on_host(self._signals, norm, size, directions)
            if (left_out is not None and bool(left_out)) or not (finite or self._dry_run):
                self._skipped += 1
            if not (finite or self._dry_run):
                _drop_gradients(params)
            elif scale != 1.0 and not self._dry_run:
                scale_gradients(grads, scale)
            return True
        scales, all_finite = self._record_on_device(self._signals, norm, size, directions)
        if left_out is not None:
            self._skipped_on_device += left_out
        if not self._dry_run and self._unless_skipped(all_finite, optimizer, params):
            scale_gradients(grads, scales)
        return True

    def _record_on_host(
        self, signals: HostSignals, norm: Tensor, size: Tensor | None, found: Tensor | None
    ) -> tuple[float, bool]:
        grad_norm = float(norm)
        scale, self._threshold, finite = signals.record_gradient(grad_norm, self._clip_ratio)
        if size is not None:
            param_norm, directions = float(size), None
            if found is not None:
                numbers = found.tolist()
                directions = (*numbers, math.sqrt(max(numbers[3], 0.0)))
            signals.record_window(
                param_sq=param_norm * param_norm,
                grad_sq=grad_norm * grad_norm,
                directions=directions,
            )
        return scale, finite

    def _record_on_device(
        self, signals: TrainingSignals, norm: Tensor, size: Tensor | None, found: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        scale, self._threshold, finite = signals.record_gradient(norm, self._ratio)
        if size is not None:
            directions = None
            if found is not None:
                a, b, c, d = found[:, None]
                directions = a, b, c, d, d.sqrt()
            signals.record_window(
                param_sq=size.square(), grad_sq=norm.square(), directions=directions
            )
        return scale, finite

    def _unless_skipped(
        self, finite: Tensor, optimizer: Optimizer, params: Sequence[Tensor]
    ) -> bool:
        """Lets an update happen only where `finite` is true; tells whether it does, if known.

        The kernels of a fused optimizer read the flag. For any other the host waits for it, at
        every update: a job on a GPU had better use ``fused=True``.
        """
        if all(group.get("fused") for group in optimizer.param_groups):
            set_found_inf(optimizer, ~finite[0])
            self._skipped_on_device += ~finite
            return True
        happens = bool(finite.item())
        if not happens:
            self._skipped += 1
            _drop_gradients(params)
        return happens

    def record_loss(self, loss: Tensor) -> None:
        """Takes in the loss of the update just done, shape (1,); a step without one is skipped."""
        if not self._updated:
            self._skipped += 1
        self._updated = False
        self._thresholds.append(self._threshold)
        if isinstance(self._signals, HostSignals):
            self._signals.record_loss(float(loss))
        else:
            self._signals.record_loss(loss.to(self._device, self._dtype, non_blocking=True))

    def take_thresholds(self) -> list[float]:
        """Clip thresholds of all steps since the last call, in one copy from the device."""
        kept, self._thresholds = self._thresholds, []
        on_device = [t for t in kept if isinstance(t, Tensor)]
        fetched = iter(torch.cat(on_device).tolist() if on_device else ())
        return [next(fetched) if isinstance(t, Tensor) else t for t in kept]

    def fetch(self, reduce: Reduce | None = None) -> IntervalStatistics:
        """The interval's statistics, in one copy from the device; starts a new interval."""
        return self._signals.fetch(reduce)

    def _move_to(self, device: torch.device) -> None:
        old, self._device = self._signals.state_dict(), device
        self._dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        if device.type == "cpu":
            self._signals = HostSignals()
        else:
            self._signals = TrainingSignals(1, device=device, dtype=self._dtype)
        self._signals.load_state_dict(old)
        self._ratio = self._ratio.to(device, self._dtype)
        self._skipped_on_device = self._skipped_on_device.to(device)
        self._thresholds = [*self.take_thresholds()]

    def state_dict(self) -> dict[str, Any]:
        return {
            "signals": self._signals.state_dict(),
            "ratio": self._clip_ratio,
            "threshold": self.threshold,
            "skipped": self.skipped,
            "updated": self._updated,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._signals.load_state_dict(state["signals"])
        self.set_clip_ratio(state["ratio"])
        self._threshold, self._thresholds = state["threshold"], []
        self._skipped = state["skipped"]
        self._skipped_on_device.zero_()
        self._updated = state["updated"]


def with_gradients(optimizer: Optimizer, *, coalesce: bool = True) -> list[Tensor]:
    """Parameters with a gradient; sparse ones are coalesced in place, lest clipping miss them."""
    params: list[Tensor] = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            grad = param.grad
            if grad is not None:
                if coalesce and grad.is_sparse and not grad.is_coalesced():
                    param.grad = grad.coalesce()
                params.append(param)
    return params


def gradients_of(params: Sequence[Tensor]) -> list[Tensor]:
    """The gradients as dense tensors to read or scale; of a sparse one, its values."""
    grads = [p.grad for p in params if p.grad is not None]
    return [g.coalesce()._values() if g.is_sparse else g for g in grads]


@torch.no_grad()
def overflowed(optimizer: Optimizer) -> bool:
    """Whether gradients are not finite, as where a `GradScaler` left out an update. Waits."""
    norm = _gradient_norm(optimizer)
    return norm is not None and not math.isfinite(norm)


@torch.no_grad()
def only_makes_state(optimizer: Optimizer) -> bool:
    """Whether torch.distributed.checkpoint has state made to load into, at rates of zero."""
    for group in optimizer.param_groups:
        lr = group["lr"]
        if optimizer.state or (isinstance(lr, Tensor) and lr.device.type != "cpu") or lr:
            return False
    return _gradient_norm(optimizer) == 0.0


def _gradient_norm(optimizer: Optimizer) -> float | None:
    """None where there are no gradients. Waits for the device."""
    grads = gradients_of(with_gradients(optimizer, coalesce=False))
    return float(total_norm(grads, device=grads[0].device, dtype=torch.float32)) if grads else None


def total_norm(
    tensors: Iterable[Tensor],
    *,
    device: torch.device,
    dtype: torch.dtype,
    wide: torch.dtype | None = None,
) -> Tensor:
    """Norm of all tensors laid end to end, (1,); of sharded ones, over all their parts.

    There has to be a tensor, and no gradient tracking. Numbers are added up in `wide`; None: in
    their own type, those of 16 bits in float32.
    """
    norms: list[Tensor] = []
    for layout, members in by_layout(tensors).items():
        found: list[Tensor] = []
        own = members if layout is None else map(local_part, members)
        for (_, kind), parts in _by_kind(own).items():
            kept = wide or (torch.float32 if kind in SHORT else None)
            found.append(torch.stack(torch._foreach_norm(parts, 2, kept)).to(device, dtype))
        norm = torch.linalg.vector_norm(found[0] if len(found) == 1 else torch.cat(found))
        if layout is not None:
            norm = across_shards(norm.square(), layout).sqrt()
        norms.append(norm)
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    return norm.reshape(1)


def scale_gradients(grads: Sequence[Tensor], scale: Tensor | float) -> None:
    """Multiplies gradients from `gradients_of` in place by a number, or (1,) on any device."""
    for (device, dtype), members in _by_kind(local_part(g) for g in grads).items():
        if isinstance(scale, Tensor):
            torch._foreach_mul_(members, scale[0].to(device, dtype))
        else:
            torch._foreach_mul_(members, scale)


def _drop_gradients(params: Sequence[Tensor]) -> None:
    for param in params:
        param.grad = None


def set_found_inf(optimizer: Optimizer, broken: Tensor) -> None:
    """Tells the kernels of a fused optimizer whether to leave out the next update.

    The flag is 0-d and boolean. If a `GradScaler` has told it the same, both count.
    """
    own = getattr(optimizer, "found_inf", None)
    flag = broken.to(torch.float32)
    optimizer.__dict__[_KEPT_FLAG] = own
    optimizer.__dict__["found_inf"] = flag if own is None else torch.maximum(flag, own.to(flag))


def restore_found_inf(optimizer: Optimizer) -> None:
    if _KEPT_FLAG not in optimizer.__dict__:
        return
    own = optimizer.__dict__.pop(_KEPT_FLAG)
    if own is None:
        del optimizer.__dict__["found_inf"]
    else:
        optimizer.__dict__["found_inf"] = own


def _by_kind(tensors: Iterable[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[Tensor]]:
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return kinds
