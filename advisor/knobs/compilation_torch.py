"""What compilation does to a loaded model, and how that is read back of it. Loaded by the worker alone."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer


def repeated_layers(model: Any) -> list[Any]:
    """Return the layers that a model repeats: one of a kind is compiled, and the others use what was made of it."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_layers(model: Any, **how: Any) -> None:
    """Compile the layers that a model repeats. how: what `Module.compile` takes."""
    for layer in repeated_layers(model):
        layer.compile(**how)


def compile_loss(model: Any, **how: Any) -> None:
    """Compile what makes a loss of a model's logits. how: what `torch.compile` takes."""
    base = getattr(model, "get_base_model", lambda: model)()  # adapters are around it
    base.loss_function = torch.compile(base.loss_function, **how)


def calls_loss(model: Any) -> bool | None:
    """Whether a model's class makes its loss by the function that it can be given; None where its source can't be read."""
    try:
        source = inspect.getsource(inspect.unwrap(type(model).forward))
    except (OSError, TypeError):
        return None
    return hasattr(type(model), "loss_function") and "self.loss_function" in source


def uncompile(model: Any) -> None:
    """Have nothing of a model be compiled: torch has no word for it beside what `Module.compile` sets."""
    for module in model.modules():
        module._compiled_call_impl = None
        if (loss := _compiled_loss(module)) is not None:
            module.loss_function = loss._torchdynamo_orig_callable
    if "torch._dynamo" in sys.modules:
        torch._dynamo.config.allow_unspec_int_on_nn_module = False  # as torch has it


def compiled_as(model: Any) -> tuple[str, str, bool, int]:
    """Return what of a model is compiled, in which mode of torch's, whether with open sizes, and how many parts.

    What: "regional", "loss", "regional-with-loss", "" for the model as a whole. Parts: modules, and a loss; 0 for nothing.

    By what `Module.compile` left on it: the context that it runs in has the options of its mode. The mode is "" for torch's
    default, and "unknown" where they can't be read.
    """
    calls = [module._compiled_call_impl for module in model.modules() if module._compiled_call_impl is not None]
    losses = [loss for module in model.modules() if (loss := _compiled_loss(module)) is not None]
    if not calls and not losses:
        return "", "", False, 0
    context = _context_of((calls or losses)[0])
    is_known = hasattr(context, "compiler_config")
    options = getattr(context, "compiler_config", None) or {}
    asked = bool(options.get("triton.cudagraphs")), bool(options.get("max_autotune"))
    modes = {
        (False, False): "",
        (True, False): "reduce-overhead",
        (False, True): "max-autotune-no-cudagraphs",
        (True, True): "max-autotune",
    }
    layers = "regional-with-loss" if losses else "regional"
    region = "" if model._compiled_call_impl is not None else layers if calls else "loss"
    return (
        region,
        modes[asked] if is_known else "unknown",
        getattr(context, "_dynamic", None) is True,
        len(calls) + len(losses),
    )


def _compiled_loss(module: Any) -> Any:
    """Return what was compiled as a module's loss, None where nothing was: transformers keeps one that was set."""
    loss = module.__dict__.get("_loss_function")
    return loss if hasattr(loss, "_torchdynamo_orig_callable") else None


def _context_of(call: Any) -> Any:
    """Return the context that a compiled call runs in, None where torch keeps it otherwise."""
    code = getattr(call, "__code__", None)
    cells = zip(() if code is None else code.co_freevars, getattr(call, "__closure__", None) or (), strict=True)
    return next((cell.cell_contents for name, cell in cells if name == "self"), None)
