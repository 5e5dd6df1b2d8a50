"""Compute in fp32 with a model that is loaded in fewer bits, or that would not fit: block by block, and by its first layers.

The reference of the gate is always fp32 (measurement.md, D). A checkpoint in 16 bits holds the same numbers in fp32, so its
weights are widened for as long as a block of layers runs, and given back after it: an 8B model needs its own 16 GB and one
block more, on the device or beside it. Loaded by the worker alone.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch

from advisor.machine.memory import free_memory_bytes
from advisor.networks.readback_torch import is_quantised_tensor

#: What torch and Python raise where memory ends.
NO_MEMORY = (torch.OutOfMemoryError, MemoryError)

#: Scores of one chunk of queries take this much at most (bytes), where all of them would take more.
SCORES_BYTES = 2**30

#: All weights are widened at once, and stay so, where that takes this share of the free memory at most.
AT_ONCE_SHARE = 0.25

#: transformers' name for eager attention in chunks of queries, once it is registered.
IN_CHUNKS = "eager_in_chunks"

#: Attributes of a layer that say which one it is, not of what kind.
_NUMBERS = ("idx", "index", "layer_id", "layer_number", "layer_n")


def blocks_of(model: Any) -> list[torch.nn.Module]:
    """Return the members of the model's outermost lists of modules: what runs one after the other."""
    found: list[torch.nn.Module] = []

    def add(parts: torch.nn.ModuleList) -> None:
        for part in parts:
            if isinstance(part, torch.nn.ModuleList):  # a list runs nothing by itself (Funnel's blocks of layers)
                add(part)
            elif any(True for _ in part.parameters()):
                found.append(part)

    def walk(module: torch.nn.Module) -> None:
        for child in module.children():
            if isinstance(child, torch.nn.ModuleList):
                add(child)
            else:
                walk(child)

    walk(model)
    return found


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    """Return the floating-point parameters and buffers of a module and all below it."""
    every = itertools.chain(module.parameters(), module.buffers())
    return [tensor for tensor in every if tensor.is_floating_point() and not is_quantised_tensor(tensor)]


class _Widened:
    """Tensors whose data is in fp32 on a device for a while."""

    def __init__(self, tensors: list[torch.Tensor], device: torch.device) -> None:
        """Name the tensors; nothing is widened yet."""
        self.tensors = [t for t in tensors if t.dtype != torch.float32 or t.device != device]
        self.device = device
        self.held: list[tuple[torch.Tensor, torch.Tensor]] = []

    def enter(self) -> None:
        """Widen them."""
        # What is made in inference mode can't become a parameter's data outside it.
        with torch.inference_mode(False), torch.no_grad():
            for tensor in self.tensors:
                self.held.append((tensor, tensor.data))
                tensor.data = tensor.data.to(self.device, torch.float32)

    def leave(self) -> None:
        """Give their own data back."""
        while self.held:
            tensor, own = self.held.pop()
            tensor.data = own


@contextmanager
def in_fp32(model: Any, device: str) -> Iterator[None]:
    """Let a loaded model compute in fp32 on a device, wherever its weights are and whatever floats they are in.

    Where all of it fits easily it is widened once. Else what is in no block (embeddings, the last norm, the output layer) is
    widened all the while, a block while it runs. Weights that are quantised are no floats and stay as they are.
    """
    place = torch.device(device if device != "cuda" else "cuda:0")
    blocks = [] if _fits_at_once(model, place) else blocks_of(model)
    inside = {id(tensor) for block in blocks for tensor in _tensors(block)}
    outer = _Widened([tensor for tensor in _tensors(model) if id(tensor) not in inside], place)
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, matmul)
        stack.callback(setattr, torch.backends.cudnn, "allow_tf32", cudnn)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False  # a convolution in tf32 is none in fp32, and it is torch's default
        stack.callback(outer.leave)  # first: where memory ends half way, what was widened is given back
        outer.enter()
        for block in blocks:
            widened = _Widened(_tensors(block), place)
            if widened.tensors:
                stack.enter_context(_while_it_runs(block, widened))
        yield


def _fits_at_once(model: Any, place: torch.device) -> bool:
    """Whether the weights in fp32 take little of what is free: to widen them for every sequence anew costs more than memory."""
    free_bytes = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else free_memory_bytes()
    return 4 * sum(tensor.numel() for tensor in _tensors(model)) <= AT_ONCE_SHARE * free_bytes


@contextmanager
def _while_it_runs(block: torch.nn.Module, widened: _Widened) -> Iterator[None]:
    """Widen tensors for as long as a block runs. Not by hooks: some classes call a layer's forward itself (SqueezeBERT)."""
    own, is_replaced = block.forward, "forward" in vars(block)

    @wraps(own)
    def forward(*arguments: Any, **more: Any) -> Any:
        try:
            widened.enter()
            return own(*arguments, **more)
        finally:
            widened.leave()

    block.forward = forward
    try:
        yield
    finally:
        if is_replaced:
            block.forward = own
        else:
            del block.forward


