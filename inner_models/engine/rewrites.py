"""Makes a traced program cheaper without changing what it computes.

`torch.func.vmap` leaves much behind that does nothing (views of views, products with one, copies of
shapes) and never works in place. On small models these are a good part of the time of an inner
step. Every rewrite here is exact, but for the fused bias, which rounds once less.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

_VIEWS = (aten.view.default, aten._unsafe_view.default)
_IN_PLACE: dict[Any, Any] = {
    aten.relu.default: aten.relu_.default,
    aten.exp.default: aten.exp_.default,
    aten.log.default: aten.log_.default,
    aten.neg.default: aten.neg_.default,
    aten.tanh.default: aten.tanh_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
    aten.sqrt.default: aten.sqrt_.default,
    aten.rsqrt.default: aten.rsqrt_.default,
    aten.add.Tensor: aten.add_.Tensor,
    aten.sub.Tensor: aten.sub_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.div.Tensor: aten.div_.Tensor,
    aten.mul.Scalar: aten.mul_.Scalar,
    aten.div.Scalar: aten.div_.Scalar,
    aten.clamp_min.default: aten.clamp_min_.default,
    aten.masked_fill.Scalar: aten.masked_fill_.Scalar,
}
"""Elementwise operations that may overwrite their first argument."""
_INTO_FIRST: dict[Any, tuple[Any, str]] = {
    aten.threshold_backward.default: (aten.threshold_backward.grad_input, "grad_input"),
    aten.tanh_backward.default: (aten.tanh_backward.grad_input, "grad_input"),
    aten.sigmoid_backward.default: (aten.sigmoid_backward.grad_input, "grad_input"),
    aten.gelu_backward.default: (aten.gelu_backward.grad_input, "grad_input"),
    aten.silu_backward.default: (aten.silu_backward.grad_input, "grad_input"),
}
"""The same for those whose overwriting form wants the target by name."""
_COMMUTATIVE = (aten.add.Tensor, aten.mul.Tensor)


def simplify(graph: fx.Graph) -> None:
    """Rewrites in place a graph of ATen operations with fake tensors in their ``meta``."""
    for node in list(graph.nodes):
        _drop_no_op(node)
    _eliminate_dead(graph)
    for node in list(graph.nodes):
        _fuse_bias(graph, node)
    _eliminate_dead(graph)
    _work_in_place(graph)
    graph.lint()


def _eliminate_dead(graph: fx.Graph) -> None:
    """Dead code goes, but not what draws random numbers or writes into its arguments."""
    graph.eliminate_dead_code(is_impure_node=_has_effects)


def _has_effects(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    schema = getattr(node.target, "_schema", None)
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags or bool(schema and schema.is_mutable)


def _value(node: Any) -> Any:
    return node.meta.get("val") if isinstance(node, fx.Node) else None


def _same_layout(left: Any, right: Any) -> bool:
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return False
    return (
        left.shape == right.shape
        and left.stride() == right.stride()
        and left.dtype == right.dtype
        and left.device == right.device
    )


def _drop_no_op(node: fx.Node) -> None:
    """Takes out what returns its argument as it is; makes one view out of several."""
    if node.op != "call_function" or not node.args:
        return
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return
    if node.target is aten.detach.default:
        node.replace_all_uses_with(source)
    elif node.target in (*_VIEWS, aten.expand.default):
        first = source.args[0] if source.target in _VIEWS else None
        if node.target in _VIEWS and isinstance(first, fx.Node):
            node.update_arg(0, first)
            source = first
        if _same_layout(_value(node), _value(source)):
            node.replace_all_uses_with(source)
    elif node.target is aten.mul.Scalar:
        if node.args[1] == 1 and _same_layout(_value(node), _value(source)):
            node.replace_all_uses_with(source)
    elif node.target is source.target is aten.transpose.int:
        back = {*node.args[1:]} == {*source.args[1:]}
        if back and isinstance(source.args[0], fx.Node):
            node.replace_all_uses_with(source.args[0])


def _fuse_bias(graph: fx.Graph, node: fx.Node) -> None:
    """A bias that is added to a batch of matrix products becomes part of them."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return
    for bias, product in (node.args[:2], node.args[1::-1]):
        view = product
        if not isinstance(view, fx.Node) or not isinstance(bias, fx.Node):
            continue
        bmm = view.args[0] if view.target in _VIEWS else view
        if not isinstance(bmm, fx.Node) or bmm.target is not aten.bmm.default:
            continue
        if len(bmm.users) > 1 or len(view.users) > 1:
            continue
        out, added, flat = _value(node), _value(bias), _value(bmm)
        if _value(view).shape != out.shape or added.dtype != out.dtype:
            continue
        num_runs, _, width = flat.shape
        if added.numel() != num_runs * width or added.shape[-1] != width or out.shape[-1] != width:
            continue
        # All of the bias's own dimensions lead; between them and the width it is broadcast.
        lead = tuple(added.shape[:-1])
        kept = len(lead) - next((i for i, n in enumerate(reversed(lead)) if n != 1), len(lead))
        if added.ndim != out.ndim or lead[:kept] != tuple(out.shape[:kept]):
            continue
        with graph.inserting_before(node):
            rows = graph.call_function(aten.view.default, (bias, [num_runs, 1, width]))
            rows.meta["val"] = added.reshape(num_runs, 1, width)
            fused = graph.call_function(aten.baddbmm.default, (rows, *bmm.args))
            fused.meta["val"] = flat
            result = graph.call_function(aten.view.default, (fused, list(out.shape)))
            result.meta["val"] = out
        node.replace_all_uses_with(result)
        return


