"""What compilation does to a loaded model, and how that is read back of it. Loaded by the worker alone."""

from __future__ import annotations

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


def uncompile(model: Any) -> None:
    """Have nothing of a model be compiled: torch has no word for it beside what `Module.compile` sets."""
    for module in model.modules():
        module._compiled_call_impl = None
    if "torch._dynamo" in sys.modules:
        torch._dynamo.config.allow_unspec_int_on_nn_module = False  # as torch has it


def compiled_as(model: Any) -> tuple[str, str, bool, int]:
    """Return what of a model is compiled, in which mode of torch's, whether with open sizes, and how many modules.

    What: "regional", "whole", "" for nothing.

    By what `Module.compile` left on it: the context that it runs in has the options of its mode. The mode is "" for torch's
    default, and "unknown" where they can't be read.
    """
    compiled = [module for module in model.modules() if module._compiled_call_impl is not None]
    if not compiled:
        return "", "", False, 0
    context = _context_of(compiled[0]._compiled_call_impl)
    is_known = hasattr(context, "compiler_config")
    options = getattr(context, "compiler_config", None) or {}
    asked = bool(options.get("triton.cudagraphs")), bool(options.get("max_autotune"))
    modes = {
        (False, False): "",
        (True, False): "reduce-overhead",
        (False, True): "max-autotune-no-cudagraphs",
        (True, True): "max-autotune",
    }
    region = "whole" if model._compiled_call_impl is not None else "regional"
    return (
        region,
        modes[asked] if is_known else "unknown",
        getattr(context, "_dynamic", None) is True,
        len(compiled),
    )


def _context_of(call: Any) -> Any:
    """Return the context that a compiled call runs in, None where torch keeps it otherwise."""
    code = getattr(call, "__code__", None)
    cells = zip(() if code is None else code.co_freevars, getattr(call, "__closure__", None) or (), strict=True)
    return next((cell.cell_contents for name, cell in cells if name == "self"), None)
