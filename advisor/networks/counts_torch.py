"""What a model computes: matrix products per token and per pair of tokens, as they are called, and stored weights.

Counted while the one pass on device meta runs (:func:`advisor.networks.kinds_torch.refuse_unrunnable`): so a layer that runs
twelve times counts twelve times, one that never runs counts nothing, and neither matters how the class calls its layers. Routed
experts are left out of the pass, which on meta has no routing, and added by their share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from advisor.networks.kinds_torch import TOKENS, expert_modules

_EXPERTS = re.compile(r"(moe_)?(num|n)_(local_|routed_)?experts")
_CHOSEN = re.compile(
    r"num_experts_per_tok(en)?|experts_per_token|moe_top_?k|top_k_experts|num_selected_experts|moe_k|top_k"
    r"|num_activated_experts|expert_top_?k|moe_topk|num_experts_used"
)


class Products(TorchFunctionMode):
    """Adds up, while a model runs on one sequence of TOKENS tokens, the matrix products that it asks for.

    linear: multiplications per token with weights; what runs for one position of a sequence alone (a pooler) is left out.
    attention: heads · head size, over all calls of attention, whichever way it is computed.
    """

    def __init__(self) -> None:
        """Count from zero."""
        super().__init__()
        self.linear = self.attention = 0.0

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch and add what it multiplies."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        result = func(*args, **kwargs)
        if name == "linear":
            self._add_linear(result, args[1] if len(args) > 1 else kwargs["weight"])
        elif name == "addmm":
            self._add_linear(result, args[2])
        elif name == "scaled_dot_product_attention":
            query, value = (args[n] if len(args) > n else kwargs[key] for n, key in ((0, "query"), (2, "value")))
            self.attention += query.shape[:-2].numel() * (query.shape[-1] + value.shape[-1]) / 2
        elif name in ("matmul", "bmm", "__matmul__", "baddbmm"):
            self._add_pairs(result, *args[-2:])
        return result

    def _add_linear(self, result: torch.Tensor, weight: torch.Tensor) -> None:
        rows = result.numel() // max(result.shape[-1], 1)
        if rows > 1:
            self.linear += weight.numel() * rows / TOKENS

    def _add_pairs(self, result: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        """Add the products of all pairs of tokens: scores, [.., tokens, tokens], and the mean of values that they weigh."""
        square = (TOKENS, TOKENS)
        if tuple(result.shape[-2:]) == square or tuple(left.shape[-2:]) == square:
            width = left.shape[-1] if tuple(result.shape[-2:]) == square else right.shape[-1]
            self.attention += result.shape[:-2].numel() * width / 2
        elif right.dim() == 2:
            self._add_linear(result, right)


class Counts(NamedTuple):
    """Linear parameters stored, multiplied per token, and heads · head size over all layers; 0 where it was not counted."""

    stored: int
    active: int
    attention: int


def counted(model: Any, config: Any, products: Products | None, executed: Mapping[int, int]) -> Counts:
    """Count a model on device meta, from what its pass multiplied; None: from its layers alone, where it did not run.

    executed: how often each module of experts ran in that pass (:func:`advisor.networks.kinds_torch.hand_experts_on`).
    """
    stored = sum(weight.numel() for weight in _linear_weights(model))
    experts, share = list(expert_modules(model)), _share(model, config)
    if products is None:
        routed = sum(elements for _, elements in experts)
        return Counts(stored, stored - routed + int(share * routed), 0)
    routed = sum(elements * executed.get(id(module), 0) for module, elements in experts)
    return Counts(stored, int(products.linear + share * routed), int(products.attention))


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
