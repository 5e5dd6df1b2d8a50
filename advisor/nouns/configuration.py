"""Configuration: which choice every knob has, as one value with one spelling and one key.

It is sparse: a knob may have a choice that means "nothing is done" (its implied choice), and that is left out. So a knob that is
added later changes no stored key, and no answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import ItemsView, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from advisor.nouns.checked import Malformed, is_text, shortened

#: The implied choice of every knob, "" where it has none, in the order in which people read a configuration. Filled by the
#: registry, `advisor.knobs`; without it nobody could say what may be left out.
IMPLIED: dict[str, str] = {}


#: The knobs of other work than the first kind's: what one of them implies is not spelled out. Filled likewise.
OF_SOME_WORK: set[str] = set()


def canonical_json(value: Any) -> str:
    """Return the one spelling of `value`: sorted keys, no white space, finite numbers only.

    Raises ValueError for NaN and infinities: they have no JSON spelling and no place in the database.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def key_of(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Configuration(Mapping[str, str]):
    """One choice per knob, by name. Requested and effective configurations are both of this type.

    choices: those that are stated, in the order of the knobs' names; there is no other form. Iterating (and dict(), and JSON)
    gives these; `[]`, `get` and `in` answer with the implied choice of a knob that says nothing, as long as the knob is known.
    """

    choices: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, choices: Mapping[str, str]) -> Configuration:
        """Build one from a mapping, implied choices spelled out or not. Raises Malformed where a choice is no name."""
        if not isinstance(choices, Mapping) or not all(is_text(name) for pair in choices.items() for name in pair):
            raise Malformed(f"a configuration is a choice by knob, not {shortened(choices)}")
        return cls(tuple(sorted(item for item in choices.items() if not _is_implied(*item))))

    def __post_init__(self) -> None:
        """Refuse what is not the one form of a value: a knob twice, an empty name, an implied choice."""
        if not IMPLIED:
            raise RuntimeError("no knob is registered: advisor.knobs is to be imported before a configuration is made")
        names = [knob for knob, _ in self.choices]
        if len(set(names)) != len(names) or names != sorted(names):
            raise ValueError(f"knobs must be named once and in order: {names}")
        if not all(knob and choice for knob, choice in self.choices):
            raise ValueError(f"empty name in {self.choices}")
        if implied := [f"{knob}={choice}" for knob, choice in self.choices if _is_implied(knob, choice)]:
            raise ValueError(f"an implied choice is left out: {', '.join(implied)}")

    def __getitem__(self, knob: str) -> str:
        """Return the choice of `knob`, the implied one where none is stated. KeyError where there is neither."""
        if choice := self._stated.get(knob) or IMPLIED.get(knob):
            return choice
        raise KeyError(knob)

    def __contains__(self, knob: object) -> bool:
        """Whether the knob has a choice, stated or implied."""
        return knob in self._stated or bool(IMPLIED.get(str(knob)))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the knobs whose choice is stated."""
        return iter(self._stated)

    def items(self) -> ItemsView[str, str]:
        """Return the stated choices: what a mapping does by itself looks each of them up again."""
        return self._stated.items()

    def get(self, knob: str, default: Any = None) -> Any:
        """Return the choice of `knob`, stated or implied, or the default: without an error on the way."""
        return self._stated.get(knob) or IMPLIED.get(knob) or default

    def __len__(self) -> int:
        """Return the number of stated choices."""
        return len(self.choices)

    def __bool__(self) -> bool:
        """Return True: a configuration in which nothing is done is one too."""
        return True

    def __hash__(self) -> int:
        """Hash by value."""
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the choices alone: a hash is of its process."""
        return type(self), (self.choices,)

    @cached_property
    def _hash(self) -> int:
        """Found once: one configuration is looked up a dozen times in an answer."""
        return hash(self.choices)

    @cached_property
    def _stated(self) -> dict[str, str]:
        """The stated choices by knob, in the order of the knobs' names. Not to be changed."""
        return dict(self.choices)

    def over(self, knobs: Iterable[str]) -> tuple[tuple[str, str], ...]:
        """Return the choices of these knobs, implied ones too, in their order; a knob that has neither is left out."""
        stated, implied = self._stated.get, IMPLIED.get  # "" where a knob implies nothing; no choice is ""
        return tuple([(knob, choice) for knob in knobs if (choice := stated(knob) or implied(knob))])

    def replaced(self, **choices: str) -> Configuration:
        """Return this configuration with some choices replaced."""
        return Configuration.of({**self, **choices})

    @cached_property
    def key(self) -> str:
        """The identity under which evidence is stored."""
        return key_of(self._stated)

    @property
    def as_read(self) -> dict[str, str]:
        """The stated choices in the order in which people read them; knobs that nobody knows come last."""
        known = self._stated
        return {knob: known[knob] for knob in dict.fromkeys([*IMPLIED, *known]) if knob in known}

    @property
    def spelled(self) -> dict[str, str]:
        """Every choice, implied ones of all work too, in the order in which people read them: as JSON that is printed has it."""
        known = dict.fromkeys([*IMPLIED, *self._stated])
        return dict(self.over(knob for knob in known if knob in self._stated or knob not in OF_SOME_WORK))

    def __str__(self) -> str:
        """Return the stated choices as they are read: the one label of a configuration."""
        return " · ".join(self.as_read.values())


def _is_implied(knob: str, choice: str) -> bool:
    return bool(choice) and IMPLIED.get(knob) == choice


def stated(configurations: Iterable[Configuration]) -> tuple[str, ...]:
    """Return the knobs that any of these states, in the order of their names: those in which they can differ."""
    return tuple(sorted({knob for configuration in configurations for knob in configuration}))
