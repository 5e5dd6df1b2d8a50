"""What commands print beside tables and scripts: JSON on stdout, for a terminal as for a program, and notes on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from advisor.terminal import in_a_line, printable_json


def print_json(payload: object) -> None:
    """Print a document."""
    print(printable_json(json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False)))


def print_json_line(payload: object) -> None:
    """Print one of many documents, in a line."""
    print(printable_json(json.dumps(payload, ensure_ascii=False, allow_nan=False)))


def note(texts: Sequence[str]) -> None:
    """Print what is to be told beside an answer, a line each."""
    for text in texts:
        print(in_a_line(f"note: {text}"), file=sys.stderr)
