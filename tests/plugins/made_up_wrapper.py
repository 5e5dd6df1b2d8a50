"""A made-up knob that wraps parts of the loaded model: ADVISOR_PLUGINS=made_up_wrapper, and its folder on PYTHONPATH.

What is wrapped computes what it did, to the bit, and leaves its name in the profile of every call.
"""

from __future__ import annotations

from typing import Any

from advisor.knobs.choice import Choice, Knob, Reading, Reason, Situation, Verdict

NAME, PLAIN, WRAPPED = "made-up-wrapper", "plain", "wrapped"

#: What a wrapper is called in a profile.
MARK = "made_up_wrapper"


def in_wrappers(model: Any) -> Any:
    """Put every layer's MLP into a wrapper, in place. Returns the model."""
    import torch

    class MadeUpWrapper(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: Any, **more: Any) -> Any:
            with torch.profiler.record_function("made_up_wrapper"):
                return self.inner(*inputs, **more)

    for part in list(model.modules()):
        for name, layer in list(part.named_children()):
            if name == "mlp":
                setattr(part, name, MadeUpWrapper(layer))
    return model


def _why_not(situation: Situation) -> list[Reason]:
    if situation.facts.head_dim > 128:
        return [Reason("Z3", Verdict.INVALID, f"head size {situation.facts.head_dim}: made up for at most 128")]
    return []


def _read(model: Any, arguments: Any) -> Any:
    return {"wrappers": sum(type(part).__name__ == "MadeUpWrapper" for part in model.modules())}


def _effective(reading: Reading) -> str:
    return WRAPPED if reading.own[NAME]["wrappers"] else PLAIN


def _plain_proof(reading: Reading) -> str | None:
    return "a wrapper was called" if MARK in reading.operators else None


def _wrapped_proof(reading: Reading) -> str | None:
    return None if MARK in reading.operators else "no wrapper was called"


KNOBS = [
    Knob(
        NAME,
        "what is around a layer's MLP",
        reload=True,
        choices={
            PLAIN: Choice(NAME, PLAIN, "nothing", proof=_plain_proof),
            WRAPPED: Choice(
                NAME,
                WRAPPED,
                "a module that does nothing",
                "https://example.org/made-up-wrapper",
                why_not=_why_not,
                after=("model = in_wrappers(model)",),
                imports=("import torch", "from typing import Any"),
                functions=(("made_up_wrapper", "in_wrappers"),),
                proof=_wrapped_proof,
            ),
        },
        default=lambda _: PLAIN,
        effective=_effective,
        implied=PLAIN,
        read=_read,
    )
]
