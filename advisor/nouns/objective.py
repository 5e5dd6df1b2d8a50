"""Objective: what is wanted of a configuration, and which quality tiers are good enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from advisor.errors import BadInput
from advisor.nouns.checked import Malformed, checked, shortened, test_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.metrics import METRICS, Metric, default_metric


class Tier(StrEnum):
    """How far a configuration may be from the checkpoint, least first (measurement.md, B.6)."""

    EXACT = "exact"
    DTYPE = "dtype"
    EIGHT_BIT = "8bit"
    FOUR_BIT = "4bit"

    @property
    def rank(self) -> int:
        """0 for exact, 3 for 4bit."""
        return _RANKS[self]

    @staticmethod
    def worst(*tiers: Tier) -> Tier:
        """Return the tier of a configuration whose choices have these tiers."""
        return max(tiers, key=lambda tier: tier.rank)


#: By tier: asked for every candidate of every answer.
_RANKS = {tier: rank for rank, tier in enumerate(Tier)}


@dataclass(frozen=True)
class Limits:
    """What a lossy tier may cost: kl in nats, top1, cosine and top10 as shares, perplexity as a ratio.

    rms: of scores with a single label, in standard deviations over the sequences: there kl and top1 say nothing. loss: of any of
    the first steps of training, in nats beside the reference's.
    """

    kl: float
    top1: float
    perplexity_ratio: float
    cosine: float
    top10: float
    rms: float
    loss: float = math.inf


#: What an objective says only where it says something: it came after the first were stored.
_LATER = ("only", "max_latency_s", "calls")


@dataclass(frozen=True)
class Objective:
    """The best of one metric, within a quality tier, a memory limit in bytes and a latency limit in seconds a batch.

    allow_unjudged: recommend a lossy choice although the weights are random and its quality is unknown.
    ignored_rules: ids of rules the user switched off, so that the numerics gate has to do their work.
    only: (knob, choices) pairs outside which nothing but the default is tried. metric: a stored metric of METRICS.
    calls: over how many calls (batches) what it takes to begin is spread; None: over ever so many, so that it counts for nothing.
    """

    quality: Tier = Tier.DTYPE
    max_memory_bytes: int | None = None
    allow_unjudged: bool = False
    ignored_rules: tuple[str, ...] = ()
    metric: str = field(default_factory=default_metric)
    max_latency_s: float | None = None
    only: tuple[tuple[str, tuple[str, ...]], ...] = ()
    calls: int | None = None

    def __post_init__(self) -> None:
        """Refuse a metric that is none."""
        if self.metric not in METRICS or not METRICS[self.metric].name:
            raise BadInput(f"the objective's metric is unknown: {self.metric!r}")

    @property
    def aim(self) -> Metric:
        """The metric with its unit and direction."""
        return METRICS[self.metric]

    @property
    def job_calls(self) -> int | None:
        """Over how many calls rates are; None where nothing is spread, or the aim is no rate: bytes and joules are not spread."""
        return self.calls if self.aim.is_of_time and not self.aim.less_is_better else None

    def leaves(self, configuration: Configuration) -> bool:
        """Whether --only leaves a configuration: by its choice, stated or implied, of every knob that is named."""
        return all(configuration.get(knob) in names for knob, names in self.only)

    @property
    def payload(self) -> dict[str, Any]:
        """The objective as JSON values. What came later is left out where it says nothing, so that old keys stay."""
        payload = {**vars(self), "quality": str(self.quality), "ignored_rules": sorted(self.ignored_rules)}
        payload["only"] = {knob: sorted(names) for knob, names in self.only}
        return {name: value for name, value in payload.items() if value or name not in _LATER}

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Objective:
        """Build one from its payload. Raises Malformed for a value that can't be."""
        listed = payload.get("only", {}) if isinstance(payload, Mapping) else {}
        if not test_of("Mapping[str, tuple[str, ...]]")(listed):
            raise Malformed(f"only can't be {shortened(listed)}")
        only = tuple((knob, tuple(names)) for knob, names in sorted(listed.items()))
        if any(not names for _, names in only):
            raise Malformed("only names no choice of a knob")
        bounds = ("max_memory_bytes", "max_latency_s", "calls")
        positive = {name: lambda value: value is None or value > 0 for name in bounds}
        values = checked(cls, {**payload, "only": only}, positive)
        return cls(**{**values, "quality": Tier(values["quality"])})


@dataclass(frozen=True)
class Budget:
    """How much may be spent: seconds of wall clock, trials, or both.

    exhaustive: measure every admissible one, and none is stopped early. blocks: of the confirmation, at
    most: it stops as soon as the answer is clear; fewer than measurement.LEAST_BLOCKS decide nothing, 0 leaves it out.
    payback_s: how much work (seconds) is to pay for the search: it ends where a second of it is expected to save less than a
    second of that work; None: it goes on for as long as anything better is likely. job_pays: it is the objective's own job that
    is to pay for it, as long as that takes by the default; payback_s is for where that is not known.
    """

    seconds: float | None = None
    trials: int | None = None
    exhaustive: bool = False
    blocks: int = 9
    payback_s: float | None = None
    job_pays: bool = False

    @property
    def payload(self) -> dict[str, Any]:
        """The budget as JSON values. What came later is left out where it says nothing, as of an objective."""
        return {name: value for name, value in asdict(self).items() if value or name != "job_pays"}

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Budget:
        """Build one from its payload; what is stored beside it is left out. Raises Malformed for a value that can't be.

        The first studies say nothing of blocks: there were 3.
        """
        known = {each.name for each in fields(cls)}
        stored = {name: value for name, value in payload.items() if name in known}
        return cls(**checked(cls, {"blocks": 3, **stored}))
