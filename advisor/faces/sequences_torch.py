"""What users hand in, checked before a model sees it: token ids as a sequence, and a padded batch with its mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from advisor.errors import BadInput
from advisor.nouns.checked import shortened
from advisor.nouns.model import ModelFacts
from advisor.nouns.reading import shown, whole

#: Arguments of a padded batch that change nothing where they are as a tokenizer makes them, or as inference wants them.
_HARMLESS = ("return_dict", "use_cache")


def sequences_of(given: Iterable[Any], facts: ModelFacts) -> list[torch.Tensor]:
    """Return a batch of token ids as 1-D int64 tensors on the CPU. given: lists, arrays or 1-D tensors of whole numbers.

    Raises BadInput for no sequence at all, and for one that is a text, is empty, has a number that is no token id of the model,
    or is longer than its positions.
    """
    if isinstance(given, (str, bytes, Mapping)):
        raise BadInput(f"a batch is a list of token ids a sequence, not {shortened(given)}", "tokenize texts first")
    try:
        found = [_sequence(place, each, facts) for place, each in enumerate(given)]
    except TypeError:
        raise BadInput(f"a batch is a list of token ids a sequence, not {shortened(given)}") from None
    if not found:
        raise BadInput("a batch is one or more lists of token ids, none of them empty")
    return found


def _sequence(place: int, given: Any, facts: ModelFacts) -> torch.Tensor:
    which = f"sequence {place}"
    if isinstance(given, (str, bytes)):
        raise BadInput(f"{which} is a text, {shortened(given)}, not token ids", "tokenize it first")
    try:
        found = torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise BadInput(f"{which} is {shortened(given)}, not a list of token ids") from None
    if found.dim() != 1 or not len(found):
        raise BadInput(f"{which} is {shortened(given)}: a sequence is a list of token ids, none of them empty")
    if found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
        raise BadInput(
            f"{which} has values of {str(found.dtype).removeprefix('torch.')}, and token ids are whole numbers"
        )
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= facts.vocabulary:
        wrong = low if low < 0 else high
        raise BadInput(f"{which} has the token id {wrong}, and the model's go from 0 to {facts.vocabulary - 1}")
    most = None if facts.max_positions is None else facts.max_positions - facts.position_offset
    if most is not None and len(found) > most:
        raise BadInput(f"{which} has {len(found)} tokens, and the model {most} positions")
    return found.to(torch.long)


def real_tokens(input_ids: Any, attention_mask: Any) -> torch.Tensor:
    """Return which tokens of a padded batch are real, a bool tensor of its shape [batch, columns]. No mask: all of them.

    Raises BadInput for what is no such batch, a mask of another shape, and a row without any.
    """
    if not isinstance(input_ids, torch.Tensor) or input_ids.dim() != 2:
        raise BadInput("input_ids must be a tensor of token ids, [batch, columns]")
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.shape != input_ids.shape:
        shape = getattr(attention_mask, "shape", None)
        of = shortened(attention_mask) if shape is None else f"of the shape {list(shape)}"
        raise BadInput(f"attention_mask must have the shape of input_ids, {list(input_ids.shape)}, and is {of}")
    is_real = attention_mask != 0
    if not bool(is_real.any(-1).all()):
        raise BadInput(f"row {int((~is_real.any(-1)).nonzero()[0])} of attention_mask has no token at all")
    return is_real


def refuse_unmeasured(arguments: Mapping[str, Any], is_real: torch.Tensor, facts: ModelFacts) -> None:
    """Raise BadInput for an argument of a call that would be other work than was measured and judged.

    is_real: which tokens of the batch are, [batch, columns].
    """
    if arguments.get("return_dict") is False:
        raise BadInput("return_dict=False asks for a tuple, and this call returns a ModelOutput", "leave it out")
    for name, value in arguments.items():
        if value is None or value is False or name in _HARMLESS:
            continue
        if name == "position_ids" and _are_counted(value, is_real, facts):
            continue
        if name == "token_type_ids" and not bool(torch.as_tensor(value).any()):
            continue  # one segment, which is what was measured
        raise BadInput(f"{name} is not what was measured: this call takes input_ids and attention_mask", "leave it out")


def _are_counted(positions: Any, is_real: torch.Tensor, facts: ModelFacts) -> bool:
    """Whether positions count from each sequence's first token, as was measured: from 0, or from where the model's begin."""
    positions = torch.as_tensor(positions).to(is_real.device)
    if positions.dim() != 2 or positions.shape[1] != is_real.shape[1] or len(positions) not in (1, len(is_real)):
        return False
    beyond = (positions.expand(is_real.shape) - (is_real.cumsum(-1) - 1))[is_real]
    return any(bool((beyond == first).all()) for first in {0, facts.position_offset})


def columns_kept(logits_to_keep: Any, *, is_of_logits: bool) -> int:
    """Return how many of the last columns' logits are asked for, 0 for all. Raises BadInput for what is no such number."""
    try:
        kept = whole(logits_to_keep)
    except ValueError:
        kept = -1
    if kept < 0:
        raise BadInput(f"logits_to_keep must be a whole number from 0 on, not {shown(logits_to_keep)}")
    if kept and not is_of_logits:
        raise BadInput("logits_to_keep is of a language model's logits, and those were not measured", "leave it out")
    return kept
