"""Option: what a user may ask for by a name, declared once: a keyword in Python, a flag on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from advisor.errors import BadInput, named
from advisor.nouns.near import meant
from advisor.nouns.reading import read_switch, read_text, shown

#: Names that a kind of work gives no option of its own: what the commands and the functions of Python take for all work.
TAKEN = frozenset(
    [
        "allow_pickle",
        "allow_unjudged",
        "blocks",
        "budget",
        "calls",
        "command",
        "device",
        "dry_run",
        "exhaustive",
        "fix",
        "format",
        "help",
        "ignore_rule",
        "listen",
        "max_latency",
        "max_memory",
        "model",
        "objective",
        "on",
        "only",
        "pareto",
        "payback",
        "progress",
        "quality",
        "refusals",
        "priority",
        "seed",
        "server",
        "threads",
        "timeout",
        "trials",
        "version",
        "why_not",
        "workload",
    ]
)


@dataclass(frozen=True)
class Option:
    """One option.

    name: the keyword; the flag has hyphens for its underscores. help: a line for `--help`, in which `%(default)s` is the default.
    read(value, name): the value to work with, of a text or of one of Python's own; raises BadInput that names the option. A
    flag that is read by `read_switch` takes no value. choices: the words that there are, where it is one of them.
    default: where nothing or None is given, read like it. word: what the command line makes of its word before it is read
    (argparse's type). repeats: whether the flag may be given again: then `read` gets a list.
    """

    name: str
    help: str
    read: Callable[[Any, str], Any] = read_text
    default: Any = None
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    word: Callable[[str], Any] = str
    repeats: bool = False

    @property
    def flag(self) -> str:
        """What the command line calls it."""
        return "--" + self.name.replace("_", "-")

    def value(self, given: Any) -> Any:
        """Return the value that is meant, None where nothing is given and there is no default. Raises BadInput."""
        given = self.default if given is None else given
        if given is None:
            return None
        if self.choices and not (isinstance(given, str) and given in self.choices):
            near = meant(given, self.choices) if isinstance(given, str) else ""
            raise BadInput(f"{named(self.name)} must be one of {', '.join(self.choices)}, not {shown(given)}", near)
        return self.read(given, self.name)


def number_word(text: str) -> float | str:
    """Return a word of the command line as a number, or as it is: then the reader of its option says what is wrong with it."""
    try:
        return float(text)
    except ValueError:
        return text


def whole_word(text: str) -> int | str:
    """Return the same as a whole number."""
    try:
        return int(text)
    except ValueError:
        return text


def values_of(options: Iterable[Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options' values by name, of what is given by name; what is no option's is left out. Raises BadInput."""
    return {option.name: option.value(given.get(option.name)) for option in options}


def switch(name: str, words: str) -> Option:
    """Return an option that is on or off, and off unless it is given."""
    return Option(name, words, read_switch, default=False)
