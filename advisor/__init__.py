"""advisor: the fastest way to run a Hugging Face transformers model on your GPU that is still right, with the proof.

    import advisor

    found = advisor.suggest("org/model", lengths=2048, padding=0.3, batch=8)  # from what was measured
    ready = advisor.load("org/model", lengths=2048, padding=0.3, batch=8)  # the model, loaded as recommended
    found = advisor.tune("org/model", lengths=2048, padding=0.3, batch=8, budget="10m")  # measure now

Importing this costs milliseconds: what takes longer is imported by whoever calls.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

TYPE_CHECKING = False  # typing's own would be imported for it: half of this package's time
if TYPE_CHECKING:
    from advisor.api import load, suggest, tune
    from advisor.loading import Ready

__all__ = ["Ready", "__version__", "load", "suggest", "tune"]

__version__ = "0.1.0"

#: Functions that have the name of the module that does their work: `advisor.suggest` is both.
_VERBS = ("suggest", "tune")


class _Verb(ModuleType):
    """A module that can be called: then it is the function of `advisor.api` that has its name."""

    def __call__(self, *arguments: object, **flags: object) -> object:
        return getattr(import_module("advisor.api"), self.__name__.rpartition(".")[2])(*arguments, **flags)


class _Package(ModuleType):
    """The package itself: Python sets a submodule as its attribute, and those named after a verb are made callable then."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _VERBS and type(value) is ModuleType:
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name in _VERBS:
        return import_module(f"advisor.{name}")
    if name in __all__:
        return getattr(import_module("advisor.api"), name)
    raise AttributeError(f"module 'advisor' has no attribute {name!r}")
