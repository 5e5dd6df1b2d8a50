"""Values as people give them, as text or as Python's own: read into one type, or refused in a line that names the option.

A reader takes the value and the option's name. A bare number is of the unit that its docstring names.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat, SupportsIndex

from advisor.errors import BadInput, named
from advisor.nouns.checked import WHOLE_MOST, shortened

_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_LATENCIES = {"ms": 1e-3, "s": 1.0}

#: More than these is a slip of the keyboard: bytes of a size, and seconds of a duration.
_MOST_BYTES, _MOST_S = 1024 * 2**40, 8760 * 3600

#: Whole numbers that are asked for are below this, and so are their negatives: it is what an exported study may say.
_ASKED_MOST = 2**31


def shown(value: Any) -> str:
    """Return a value for an error's line: a text as Python spells it, anything else and a long text in a few words."""
    if isinstance(value, str) and len(value) <= 60:
        return repr(value)
    try:
        return shortened(value)
    except ValueError:  # Python spells no whole number of more than some thousand digits
        return f"a value of the type {type(value).__name__}"


def read_text(value: Any, name: str) -> str:
    """Return a text. Raises BadInput."""
    if not isinstance(value, str):
        raise BadInput(f"{named(name)} must be a text, not {shown(value)}")
    return value


def read_texts(value: Any, name: str) -> tuple[str, ...]:
    """Return texts, of one or of several. Raises BadInput."""
    several = [value] if isinstance(value, str) else value
    if not is_listed(several):
        raise BadInput(f"{named(name)} must be a text or several, not {shown(value)}")
    return tuple(read_text(each, name) for each in several)


def read_switch(value: Any, name: str) -> bool:
    """Return True or False. Raises BadInput."""
    if not isinstance(value, bool):
        raise BadInput(f"{named(name)} must be True or False, not {shown(value)}")
    return value


def is_listed(value: Any) -> bool:
    """Whether a value lists others, as a list or an array does: a text, bytes, a mapping and an array without axes do not."""
    return (
        isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, Mapping)) and _axes(value) != ()
    )


def _axes(value: Any) -> Any:
    """Return the shape of an array or a tensor, None for what is neither."""
    return getattr(value, "shape", None)


def _scalar(value: Any) -> Any:
    """Return a number, of an array or a tensor without axes Python's own one. Raises ValueError for what is none."""
    try:
        number = value.item() if _axes(value) == () else value
    except (AttributeError, TypeError, RuntimeError):  # torch's, for a tensor that has no data
        raise ValueError(type(value)) from None
    if isinstance(number, bool) or _axes(number) is not None or not isinstance(number, (SupportsIndex, SupportsFloat)):
        raise ValueError(type(value))
    return number


def _float(number: Any) -> float:
    """Return a number as a float. Raises ValueError for one that is too large."""
    try:
        return float(number)
    except OverflowError:
        raise ValueError(type(number)) from None


def _integer(value: Any) -> int:
    number = int(value) if isinstance(value, str) else _scalar(value)
    if isinstance(number, SupportsIndex):
        return operator.index(number)
    if (real := _float(number)).is_integer():
        return int(real)
    raise ValueError(type(value))


def whole(value: Any) -> int:
    """Return a whole number that a database holds, of a text or of a number that is one. Raises ValueError."""
    number = _integer(value)
    if abs(number) >= WHOLE_MOST:
        raise ValueError(type(value))
    return number


def read_whole(value: Any, name: str) -> int:
    """Return a whole number. Raises BadInput."""
    try:
        number = _integer(value)
    except ValueError:
        raise BadInput(f"{named(name)} must be a whole number, not {shown(value)}") from None
    if abs(number) >= _ASKED_MOST:
        raise BadInput(f"{named(name)} must be a whole number below {_ASKED_MOST}, not {shown(value)}")
    return number


def read_count(value: Any, name: str) -> int:
    """Return a whole number from 1 on. Raises BadInput."""
    number = read_whole(value, name)
    if number < 1:
        raise BadInput(f"{named(name)} must be at least 1, not {number}")
    return number


