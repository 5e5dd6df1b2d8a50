"""The options of work on a list of sequences, and the lengths that they name."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Mapping
from typing import Any

from advisor.errors import BadInput, named
from advisor.nouns.option import Option, number_word, whole_word
from advisor.nouns.reading import read_number, read_whole, shown, whole
from advisor.workloads.quantiles import DEALT, DEFAULT_BATCHES, generated_or_listed, read_lengths, refuse_absurd

#: What `advisor tune MODEL` measures when no workload is given.
DEFAULT_LENGTHS, DEFAULT_PADDING, DEFAULT_BATCH = 512, 0.3, 8


def _batch_word(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise ArgumentTypeError(f"must be a whole number or auto, not {text!r}") from None


def _read_batch(value: Any, name: str) -> int | None:
    """Return the sequences a batch, None where that is to be found."""
    try:
        return None if isinstance(value, str) and value == "auto" else whole(value)
    except ValueError:
        raise BadInput(f"{named(name)} must be a whole number or auto, not {shown(value)}") from None


def _read_path(value: Any, name: str) -> str:
    try:
        return os.fsdecode(value)
    except TypeError:
        raise BadInput(f"{named(name)} must be a path, not {shown(value)}") from None


#: The options of a list of sequences and of its batches. batch is None where it is tuned too.
LIST_OPTIONS = (
    Option(
        "lengths",
        f"longest sequence in tokens, or every length (default: {DEFAULT_LENGTHS})",
        read_lengths,
        metavar="N[,N…]",
    ),
    Option(
        "lengths_from",
        "your own texts by the model's tokenizer: .txt, a text a line; .jsonl, .json, .csv or .tsv, rows "
        "with text, prompt, instruction, messages or their like; or FILE:COLUMN",
        _read_path,
        metavar="FILE",
    ),
    Option(
        "padding",
        f"share of pads in padded batches (default: {DEFAULT_PADDING})",
        read_number,
        metavar="P",
        word=number_word,
    ),
    Option(
        "batch",
        "sequences a batch, or auto: then it is tuned too (default: %(default)s)",
        _read_batch,
        default=DEFAULT_BATCH,
        metavar="N",
        word=_batch_word,
    ),
    Option(
        "batches",
        f"batches in the list, an even sample of a larger file (default: {DEFAULT_BATCHES})",
        read_whole,
        metavar="N",
        word=whole_word,
    ),
)


def lengths_of(asked: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the lengths of the workload, None where a file is to give them. asked: by option. Raises BadInput."""
    lengths, padding = asked["lengths"], asked["padding"]
    dealt = DEALT if asked["batch"] is None else asked["batch"]
    batches = DEFAULT_BATCHES if asked["batches"] is None else asked["batches"]
    if asked["lengths_from"] is not None:
        if lengths is not None or padding is not None:
            ours = f"{named('lengths_from')} goes without {named('lengths')} and {named('padding')}"
            raise BadInput(f"{ours}: a file has the lengths it has")
        least = dealt if asked["batches"] is None else min(dealt, batches)
        if least < 1:
            raise BadInput(f"{named('batch')} and {named('batches')} must be at least 1, not {least}")
        refuse_absurd(dealt * batches)
        return None
    lengths = DEFAULT_LENGTHS if lengths is None else lengths
    if padding is None and isinstance(lengths, int) and dealt > 1:
        padding = DEFAULT_PADDING
    return generated_or_listed(lengths, padding, dealt, batches)
