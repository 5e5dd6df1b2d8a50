"""Text for terminals: what would steer one, or turn the reading direction, is shown as its escape, never sent.

Names, reasons and readings come from files and databases that anybody may have written. Sizes, times and shares in words, too.
"""

from __future__ import annotations

import re

#: Columns of a line on a pipe, where COLUMNS does not say how many.
PIPE_COLUMNS = 160

#: C0 but for tab and line feed, DEL and C1; soft hyphen, marks, joiners and overrides of the reading direction, invisible
#: operators, line and paragraph separators, byte order marks, annotations, tags; lone halves of characters.
_STEERING = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff"
)
_UNPRINTABLE = re.compile(f"[{_STEERING}]")


def printable(text: str) -> str:
    r"""Return text with everything that would steer a terminal spelled out (`\x1b`); lines and tabs stay."""
    return _UNPRINTABLE.sub(lambda found: ascii(found.group())[1:-1], text)


def in_a_line(text: str) -> str:
    """Return the same in one line: what is one value can't look like several lines of ours."""
    return " ".join(printable(text).split())


def printable_json(text: str) -> str:
    """Return JSON with the same characters as JSON spells them: it means what it did."""
    return _UNPRINTABLE.sub(lambda found: "".join(f"\\u{unit:04x}" for unit in _units(found.group())), text)


def _units(character: str) -> tuple[int, ...]:
    """Return the UTF-16 units of a character."""
    code = ord(character)
    return (code,) if code < 0x10000 else (0xD800 + (code - 0x10000 >> 10), 0xDC00 + (code - 0x10000 & 0x3FF))


def gib(count: float | None) -> str:
    """Return bytes in words, in the largest binary unit that there is one of."""
    if count is None:
        return "–"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} GiB" if unit == "GiB" else f"{count / size:.0f} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """Return a time span in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def span(seconds: float) -> str:
    """Return a time span in words where a short one counts: 30 ms, 1.4 s, and from ten seconds on as `duration`."""
    if 0 < seconds < 0.9995:
        return f"{1000 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"
    return f"{seconds:.1f} s" if 0 < seconds < 9.95 else duration(seconds)


def many(count: int, noun: str) -> str:
    """Return so many of something: 1 call, 2,800 calls."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def percent(share: float, decimals: int | None = None) -> str:
    """Return a share in per cent, with so many decimals; None: with one where it is small, and none else."""
    digits = decimals if decimals is not None else 0 if share >= 0.1 else 1
    return f"{100 * share:.{digits}f} %"


def times(ratio: float) -> str:
    """Return a ratio as so many times something."""
    return f"{ratio:.2f} ×"
