"""Packing with tensors: what turns a batch of token ids into the arguments of a call. Loaded by the worker alone.

Each `collate_*` stands on its own: `advisor suggest --format python` prints its source, so the script a user runs calls
the very lines that were measured. Inputs are lists of 1-D int64 tensors on the CPU; outputs are the keyword arguments, and
where each sequence lies: its row, its first column and the column after its last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

#: Where a sequence of a call lies: row, first column, and the column after its last.
Place = tuple[int, int, int]


def collate_left_padded(
    sequences: list[torch.Tensor], pad_token_id: int, first_position: int = 0
) -> tuple[dict[str, Any], list[tuple[int, int, int]]]:
    """Pad on the left, as generate() wants it; positions count from the first real token. Shapes: [batch, longest]."""
    longest = max(len(s) for s in sequences)
    input_ids = torch.full((len(sequences), longest), pad_token_id)
    attention_mask = torch.zeros((len(sequences), longest), dtype=torch.long)
    for row, s in enumerate(sequences):
        input_ids[row, longest - len(s) :] = s
        attention_mask[row, longest - len(s) :] = 1
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0) + first_position
    call = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, "use_cache": False}
    return call, [(row, longest - len(s), longest) for row, s in enumerate(sequences)]


def collate_right_padded(
    sequences: list[torch.Tensor], pad_token_id: int
) -> tuple[dict[str, Any], list[tuple[int, int, int]]]:
    """Pad on the right; the model counts positions itself. Shapes: [batch, longest].

    As encoders are trained; and right for a decoder that takes no positions: nothing reads what comes after it.
    """
    longest = max(len(s) for s in sequences)
    input_ids = torch.full((len(sequences), longest), pad_token_id)
    attention_mask = torch.zeros((len(sequences), longest), dtype=torch.long)
    for row, s in enumerate(sequences):
        input_ids[row, : len(s)] = s
        attention_mask[row, : len(s)] = 1
    call = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    return call, [(row, 0, len(s)) for row, s in enumerate(sequences)]


def collate_packed(
    sequences: list[torch.Tensor], first_position: int = 0
) -> tuple[dict[str, Any], list[tuple[int, int, int]]]:
    """Lay all sequences in one row, positions starting again. Shapes: [1, total]; cu_seq_lens: [sequences + 1]."""
    lengths = torch.tensor([len(s) for s in sequences])
    ends = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).to(torch.int32)
    call = {
        "input_ids": torch.cat(sequences)[None],
        "position_ids": torch.cat([torch.arange(len(s)) for s in sequences])[None] + first_position,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": int(lengths.max()),
        "max_length_k": int(lengths.max()),
        "use_cache": False,
    }
    return call, [(0, start, end) for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]


def collate_packed_masked(
    sequences: list[torch.Tensor], dtype: torch.dtype, first_position: int = 0
) -> tuple[dict[str, Any], list[tuple[int, int, int]]]:
    """Lay all sequences in one row with a mask [1, 1, total, total] that is 0 inside a sequence and the least outside."""
    document = torch.repeat_interleave(torch.arange(len(sequences)), torch.tensor([len(s) for s in sequences]))
    mask = torch.zeros((1, 1, len(document), len(document)), dtype=dtype)
    mask.masked_fill_(document[:, None] != document[None], torch.finfo(dtype).min)
    call = {
        "input_ids": torch.cat(sequences)[None],
        "attention_mask": mask,
        "position_ids": torch.cat([torch.arange(len(s)) for s in sequences])[None] + first_position,
        "use_cache": False,
    }
    ends = torch.tensor([0, *(len(s) for s in sequences)]).cumsum(0).tolist()
    return call, [(0, a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]  # noqa: RUF007  (stands on its own)


@dataclass(frozen=True)
class Batching:
    """What a batch must be made for.

    causal: False for an encoder; first_position: of every sequence; apart: whether attention tells packed sequences apart by
    cu_seq_lens; dtype: the model's, for a float mask; left: whether pads go to the left.
    """

    pad_token_id: int
    causal: bool = True
    first_position: int = 0
    apart: bool = False
    dtype: torch.dtype = torch.float32
    left: bool = True


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


def _from_zero(call: dict[str, Any], lengths: list[int]) -> None:
    call["position_ids"] = call["position_ids"] - call["position_ids"].min()


def _zeros_in_mask(call: dict[str, Any], lengths: list[int]) -> None:
    """Add one pad at the row's end, and the mask that says so."""
    for name in ("input_ids", "position_ids"):
        call[name] = torch.nn.functional.pad(call[name], (0, 1))
    call["attention_mask"] = torch.ones_like(call["input_ids"])
    call["attention_mask"][0, -1] = 0


