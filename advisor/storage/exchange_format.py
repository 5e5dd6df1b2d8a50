"""What the lines of an export look like: which objects there are, their columns, and what kind of value stands in each."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from advisor.errors import BadInput
from advisor.nouns.checked import is_text

#: What these lines look like; another number is another advisor's. In the first, configurations were not sparse.
FORMAT, FORMATS = 2, (1, 2)

Values = dict[str, Any]

#: What every object's line holds, by column: what kind of value, and "?" where it may be null.
_SHAPES: dict[str, dict[str, str]] = {
    "environment": {"key": "text", "payload": "object", "first_seen": "moment"},
    "ceilings": {"environment": "text", "payload": "object", "measured_at": "moment"},
    "model": {"architecture_key": "text", "weights_digest": "text", "name": "text", "facts": "object?"},
    "workload": {"key": "text", "kind": "text", "architecture_key": "text", "payload": "object"},
    "study": {
        "key": "text", "environment": "text", "architecture_key": "text", "weights_digest": "text", "workload": "text",
        "objective": "object", "objective_key": "text", "budget": "object", "seed": "whole", "state": "text",
        "started_at": "moment", "finished_at": "moment?", "admissible": "whole?", "facts": "object?",
        "trials": "whole", "comparisons": "whole", "refusals": "whole",
    },
    "trial": {
        "study": "text", "number": "whole", "phase": "text", "block": "whole?", "requested": "object",
        "effective": "object?", "outcome": "text", "reason": "text", "attempts": "whole", "started_at": "moment",
        "finished_at": "moment?", "load_s": "real?", "first_call_s": "real?", "measure_s": "real?", "wall_s": "real?",
        "peak_bytes": "bytes?", "weight_bytes": "bytes?", "quality": "object?", "reading": "object?",
        "reused_from": "list?", "measurements": "list", "advisor_version": "text",
    },
    "measurement": {"metric": "text", "unit": "text", "phase": "text", "samples": "list", "device_state": "object"},
    "comparison": {
        "study": "text", "candidate": "object", "baseline": "object", "block_ratios": "list", "made_at": "moment",
        "planned": "whole?",
    },
    "refusal": {
        "study": "text", "subject": "text", "about": "text", "rule": "text", "verdict": "text", "reason": "text",
        "remedy": "text",
    },
}  # fmt: skip


#: What came later, by object: it is left out where it says nothing, and null in lines that do not have it.
LATER = {"comparison": ("planned",)}

#: Where an object is stored.
TABLES = {
    "environment": "environments",
    "ceilings": "ceilings",
    "model": "models",
    "workload": "workloads",
    "study": "studies",
    "trial": "trials",
    "comparison": "comparisons",
    "refusal": "refusals",
}

#: The objects that belong to one study, in the order of their lines.
PARTS = ("trial", "comparison", "refusal")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no yes or no."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


#: How to tell that a value is of a kind.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: is_text(value) and "\0" not in value,
    "object": lambda value: isinstance(value, dict),
    "list": lambda value: isinstance(value, list),
    "real": is_number,
    "whole": lambda value: type(value) is int and -(2**31) <= value < 2**31,
    "bytes": lambda value: type(value) is int and 0 <= value < 2**63,
    "moment": lambda value: isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None,
}


def shaped(name: str, values: Values) -> Values:
    """Return an object's columns, moments as such. Raises BadInput where one is missing, too many or of a wrong kind."""
    shape, values = _SHAPES[name], {**dict.fromkeys(LATER.get(name, ())), **values}
    if shape.keys() != values.keys():
        raise BadInput(f"a {name} with wrong columns: {', '.join(sorted(shape.keys() ^ values.keys()))}")
    for column, kind in shape.items():
        is_null = values[column] is None and kind.endswith("?")
        if not is_null and not _KINDS[kind.removesuffix("?")](values[column]):
            raise BadInput(f"{column} of a {name} is no {kind.removesuffix('?')}")
    moments = {column for column, kind in shape.items() if kind.startswith("moment") and values[column] is not None}
    return {**values, **{column: datetime.fromisoformat(values[column]).astimezone(UTC) for column in moments}}
