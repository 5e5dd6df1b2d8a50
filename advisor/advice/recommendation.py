"""Recommendation: what to run and why, as one value, with the exit status and the JSON that say it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from advisor.advice.coverage import weights_words
from advisor.advice.ranking import Candidate, is_beaten, is_tied
from advisor.knobs import Reason, unproven_in
from advisor.nouns.answer import Conclusion
from advisor.nouns.configuration import Configuration
from advisor.nouns.measurement import TIE_ZONE
from advisor.nouns.model import ModelFacts, ModelSource, is_drawn
from advisor.nouns.objective import Objective
from advisor.nouns.trial import Trial
from advisor.search.cost import useful_operations
from advisor.search.prospects import Prospects, needed_bytes
from advisor.search.room import longest_that_fits
from advisor.search.space import MEMORY_SHARE
from advisor.storage.study_record import StudyRecord
from advisor.terminal import percent
from advisor.workloads import kind_of


@dataclass(frozen=True)
class Recommendation:
    """What to run and why.

    chosen: what is recommended, None where nothing may be; default: what everything is compared with, None where it was not
    measured, with its objections where it may not be recommended itself. verdict: see Conclusion. best: where that is
    unconfirmed or unsearched, the fastest found, to be taken as that. rejected: what was measured and may not be recommended.
    notes: what a reader must know to weigh it, in words; failures: trials that came to nothing.
    pareto: candidates that no other beats in speed, memory and quality at once, fastest first. ceilings: what the device
    was seen to reach (`matmul_<precision>_per_s`, `copy_bytes_per_s`), None where that was not measured. is_own: whether
    the question leaves just what the study searched. tried: how many configurations were, failures included; admissible: of
    how many, None where that is not known; look: what finds out about those that were not, once it is asked: see prospects.
    why: why the search stopped, in words; command: what goes on with it; trying: what tries what was never tried; way_out: how
    work is done right that no configuration does right, "" where there is no telling.
    looked_s: seconds that the independence probe and the layout in fp32 took, of spent_s that all trials did.
    stale: which versions of this device were changed since it was measured, in words, nothing where none was; refused_here: what
    rules say by now against what is recommended.
    """

    source: ModelSource
    study: StudyRecord
    objective: Objective
    facts: ModelFacts
    chosen: Candidate | None
    default: Candidate | None
    verdict: Conclusion
    runners_up: tuple[Candidate, ...]
    refusals: tuple[Reason, ...]
    failures: tuple[Trial, ...]
    notes: tuple[str, ...]
    pareto: tuple[Candidate, ...] = ()
    ceilings: Mapping[str, float] | None = None
    is_own: bool = True
    tried: int = 0
    admissible: int | None = None
    best: Candidate | None = None
    rejected: tuple[Candidate, ...] = ()
    look: Callable[[], Prospects] = Prospects
    why: str = ""
    command: str = ""
    trying: str = ""
    way_out: str = ""
    looked_s: float = 0.0
    spent_s: float = 0.0
    stale: tuple[str, ...] = ()
    refused_here: tuple[Reason, ...] = ()

    def __str__(self) -> str:
        """Return it in a line."""
        origin = "".join(f"; {words}" for words in (self.origin, self.stale_words) if words)
        if self.chosen is None:
            return f"{self.source.name}: nothing is recommended ({self.verdict}{origin})"
        ratio = f", {self.chosen.comparison.ratio:.2f} × the default" if self.chosen.comparison else ""
        return f"{self.source.name}: {self.configuration} ({self.verdict}{ratio}{origin})"

    def with_flags(self, of_workload: str, given: str) -> Recommendation:
        """Return the same whose commands name the workload as it was given."""
        command, trying = (text.replace(of_workload, given) for text in (self.command, self.trying))
        return replace(self, command=command, trying=trying)

    @property
    def same_weights(self) -> bool:
        """Whether the weights that are asked about were measured; else speeds are others', and quality is not known."""
        return self.study.weights_digest == self.source.weights_digest

    @property
    def origin(self) -> str:
        """Whose speeds these are where the weights that are asked about were not measured, in words; else ""."""
        return "" if self.same_weights else f"the speeds are those of {weights_words(self.study)}"

    @property
    def stale_words(self) -> str:
        """What was changed since it was measured, and whether it can still be run, in words; "" where nothing was."""
        if not self.stale:
            return ""
        cant = "; can't run here: " + "; ".join(map(str, self.refused_here)) if self.refused_here else ""
        return f"stale: measured before {', '.join(self.stale)}{cant}"

    @property
    def prospects(self) -> Prospects:
        """What was never tried: how many, how likely one of them is better, and which promise most."""
        return self.look()

    @property
    def configuration(self) -> Configuration | None:
        """What is recommended, None where nothing may be."""
        return self.chosen.configuration if self.chosen is not None else None

    @property
    def tier(self) -> str | None:
        """Its quality tier."""
        return str(self.chosen.tier) if self.chosen is not None else None

    @property
    def share_tried(self) -> float | None:
        """The share of what could be tried that was, at most 1; None where that is not known."""
        return min(self.tried / self.admissible, 1.0) if self.admissible else None

    @property
    def exit_status(self) -> int:
        """The status of a command that says this. What the tune was told to leave out is no fault: that is status 0.

        What is stale was not measured here, whatever it says.
        """
        if self.stale:
            return Conclusion.UNCONFIRMED.exit_status
        budget, end = self.study.budget, self.study.end
        asked_for_few = self.is_own and budget.trials is not None and not (end is not None and end.stop.is_cut)
        no_blocks = self.verdict is Conclusion.UNCONFIRMED and budget.blocks == 0
        wants = self.verdict in (Conclusion.UNCONFIRMED, Conclusion.UNSEARCHED) and self.chosen is not None
        return 0 if wants and (no_blocks or asked_for_few) else self.verdict.exit_status

    @property
    def ceiling_share(self) -> float | None:
        """Useful operations per second over what matrix products in this precision reach here; None where unknown.

        Nor of so many calls: their rate has loading in it.
        """
        if self.chosen is None or self.objective.job_calls is not None:
            return None
        ceiling = (self.ceilings or {}).get(f"matmul_{self.chosen.configuration['precision']}_per_s")
        workload = self.study.workload
        kind = kind_of(workload)
        speed = self.chosen.trial.value(kind.speed.metric)
        if not ceiling or not speed:
            return None
        return useful_operations(self.facts, workload) / kind.useful(workload) * speed / ceiling

    @property
    def ceiling_words(self) -> str:
        """The same for people, "" where it is not known."""
        share = self.ceiling_share
        if share is None or self.ceilings is None or self.chosen is None:
            return ""
        precision = self.chosen.configuration["precision"]
        reached = self.ceilings[f"matmul_{precision}_per_s"]
        unit, scale = ("TFLOP/s", 1e12) if reached >= 1e12 else ("GFLOP/s", 1e9)
        text = (
            f"{percent(share, 0)} of the {reached / scale:,.0f} {unit} that matrix products in {precision} reach here"
        )
        return f"{text}, counting useful operations"

    @property
    def longest_tokens(self) -> int | None:
        """How long all sequences of a step of training may be for what is recommended to fit, by what it took of memory.

        Within what is allowed, else within MEMORY_SHARE of the device's. None for work that does not train, where no peak was
        measured, and on a CPU, whose processes have more in memory than what is predicted.
        """
        study, environment = self.study, self.study.environment
        if (
            self.chosen is None
            or not study.workload.trains
            or not environment.is_cuda
            or not self.chosen.trial.peak_bytes
        ):
            return None
        allowed = self.objective.max_memory_bytes or MEMORY_SHARE * environment.memory_bytes
        measured = (self.chosen.configuration, self.chosen.trial.peak_bytes)
        return longest_that_fits(study.workload, self.facts, environment, *measured, allowed)

    @property
    def with_more_blocks(self) -> str:
        """The command with more blocks where a tie's middle is clear of the default though its interval is not; else ""."""
        if self.verdict is not Conclusion.TIE or self.stale:
            return ""
        compared = [c.comparison for c in self.runners_up if c.comparison is not None and c.is_confirmed]
        seen = max((len(c.block_ratios) for c in compared if c.verdict == "tie" and c.ratio > 1 + TIE_ZONE), default=0)
        return f"{re.sub(r' --blocks [0-9]+', '', self.command)} --blocks {2 * seen}" if seen else ""

    @property
    def payload(self) -> dict[str, Any]:
        """The recommendation as JSON values."""
        finished = self.study.finished_at or self.study.started_at
        return {
            "model": self.source.name,
            "workload": self.study.workload.payload,
            "objective": self.objective.payload,
            "environment": {"key": self.study.environment_key, **self.study.environment.payload},
            "study": self.study.id,
            "measured_at": finished.isoformat(),
            "measured_weights": {
                "model": self.study.model_name,
                "digest": self.study.weights_digest,
                "random": is_drawn(self.study.weights_digest),
                "same": self.same_weights,
            },
            "verdict": str(self.verdict),
            "stale": list(self.stale),
            "refused_here": [reason_payload(reason) for reason in self.refused_here],
            "tier": self.tier,
            "recommendation": self.chosen.payload if self.chosen else None,
            "default": self.default.payload if self.default else None,
            "fastest_found": self.best.payload if self.best else None,
            "runners_up": [candidate.payload for candidate in self.runners_up],
            "rejected": [candidate.payload for candidate in self.rejected],
            "pareto": [candidate.payload for candidate in self.pareto],
            "ceilings": dict(self.ceilings) if self.ceilings else None,
            "ceiling_share": self.ceiling_share,
            "longest_tokens": self.longest_tokens,
            "tried": self.tried,
            "admissible": self.admissible,
            "share_tried": self.share_tried,
            "gate_s": self.looked_s,
            "why": self.why,
            "chance_of_better": self.prospects.chance,
            "untried": [
                {
                    **prospect.payload,
                    "configuration": prospect.configuration.spelled,
                    "label": str(prospect.configuration),
                    "needed_bytes": needed_bytes(self.study, prospect.configuration),
                }
                for prospect in self.prospects.promising
            ],
            "command": self.with_more_blocks or self.command,
            "way_out": self.way_out,
            "refusals": [reason_payload(reason) for reason in self.refusals],
            "failures": [
                {
                    "trial": t.number,
                    "configuration": t.requested.spelled,
                    "label": str(t.requested),
                    "outcome": fate_of(t),
                    "reason": t.reason,
                }
                for t in self.failures
            ],
            "notes": list(self.notes),
        }


