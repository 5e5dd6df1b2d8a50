"""FlashAttention-4 with tensors: what lets torch.compile call it as it is. Loaded by the worker alone.

`flash_attention_4_in_graphs` stands on its own: `advisor suggest --format python` prints its source. It uses torch, builtins and
what its choice imports (`generations.py`).
"""

from __future__ import annotations

import functools
from typing import Any

import torch


def flash_attention_4_in_graphs(package: Any) -> None:
    """Have torch.compile call FlashAttention-4 as one operator: its Python would be traced, and broken off a dozen times a layer.

    package: flash_attn.cute, whose two functions are replaced. To be called before a model is loaded with it: transformers keeps
    the functions that it finds then. Uncompiled, where gradients are wanted, and with arguments that transformers does not give,
    they run as they are.
    """
    if getattr(package, "is_in_graphs", False):
        return
    whole, varlen = package.flash_attn_func, package.flash_attn_varlen_func
    rows = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    schema = (
        "(Tensor q, Tensor k, Tensor v, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, SymInt? max_seqlen_q, SymInt? max_seqlen_k, "
        "float? softmax_scale, bool causal, SymInt? left, SymInt? right, float softcap, Tensor? learnable_sink) -> Tensor"
    )

    @torch.library.custom_op("flash_attention_4::forward", mutates_args=(), schema=schema)
    def forward(q: Any, k: Any, v: Any, *given: Any) -> Any:
        *at, scale, causal, left, right, softcap, sink = given
        options = dict(zip(rows, at, strict=True))
        options |= {"softmax_scale": scale, "softcap": softcap or None, "learnable_sink": sink}
        options |= {"window_size": None if left is right is None else (left, right)}
        options = {name: value for name, value in options.items() if value is not None}
        found = (varlen if "cu_seqlens_q" in options else whole)(q, k, v, causal=causal, **options)
        return found[0] if isinstance(found, tuple) else found

    @forward.register_fake
    def _(q: Any, k: Any, v: Any, *given: Any) -> Any:
        return q.new_empty([*q.shape[:-1], v.shape[-1]])

    known = {*rows, "softmax_scale", "causal", "window_size", "softcap", "learnable_sink", "deterministic"}

    def in_graphs(own: Any) -> Any:
        @functools.wraps(own)
        def called(q: Any, k: Any, v: Any, *more: Any, **given: Any) -> Any:
            is_known = not more and known.issuperset(given) and ("cu_seqlens_q" in given) == ("cu_seqlens_k" in given)
            if torch.is_grad_enabled() or not torch.compiler.is_compiling() or not is_known:
                return own(q, k, v, *more, **given)
            at = [given.get(name) for name in rows]
            options = [given.get("softmax_scale"), given.get("causal", False), *given.get("window_size", (None, None))]
            return forward(q, k, v, *at, *options, given.get("softcap", 0.0), given.get("learnable_sink"))

        return called

    package.flash_attn_func, package.flash_attn_varlen_func = in_graphs(whole), in_graphs(varlen)
    package.is_in_graphs = True
