"""What Liger replaces in a loaded model and in its class's module, read back and taken back. Loaded by the worker alone.

Liger binds its functions to the modules of a model, and puts them in place of names in the module that the model's class is
from (`modeling_llama.apply_rotary_pos_emb`, `LlamaRMSNorm`, `LlamaMLP`): the latter is the whole process's, and models that are
loaded later have it too. It has no way back of its own.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

#: What Liger's own things say that they are from, and what it binds to a module beside its forward.
_LIGER = "liger_kernel"
_BOUND = ("forward", "extra_repr", "_get_name")

#: By the name of a module of transformers', and of torch.nn: what stood in it before anything was replaced.
_KEPT: dict[str, dict[str, Any]] = {}


def replaced(model: Any) -> dict[str, int]:
    """Return how many modules of a model compute by each of Liger's classes, and which functions beside its class are Liger's."""
    counts: Counter[str] = Counter()
    for module in model.modules():
        forward = module.__dict__.get("forward", type(module).forward)
        if is_ligers(forward):
            counts[str(forward.__qualname__).split(".")[0]] += 1
    for name in _modules_of(model):
        for key, value in vars(sys.modules[name]).items():
            if is_ligers(value) and not isinstance(value, type):
                counts[key] += 1
    return dict(counts)


def take_back(model: Any) -> None:
    """Have a model and its class's module be as they were before Liger, and remember how that is.

    Called before anything is replaced as well as after: the first time nothing is Liger's, and all is kept.
    """
    for module in model.modules():
        for name in _BOUND:
            if is_ligers(module.__dict__.get(name)):
                del module.__dict__[name]
    for name in _modules_of(model):
        now = vars(sys.modules[name])
        was = _KEPT.setdefault(name, {key: value for key, value in now.items() if not is_ligers(value)})
        for key in [key for key, value in now.items() if is_ligers(value) and key in was]:
            setattr(sys.modules[name], key, was[key])


def knows(model_type: str) -> bool | None:
    """Whether the installed Liger has kernels for a type of model, by its own table; None where it is absent or can't be read.

    Read in its source: importing it takes triton, and seconds.
    """
    spec = importlib.util.find_spec(_LIGER)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    for place in places:
        file = Path(place) / "transformers" / "monkey_patch.py"
        if file.is_file():
            types = types_in(file.read_text(encoding="utf-8"))
            return model_type in types if types else None
    return None


def types_in(source: str) -> frozenset[str]:
    """Return the types of models in Liger's table, given the source that it stands in; none where it is not found."""
    table = re.search(r"^MODEL_TYPE_TO_APPLY_LIGER_FN\b[^={]*=\s*\{(.*?)^\}", source, re.MULTILINE | re.DOTALL)
    return frozenset(re.findall(r"""^\s*["'](\w[\w-]*)["']\s*:""", table[1], re.MULTILINE)) if table else frozenset()


def is_ligers(value: Any) -> bool:
    """Whether a class, a function or a bound method is Liger's."""
    return str(getattr(value, "__module__", "")).split(".")[0] == _LIGER


def _modules_of(model: Any) -> list[str]:
    """Return the modules that the classes of a model's modules are from, transformers' alone, and torch.nn."""
    found = {type(module).__module__ for module in model.modules()}
    return sorted({"torch.nn", *(name for name in found if name.startswith("transformers.") and name in sys.modules)})
