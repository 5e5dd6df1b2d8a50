"""Carried: what a format prints of a recommendation: what is recommended, or the best measured and right that it can say.

Nothing is decided here. A format says of a configuration why it can't carry it; the first of what is recommended and its
runners-up, which are right and in the one order of `advisor.advice.ranking`, that it can carry is printed, with a line on what
was left and what this one was measured to be. Where none is, the format is refused: nothing is printed that nobody measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from advisor.advice.ranking import Candidate
from advisor.advice.recommendation import Recommendation
from advisor.errors import BadInput
from advisor.knobs import choices_of, traits_of
from advisor.nouns.configuration import Configuration
from advisor.show.script import caution_of
from advisor.terminal import in_a_line
from advisor.workloads import Workload

#: Why a configuration can't be said in a format, "" where it can.
Hinders = Callable[[Configuration, Recommendation], str]


@dataclass(frozen=True)
class Carried:
    """What a format prints. found: the candidate, of a recommendation; left: what it leaves out and why, "" for nothing."""

    format: str
    recommendation: Recommendation
    found: Candidate
    left: str = ""

    @property
    def configuration(self) -> Configuration:
        """The configuration that is printed."""
        return self.found.configuration

    @property
    def workload(self) -> Workload:
        """The work, with the batch that this configuration chooses."""
        return self.recommendation.study.workload.under(self.configuration)

    @property
    def layout(self) -> str:
        """The name of the choice that makes batches of sequences, "" where there is none."""
        return next((choice.name for choice in choices_of(self.configuration) if choice.collation), "")

    @property
    def threads(self) -> int:
        """The threads of the CPU that it was measured with, 0 on a GPU, where nobody sets them."""
        environment = self.recommendation.study.environment
        return 0 if environment.is_cuda else environment.threads or 1

    def head(self, *more: str) -> list[str]:
        """Return what a reader must know, as comments of a line each: what it is, its proof, cautions, and what is left out."""
        recommendation = self.recommendation
        study = recommendation.study
        when = (study.finished_at or study.started_at).date().isoformat()
        # The verdict is of what is recommended: of what is printed in its place only the figures are known.
        verdict = "not what is recommended" if self.left else str(recommendation.verdict)
        lines = (
            f"{recommendation.source.name}: {self.configuration} (written by advisor, --format {self.format})",
            f"{verdict}: {measured_words(self.found)}; measured {when} on {study.environment}",
            caution_of(recommendation),
            self.left,
            *more,
        )
        return [f"# {in_a_line(line)}" for line in lines if line]


def carried(name: str, recommendation: Recommendation, hinders: Hinders) -> Carried:
    """Return what a format prints. Raises BadInput where it can carry nothing that was measured and is right."""
    chosen = recommendation.chosen
    assert chosen is not None
    why = hinders(chosen.configuration, recommendation)
    if not why:
        return Carried(name, recommendation, chosen)
    instead = (found for found in recommendation.runners_up if not hinders(found.configuration, recommendation))
    found = next(instead, None)
    left = f"{name} can't carry what is recommended, {chosen.configuration}: {why}"
    if found is None:
        raise BadInput(f"{left}; nothing that it can carry was measured and is right", "--format python prints it all")
    return Carried(
        name, recommendation, found, f"{left}; what remains is {found.configuration}: {measured_words(found)}"
    )


def measured_words(found: Candidate) -> str:
    """Return what a candidate was measured to be, over the default, and in which trial."""
    trial = f"trial {found.trial.number}"
    if found.is_default:
        return f"1.00 × the default, which it is ({trial})"
    if found.comparison is not None and found.is_confirmed:
        low, high = found.comparison.interval
        blocks = len(found.comparison.block_ratios)
        return (
            f"{found.comparison.ratio:.2f} × the default (95 % interval {low:.2f}–{high:.2f}, {blocks} blocks; {trial})"
        )
    if found.search_ratio is not None:
        return f"{found.search_ratio:.2f} × the default in the search, not confirmed ({trial})"
    return f"not compared with the default ({trial})"


def sorted_twin(carried_: Carried) -> str:
    """Return what is known of the same configuration with batches by length, for a library that sorts by itself."""
    ours, recommendation = carried_.configuration, carried_.recommendation
    if traits_of(ours).by_length:
        return ""
    known = [candidate for candidate in (recommendation.chosen, *recommendation.runners_up) if candidate is not None]
    twin = next((found for found in known if _differ_in_order_alone(found.configuration, ours)), None)
    return f"measured so: {measured_words(twin)}" if twin else "that was not measured, or is not right"


def _differ_in_order_alone(one: Configuration, other: Configuration) -> bool:
    """Whether one is the other with batches by length."""
    if not traits_of(one).by_length or traits_of(one).packs:
        return False
    pairs = zip(choices_of(one), choices_of(other), strict=True)
    return all(a.name == b.name for a, b in pairs if a.collation is None or b.collation is None)
