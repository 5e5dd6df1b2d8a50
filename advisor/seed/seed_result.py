"""What was measured in one case of the seed: speeds and ratios of its roles, and why one has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from advisor.knobs import KNOBS, Reason
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment
from advisor.nouns.measurement import LEAST_BLOCKS, TIE_ZONE, Comparison
from advisor.nouns.model import ModelFacts
from advisor.nouns.trial import Outcome, Trial
from advisor.search.cost import attention_width, useful_operations
from advisor.seed.seed import DEFAULT, PAIRS, SPEED, Case, kernels_of
from advisor.workloads import Workload


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one configuration is as another.

    interval: at 95 % over the blocks in which both ran; None where it was seen in single runs of the search: a hint.
    """

    value: float
    interval: tuple[float, float] | None
    blocks: int

    @property
    def is_tie(self) -> bool:
        """Whether it can't be told from 1."""
        low, high = self.interval or (self.value, self.value)
        return low <= 1 + TIE_ZONE and high >= 1 / (1 + TIE_ZONE)

    @property
    def payload(self) -> dict[str, Any]:
        """The ratio as JSON values."""
        return {"ratio": self.value, "interval": list(self.interval) if self.interval else None, "blocks": self.blocks}

    def __str__(self) -> str:
        """Return it for people; one that is a hint begins with ≈."""
        return f"≈{self.value:.2f}" if self.interval is None else f"{self.value:.2f} ({self.span})"

    @property
    def span(self) -> str:
        """The interval, or that there is none."""
        return f"{self.interval[0]:.2f}–{self.interval[1]:.2f}" if self.interval else "single runs, not confirmed"

    def beside(self, other: str) -> str:
        """Return it within a sentence: "3.66 × as fast as eager (3.64–3.68)", and whether it can be told from 1."""
        tie = ", which is no difference that can be told" if self.interval and self.is_tie else ""
        return f"{self.value:.2f} × as fast as {other} ({self.span}){tie}"


@dataclass(frozen=True)
class CaseResult:
    """What was measured in one case.

    roles: the configuration of each of ROLES; "recommended" is missing where nothing can be. verdict: of the
    recommendation. one_kv_head: all query heads share one key-value head (multi-query attention). planned: the most blocks.
    """

    case: Case
    study: int
    model: str
    environment: Environment
    workload: Workload
    facts: ModelFacts
    roles: Mapping[str, Configuration]
    verdict: str
    trials: tuple[Trial, ...]
    refusals: tuple[Reason, ...]
    one_kv_head: bool
    planned: int | None = None

    def trial(self, role: str) -> Trial | None:
        """Return the last search trial of a role's configuration that was timed, else the last one, else None."""
        wanted = self.roles.get(role)
        found = [t for t in self.trials if t.phase == "search" and wanted in (t.requested, t.ran)]
        timed = [t for t in found if t.ran == wanted and t.measurements]
        return next(reversed(timed or found), None)

    def tokens_per_s(self, role: str) -> float | None:
        """Return the median over the confirmation's blocks, else the search's."""
        blocks = [t.tokens_per_s for t in self._confirmed(role).values()]
        trial = self.trial(role)
        single = trial.tokens_per_s if trial is not None and trial.ran == self.roles[role] else 0.0
        return median(blocks) if blocks else single or None

    def ratio(self, role: str, over: str) -> Ratio | None:
        """Return how many times as fast one role is as another, block by block where both were confirmed."""
        ours, theirs = self._confirmed(role), self._confirmed(over)
        ratios = tuple(ours[n].tokens_per_s / theirs[n].tokens_per_s for n in sorted(ours.keys() & theirs.keys()))
        if len(ratios) >= LEAST_BLOCKS:
            comparison = Comparison(self.roles[role].key, self.roles[over].key, ratios, self.planned)
            return Ratio(comparison.ratio, comparison.interval, len(ratios))
        single, other = self.tokens_per_s(role), self.tokens_per_s(over)
        return Ratio(single / other, None, len(ratios)) if single and other else None

    def why_not(self, role: str) -> str:
        """Return why a role has no figure, "" where it has one."""
        if self.tokens_per_s(role):
            return ""
        if role not in self.roles:
            return "nothing can be recommended"
        trial = self.trial(role)
        if trial is not None:
            return f"{trial.outcome}: {trial.reason}" if trial.outcome is not Outcome.OK else trial.reason
        wanted = {f"{knob}={name}" for knob, name in self.roles[role].over(KNOBS)}
        refused = (r for r in self.refusals if wanted.issuperset(f"{r.subject} {r.about}".split()))
        return next((f"rule {r.rule}: {r.text}" for r in refused), "it was not tried: the time was over")

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kernels of PyTorch's own attention that the default ran, as its profiled step shows."""
        trial = self.trial(DEFAULT)
        operators = trial.reading.get("operators", ()) if trial is not None else ()
        return kernels_of(operators)

    @property
    def attention_share(self) -> float:
        """The share of attention in the operations that the work needs."""
        pairs = sum(n * n for n in self.workload.lengths) / (2 if self.facts.is_causal else 1)
        attention = 4.0 * pairs * attention_width(self.facts)
        return attention / useful_operations(self.facts, self.workload)

    @property
    def payload(self) -> dict[str, Any]:
        """The case as JSON values."""
        pairs = {f"{role} over {over}": self.ratio(role, over) for role, over in PAIRS}
        return {
            "case": {"longest": self.case.longest, "padding": self.case.padding, "batch": self.case.batch},
            "study": self.study,
            "configurations": {
                role: {
                    "configuration": configuration.spelled,
                    SPEED: self.tokens_per_s(role),
                    "why_not": self.why_not(role),
                }
                for role, configuration in self.roles.items()
            },
            "ratios": {name: ratio.payload if ratio else None for name, ratio in pairs.items()},
            "verdict": self.verdict,
            "default_kernels": list(self.kernels),
            "attention_share": self.attention_share,
        }

    def _confirmed(self, role: str) -> dict[int, Trial]:
        """Return the trials of a role's configuration by the block of the confirmation in which it ran as itself."""
        wanted = self.roles.get(role)
        found = (t for t in self.trials if t.phase == "confirm" and t.requested == wanted == t.ran)
        return {t.block: t for t in found if t.block is not None and t.outcome is Outcome.OK and t.tokens_per_s}
