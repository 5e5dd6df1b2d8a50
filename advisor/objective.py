"""Objective: what is wanted of a configuration, and which quality tiers are good enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Tier(StrEnum):
    """How far a configuration may be from the checkpoint, least first (measurement.md, B.6)."""

    EXACT = "exact"
    DTYPE = "dtype"
    EIGHT_BIT = "8bit"
    FOUR_BIT = "4bit"

    @property
    def rank(self) -> int:
        """0 for exact, 3 for 4bit."""
        return list(Tier).index(self)

    @staticmethod
    def worst(*tiers: Tier) -> Tier:
        """Return the tier of a configuration whose choices have these tiers."""
        return max(tiers, key=lambda tier: tier.rank)


@dataclass(frozen=True)
class Objective:
    """The most useful tokens per second, within a quality tier and a memory limit in bytes.

    allow_unjudged: recommend a lossy choice although the weights are random and its quality is unknown.
    ignored_rules: ids of rules the user switched off, so that the numerics gate has to do their work.
    """

    quality: Tier = Tier.DTYPE
    max_memory_bytes: int | None = None
    allow_unjudged: bool = False
    ignored_rules: tuple[str, ...] = ()
    metric: str = "tokens_per_s"

    @property
    def payload(self) -> dict[str, Any]:
        """The objective as JSON values."""
        return {**asdict(self), "quality": str(self.quality), "ignored_rules": sorted(self.ignored_rules)}

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Objective:
        """Build one from its payload."""
        return cls(**{**payload, "quality": Tier(payload["quality"]), "ignored_rules": tuple(payload["ignored_rules"])})


@dataclass(frozen=True)
class Budget:
    """How much may be spent: seconds of wall clock, trials, or both."""

    seconds: float | None = None
    trials: int | None = None

    @property
    def payload(self) -> dict[str, Any]:
        """The budget as JSON values."""
        return asdict(self)
