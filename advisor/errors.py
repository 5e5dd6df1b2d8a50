"""What a person can be told: every expected failure is an exception with one line and an exit status.

    AdvisorError                exit status 2
    ├── BadInput                the command, the model or the database can't be used as given
    ├── StoreError              the database can't be read or written
    │   ├── DamagedRow          one row of it says what can't be
    │   └── Unreachable         its server, or a daemon, is away for now
    ├── NotMeasured             exit status 3: nothing stored answers the question
    └── NothingAdmissible       exit status 4: every configuration was refused, failed or was wrong

What a user asked for is :func:`named` in these texts, and the face that shows them spells it: a flag, or a keyword of Python.
What happens to a *trial* is not an exception but data: see :class:`advisor.nouns.trial.Outcome`.
"""

from __future__ import annotations

import copyreg
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

#: A name in an error's text: as a flag, and as a keyword.
_NAMED = re.compile("\x02([^\x1f]*)\x1f([^\x03]*)\x03")


def named(name: str, value: object = None) -> str:
    """Return what an error's text names an option by: `--max-memory` on the command line, `max_memory` in Python.

    value: what it is, or is to be given: `--output hidden`, `output='hidden'`.
    """
    flag = "--" + name.replace("_", "-")
    return f"\x02{flag}\x1f{name}\x03" if value is None else f"\x02{flag} {value}\x1f{name}={value!r}\x03"


@contextmanager
def spelled_for_python() -> Iterator[None]:
    """Have the expected failures of these lines name keywords instead of flags. Also a decorator."""
    try:
        yield
    except AdvisorError as error:
        error.names_keywords = True
        raise


class AdvisorError(Exception):
    """An expected failure: its text is one line for a person, `hint` says what to do next.

    names_keywords: whether options are named as Python spells them; else as the command line does.
    """

    exit_status = 2
    names_keywords = False

    def __init__(self, message: str, hint: str = "") -> None:
        """Keep the line and what to do next."""
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        """Return the line and the hint as one line of text."""
        text = f"{self.args[0]} ({self.hint})" if self.hint else str(self.args[0])
        return " ".join(_NAMED.sub(r"\2" if self.names_keywords else r"\1", text).split())

    def __repr__(self) -> str:
        """Return its class and its text as it is shown."""
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Have it copied and pickled as it stands: the arguments of a subclass's __init__ are not the line's."""
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class BadInput(AdvisorError):
    """The command line, the model or the database URL can't be used as given."""


class StoreError(AdvisorError):
    """The database can't be reached, read or written."""


class DamagedRow(StoreError):
    """A row that can't be understood; the others can be."""


class Unreachable(StoreError):
    """The database's server, or a daemon, does not answer for now."""


class NotMeasured(AdvisorError):
    """Nothing stored answers this question."""

    exit_status = 3


class NothingAdmissible(AdvisorError):
    """No configuration is left: every one was refused, failed or gave a wrong output. `reasons` lists them, a line each."""

    exit_status = 4

    def __init__(self, reasons: Sequence[str]) -> None:
        """Keep the reasons."""
        super().__init__(
            f"nothing admissible, for {f'these {len(reasons)} reasons' if len(reasons) > 1 else 'this reason'}"
        )
        self.reasons = tuple(reasons)