class Settings:
    """The plain settings and the parts of a model's modules, as they were: some models change themselves as they run.

    BigBird leaves its sparse attention for good at the first short row, so that what it gives depends on what ran before.
    """

    def __init__(self, model: Any) -> None:
        """Remember them. Lists of layers are left out: which of them run is decided from outside."""
        self._held = [
            (module, tuple(_plain(module).items()), dict(module._modules))
            for module in model.modules()
            if not isinstance(module, torch.nn.ModuleList)
        ]

    def restore(self) -> None:
        """Put back what changed. Asked for every sequence that runs alone: what is the same object did not change."""
        for module, plain, parts in self._held:
            own = vars(module)
            for key, value in plain:
                if own.get(key, Settings) is not value:
                    own[key] = value
            if module._modules != parts:
                module._modules.clear()
                module._modules.update(parts)


def _plain(module: torch.nn.Module) -> dict[str, Any]:
    """Return a module's settings that are numbers, texts and truths."""
    return {key: value for key, value in vars(module).items() if isinstance(value, (bool, int, float, str))}


# ------------------------------------------------------------------------------------------------ its first layers alone


def layers_of(model: Any, count: int) -> torch.nn.ModuleList | None:
    """Return the list of the model's layers, None where no single list of `count` is found, or a list of lists.

    What a class does between blocks of layers is in none of them: Funnel pools the row.
    """
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count]
    if len(lists) != 1 or any(isinstance(part, torch.nn.ModuleList) for part in lists[0]):
        return None
    return lists[0]


def _kind(layer: torch.nn.Module) -> tuple[Any, ...]:
    """Return what makes a layer one of a kind: the classes of its parts, their plain settings and their shapes."""
    said: list[Any] = []
    for name, part in layer.named_modules():
        settings = {
            key: value
            for key, value in vars(part).items()
            if isinstance(value, (bool, int, float, str, type(None)))
            and not key.startswith("_")
            and not any(word in key for word in _NUMBERS)
        }
        said.append((name, type(part).__qualname__, tuple(sorted(settings.items(), key=str))))
    shapes = [(name, tuple(parameter.shape)) for name, parameter in layer.named_parameters()]
    return (tuple(said), tuple(shapes))


def first_of_each_kind(model: Any, count: int) -> int:
    """Return how many of the first layers hold every kind of layer that the model has; all where layers share something."""
    layers = layers_of(model, count)
    if layers is None:
        return count
    owners: dict[int, int] = {}
    for number, layer in enumerate(layers):
        for parameter in layer.parameters():
            if owners.setdefault(id(parameter), number) != number:
                return count
    text = model.config.get_text_config()
    if getattr(text, "num_kv_shared_layers", None):
        return count
    kinds, last = set(), 0
    for number, layer in enumerate(layers):
        kind = _kind(layer)
        if kind not in kinds:
            kinds.add(kind)
            last = number
    return last + 1


@contextmanager
def first_layers(model: Any, count: int, kept: int) -> Iterator[None]:
    """Let a model have only the first `kept` of its `count` layers for a while."""
    layers = layers_of(model, count)
    if layers is None or kept >= count:
        yield
        return
    whole = dict(layers._modules)
    try:
        for name in list(whole)[kept:]:
            del layers._modules[name]
        yield
    finally:
        layers._modules.clear()
        layers._modules.update(whole)


# ------------------------------------------------------------------------------------------------- attention in chunks


def eager_in_chunks(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as the model's own eager attention does, some queries at a time: T × T scores need not fit.

    query, key, value: [rows, heads, tokens, head size]; returns [rows, tokens, heads, head size].
    """
    eager = sys.modules[type(module).__module__].eager_attention_forward
    rows, heads, tokens, _ = query.shape
    step = max(1, SCORES_BYTES // (rows * heads * key.shape[2] * 4))
    parts = []
    for start in range(0, tokens, step):
        mask = None if attention_mask is None else attention_mask[:, :, start : start + step]
        parts.append(eager(module, query[:, :, start : start + step], key, value, mask, **options)[0])
    return torch.cat(parts, 1), None


def can_chunk(model: Any) -> bool:
    """Whether the model's files have an eager attention that can be given some of the queries."""
    modules = {type(part).__module__ for part in model.modules() if hasattr(part, "is_causal")}
    return bool(modules) and all(hasattr(sys.modules[name], "eager_attention_forward") for name in modules)


def register_chunks() -> None:
    """Make eager attention in chunks known to transformers under the name IN_CHUNKS, with eager's mask."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(IN_CHUNKS, eager_in_chunks)
    AttentionMaskInterface.register(IN_CHUNKS, eager_mask)