def _work_in_place(graph: fx.Graph) -> None:
    """Elementwise operations overwrite an argument that nobody will look at again."""
    nodes = list(graph.nodes)
    roots: dict[fx.Node, fx.Node] = {}
    last_use: dict[fx.Node, int] = {}
    for i, node in enumerate(nodes):
        roots[node] = _root(node, roots)
        for source in node.all_input_nodes:
            last_use[roots[source]] = i
    for i, node in enumerate(nodes):
        for place in range(2 if node.target in _COMMUTATIVE and not node.kwargs else 1):
            if _may_overwrite(node, place, roots=roots, is_last=last_use.get, index=i):
                target = node.args[place]
                assert isinstance(target, fx.Node)
                _overwrite(node, place)
                _merge(roots, last_use, node=node, into=roots[target])
                break


def _root(node: fx.Node, roots: dict[fx.Node, fx.Node]) -> fx.Node:
    """The node whose memory a node's result lies in."""
    if node.op != "call_function" or not node.all_input_nodes:
        return node
    if node.target is operator.getitem or node.target in _VIEWS:
        return roots[node.all_input_nodes[0]]
    schema = getattr(node.target, "_schema", None)
    if schema is None or any(out.alias_info is not None for out in schema.returns):
        return roots[node.all_input_nodes[0]]
    return node


def _may_overwrite(
    node: fx.Node,
    place: int,
    *,
    roots: dict[fx.Node, fx.Node],
    is_last: Callable[[fx.Node], int | None],
    index: int,
) -> bool:
    if node.target not in _IN_PLACE and node.target not in _INTO_FIRST:
        return False
    target = node.args[place]
    if not isinstance(target, fx.Node):
        return False
    root = roots[target]
    if root.op != "call_function" or is_last(root) != index:
        return False
    # An operation with several results may have saved one of them in the memory of another.
    if not isinstance(_value(root), Tensor) or not _same_layout(_value(node), _value(target)):
        return False
    others = (n for n in node.all_input_nodes if n is not target)
    return _value(target).is_contiguous() and all(roots[n] is not root for n in others)


def _overwrite(node: fx.Node, place: int) -> None:
    if node.target in _INTO_FIRST:
        target, name = _INTO_FIRST[node.target]
        node.kwargs = {**node.kwargs, name: node.args[0]}
        node.target = target
        return
    if place == 1:
        node.args = (node.args[1], node.args[0])
    node.target = _IN_PLACE[node.target]


def _merge(
    roots: dict[fx.Node, fx.Node], last_use: dict[fx.Node, int], *, node: fx.Node, into: fx.Node
) -> None:
    """From here on the result of `node` lies in the memory of `into`."""
    members: Iterable[fx.Node] = [n for n, root in roots.items() if root is node]
    for member in members:
        roots[member] = into
    last_use[into] = max(last_use[into], last_use.get(node, -1))
