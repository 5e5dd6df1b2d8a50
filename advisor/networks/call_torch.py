"""What a call of a model may hold: the arguments that its class takes beside ids, and an id to pad with."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

_OPTIONAL = ("attention_mask", "position_ids", "logits_to_keep", "cu_seq_lens_q")
_FLASH_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def accepted_arguments(model: Any) -> tuple[str, ...]:
    """Return which of these arguments the class's forward takes: see `ModelFacts.accepts`."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    named = tuple(name for name in _OPTIONAL if name in parameters)
    if takes_any and "cu_seq_lens_q" not in named:
        named = (*named, "cu_seq_lens_q")
    # Facts stored by an earlier version say nothing of it: then it is taken, as by every decoder.
    return named if takes_any or "use_cache" in parameters else (*named, "no_use_cache")


def accepted(arguments: dict[str, Any], accepts: Sequence[str]) -> dict[str, Any]:
    """Return the arguments without those that the class's forward does not take."""
    dropped = {name for name in _OPTIONAL if name not in accepts}
    if "no_use_cache" in accepts:
        dropped.add("use_cache")
    if "cu_seq_lens_q" in dropped:
        dropped |= set(_FLASH_ARGUMENTS)
    return {name: value for name, value in arguments.items() if name not in dropped}


def pad_token_of(model: Any) -> int:
    """Return an id to pad with; what it is does not matter, since pads are masked."""
    token = getattr(model.config, "pad_token_id", None)
    return token if isinstance(token, int) and 0 <= token < model.config.vocab_size else 0
