"""A made-up choice of attention, whole in this one file: ADVISOR_PLUGINS=made_up, and its folder on PYTHONPATH.

It is right, as it rounds less than sdpa does, and slow, as it computes in 64 bit and rests in between.
"""

from __future__ import annotations

import time
from typing import Any

from advisor.knobs.choice import Choice, Reading, Reason, Situation, Term, Verdict

#: How long it rests in every layer, so that it is slower than the default on every machine.
REST_S = 0.003


def made_up_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    """Compute softmax(QKᵀ)V in 64 bit, as transformers' AttentionInterface calls it."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    time.sleep(REST_S)
    mask = (
        attention_mask if attention_mask is None or not attention_mask.is_floating_point() else attention_mask.double()
    )
    doubles = (query.double(), key.double(), value.double())
    output, weights = sdpa_attention_forward(module, *doubles, mask, **options)
    return output.to(query.dtype), weights


def register() -> None:
    """Make the name known to transformers, with the mask that sdpa gets."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("made-up", made_up_attention)
    AttentionMaskInterface.register("made-up", sdpa_mask)


def _why_not(situation: Situation) -> list[Reason]:
    if situation.facts.head_dim > 128:
        return [Reason("Z1", Verdict.INVALID, f"head size {situation.facts.head_dim}: made up for at most 128")]
    return []


def _proof(reading: Reading) -> str | None:
    return None if set(reading.attention.values()) == {"made-up"} else "it was not read back"


CHOICES = [
    Choice(
        "attention",
        "made-up",
        "in 64 bit, at leisure",
        "https://example.org/made-up",
        why_not=_why_not,
        load=lambda _: {"attn_implementation": "'made-up'"},
        before=("import made_up\nmade_up.register()",),
        proof=_proof,
        rates=lambda _: {Term.ATTENTION: 1e6},
    ),
]
