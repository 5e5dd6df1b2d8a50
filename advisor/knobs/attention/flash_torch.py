"""FlashAttention-4 with tensors: what lets torch.compile call it as it is. Loaded by the worker alone.

`flash_attention_4_in_graphs` stands on its own: `advisor suggest --format python` prints its source. It uses torch, builtins and
what it imports itself.
"""

from __future__ import annotations

import functools
from typing import Any

import torch


def flash_attention_4_in_graphs(package: Any) -> None:
    """Have torch.compile call FlashAttention-4 as one operator: its Python would be traced, and broken off a dozen times a layer.

    package: flash_attn.cute, whose two functions are replaced before transformers takes them. Uncompiled, where gradients are
    wanted, and with arguments that transformers does not give, they run as they are.
    """
    if hasattr(package.flash_attn_varlen_func, "__wrapped__"):
        return
    whole, varlen = package.flash_attn_func, package.flash_attn_varlen_func
    schema = (
        "(Tensor q, Tensor k, Tensor v, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt? max_seqlen_q, SymInt? max_seqlen_k, "
        "float? softmax_scale, bool causal, SymInt? left, SymInt? right, float softcap, Tensor? learnable_sink) -> Tensor"
    )

    @torch.library.custom_op("flash_attention_4::forward", mutates_args=(), schema=schema)
    def forward(q: Any, k: Any, v: Any, *given: Any) -> Any:
        starts_q, starts_k, max_q, max_k, scale, causal, left, right, softcap, sink = given
        options = {"softmax_scale": scale, "causal": causal, "window_size": (left, right)}
        options |= {"softcap": softcap, "learnable_sink": sink}
        if starts_q is not None:
            options |= {
                "cu_seqlens_q": starts_q,
                "cu_seqlens_k": starts_k,
                "max_seqlen_q": max_q,
                "max_seqlen_k": max_k,
            }
        found = (whole if starts_q is None else varlen)(q, k, v, **options)
        return found[0] if isinstance(found, tuple) else found

    @forward.register_fake
    def _(q: Any, k: Any, v: Any, *given: Any) -> Any:
        return q.new_empty([*q.shape[:-1], v.shape[-1]])

    rows = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    known = {*rows, "softmax_scale", "causal", "window_size", "softcap", "learnable_sink", "deterministic"}

    def in_graphs(own: Any) -> Any:
        @functools.wraps(own)
        def called(q: Any, k: Any, v: Any, **given: Any) -> Any:
            if torch.is_grad_enabled() or not torch.compiler.is_compiling() or not known.issuperset(given):
                return own(q, k, v, **given)
            at = [given.get(name) for name in rows]
            options = [given.get("softmax_scale"), given.get("causal", False), *given.get("window_size", (None, None))]
            return forward(q, k, v, *at, *options, given.get("softcap", 0.0), given.get("learnable_sink"))

        return called

    package.flash_attn_func, package.flash_attn_varlen_func = in_graphs(whole), in_graphs(varlen)
