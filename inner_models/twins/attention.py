"""Attention that `torch.func.vmap` batches into few operations, with dropout and with any mask.

torch's fused kernel has no batching rule on a CPU, and its plain one cannot drop weights that runs
share. These take the same arguments as torch's functions, so that whatever calls those (the user's
own code, `nn.MultiheadAttention`, the transformer layers) is batched.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`: tensors (..., heads, length, width)."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(groups, -3) for t in (key, value))
    if is_causal:
        if attn_mask is not None:
            raise RuntimeError("attention takes attn_mask or is_causal, but got both")
        mask = _causal_mask(query, key)
        return _attend(query, key, value, mask, dropout=dropout_p, scale=scale)[0]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = _additive(~attn_mask, query.dtype)
    return _attend_or_not(query, key, value, attn_mask, dropout=dropout_p, scale=scale)


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    **static: Any,
) -> tuple[Tensor, Tensor | None]:
    """`torch.nn.functional.multi_head_attention_forward`: tensors (length, batch, width)."""
    if bias_k is not None or add_zero_attn or any(t is not None for t in static.values()):
        # With weights, torch's own calls no fused kernel.
        out, weights = F.multi_head_attention_forward(
            query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias,
            bias_k, bias_v, add_zero_attn, dropout_p, out_proj_weight, out_proj_bias,
            training=training, key_padding_mask=key_padding_mask, need_weights=True,
            attn_mask=attn_mask, use_separate_proj_weight=use_separate_proj_weight,
            q_proj_weight=q_proj_weight, k_proj_weight=k_proj_weight, v_proj_weight=v_proj_weight,
            average_attn_weights=average_attn_weights, **static,
        )  # fmt: skip
        return out, weights if need_weights else None
    if is_causal and attn_mask is None:
        raise RuntimeError("multi-head attention needs an attn_mask for the hint is_causal")
    single = query.dim() == 2
    if single:
        query, key, value = (t[:, None] for t in (query, key, value))
        key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
    if in_proj_weight is not None and not use_separate_proj_weight:
        q_proj_weight, k_proj_weight, v_proj_weight = in_proj_weight.chunk(3)
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    weights_in = (q_proj_weight, k_proj_weight, v_proj_weight)
    q, k, v = (
        F.linear(t.transpose(0, 1), w, b).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for t, w, b in zip((query, key, value), weights_in, biases, strict=True)
        if w is not None
    )
    dropout, weights = dropout_p if training else 0.0, None
    if need_weights:
        mask = _merged(attn_mask, key_padding_mask, q)
        out, weights = _attend(q, k, v, mask, dropout=dropout)
        weights = weights.mean(1) if average_attn_weights else weights
    elif is_causal and key_padding_mask is None:
        out, _ = _attend(q, k, v, _causal_mask(q, k), dropout=dropout)
    else:
        mask = _merged(attn_mask, key_padding_mask, q)
        out = _attend_or_not(q, k, v, mask, dropout=dropout)
    out = F.linear(out.transpose(1, 2).flatten(2), out_proj_weight, out_proj_bias).transpose(0, 1)
    if single:
        return out[:, 0], None if weights is None else weights[0]
    return out, weights


class TransformerEncoderTwin(nn.TransformerEncoder):
    """`nn.TransformerEncoder` that takes a mask as it is.

    torch's compares it with a causal one, to tell its kernel, which would end a trace.
    """

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        return super().forward(src, mask, src_key_padding_mask, bool(is_causal))


class TransformerDecoderTwin(nn.TransformerDecoder):
    """`nn.TransformerDecoder`, likewise."""

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        return super().forward(
            tgt,
            memory,
            tgt_mask,
            memory_mask,
            tgt_key_padding_mask,
            memory_key_padding_mask,
            bool(tgt_is_causal),
            memory_is_causal,
        )


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    dropout: float,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and weights of attention; the mask is added to the scores."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * scale) @ key.mT
    weights = (scores if mask is None else scores + mask).softmax(-1)
    weights = F.dropout(weights, dropout) if dropout else weights
    return weights @ value, weights


def _attend_or_not(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    dropout: float,
    scale: float | None = None,
) -> Tensor:
    """As `_attend`, but a query that may look at nothing gets zeros, as torch's kernels give it."""
    if mask is None:
        return _attend(query, key, value, None, dropout=dropout, scale=scale)[0]
    blind = (mask == -math.inf).all(-1, keepdim=True)
    # It looks everywhere instead, and what it sees is dropped: softmax must have some number.
    mask = mask.masked_fill(blind, 0.0)
    out, _ = _attend(query, key, value, mask, dropout=dropout, scale=scale)
    return out.masked_fill(blind, 0.0)


def _causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """Minus infinity where a key is later than the query, else zero."""
    shape = query.shape[-2], key.shape[-2]
    return torch.full(shape, -math.inf, dtype=query.dtype, device=query.device).triu(1)


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Minus infinity where a mask is true, else zero."""
    return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, -math.inf)


def _merged(
    attn_mask: Tensor | None, key_padding_mask: Tensor | None, query: Tensor
) -> Tensor | None:
    """Both masks as one that is added to scores (batch, heads, queries, keys)."""
    batch, heads = query.shape[:2]
    masks = []
    if attn_mask is not None:
        masks.append(attn_mask.unflatten(0, (batch, heads)) if attn_mask.dim() == 3 else attn_mask)
    if key_padding_mask is not None:
        masks.append(key_padding_mask[:, None, None])
    added = [_additive(m, query.dtype) if m.dtype == torch.bool else m for m in masks]
    return sum(added[1:], added[0]) if added else None
