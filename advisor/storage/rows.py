"""What stands in a row of whatever table: values that both databases take, and by its name a row that can't be understood."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, TypeVar

from advisor.errors import BadInput, DamagedRow
from advisor.nouns.checked import Malformed, matches, shortened
from advisor.nouns.configuration import canonical_json
from advisor.terminal import in_a_line
from advisor.workloads import UnknownKind

_Noun = TypeVar("_Noun")

#: Lines of what was passed over that are kept: more than anybody reads.
_MOST_DAMAGE = 1000


def now(later_s: float = 0.0) -> datetime:
    """Return this moment, or one so many seconds later."""
    return datetime.now(UTC) + timedelta(seconds=later_s)


def plain(words: str) -> str:
    """Return text that both databases take: no NUL (PostgreSQL), no half characters (from a worker's output)."""
    return words.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def as_json(value: Any) -> str:
    """Return the canonical JSON that is stored."""
    return plain(canonical_json(value))


def finite(name: str, value: float | None) -> float | None:
    """Refuse what has no place in the database: SQLite would turn NaN into NULL in silence."""
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name} is not finite: {value}")
    return value


class in_row:  # noqa: N801 - it reads as what it is: with in_row(table, id)
    """Say of which row it is that it can't be understood: raise DamagedRow for whatever its values are not."""

    def __init__(self, table: str, row_id: int) -> None:
        """Name the row. A class, for a generator costs more than what is read inside it."""
        self._table, self._id = table, row_id

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Name the row where something is wrong with it."""
        if error is None or isinstance(error, DamagedRow):
            return
        if isinstance(error, UnknownKind):
            raise DamagedRow(f"row {self._id} of {self._table} can't be read: {error}") from None
        if isinstance(
            error, (BadInput, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)
        ):
            said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise DamagedRow(f"row {self._id} of {self._table} is damaged: {in_a_line(said)[:200]}") from None


class Damage(list[str]):
    """Lines of what was passed over: each once, and so many that a process which lives long does not fill with them."""

    def append(self, line: str) -> None:
        """Keep a line, if it is new and there is room."""
        if len(self) < _MOST_DAMAGE and line not in self:
            super().append(line)


def readable(read: Callable[[Any], _Noun], found: Iterable[Any], damage: list[str] | None) -> list[_Noun]:
    """Return what rows say. damage: takes a line for each that can't be understood, once; without it that is raised."""
    nouns = []
    for row in found:
        try:
            nouns.append(read(row))
        except DamagedRow as error:
            if damage is None:
                raise
            damage.append(str(error))
    return nouns


def moment(value: Any) -> datetime:
    """Return a moment as it comes from either database: SQLite has texts in UTC."""
    read = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(read, datetime):
        raise Malformed(f"no moment: {shortened(value)}")
    return read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)


def refuse(is_wrong: bool, name: str, value: Any) -> None:
    """Raise Malformed where a value is not what may stand under its name."""
    if is_wrong:
        raise Malformed(f"{name} can't be {shortened(value)}")


#: Whether a value is the name of a figure.
is_metric = matches(r"[a-z0-9_]{1,80}")


def are_samples(value: Any) -> bool:
    """Whether a value is a list of finite numbers."""
    return isinstance(value, list) and set(map(type, value)) <= {int, float} and all(map(math.isfinite, value))
