"""A made-up attention whose function is printed: ADVISOR_PLUGINS=made_up_backend, and its folder on PYTHONPATH.

The script that a user runs needs nothing of this file: the function's source stands in it.
"""

from __future__ import annotations

from typing import Any

from advisor.knobs.choice import Choice, Reading, Term
from advisor.knobs.traits import Traits

NAME = "made-up-backend"


def made_up_backend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    """Compute softmax(QKᵀ)V by plain products, as transformers' AttentionInterface calls it."""
    rows, heads, tokens, size = query.shape
    key, value = (each.repeat_interleave(heads // each.shape[1], 1) for each in (key, value))
    scores = query @ key.transpose(2, 3) * (options.get("scaling") or size**-0.5)
    if attention_mask is not None:
        scores = scores + attention_mask
    return (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, tokens, heads, size), None


def _proof(reading: Reading) -> str | None:
    return None if set(reading.attention.values()) == {NAME} else "it was not read back"


CHOICES = [
    Choice(
        "attention",
        NAME,
        "plain products, whose source is printed",
        "https://example.org/made-up-backend",
        load=lambda _: {"attn_implementation": repr(NAME)},
        before=(
            f"AttentionInterface.register({NAME!r}, made_up_backend)",
            f"AttentionMaskInterface.register({NAME!r}, eager_mask)",
        ),
        imports=(
            "from typing import Any",
            "from transformers import AttentionInterface",
            "from transformers.masking_utils import AttentionMaskInterface, eager_mask",
        ),
        functions=(("made_up_backend", "made_up_backend"),),
        proof=_proof,
        rates=lambda _: {Term.ATTENTION: 0.5},
        traits=Traits(writes_scores=True, adds_mask=True),
    )
]
