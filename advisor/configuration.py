"""Configuration: which choice every knob has, as one value with one spelling and one key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from advisor.checked import Malformed, is_text, shortened

#: The knobs in the order in which people read a configuration; knobs that are not among them come last.
READING_ORDER = ("attention", "precision", "quantization", "packing", "batch")


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
    """One choice per knob, by name. Requested and effective configurations are both of this type."""

    choices: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, choices: Mapping[str, str]) -> Configuration:
        """Build one from a mapping, in the order of the knobs' names. Raises Malformed where a choice is no name."""
        if not isinstance(choices, Mapping) or not all(is_text(name) for pair in choices.items() for name in pair):
            raise Malformed(f"a configuration is a choice by knob, not {shortened(choices)}")
        return cls(tuple(sorted(choices.items())))

    def __post_init__(self) -> None:
        """Refuse what is not a value at all: a knob twice, an empty name."""
        names = [knob for knob, _ in self.choices]
        if len(set(names)) != len(names) or names != sorted(names):
            raise ValueError(f"knobs must be named once and in order: {names}")
        if not all(knob and choice for knob, choice in self.choices):
            raise ValueError(f"empty name in {self.choices}")

    def __getitem__(self, knob: str) -> str:
        """Return the choice of `knob`."""
        for name, choice in self.choices:
            if name == knob:
                return choice
        raise KeyError(knob)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the knobs' names."""
        return (knob for knob, _ in self.choices)

    def __len__(self) -> int:
        """Return the number of knobs."""
        return len(self.choices)

    def __hash__(self) -> int:
        """Hash by value."""
        return hash(self.choices)

    def replaced(self, **choices: str) -> Configuration:
        """Return this configuration with some choices replaced."""
        return Configuration.of({**self, **choices})

    @property
    def key(self) -> str:
        """The identity under which evidence is stored."""
        return key_of(dict(self.choices))

    def __str__(self) -> str:
        """Return the choices in the order in which people read them: the one label of a configuration, in all that is printed."""
        known = [knob for knob in READING_ORDER if knob in self]
        return " · ".join(self[knob] for knob in dict.fromkeys([*known, *self]))
