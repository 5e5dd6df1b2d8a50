"""What comes from a database, a file or a worker is looked at before it is a noun: types, ranges and sizes, by annotation.

A row may have been written by anybody: what it says reaches a script, a terminal or arithmetic only as a value of the type
that its noun declares. Each refusal is one line that names the field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from advisor.errors import BadInput

Test = Callable[[Any], bool]

#: Characters of one text, and members of one list or mapping: far more than any that was ever written.
TEXT_MOST, MEMBERS_MOST = 20_000, 5_000_000

#: Whole numbers are below this: it is what a database's big integer holds.
WHOLE_MOST = 2**63


class Malformed(BadInput):
    """A value that is not what its noun declares."""


def is_text(value: Any) -> bool:
    """Whether a value is a text of a bearable size."""
    return isinstance(value, str) and len(value) <= TEXT_MOST


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number from 0 on that databases can hold; True and False are none."""
    return type(value) is int and 0 <= value < WHOLE_MOST


def is_real(value: Any) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return type(value) in (int, float) and -1e308 <= value <= 1e308


def matches(pattern: str) -> Test:
    """Return the test for texts that are spelled so from beginning to end."""
    spelled = re.compile(pattern, re.ASCII)
    return lambda value: isinstance(value, str) and len(value) <= TEXT_MOST and spelled.fullmatch(value) is not None


_PLAIN: dict[str, Test] = {
    "str": is_text,
    "int": is_whole,
    "float": is_real,
    "float | None": lambda value: value is None or (type(value) in (int, float) and -1e308 <= value <= 1e308),
    "int | None": lambda value: value is None or (type(value) is int and 0 <= value < WHOLE_MOST),
    "bool": lambda value: isinstance(value, bool),
    "None": lambda value: value is None,
    "Any": lambda value: True,
    "Tier": is_text,
}


@cache
def test_of(annotation: str) -> Test:
    """Return the test for values of an annotation, as nouns write them. Raises TypeError for one it does not know."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    alternatives = _split(annotation, "|")
    if len(alternatives) == 2 and alternatives[1] == "None":
        other = test_of(alternatives[0])
        return lambda value: value is None or other(value)
    if len(alternatives) > 1:
        tests = [test_of(each) for each in alternatives]
        return lambda value: any(test(value) for test in tests)
    container, _, inner = annotation.removesuffix("]").partition("[")
    members = [test_of(each) for each in _split(inner, ",") if each != "..."]
    if container == "tuple" and inner.endswith("..."):
        whole = members[0] is is_whole  # a workload's lengths are hundreds
        return _are_whole if whole else lambda value: _is_list(value) and all(map(members[0], value))
    if container == "tuple":
        return lambda value: (
            _is_list(value) and len(value) == len(members) and all(t(v) for t, v in zip(members, value, strict=True))
        )
    if container == "Mapping":
        key, each = members
        return lambda value: (
            isinstance(value, Mapping)
            and len(value) <= MEMBERS_MOST
            and all(map(key, value))
            and all(map(each, value.values()))
        )
    raise TypeError(f"no test for values of {annotation!r}")


def _are_whole(value: Any) -> bool:
    """Whether a value is a list of whole numbers: what `is_whole` says of each, of all at once."""
    if not _is_list(value) or not value:
        return _is_list(value)
    return set(map(type, value)) == {int} and min(value) >= 0 and max(value) < WHOLE_MOST


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) <= MEMBERS_MOST


def _split(annotation: str, sign: str) -> list[str]:
    """Split at a sign that stands in no brackets."""
    parts, depth = [""], 0
    for character in annotation:
        depth += (character == "[") - (character == "]")
        if character == sign and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


@cache
def _tests(noun: type) -> dict[str, tuple[Test, bool]]:
    """Return by field the test that its annotation asks for, and whether it is a tuple."""
    return {each.name: (test_of(str(each.type)), str(each.type).startswith("tuple")) for each in fields(noun)}


def checked(noun: type, payload: Any, own: Mapping[str, Test] | None = None) -> dict[str, Any]:
    """Return the arguments for a noun, a dataclass, out of its payload: lists as tuples. Raises Malformed.

    own: by field, a narrower test than its annotation's. A field that the noun does not have is left for the noun to refuse.
    """
    if not isinstance(payload, Mapping):
        raise Malformed(f"a {noun.__name__} is an object, not {shortened(payload)}")
    tests, values = _tests(noun), dict(payload)
    for name, value in payload.items():
        if name not in tests:
            continue
        test, is_tuple = tests[name]
        if not test(value) or (own and name in own and not own[name](value)):
            raise Malformed(f"{name} can't be {shortened(value)}")
        if is_tuple and value is not None:
            values[name] = tuple(value)
    return values


def shortened(value: Any) -> str:
    """Return a value for an error's line: as Python spells it, no more than a few words of it."""
    spelled = ascii(value if not isinstance(value, (str, bytes)) else value[:60])
    return spelled if len(spelled) <= 60 else f"{spelled[:60]}…"


def parsed(text: Any) -> Any:
    """Return the value of a JSON text. Raises Malformed where it is none; NaN and infinities are no JSON."""
    try:
        value, end = _SCAN(text, 0)
        if end == len(text):  # else there is white space around it, or something that should not be there
            return value
    except (StopIteration, ValueError, TypeError, RecursionError):
        pass
    try:
        return _DECODER.decode(text)
    except (ValueError, TypeError, RecursionError):
        raise Malformed(f"this is no JSON: {shortened(text)}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


#: Made once: json.loads makes one for every call that says more than the text.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)

#: What it reads a value with, which takes half as long.
_SCAN: Callable[[str, int], tuple[Any, int]] = _DECODER.scan_once  # type: ignore[attr-defined]  # what decode() calls
