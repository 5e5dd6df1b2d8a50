"""Made-up choices of attention that work, but oddly, for tests: ADVISOR_PLUGINS=odd_choices, this folder on PYTHONPATH.

`odd-pretender` says that it is a new kernel, and sdpa runs. `odd-sluggish` is right and slow, for early stopping.
`odd-asleep` sleeps longer than any test takes: it keeps a tune busy that is to be interrupted.
"""

from __future__ import annotations

import time
from typing import Any

from advisor.knobs.attention.common import launched_any
from advisor.knobs.choice import Choice, Reading, Reason, Situation, Term, Verdict

_SLEEP_S = {"odd-pretender": 0.0, "odd-sluggish": 0.05, "odd-asleep": 600.0}


def register(name: str) -> None:
    """Make a choice known to transformers, with the mask that sdpa gets. Its own line calls it in the worker."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def forward(*arguments: Any, **options: Any) -> Any:
        time.sleep(_SLEEP_S[name])
        return sdpa_attention_forward(*arguments, **options)

    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, sdpa_mask)


def _padded_only(situation: Situation) -> list[Reason]:
    packing = situation.configuration["packing"]
    if packing == "padded":
        return []
    return [Reason("F1", Verdict.INVALID, "made up for padded batches", about=f"packing={packing}")]


def _no_proof(reading: Reading) -> str | None:
    return None if launched_any(reading.operators, ("pretender_kernel",)) else "no pretender_kernel was launched"


def _slow_proof(reading: Reading) -> str | None:
    return None if reading.attention.get("", "").startswith("odd-") else "it was not read back"


def _choice(name: str, rate: float, **more: Any) -> Choice:
    before = f"import odd_choices; odd_choices.register({name!r})"
    return Choice(
        "attention",
        name,
        "odd, for tests",
        before=(before,),
        rates=lambda _: {Term.ATTENTION: rate},
        load=lambda _: {"attn_implementation": repr(name)},
        **more,
    )


#: The sleeper and the pretender come first in the order of the search, the sluggish one last.
CHOICES = [
    _choice("odd-pretender", 1e6, proof=_no_proof),
    _choice("odd-sluggish", 0.9, proof=_slow_proof, why_not=_padded_only),
    _choice("odd-asleep", 1e9, proof=_slow_proof, why_not=_padded_only),
]
