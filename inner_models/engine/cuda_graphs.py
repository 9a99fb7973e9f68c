"""Inner steps as CUDA graphs: recorded once, then replayed with one launch each.

A recorded step reads its inputs where they lay when it was recorded. So everything that changes
from step to step lies in buffers that stay, and a counter on the device says which slice of them is
next. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Step = Callable[[Tensor, Sequence[Tensor], Tensor, Tensor, bool, bool], None]
"""``step(lr, columns, momentum, ratio, in_window, has_history)``: see `InnerTrainer`."""


class GraphedSteps:
    """Records a step and replays it.

    Args:
        step: must keep all its state in place.
        device: CUDA; on another device the step is called anew instead of replayed, through the
            same buffers, so that all but the recording can be tested there.
    """

    def __init__(self, step: Step, *, device: torch.device) -> None:
        self._step = step
        self._on_cuda = device.type == "cuda"
        self._counter = torch.zeros(1, dtype=torch.int64, device=device)
        self._buffers: list[Tensor] = []
        self._graphs: dict[tuple[bool, bool], Callable[[], None]] = {}

    def begin(
        self, rates: Tensor, columns: Sequence[Tensor], *, constants: tuple[Tensor, Tensor]
    ) -> Step:
        """Takes in what an interval's steps will read; returns the step to call for each of them.

        Args:
            rates: (steps, num_runs, 1), learning rates.
            columns: tensors whose first dimension is the step.
            constants: momentum and clip ratio, held over the interval.
        """
        steps = len(rates)
        moving = [rates, *columns]
        if not self._buffers or steps > len(self._buffers[2]):
            # Later intervals may be longer: with room for twice as many steps, this is seldom.
            self._graphs.clear()
            grown = [t.new_empty(2 * steps, *t.shape[1:]) for t in moving]
            self._buffers = [*(torch.empty_like(c) for c in constants), *grown]
        for buffer, value in zip(self._buffers[:2], constants, strict=True):
            buffer.copy_(value)
        for buffer, value in zip(self._buffers[2:], moving, strict=True):
            buffer[:steps].copy_(value)
        self._counter.zero_()
        return self._next

    def _next(
        self,
        lr: Tensor,
        columns: Sequence[Tensor],
        momentum: Tensor,
        ratio: Tensor,
        in_window: bool,
        has_history: bool,
    ) -> None:
        key = in_window, has_history
        if key not in self._graphs:
            self._graphs[key] = self._record(in_window, has_history)
        self._graphs[key]()

    def _record(self, in_window: bool, has_history: bool) -> Callable[[], None]:
        def body() -> None:
            momentum, ratio, *moving = self._buffers
            lr, *columns = (t.index_select(0, self._counter)[0] for t in moving)
            self._step(lr, columns, momentum, ratio, in_window, has_history)
            self._counter.add_(1)

        if not self._on_cuda:
            return body
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            body()
        return graph.replay
