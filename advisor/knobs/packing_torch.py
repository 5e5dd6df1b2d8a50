"""Packing with tensors: what turns a batch of token ids into the arguments of a call. Loaded by the worker alone.

Each `collate_*` stands on its own: `advisor suggest --format python` prints its source, so the script a user runs calls
the very lines that were measured. Inputs are lists of 1-D int64 tensors on the CPU; outputs are the keyword arguments, and
where each sequence lies: its row, its first column and the column after its last.
"""

from __future__ import annotations

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


# ------------------------------------------------------ the forms that are refused by a rule, as changes to the right one


def collate_cached(sequences: list[torch.Tensor], first_position: int = 0) -> tuple[dict[str, Any], list[Place]]:
    """Pack with the default cache: what rule P1 is about."""
    call, places = collate_packed(sequences, first_position)
    return {**call, "use_cache": True}, places


def collate_2d_masked(sequences: list[torch.Tensor], first_position: int = 0) -> tuple[dict[str, Any], list[Place]]:
    """Pack with a mask of ones: what rule P2 is about."""
    call, places = collate_packed(sequences, first_position)
    return {**call, "attention_mask": torch.ones_like(call["input_ids"])}, places


def collate_taught_across(sequences: list[torch.Tensor], first_position: int = 0) -> tuple[dict[str, Any], list[Place]]:
    """Pack with labels at every token, a sequence's first one too: what rule T3 is about."""
    call, places = collate_packed(sequences, first_position)
    return {**call, "labels": call["input_ids"].clone()}, places


def collate_without_positions(
    sequences: list[torch.Tensor], first_position: int = 0
) -> tuple[dict[str, Any], list[Place]]:
    """Pack with cu_seq_lens and no positions: what rule P3 is about."""
    call, places = collate_packed(sequences, first_position)
    del call["position_ids"]
    return call, places


def collate_bool_masked(sequences: list[torch.Tensor], first_position: int = 0) -> tuple[dict[str, Any], list[Place]]:
    """Pack with a causal mask of truths that keeps sequences apart: what rule P15 is about."""
    call, places = collate_packed(sequences, first_position)
    document = torch.repeat_interleave(torch.arange(len(sequences)), torch.tensor([len(s) for s in sequences]))
    causal = torch.ones((len(document), len(document)), dtype=torch.bool).tril()
    call["attention_mask"] = (causal & (document[:, None] == document[None]))[None, None]
    return call, places


def collate_from_zero(sequences: list[torch.Tensor], first_position: int = 0) -> tuple[dict[str, Any], list[Place]]:
    """Pack with positions from 0: what rule P8 is about."""
    call, places = collate_packed(sequences, first_position)
    call["position_ids"] = call["position_ids"] - call["position_ids"].min()
    return call, places


def collate_masked_from_zero(
    sequences: list[torch.Tensor], dtype: torch.dtype, first_position: int = 0
) -> tuple[dict[str, Any], list[Place]]:
    """Do the same with the mask that an encoder needs."""
    call, places = collate_packed_masked(sequences, dtype, first_position)
    call["position_ids"] = call["position_ids"] - call["position_ids"].min()
    return call, places


def collate_zeros_in_mask(sequences: list[torch.Tensor], first_position: int = 0) -> tuple[dict[str, Any], list[Place]]:
    """Pack with one pad at the row's end, and a mask that says so: what rule P5 is about."""
    call, places = collate_packed(sequences, first_position)
    for name in ("input_ids", "position_ids"):
        call[name] = torch.nn.functional.pad(call[name], (0, 1))
    call["attention_mask"] = torch.ones_like(call["input_ids"])
    call["attention_mask"][0, -1] = 0
    return call, places


def collate_two_rows(sequences: list[torch.Tensor], first_position: int = 0) -> tuple[dict[str, Any], list[Place]]:
    """Pack into two rows, the shorter one filled with pads at its end, without cu_seq_lens: what rule P4 is about."""
    half = (len(sequences) + 1) // 2
    made = [collate_packed(group, first_position) for group in (sequences[:half], sequences[half:]) if group]
    width = max(int(call["input_ids"].shape[1]) for call, _ in made)
    both: dict[str, Any] = {
        name: torch.cat([torch.nn.functional.pad(call[name], (0, width - call[name].shape[1])) for call, _ in made])
        for name in ("input_ids", "position_ids")
    }
    places = [(number, start, end) for number, (_, found) in enumerate(made) for _, start, end in found]
    return {**both, "use_cache": False}, places
