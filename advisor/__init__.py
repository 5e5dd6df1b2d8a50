"""advisor: the fastest way to run a Hugging Face transformers model on your GPU that is still right, with the proof.

    import advisor

    found = advisor.suggest("org/model", lengths=2048, padding=0.3, batch=8)  # from what was measured
    ready = advisor.load("org/model", lengths=2048, padding=0.3, batch=8)  # the model, loaded as recommended
    found = advisor.tune("org/model", lengths=2048, padding=0.3, batch=8, budget="10m")  # measure now

Importing this costs milliseconds: what takes longer is imported by whoever calls.
"""

from __future__ import annotations

from importlib import import_module

from advisor.version import __version__

TYPE_CHECKING = False  # typing's own would be imported for it: half of this package's time
if TYPE_CHECKING:
    from advisor.faces.answer import Answer
    from advisor.faces.api import load, suggest, tune
    from advisor.faces.loading import Ready

__all__ = ["Answer", "Ready", "__version__", "load", "suggest", "tune"]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module("advisor.faces.api"), name)
    raise AttributeError(f"module 'advisor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
