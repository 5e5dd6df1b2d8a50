"""Values as people give them, as text or as Python's own: read into one type, or refused in a line that names the option.

A reader takes the value and the option's name. A bare number is of the unit that its docstring names.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable
from typing import Any, SupportsFloat, SupportsIndex

from advisor.errors import BadInput, named
from advisor.nouns.checked import shortened

_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_LATENCIES = {"ms": 1e-3, "s": 1.0}


def shown(value: Any) -> str:
    """Return a value for an error's line: a text as Python spells it, anything else in a few words."""
    return repr(value) if isinstance(value, str) else shortened(value)


def read_text(value: Any, name: str) -> str:
    """Return a text. Raises BadInput."""
    if not isinstance(value, str):
        raise BadInput(f"{named(name)} must be a text, not {shown(value)}")
    return value


def read_texts(value: Any, name: str) -> tuple[str, ...]:
    """Return texts, of one or of several. Raises BadInput."""
    several = [value] if isinstance(value, str) else value
    if not isinstance(several, Iterable):
        raise BadInput(f"{named(name)} must be a text or several, not {shown(value)}")
    return tuple(read_text(each, name) for each in several)


def read_switch(value: Any, name: str) -> bool:
    """Return True or False. Raises BadInput."""
    if not isinstance(value, bool):
        raise BadInput(f"{named(name)} must be True or False, not {shown(value)}")
    return value


def whole(value: Any) -> int:
    """Return a whole number, of a text or of a number that is one. Raises ValueError."""
    if isinstance(value, str):
        return int(value)
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        return operator.index(value)
    if isinstance(value, SupportsFloat) and not isinstance(value, bool) and float(value).is_integer():
        return int(float(value))
    raise ValueError(value)


def read_whole(value: Any, name: str) -> int:
    """Return a whole number. Raises BadInput."""
    try:
        return whole(value)
    except ValueError:
        raise BadInput(f"{named(name)} must be a whole number, not {shown(value)}") from None


def read_count(value: Any, name: str) -> int:
    """Return a whole number from 1 on. Raises BadInput."""
    number = read_whole(value, name)
    if number < 1:
        raise BadInput(f"{named(name)} must be at least 1, not {number}")
    return number


def read_number(value: Any, name: str) -> float:
    """Return a number. Raises BadInput."""
    if not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise BadInput(f"{named(name)} must be a number, not {shown(value)}")


def read_size(value: Any, name: str) -> int:
    """Return bytes, of a size such as 24GiB or 500MB or of a number of bytes. Raises BadInput."""
    number, unit = _quantity(value, r"([A-Za-z]*)")
    if unit.upper() not in _SIZES or number == 0:
        raise BadInput(f"{named(name)} must be a size such as 24GiB, not {shown(value)}")
    if not unit and number < 2**20:
        few = str(value).strip()
        raise BadInput(f"{named(name)} {few} is so many bytes", f"write {few}GiB or {few}MiB")
    return int(number * _SIZES[unit.upper()])


def read_duration(value: Any, name: str) -> float:
    """Return seconds, of a duration such as 90s, 10m or 2h or of a number of seconds. Raises BadInput."""
    number, unit = _quantity(value, "([smh]?)")
    if number == 0:
        raise BadInput(f"{named(name)} must be a duration such as 90s, 10m or 2h, not {shown(value)}")
    return number * _SECONDS[unit]


def read_latency(value: Any, name: str) -> float:
    """Return seconds, of a time such as 80ms or 0.5s or of a number of seconds. Raises BadInput."""
    number, unit = _quantity(value, "(ms|s)", "s")
    if number == 0:
        raise BadInput(f"{named(name)} must be a time such as 80ms or 0.5s, not {shown(value)}")
    return number * _LATENCIES[unit]


def _quantity(value: Any, units: str, own: str = "") -> tuple[float, str]:
    """Return a positive number and its unit, 0 where a value is none. own: the unit of a bare number that is no text."""
    if isinstance(value, str):
        match = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*{units}", value.strip())
        return (float(match[1]), match[2]) if match else (0.0, own)
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        return 0.0, own
    number = float(value)
    return (number if math.isfinite(number) and number > 0 else 0.0), own


def read_trial(text: str) -> tuple[int, int]:
    """Return of a trial's id its study's number and its own. Raises BadInput."""
    match = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", text)
    if match is None:
        raise BadInput(f"a trial's id is STUDY.NUMBER, for example 3.7, not {text!r}", "advisor trials lists them")
    return int(match[1]), int(match[2])
