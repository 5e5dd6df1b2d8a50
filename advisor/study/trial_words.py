"""What a trial read of the model and saw of the device, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.machine.cpu_gauges import NOT_OBSERVABLE
from advisor.nouns.measurement import Measurement

#: Operators and kernels of a reading that are shown to people.
_SHOWN = 12


def words_of(reading: Mapping[str, Any]) -> dict[str, str]:
    """Return a stored reading in words by what they are about; operators are shortened."""
    names = list(reading.get("operators", ()))
    shown = {
        "attention": ", ".join(f"{part or 'model'} {name}" for part, name in reading.get("attention", {}).items()),
        "parameters": ", ".join(f"{count:,} {dtype}" for dtype, count in reading.get("dtypes", {}).items()),
        "linear layers": ", ".join(f"{count} {name}" for name, count in reading.get("linears", {}).items()),
        "called with": ", ".join(f"{name} {value}" for name, value in reading.get("inputs", {}).items()),
        "operators": ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""),
    }
    return {name: words for name, words in shown.items() if words}


#: What counts up from some moment: its range says nothing.
_COUNTERS = frozenset({"energy_j", "at_s", "waited_s"})


def device_words(measurement: Measurement) -> dict[str, str]:
    """Return in words what was seen of the device while it was measured: ranges of figures, and what disturbed it."""
    seen: dict[str, list[Any]] = {}
    for state in measurement.device_state.get("after_each_round", ()):
        for name, value in state.items():
            seen.setdefault(name, []).append(value)
    shown = {name.replace("_", " "): _range(values) for name, values in seen.items() if name not in _COUNTERS}
    discarded = list(measurement.device_state.get("discarded", ()))
    if discarded:
        shown["rounds thrown away"] = f"{len(discarded)}: {', '.join(sorted(set(discarded)))}"
    return {name: words for name, words in shown.items() if words}


def _range(values: Sequence[Any]) -> str:
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) == len(values):
        low, high = min(numbers), max(numbers)
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"
    words = {", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value) for value in values}
    return "" if words == {NOT_OBSERVABLE} else "; ".join(sorted(words))
