"""What is put around a step of training for a while: no dropout, some optimizer, a look at its gradients. Worker only."""

from __future__ import annotations

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
def some_optimizer(model: Any) -> Iterator[None]:
    """Give a model that was left as it was loaded, to see what it launches, an optimizer that keeps and changes nothing."""
    if getattr(model, "optimizer", None) is not None:
        yield
        return
    model.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    try:
        yield
    finally:
        del model.optimizer


@contextmanager
def without_dropout(model: Any) -> Iterator[None]:
    """Have a model drop and shake nothing for a while: its modules for it, and the shares that others are given."""
    changed = []
    for module in model.modules():
        for name, value in vars(module).items():
            is_dropout = isinstance(module, torch.nn.modules.dropout._DropoutNd)
            is_share = name == "p" if is_dropout else "drop" in name or "jitter" in name
            if is_share and isinstance(value, float) and value > 0:
                changed.append((module, name, value))
    for module, name, _ in changed:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


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
    """Return the kinds of linear layers that let no gradient through to their input, by their class and their weight's.

    One layer of a kind is looked at, with a drawn input. torchao's layers with quantised inputs do so in silence, and those of
    bitsandbytes on a CPU once they have run in evaluation: adapters get gradients around them, and of another loss.
    """
    one_of: dict[tuple[str, str], Any] = {}
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and hasattr(module, "in_features") and not any(module.children()):
            one_of.setdefault((type(module).__name__, type(weight).__name__), module)
    return [f"{layer} of {weight}" for (layer, weight), module in one_of.items() if not _passes(module, model, device)]


def _passes(layer: Any, model: Any, device: str) -> bool:
    """Whether a gradient comes back through a layer."""
    own = layer.weight.dtype
    dtype = own if own.is_floating_point and own.itemsize > 1 else model.dtype
    drawn = torch.randn(DRAWN_ROWS, layer.in_features, generator=torch.Generator().manual_seed(0))
    drawn = drawn.to(device, dtype).requires_grad_()
    with torch.enable_grad():
        given = layer(drawn)
    if not given.requires_grad:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says of an operator without a derivative what is asked here
            (gradient,) = torch.autograd.grad(given.float().sum(), drawn, allow_unused=True)
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
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
