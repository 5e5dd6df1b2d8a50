"""argparse's parser as the command line has it: its errors are advisor's own, and name what was nearly written."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from advisor.errors import BadInput
from advisor.nouns.near import meant, nearest
from advisor.nouns.option import Option
from advisor.workloads import kind_named, names


class Parser(argparse.ArgumentParser):
    """A parser whose errors are exceptions of advisor's own, and name what was nearly written."""

    def __init__(self, *given: Any, **more: Any) -> None:
        """Take `-5s` for the value that it is, and not for a flag: no flag here begins with a digit.

        of_kind: the flag that chooses a kind of work whose flags its help has, "" for that of all work.
        """
        super().__init__(*given, **more)
        self.of_kind = ""
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str, near: str = "") -> NoReturn:
        """Raise BadInput with argparse's words. near: what was meant, in words."""
        raise BadInput(message, f"{near} see {self.prog}{self.of_kind} --help".strip())

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is none of the choices; where one is near, without all the others."""
        if action.choices is not None and value not in action.choices and (near := meant(str(value), action.choices)):
            what = "/".join(action.option_strings) or action.metavar or action.dest
            self.error(f"argument {what}: invalid choice: {value!r}", near)
        super()._check_value(action, value)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is left over here, where the command is known whose help has what it takes."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}", self._flag_meant(unknown))
        return found, unknown

    @property
    def takes_kind(self) -> bool:
        """Whether this command has flags of a kind of work."""
        return "--workload" in self._option_string_actions

    def _flag_meant(self, unknown: Sequence[str]) -> str:
        """Return which flag of this command was meant by the first that is none, in words, "" where none is near."""
        flags = [word[2:].partition("=")[0] for word in unknown if word.startswith("--")]
        known = {flag[2:]: flag for flag in self._option_string_actions if flag.startswith("--")}
        near = nearest(flags[0], known, most=1, alike=0.75) if flags else []
        near = near or [part for flag in flags[:1] for part in re.split("[-_]", flag) if part in known]
        theirs = [kind for kind in map(kind_named, names()) if flags and flags[0] in map(_as_flag, kind.options)]
        if self.takes_kind and theirs:
            return f"--{flags[0]} goes with {' or '.join(f'--workload {kind.name}' for kind in theirs)};"
        return f"did you mean {known[near[0]]}?" if near else ""


def _as_flag(option: Option) -> str:
    """Return an option's name as the command line has it, without dashes."""
    return option.name.replace("_", "-")
