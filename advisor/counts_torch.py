"""What a model computes: matrix products per token and per pair of tokens, as torch counts them, and stored weights.

Counted by torch's own flop counter on device meta, at three lengths: operations are a·T + b·T² + c, and the three give a, b
and c. So a layer that runs twelve times counts twelve times, one that never runs counts nothing, and neither matters how the
class calls its layers. Routed experts are left out of the pass, which on meta has no routing, and added by their share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from advisor.kinds_torch import TOKENS, as_traced, expert_modules, hand_experts_on, text_call

_EXPERTS = re.compile(r"(moe_)?(num|n)_(local_|routed_)?experts")
_CHOSEN = re.compile(r"num_experts_per_tok(en)?|experts_per_token|moe_top_?k|top_k_experts|num_selected_experts|moe_k|top_k"
                     r"|num_activated_experts|expert_top_?k|moe_topk|num_experts_used")  # fmt: skip


class Counts(NamedTuple):
    """Linear parameters stored, multiplied per token, and operations per pair of tokens that attend to one another, ÷ 4."""

    stored: int
    active: int
    attention: int


def counted(model: Any, config: Any, *, runs_on_meta: bool) -> Counts:
    """Count a model on device meta; from its layers alone where it does not run there."""
    stored = sum(weight.numel() for weight in _linear_weights(model))
    experts = list(expert_modules(model))
    share = _share(model, config)
    static = stored - sum(n for _, n in experts) + int(share * sum(n for _, n in experts))
    if not runs_on_meta:
        return Counts(stored, static, 0)
    executed = hand_experts_on(model)
    try:
        with _plain_attention(model):
            linear, pairs = _fitted(model)
    except Exception:  # noqa: BLE001  (a class that runs at one length and not at another: its layers are counted)
        return Counts(stored, static, 0)
    # Each of the three passes ran every expert layer as often as the model does.
    active = linear // 2 + int(share * sum(n * executed.get(id(module), 0) / 3 for module, n in experts))
    return Counts(stored, active, pairs // 4)


def experts_of(model: Any, config: Any) -> int:
    """Return the number of experts that tokens are routed to, 0 where there are none."""
    found = [0]
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last == "experts" and isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict)):
            found.append(len(module))
        elif "expert" in type(module).__name__.lower():
            found += [p.shape[0] for p in module.parameters(recurse=False) if p.dim() == 3]
            found += [_declared(config, _EXPERTS)]
    return max(found)


def _linear_weights(model: Any) -> Iterator[torch.Tensor]:
    """Yield the weights of linear layers, each once: torch's, GPT-2's Conv1D, and the experts' three-dimensional ones."""
    seen = set()
    for module in model.modules():
        kinds = isinstance(module, (torch.nn.Linear, Conv1D))
        weights = [module.weight] if kinds else [p for p in module.parameters(recurse=False) if p.dim() == 3]
        if not kinds and "expert" not in type(module).__name__.lower():
            continue
        for weight in weights:
            if id(weight) not in seen:
                seen.add(id(weight))
                yield weight


def _declared(config: Any, names: re.Pattern[str]) -> int:
    """Return the first whole number above zero that a configuration, or a part of it, has under such a name; else 0."""
    entries = config.get_text_config().to_dict()
    parts = [entries, *(value for value in entries.values() if isinstance(value, dict))]
    found = [
        value for part in parts for name, value in part.items() if names.fullmatch(str(name)) and type(value) is int
    ]
    return next((value for value in found if value > 0), 0)


def _share(model: Any, config: Any) -> float:
    """Return the share of its experts that a token passes through; one of them where that is not said."""
    experts = experts_of(model, config)
    return min(max(_declared(config, _CHOSEN), 1) / experts, 1.0) if experts else 0.0


@contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    """Have attention computed by matrix products, which torch counts on every device, where the class lets it be chosen."""
    before = model.config._attn_implementation
    with suppress(Exception):
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if before != model.config._attn_implementation:
            model.set_attn_implementation(before)


def _fitted(model: Any) -> tuple[int, int]:
    """Return operations per token and per pair of tokens, from passes of three lengths."""
    first, second, third = (_operations(model, TOKENS * n) for n in (1, 2, 4))
    # f(T) = c + aT + bT²: f(2T) - f(T) = aT + 3bT², f(4T) - f(2T) = 2aT + 12bT².
    pairs = max(((third - second) - 2 * (second - first)) / (6 * TOKENS**2), 0.0)
    linear = max(((second - first) - 3 * pairs * TOKENS**2) / TOKENS, 0.0)
    return int(linear), int(pairs)


def _operations(model: Any, tokens: int) -> int:
    with torch.no_grad(), as_traced(), FlopCounterMode(display=False) as counter:
        model(**text_call(model, tokens, "meta"))
    return int(counter.get_total_flops())