def read_number(value: Any, name: str) -> float:
    """Return a number. Raises BadInput."""
    try:
        return _float(value if isinstance(value, str) else _scalar(value))
    except ValueError:
        share = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*%", value.strip()) if isinstance(value, str) else None
        hint = f"write {float(share[1]) / 100:g}" if share else ""
        raise BadInput(f"{named(name)} must be a number, not {shown(value)}", hint) from None


def read_size(value: Any, name: str) -> int:
    """Return bytes, of a size such as 24GiB or 500MB or of a number of bytes. Raises BadInput."""
    number, unit = _quantity(value, r"([A-Za-z]*)")
    if unit.upper() not in _SIZES or number is None:
        raise BadInput(f"{named(name)} must be a size such as 24GiB, not {shown(value)}")
    if number <= 0:
        raise BadInput(f"{named(name)} must be more than 0, not {shown(value)}")
    if not unit and number < 2**20:
        few = str(value).strip()
        raise BadInput(f"{named(name)} {few} is so many bytes", f"write {few}GiB or {few}MiB")
    found = number * _SIZES[unit.upper()]
    if not 1 <= found <= _MOST_BYTES:
        raise BadInput(f"{named(name)} must be from 1B to {_MOST_BYTES >> 40}TiB, not {shown(value)}")
    return int(found)


def read_duration(value: Any, name: str) -> float:
    """Return seconds, of a duration such as 90s, 10m or 2h or of a number of seconds. Raises BadInput.

    A text without a unit is refused: who writes 20 may mean minutes, as the examples have them.
    """
    number, unit = _quantity(value, "([smh]?)", "s")
    if number is None:
        raise BadInput(f"{named(name)} must be a duration such as 90s, 10m or 2h, not {shown(value)}")
    _refuse_none(number, value, name)
    if not unit:
        bare = str(value).strip()
        raise BadInput(f"{named(name)} {bare} has no unit", f"write {bare}m or {bare}s")
    return _bearable(number * _SECONDS[unit], value, name, f"{_MOST_S // 3600}h")


def read_latency(value: Any, name: str) -> float:
    """Return seconds, of a time such as 80ms or 0.5s or of a number of seconds. Raises BadInput."""
    number, unit = _quantity(value, "(ms|s)", "s")
    if number is None:
        raise BadInput(f"{named(name)} must be a time such as 80ms or 0.5s, not {shown(value)}")
    _refuse_none(number, value, name)
    return _bearable(number * _LATENCIES[unit], value, name, f"{_MOST_S}s")


def _refuse_none(seconds: float, value: Any, name: str) -> None:
    if seconds <= 0:
        raise BadInput(f"{named(name)} must be longer than 0, not {shown(value)}")


def _bearable(seconds: float, value: Any, name: str, most: str) -> float:
    if seconds > _MOST_S:
        raise BadInput(f"{named(name)} must be at most {most}, not {shown(value)}")
    return seconds


def _quantity(value: Any, units: str, own: str = "") -> tuple[float | None, str]:
    """Return a number and its unit, None where a value is none. own: the unit of a bare number that is no text."""
    if isinstance(value, str):
        match = re.fullmatch(rf"(-?\d+(?:\.\d+)?)\s*{units}", value.strip())
        number, unit = (float(match[1]), match[2]) if match else (math.nan, own)
    else:
        try:
            number, unit = _float(_scalar(value)), own
        except ValueError:
            number, unit = math.nan, own
    return (number if math.isfinite(number) else None), unit


def read_study(text: str) -> int:
    """Return a study's number. Raises BadInput."""
    if not re.fullmatch(r"\d{1,9}", text):
        raise BadInput(
            f"before a label stands a study's number, for example 3, not {text!r}", "advisor trials lists them"
        )
    return int(text)


def read_trial(text: str) -> tuple[int, int]:
    """Return of a trial's id its study's number and its own. Raises BadInput."""
    match = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", text)
    if match is None:
        raise BadInput(f"a trial's id is STUDY.NUMBER, for example 3.7, not {text!r}", "advisor trials lists them")
    return int(match[1]), int(match[2])
