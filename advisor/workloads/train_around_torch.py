"""What is put around a step of training for a while: no dropout, some optimizer, a look at its gradients. Worker only."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: Of each weight's gradient so many values are compared.
COMPARED_VALUES = 4096

#: So many tokens are drawn to see whether gradients pass a layer: kernels of 8 bits take 17 or more.
DRAWN_ROWS = 32


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Have a model drop and shake nothing for a while: its modules, the shares that others are given, those of configurations.

    Falcon reads its share from the configuration in every forward pass.
    """
    modules = list(model.modules())
    configurations = {id(c): c for module in modules if hasattr(c := getattr(module, "config", None), "__dict__")}
    changed = []
    for holder in (*modules, *configurations.values()):
        is_dropout = isinstance(holder, torch.nn.modules.dropout._DropoutNd)
        for name, value in vars(holder).items():
            is_share = name == "p" if is_dropout else "drop" in name or "jitter" in name
            if is_share and isinstance(value, float) and value > 0:
                changed.append((holder, name, value))
    for holder, name, _ in changed:
        setattr(holder, name, 0.0)
    try:
        yield
    finally:
        for holder, name, value in changed:
            setattr(holder, name, value)


@contextmanager
def first_gradients(model: Any, found: dict[str, tuple[torch.Tensor, float]]) -> Iterator[None]:
    """Keep some of the gradients of the step that is done within: before they are clipped, and in fp32 on the CPU."""
    clip = torch.nn.utils.clip_grad_norm_

    def look(parameters: Any, *given: Any, **more: Any) -> torch.Tensor:
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                found[plain_name(name)] = _some_of(weight.grad)
        return clip(parameters, *given, **more)

    torch.nn.utils.clip_grad_norm_ = look
    try:
        yield
    finally:
        torch.nn.utils.clip_grad_norm_ = clip


def blocking(model: Any, device: str) -> list[str]:
    """Return the kinds of quantised linear layers that let no gradient through to their input, by class and weight.

    One layer of a kind is looked at, with a drawn input. torchao's layers with quantised inputs do so in silence, and those of
    bitsandbytes on a CPU once they have run in evaluation: adapters get gradients around them, and of another loss. What has
    floats for weights is torch's own to differentiate.
    """
    one_of: dict[tuple[str, str], Any] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        is_layer = hasattr(module, "in_features") and not any(module.children())
        if is_layer and isinstance(weight, torch.Tensor) and _is_quantised(weight):
            one_of.setdefault((type(module).__name__, type(weight).__name__), module)
    return [f"{layer} of {weight}" for (layer, weight), module in one_of.items() if not _passes(module, model, device)]


def _is_quantised(weight: torch.Tensor) -> bool:
    """Whether a weight is a tensor of its quantiser's own class, or in no floats of 16 bits and more."""
    own = type(weight) not in (torch.nn.Parameter, torch.Tensor)
    return own or not weight.dtype.is_floating_point or weight.dtype.itemsize < 2


def _passes(layer: Any, model: Any, device: str) -> bool:
    """Whether a gradient comes back through a layer; true where it does not run by itself, for then nothing is known of it."""
    own = layer.weight.dtype
    dtype = own if own.is_floating_point and own.itemsize > 1 else model.dtype
    drawn = torch.randn(DRAWN_ROWS, layer.in_features, generator=torch.Generator().manual_seed(0))
    drawn = drawn.to(device, dtype).requires_grad_()
    try:
        with torch.enable_grad():
            given = layer(drawn)
            given = given[0] if isinstance(given, tuple) else given
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except Exception:  # noqa: BLE001  (a layer that takes more than its input)
        traceback.print_exc()
        return True
    if not given.requires_grad:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says of an operator without a derivative what is asked here
            (gradient,) = torch.autograd.grad(given.float().sum(), drawn, allow_unused=True)
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:
        if "CUDA" in str(error):
            raise
        return False  # no derivative of its operator is known
    return gradient is not None and bool(gradient.any())


def plain_name(name: str) -> str:
    """Return a weight's name without what wrappers of modules put into it."""
    return name.replace("_orig_mod.", "")


def _some_of(gradient: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return some values of a gradient, drawn by its size, and how many of its values each stands for."""
    flat = gradient.detach().flatten()
    count = min(COMPARED_VALUES, flat.numel())
    generator = torch.Generator().manual_seed(
        flat.numel()
    )  # evenly spaced ones would be of one column of many matrices
    places = torch.randint(flat.numel(), (count,), generator=generator) if count < flat.numel() else torch.arange(count)
    taken = flat[places.to(flat.device)].to("cpu", torch.float32, copy=True)  # before they are clipped in place
    return taken, flat.numel() / count
