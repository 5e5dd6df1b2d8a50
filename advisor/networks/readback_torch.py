"""What can be read of a model once it is loaded: its attention, its dtypes, its linear layers, and the bytes of its weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

#: bitsandbytes packs 4-bit weights for a CPU by so many outputs (`block_n`).
_PACKED_OUTPUTS = 32


def attention_of(model: Any) -> dict[str, str]:
    """Return the implementation of attention of the configuration and of all its sub-configurations."""
    found = {"": str(model.config._attn_implementation)}
    for name in getattr(model.config, "sub_configs", {}):
        part = getattr(model.config, name, None)
        if part is not None and getattr(part, "_attn_implementation", None):
            found[name] = str(part._attn_implementation)
    return found


def dtypes_of(model: Any) -> dict[str, int]:
    """Return how many floating-point parameters have each dtype."""
    counts: Counter[str] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return dict(counts)


def linears_of(model: Any) -> dict[str, int]:
    """Return how many linear layers there are of each class, with what a quantised one was set to.

    bitsandbytes' with their type, threshold, and "double"; torchao's, whose class is still torch's, with that of their weights.
    """
    counts: Counter[str] = Counter()
    for name, module in model.named_modules():
        if "lora_" in name or hasattr(module, "base_layer"):  # adapters, and what wraps a layer and them
            continue
        # Experts in mxfp4 are layers of their own kind, without in_features.
        if isinstance(module, torch.nn.Linear) or hasattr(module, "in_features") or "Mxfp4" in type(module).__name__:
            counts[type(module).__name__ + _settings(module)] += 1
    return dict(counts)


def _settings(module: Any) -> str:
    weight = getattr(module, "weight", None)
    if is_quantised_tensor(weight):
        return f":{_torchao(weight)}"
    kind = getattr(weight, "quant_type", None)
    if kind:
        return f":{kind}" + (":double" if getattr(module.weight.quant_state, "nested", False) else "")
    threshold = getattr(getattr(module, "state", None), "threshold", None)
    return "" if threshold is None else f":{float(threshold)}"


def is_quantised_tensor(tensor: Any) -> bool:
    """Whether a tensor says that it is of floats and holds others: torchao's weights do."""
    return hasattr(tensor, "__tensor_flatten__")


def _torchao(weight: Any) -> str:
    """Return the class of torchao's weights with what shares a scale, and what does of inputs that are quantised as they come."""
    inputs = getattr(weight, "act_quant_kwargs", None)
    parts = [type(weight).__name__, _shared(getattr(weight, "block_size", None), weight.shape)]
    if inputs is not None:
        parts.append("dynamic-" + type(inputs.granularity).__name__.removeprefix("Per").lower())
    return ":".join(part for part in parts if part)


def _shared(block: Any, shape: torch.Size) -> str:
    """Return what shares a scale: the tensor, a row, or so many of a row; "" where that is not said."""
    if block is None:
        return ""
    sizes = list(block)
    if not sizes or sizes == list(shape):  # an empty one is a tensor's too
        return "tensor"
    return "row" if sizes == [*[1] * (len(shape) - 1), shape[-1]] else str(sizes[-1])


def cpu_misfit(model: Any) -> str:
    """Return which 4-bit layer bitsandbytes can't run on this CPU, and why; "" where there is none.

    On one with bfloat16 instructions (AVX512-BF16) it packs the weights anew at the first call, by _PACKED_OUTPUTS outputs
    and whole blocks of inputs, and raises what says nothing of that (bitsandbytes 0.50, `_convert_weight_packed_for_cpu`).
    """
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if not getattr(module, "support_avx512bf16_for_cpu", False) or state is None:
            continue
        inputs, outputs, block = module.in_features, module.out_features, state.blocksize
        if inputs % block or outputs % _PACKED_OUTPUTS:
            needed = f"it needs multiples of {block} and {_PACKED_OUTPUTS}"
            return f"{name} has {inputs} inputs and {outputs} outputs, and {needed}"
    return ""


def weight_bytes_of(model: Any) -> int:
    """Return the bytes that parameters and buffers really take, shared storage once, quantisation state included."""
    storages: dict[int, int] = {}
    for tensor in _flattened(_tensors(model)):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _flattened(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors with what torchao's hold in their place: their own storage has nothing."""
    found = []
    for tensor in tensors:
        if is_quantised_tensor(tensor):
            names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
            found += _flattened([getattr(tensor, name) for name in names])
        else:
            found.append(tensor)
    return found


def _tensors(model: Any) -> list[torch.Tensor]:
    found = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        weight = getattr(module, "weight", None)
        for state in (getattr(weight, "quant_state", None), getattr(weight, "CB", None), getattr(weight, "SCB", None)):
            if torch.is_tensor(state):
                found.append(state)
            elif state is not None:
                found += [value for value in vars(state).values() if torch.is_tensor(value)]
    return [tensor for tensor in found if tensor.device.type != "meta"]
