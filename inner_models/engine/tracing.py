"""Turns the losses and gradients of N runs into one flat list of tensor operations.

Two levels of `torch.func.vmap`, `functional_call` and autograd take more of a processor's time than
the arithmetic of a small model. All of it is known after one look: the program is traced once, with
fake tensors (no arithmetic is done, no random number drawn), simplified, and from then on only its
operations run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pacesetter.inner_models.engine.rewrites import simplify

TRACE_FROM = 200
"""Shortest horizon for which a trace (about 0.1 to 0.5 seconds) pays."""

Program = Callable[..., Sequence[Tensor]]
"""From tensors, one by one, to a sequence of tensors."""

_log = logging.getLogger(__name__)


def trace(program: Program, inputs: Sequence[Tensor]) -> Program | None:
    """Traces a program on inputs like these.

    What a trace cannot see is fixed in it for good: Python numbers that change from call to call,
    and Python's own random numbers. Tensors, buffers and torch's random numbers are all right.

    Args:
        program: called with `inputs`; it may write into them and may draw random numbers.
        inputs: of the shapes, types and devices to come; left as they are.

    Returns:
        A faster program that does the same, or None if this one cannot be traced.
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
