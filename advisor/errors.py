"""What a person can be told: every expected failure is an exception with one line and an exit status.

    AdvisorError                exit status 2
    ├── BadInput                the command, the model or the database can't be used as given
    ├── StoreError              the database can't be read or written
    │   ├── DamagedRow          one row of it says what can't be
    │   └── Unreachable         its server is away for now
    ├── NotMeasured             exit status 3: nothing stored answers the question
    └── NothingAdmissible       exit status 4: every configuration was refused, failed or was wrong

What happens to a *trial* is not an exception but data: see :class:`advisor.trial.Outcome`.
"""

from __future__ import annotations

from collections.abc import Sequence


class AdvisorError(Exception):
    """An expected failure: its text is one line for a person, `hint` says what to do next."""

    exit_status = 2

    def __init__(self, message: str, hint: str = "") -> None:
        """Keep the line and what to do next."""
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        """Return the line and the hint as one line of text."""
        message = " ".join(str(self.args[0]).split())
        return f"{message} ({self.hint})" if self.hint else message


class BadInput(AdvisorError):
    """The command line, the model or the database URL can't be used as given."""


class StoreError(AdvisorError):
    """The database can't be reached, read or written."""


class DamagedRow(StoreError):
    """A row that can't be understood; the others can be."""


class Unreachable(StoreError):
    """The database's server does not answer, for now."""


class NotMeasured(AdvisorError):
    """Nothing stored answers this question."""

    exit_status = 3


class NothingAdmissible(AdvisorError):
    """No configuration is left: every one was refused, failed or gave a wrong output. `reasons` lists them, a line each."""

    exit_status = 4

    def __init__(self, reasons: Sequence[str]) -> None:
        """Keep the reasons."""
        super().__init__(f"nothing admissible: all {len(reasons)} reasons follow")
        self.reasons = tuple(reasons)
