"""Jobs on several processes: common decisions, and tensors that are sharded.

With data parallelism every process sees other losses, and all have to take the same decisions:
`Group` averages the statistics and broadcasts the decision. Sharded parameters (FSDP2, tensor
parallelism) are DTensors: `Layout` tells how, and `across_shards` adds up. Shards that are plain
tensors (FSDP1, ZeroRedundancyOptimizer) cannot be told from whole ones: they are refused. Where
torch.distributed is not in use, nothing here costs anything.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from typing import Any, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor

from pacesetter.envs.actions import FloatArray

Layout: TypeAlias = "tuple[Any, Any] | None"
"""Mesh and placements of a DTensor; None for a tensor that is whole on every process."""


class Group:
    """The processes that train one model; None: torch's default group, once there is one."""

    def __init__(self, process_group: Any = None) -> None:
        self._group = process_group

    @property
    def size(self) -> int:
        """How many processes there are; 1 where torch.distributed is not in use."""
        if not dist.is_available() or not dist.is_initialized():
            return 1
        return dist.get_world_size(self._group)

    def reduce(self, rows: FloatArray) -> FloatArray:
        """Mean over all processes, which all have to call it, with the same shape."""
        size = self.size
        if size == 1:
            return rows
        table = self._to_device(rows)
        dist.all_reduce(table, group=self._group)
        return _to_host(table / size)

    def broadcast(self, array: FloatArray) -> FloatArray:
        """What the group's first process has, on all of them; shapes have to agree."""
        if self.size == 1:
            return array
        table = self._to_device(array)
        first = 0 if self._group is None else dist.get_global_rank(self._group, 0)
        dist.broadcast(table, src=first, group=self._group)
        return _to_host(table)

    def _to_device(self, array: FloatArray) -> Tensor:
        """A copy where the group's backend can read it: NCCL reads no host memory."""
        backend = str(dist.get_backend(self._group))
        on_host = "gloo" in backend or "mpi" in backend
        device = "cpu" if on_host else torch.device("cuda", torch.cuda.current_device())
        return torch.tensor(array, dtype=torch.float64, device=device)


def _to_host(table: Tensor) -> FloatArray:
    array: FloatArray = table.cpu().numpy()
    return array


def refuse_plain_shards(optimizer: Any) -> None:
    """Refuses, with a TypeError, optimizers of which each process has a part and cannot tell."""
    if Group().size == 1:
        return
    params = [p for g in getattr(optimizer, "param_groups", ()) for p in g["params"]]
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    kind = () if module is None else module.ZeroRedundancyOptimizer
    zeros = [found for found in gc.get_objects() if issubclass(type(found), kind)]
    sharding = ""
    if any(getattr(p, "_fsdp_flattened", False) for p in params):
        sharding = "FullyShardedDataParallel (FSDP1)"
    elif any(optimizer in (zero, zero.__dict__.get("optim")) for zero in zeros):
        sharding = "ZeroRedundancyOptimizer"
    if sharding:
        raise TypeError(
            f"LearnedScheduler does not work with {sharding}: each rank would clip and skip "
            "updates by its own shard. Shard with FSDP2, torch.distributed.fsdp.fully_shard (in "
            "Accelerate fsdp_version=2, in Lightning ModelParallelStrategy), or use plain DDP"
        )


def sealed(part: Any) -> Any:
    """A state with the same entries at every step: torch.distributed.checkpoint loads in place.

    What may change its shape is put into a tuple of one, which that takes as one thing.
    """
    if isinstance(part, dict):
        return {n: (p,) if n == "snapshot" else sealed(p) for n, p in part.items()}
    return part if isinstance(part, bool | int | float | str) else (part,)


def opened(state: Any) -> Any:
    """What was given to `sealed`; anything else as it is."""
    if isinstance(state, dict):
        return {name: opened(part) for name, part in state.items()}
    return state[0] if isinstance(state, tuple) and len(state) == 1 else state


def layout_of(tensor: Tensor) -> Layout:
    kind = _dtensor()
    if kind is None or not isinstance(tensor, kind):
        return None
    return tensor.device_mesh, tensor.placements


def by_layout(tensors: Iterable[Tensor]) -> dict[Layout, list[Tensor]]:
    """Sorts tensors by how they are spread; the order is the same on all processes."""
    if _dtensor() is None:
        return {None: list(tensors)}
    layouts: dict[Layout, list[Tensor]] = {}
    for tensor in tensors:
        layouts.setdefault(layout_of(tensor), []).append(tensor)
    return layouts


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharing its memory; all of it where it is whole.

    Of a sum that is still to be added up over processes it is the whole, as a copy.
    """
    layout, spread = layout_of(tensor), cast(Any, tensor)
    if layout is None:
        return tensor
    partial = any(placement.is_partial() for placement in layout[1])
    return cast(Tensor, spread.full_tensor() if partial else spread.to_local())


def across_shards(total: Tensor, layout: Layout) -> Tensor:
    """Adds up what every process has summed over its own parts; copies of one part count once."""
    if layout is None:
        return total
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = layout
    if all(p.is_replicate() or p.is_partial() for p in placements):
        return total
    kinds = [Replicate() if p.is_replicate() or p.is_partial() else Partial() for p in placements]
    return DTensor.from_local(total, mesh, kinds, run_check=False).full_tensor()


def _dtensor() -> Any:
    """The class, where anything can be an instance of it: importing it is slow."""
    module = sys.modules.get("torch.distributed.tensor")
    return None if module is None else module.DTensor
