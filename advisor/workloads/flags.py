"""The command-line flags of work on a list of sequences, and the lengths that they name."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace

from advisor.errors import BadInput
from advisor.workloads.quantiles import DEALT, DEFAULT_BATCHES, parse_lengths, refuse_absurd

#: What `advisor tune MODEL` measures when no workload is given.
DEFAULT_LENGTHS, DEFAULT_PADDING, DEFAULT_BATCH = "512", 0.3, 8


def _batch(text: str) -> int | None:
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise ArgumentTypeError(f"must be a whole number or auto, not {text!r}") from None


def add_list_flags(parser: ArgumentParser) -> None:
    """Add the flags of a list of sequences and of its batches."""
    parser.add_argument(
        "--lengths", metavar="N[,N…]", help=f"longest sequence in tokens, or every length (default: {DEFAULT_LENGTHS})"
    )
    parser.add_argument(
        "--lengths-from",
        metavar="FILE",
        help="your own texts by the model's tokenizer: .txt, a text a line; .jsonl, .json, .csv or .tsv, rows "
        "with text, prompt, instruction, messages or their like; or FILE:COLUMN",
    )
    parser.add_argument(
        "--padding", type=float, metavar="P", help=f"share of pads in padded batches (default: {DEFAULT_PADDING})"
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        metavar="N",
        default=DEFAULT_BATCH,
        help="sequences a batch, or auto: then it is tuned too (default: %(default)s)",
    )
    parser.add_argument(
        "--batches",
        type=int,
        metavar="N",
        help=f"batches in the list, an even sample of a larger file (default: {DEFAULT_BATCHES})",
    )


def lengths_of(options: Namespace) -> tuple[int, ...] | None:
    """Return the lengths of the workload, None where a file is to give them. Raises BadInput."""
    dealt = DEALT if options.batch is None else options.batch
    if options.lengths_from is not None:
        if options.lengths is not None or options.padding is not None:
            raise BadInput("--lengths-from goes without --lengths and --padding: a file has the lengths it has")
        least = dealt if options.batches is None else min(dealt, options.batches)
        if least < 1:
            raise BadInput(f"--batch and --batches must be at least 1, not {least}")
        refuse_absurd(dealt * (DEFAULT_BATCHES if options.batches is None else options.batches))
        return None
    lengths, padding = DEFAULT_LENGTHS if options.lengths is None else options.lengths, options.padding
    if padding is None and "," not in lengths and dealt > 1:
        padding = DEFAULT_PADDING
    return parse_lengths(lengths, padding, dealt, DEFAULT_BATCHES if options.batches is None else options.batches)
