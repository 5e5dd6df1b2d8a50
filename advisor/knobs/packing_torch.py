"""Packing with tensors: what turns a batch of token ids into the arguments of a call. Loaded by the worker alone.

Each `collate_*` stands on its own: `advisor suggest --format python` prints its source, so the script a user runs calls
the very lines that were measured. Inputs are lists of 1-D int64 tensors on the CPU; outputs are keyword arguments.
"""

from __future__ import annotations

from typing import Any

import torch


def collate_padded(sequences: list[torch.Tensor], pad_token_id: int) -> dict[str, object]:
    """Pad on the left, as generate() wants it; positions count from the first real token. Shapes: [batch, longest]."""
    longest = max(len(s) for s in sequences)
    input_ids = torch.full((len(sequences), longest), pad_token_id)
    attention_mask = torch.zeros((len(sequences), longest), dtype=torch.long)
    for row, s in enumerate(sequences):
        input_ids[row, longest - len(s) :] = s
        attention_mask[row, longest - len(s) :] = 1
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, "use_cache": False}


def collate_packed(sequences: list[torch.Tensor]) -> dict[str, object]:
    """Lay all sequences in one row, positions starting again. Shapes: [1, total]; cu_seq_lens: [sequences + 1]."""
    lengths = torch.tensor([len(s) for s in sequences])
    ends = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).to(torch.int32)
    return {
        "input_ids": torch.cat(sequences)[None],
        "position_ids": torch.cat([torch.arange(len(s)) for s in sequences])[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": int(lengths.max()),
        "max_length_k": int(lengths.max()),
        "use_cache": False,
    }


def _cached(call: dict[str, Any], lengths: list[int]) -> None:
    call["use_cache"] = True


def _mask_2d(call: dict[str, Any], lengths: list[int]) -> None:
    call["attention_mask"] = torch.ones_like(call["input_ids"])


def _cu_seq_lens_only(call: dict[str, Any], lengths: list[int]) -> None:
    del call["position_ids"]


def _bool_mask(call: dict[str, Any], lengths: list[int]) -> None:
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    total = len(document)
    causal = torch.ones((total, total), dtype=torch.bool).tril()
    call["attention_mask"] = (causal & (document[:, None] == document[None]))[None, None]


#: The forms that are refused by a rule, as changes to the right one.
_WRONG = {
    "packed-cached": _cached,
    "packed-2d-mask": _mask_2d,
    "packed-cu-seq-lens-only": _cu_seq_lens_only,
    "packed-bool-mask": _bool_mask,
}


def collate(packing: str, sequences: list[torch.Tensor], pad_token_id: int) -> dict[str, Any]:
    """Return the keyword arguments for a batch under a packing choice."""
    if not packing.startswith("packed"):
        return collate_padded(sequences, pad_token_id)
    call: dict[str, Any] = collate_packed(sequences)
    if packing in _WRONG:
        _WRONG[packing](call, [len(s) for s in sequences])
    return call


def describe(call: dict[str, Any], *, by_length: bool) -> dict[str, Any]:
    """Return how the model is called, as the proof reads it; looks at the tensors, not at the request."""
    positions, mask = call.get("position_ids"), call.get("attention_mask")
    restarting = positions is not None and mask_is_packed(positions, mask)
    return {
        "rows": int(call["input_ids"].shape[0]),
        "columns": int(call["input_ids"].shape[1]),
        "mask": None if mask is None else f"{mask.dim()}d-{str(mask.dtype).removeprefix('torch.')}",
        "restarting_positions": bool(restarting),
        "cache": bool(call.get("use_cache", True)),
        "cu_seq_lens": "cu_seq_lens_q" in call,
        "by_length": by_length,
    }


def mask_is_packed(positions: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether positions fail to rise somewhere inside a row, pads aside: then several sequences share that row."""
    falls = positions[:, 1:] <= positions[:, :-1]
    if mask is not None and mask.dim() == 2 and mask.shape == positions.shape:
        falls = falls & mask[:, 1:].bool() & mask[:, :-1].bool()
    return bool(falls.any())
