"""What a class makes of several sequences in one row, asked of a small copy of it: rules P22 and P25 go by the answer.

A name says nothing here: Falcon's mask follows positions since transformers 5.24, OPT's does not, and some encoders take no
mask of four dimensions at all. So documents are run alone and packed, as the layout would pack them, in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from advisor.knobs import KNOBS, Batching, collate
from advisor.networks.kinds_torch import as_traced, shallow, with_values
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFiles

#: The layout that is tried: the first that lays sequences in one row.
_LAYOUT = Configuration.of(
    {"packing": next(name for name, choice in KNOBS["packing"].choices.items() if choice.traits.packs)}
)

#: What becomes of documents that share a row: they come out otherwise than alone, or the call raises.
WRONG, RAISES = "wrong", "raises"

#: Tokens of the documents: short, for classes change behind a window, and that is rule P24's to say.
LENGTHS = (5, 8, 3)

#: Larger copies are not run: drawing their weights takes seconds. Then the mask alone is looked at.
MOST_COPIED = 40_000_000

#: Documents that differ by more (rms in standard deviations) are not the same: fp32 kernels differ by 1e-5.
LEAST_WRONG = 1e-3

#: Ids below are often special: they end, mask or pad something.
_FIRST_ID = 10


Accept = Callable[[dict[str, Any]], dict[str, Any]]


def packed_row(
    source: ModelFiles, model: Any, config: Any, auto: Any, batching: Batching, accept: Accept, *, scores: bool
) -> str:
    """Return WRONG or RAISES where a packed row of this class certainly is, "" where it is right or nobody knows.

    model: on device meta, looked at where a copy with values would be too large. batching: in fp32. accept: leaves out the
    arguments that the class does not take. scores: the head reads one position a row, so that hidden states are compared.
    """
    with suppress(Exception):  # whatever a class raises: what can't be tried is left to the gate
        copied = with_values(source, shallow(config), auto, MOST_COPIED)
        if copied is None:
            return WRONG if batching.causal and _mask_ignores_positions(model, accept, batching) else ""
        return _compared(copied.base_model if scores else copied, accept, batching)
    return ""


def _documents(vocabulary: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = min(_FIRST_ID, vocabulary // 2)
    return [torch.randint(first, vocabulary, (length,), generator=generator) for length in LENGTHS]


def _compared(model: Any, accept: Accept, batching: Batching) -> str:
    documents = _documents(int(model.config.get_text_config().vocab_size))
    alone = [_values(model, accept({"input_ids": ids[None], "use_cache": False}))[0] for ids in documents]
    again = _values(model, accept({"input_ids": documents[0][None], "use_cache": False}))[0]
    if not torch.equal(alone[0], again):
        return ""  # its output is random, or depends on what ran before
    call, places = collate(_LAYOUT, documents, batching)
    try:
        values = _values(model, accept(call))
        packed = [values[row, start:end] for row, start, end in places]
    except Exception:  # noqa: BLE001  (the class's own words tell its author something, and nobody else)
        return RAISES
    difference = torch.cat(packed) - torch.cat(alone)
    rms = difference.double().square().mean().sqrt() / torch.cat(alone).double().std()
    return WRONG if bool(rms > LEAST_WRONG) else ""


def _values(model: Any, call: dict[str, Any]) -> torch.Tensor:
    """Return logits, or hidden states where there are none, [rows, columns, width]."""
    with torch.inference_mode():
        outputs = model(**call)
    found: torch.Tensor = outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state
    return found


def _mask_ignores_positions(model: Any, accept: Accept, batching: Batching) -> bool:
    """Whether transformers makes the masks of a model on device meta, and no position reaches what makes them."""
    from transformers import masking_utils

    own, seen = masking_utils._preprocess_mask_arguments, []

    def watched(*arguments: Any, **more: Any) -> Any:
        seen.append(more.get("position_ids", arguments[4] if len(arguments) > 4 else None) is not None)
        return own(*arguments, **more)

    call, _ = collate(_LAYOUT, _documents(int(model.config.get_text_config().vocab_size)), batching)
    call = {name: value.to("meta") if torch.is_tensor(value) else value for name, value in accept(call).items()}
    masking_utils._preprocess_mask_arguments = watched
    try:
        with torch.inference_mode(), as_traced():
            model(**call)
    finally:
        masking_utils._preprocess_mask_arguments = own
    return bool(seen) and not any(seen)
