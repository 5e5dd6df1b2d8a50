"""Attention's interfaces in fp32, so that a layout can be looked at with the very call that FlashAttention, or sdpa, gets.

The kernels take 16 bits alone. What transformers does around them (taking pads out, cu_seq_lens, positions that start again,
windows) is the same code whatever computes: inside :func:`flash_in_fp32` that code is given plain fp32 attention. Used by the
gate (measurement.md, D, part 1b), never timed. Loaded by the worker alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: Scores of one chunk of queries take this much at most (bytes).
SCORES_BYTES = 2**30


def attend(  # noqa: PLR0913  (what a kernel is told)
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float | None,
    causal: bool,
    window: tuple[int, int],
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return softmax(QKᵀ)V of one sequence, [tokens, heads, head size]; key and value may have fewer heads.

    window: how many tokens to the left and to the right are seen, −1 for all; sinks: a logit a head that takes probability
    and gives nothing.
    """
    step = max(1, SCORES_BYTES // (query.shape[1] * key.shape[0] * 4))
    if step < query.shape[0]:  # some queries at a time: T × T scores need not fit
        offsets = range(0, query.shape[0], step)
        options: dict[str, Any] = {
            "scale": scale,
            "causal": causal,
            "window": window,
            "softcap": softcap,
            "sinks": sinks,
        }
        first = key.shape[0] - query.shape[0]
        return torch.cat([_attend(query[o : o + step], key, value, first + o, **options) for o in offsets])
    return _attend(
        query,
        key,
        value,
        key.shape[0] - query.shape[0],
        scale=scale,
        causal=causal,
        window=window,
        softcap=softcap,
        sinks=sinks,
    )


def _attend(  # noqa: PLR0913  (as above; first: where the first query stands among the keys)
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    first: int,
    *,
    scale: float | None,
    causal: bool,
    window: tuple[int, int],
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    repeats = query.shape[1] // key.shape[1]
    q, k, v = (
        t.transpose(0, 1) for t in (query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1))
    )
    scores = q @ k.transpose(1, 2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    # Queries stand at the end of the keys, as FlashAttention aligns them from version 2.1 on.
    at = torch.arange(query.shape[0], device=query.device)[:, None] + first
    to = torch.arange(key.shape[0], device=query.device)[None]
    seen = torch.ones_like(scores[0], dtype=torch.bool)
    if causal:
        seen &= to <= at
    if window[0] >= 0:
        seen &= to >= at - window[0]
    if window[1] >= 0:
        seen &= to <= at + window[1]
    scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(-1, scores.shape[1], 1)], -1)
    weights = scores.softmax(-1)[..., : key.shape[0]]
    return (weights @ v).transpose(0, 1)


def _options(*values: Any) -> dict[str, Any]:
    return dict(zip(("scale", "causal", "window", "softcap", "sinks"), values, strict=True))


def flash_attn_varlen_func(  # noqa: PLR0913, PLR0917  (flash-attn's own signature, by which transformers calls it)
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """Attend within every sequence of a row: q, k, v are [tokens, heads, head size]."""
    options: dict[str, Any] = {
        "scale": softmax_scale,
        "causal": causal,
        "window": window_size,
        "softcap": softcap,
        "sinks": s_aux,
    }
    ends_q, ends_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    parts = [
        attend(q[a:b], k[c:d], v[c:d], **options)
        for a, b, c, d in zip(ends_q[:-1], ends_q[1:], ends_k[:-1], ends_k[1:], strict=True)
        if b > a
    ]
    return torch.cat(parts)


def flash_attn_func(  # noqa: PLR0913, PLR0917  (as above)
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    deterministic: bool = False,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """Attend within every row: q, k, v are [rows, tokens, heads, head size]."""
    options: dict[str, Any] = {
        "scale": softmax_scale,
        "causal": causal,
        "window": window_size,
        "softcap": softcap,
        "sinks": s_aux,
    }
    return torch.stack([attend(*rows, **options) for rows in zip(q, k, v, strict=True)])


@contextmanager
def sdpa_in_chunks() -> Iterator[None]:
    """Have torch's attention take some queries at a time for a while: in fp32 some of its kernels write all T × T scores.

    What transformers does around it, a mask that it leaves out among the rest, is the same code.
    """
    attend = torch.nn.functional.scaled_dot_product_attention

    def in_chunks(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: Any,
    ) -> torch.Tensor:
        tokens, keys = query.shape[-2], key.shape[-2]
        step = max(1, SCORES_BYTES // (query.shape[:-2].numel() * keys * 4))
        parts, places = [], torch.arange(max(tokens, keys), device=query.device)
        for start in range(0, tokens, step):
            these, mask = slice(start, start + step), attn_mask
            if is_causal:  # from the first query and the first key on
                mask = places[:tokens][these, None] >= places[None, :keys]
            elif mask is not None and mask.shape[-2] == tokens:  # one row may stand for all
                mask = mask[..., these, :]
            parts.append(attend(query[..., these, :], key, value, mask, dropout_p, **options))
        return torch.cat(parts, -2)

    torch.nn.functional.scaled_dot_product_attention = in_chunks  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = attend


@contextmanager
def flash_in_fp32(implementation: str) -> Iterator[None]:
    """Let transformers' FlashAttention path of this implementation, and torch's varlen_attn, compute in fp32."""
    from torch.nn.attention import varlen
    from transformers import modeling_flash_attention_utils as flash

    ours = {
        "_loaded_implementation": implementation,
        "_flash_fn": flash_attn_func,
        "_flash_varlen_fn": flash_attn_varlen_func,
        "_flash_with_kvcache_fn": flash_attn_varlen_func,
        "_pad_fn": flash._pad_input,
        "_unpad_fn": flash._unpad_input,
        "_process_flash_kwargs_fn": flash._lazy_define_process_function(flash_attn_varlen_func),
    }
    names = [name for name in ours if hasattr(flash, name)]  # an older transformers has no kvcache function
    theirs = {name: getattr(flash, name) for name in names}
    attn = varlen.varlen_attn
    try:
        for name in names:
            setattr(flash, name, ours[name])
        varlen.varlen_attn = _varlen_like(attn)
        yield
    finally:
        for name in names:
            setattr(flash, name, theirs[name])
        varlen.varlen_attn = attn


def _varlen_like(attn: Any) -> Any:
    """Return varlen_attn in fp32, with the keyword arguments of this torch's own: they differ from version to version."""

    def varlen_attn(
        q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, **options: Any
    ) -> torch.Tensor:
        causal = bool(options.get("is_causal"))
        window = options.get("window_size") or (-1, -1)
        return flash_attn_varlen_func(
            q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=options.get("scale"), causal=causal, window_size=window
        )

    varlen_attn.__kwdefaults__ = attn.__kwdefaults__
    return varlen_attn