def came_to_nothing(trial: Trial) -> bool:
    """Whether a trial failed, or ran without a proof of what ran: figures of nobody knows what are figures of nothing."""
    return trial.outcome.is_failure or bool(unproven_in(trial.ran))


def fate_of(trial: Trial) -> str:
    """Return in a word what became of a trial that came to nothing."""
    return str(trial.outcome) if trial.outcome.is_failure else "unproven"


def reason_payload(reason: Reason) -> dict[str, str]:
    """Return a rule's reason as JSON values."""
    return {
        "subject": reason.subject,
        "about": reason.about,
        "rule": reason.rule,
        "verdict": str(reason.verdict),
        "reason": reason.text,
        "remedy": reason.remedy,
    }


def tie_set(recommendation: Recommendation) -> list[Candidate]:
    """Return the runners-up that are as good as what is recommended, in their order: within the tie zone, either way.

    By their confirmed ratios to the default where both have one (the default's own is 1), else by their ratios in the search.
    Where the default is recommended, also those that the blocks could not tell from it; but for what is said to be found and
    not confirmed.
    """
    chosen = recommendation.chosen
    if chosen is None:
        return []
    return [
        found
        for found in recommendation.runners_up
        if found is not recommendation.best
        and not is_beaten(found, chosen)
        and (is_tied(found, chosen) or (chosen.is_default and found.verdict == "tie"))
    ]