def _as_it_is(call: dict[str, Any], lengths: list[int]) -> None:
    pass


#: The forms that are refused by a rule, as changes to the right one.
_WRONG: dict[str, Callable[[dict[str, Any], list[int]], None]] = {
    "packed-cached": _cached,
    "packed-2d-mask": _mask_2d,
    "packed-cu-seq-lens-only": _cu_seq_lens_only,
    "packed-bool-mask": _bool_mask,
    "packed-no-mask": _as_it_is,
    "packed-positions-from-0": _from_zero,
    "packed-zeros-in-mask": _zeros_in_mask,
}


def collate(packing: str, sequences: list[torch.Tensor], batching: Batching) -> tuple[dict[str, Any], list[Place]]:
    """Return the keyword arguments for a batch under a packing choice, and where each sequence lies."""
    if not packing.startswith("packed"):
        if batching.left:
            return collate_left_padded(sequences, batching.pad_token_id, batching.first_position)
        return collate_right_padded(sequences, batching.pad_token_id)
    if packing == "packed-two-rows":
        return _two_rows(sequences, batching)
    masked = not batching.causal and not batching.apart and packing in ("packed", "packed-positions-from-0")
    if not masked:
        call, places = collate_packed(sequences, batching.first_position)
    else:
        call, places = collate_packed_masked(sequences, batching.dtype, batching.first_position)
    if packing in _WRONG:
        _WRONG[packing](call, [len(s) for s in sequences])
    return call, places


def _two_rows(sequences: list[torch.Tensor], batching: Batching) -> tuple[dict[str, Any], list[Place]]:
    """Pack into two rows, the shorter one filled with pads at its end, without cu_seq_lens: what rule P4 is about."""
    half = (len(sequences) + 1) // 2
    made = [collate_packed(group, batching.first_position) for group in (sequences[:half], sequences[half:]) if group]
    width = max(int(call["input_ids"].shape[1]) for call, _ in made)
    both: dict[str, Any] = {
        name: torch.cat([torch.nn.functional.pad(call[name], (0, width - call[name].shape[1])) for call, _ in made])
        for name in ("input_ids", "position_ids")
    }
    places = [(number, start, end) for number, (_, found) in enumerate(made) for _, start, end in found]
    return {**both, "use_cache": False}, places


def describe(call: dict[str, Any], batching: Batching, *, by_length: bool) -> dict[str, Any]:
    """Return how the model is called, as the proof reads it; looks at the tensors, not at the request."""
    positions, mask = call.get("position_ids"), call.get("attention_mask")
    restarting = positions is not None and mask_is_packed(positions, mask)
    zeros = mask is not None and mask.dim() == 2 and bool((mask == 0).any())
    return {
        "rows": int(call["input_ids"].shape[0]),
        "columns": int(call["input_ids"].shape[1]),
        "mask": None if mask is None else f"{mask.dim()}d-{str(mask.dtype).removeprefix('torch.')}",
        "mask_zeros": zeros,
        "restarting_positions": bool(restarting),
        "cache": bool(call.get("use_cache", True)),
        "cu_seq_lens": "cu_seq_lens_q" in call,
        "by_length": by_length,
        "lacks_mask": bool(restarting and mask is None and not batching.causal and not batching.apart),
        "from_first_position": positions is None or int(positions.min()) >= batching.first_position,
    }


def mask_is_packed(positions: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether positions fail to rise somewhere inside a row, pads aside: then several sequences share that row."""
    falls = positions[:, 1:] <= positions[:, :-1]
    if mask is not None and mask.dim() == 2 and mask.shape == positions.shape:
        falls = falls & mask[:, 1:].bool() & mask[:, :-1].bool()
    return bool(falls.any())
