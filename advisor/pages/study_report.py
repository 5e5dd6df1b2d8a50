"""What the report of a study shows: its recommendation, and every trial as a point and a row. Stored rows in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich.text import Text

from advisor.advice.evidence import Evidence
from advisor.advice.ranking import Candidate
from advisor.advice.recommendation import Recommendation
from advisor.advice.suggest import recommend
from advisor.errors import BadInput, NothingAdmissible, NotMeasured
from advisor.nouns.answer import NONE_RIGHT, Conclusion
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment, upgraded
from advisor.nouns.metrics import figure
from advisor.nouns.model import ModelSource, is_drawn
from advisor.nouns.trial import Trial, default_of
from advisor.pages.about import about
from advisor.pages.points import Finalist, Point, Role, Step, finalists_of, measure_of, path_of, points_of
from advisor.quality.amortised import Amortised, over_calls
from advisor.show.candidate_tables import figures_of
from advisor.show.headline import against, headline
from advisor.show.outlook import outlook
from advisor.show.refused import refusal_rows
from advisor.show.script import recommended_script
from advisor.show.source_lines import batching_words, loading_lines
from advisor.storage.store import Store
from advisor.storage.study_record import StudyRecord
from advisor.terminal import gib, many
from advisor.workloads import kind_of

#: Where a chart's figures are for those who don't see it.
_TABLE = "The table of all trials has the same figures."


@dataclass(frozen=True)
class Code:
    """The code to copy: the lines that load the model, the batching in a sentence, and the whole script."""

    loading: str
    batching: str
    script: str


@dataclass(frozen=True)
class StudyReport:
    """All that the report of a study shows, in words and numbers.

    about: what the study was about, term by term. verdict: of the recommendation; headline: the same as a sentence; against: what
    stands against what may not be recommended; figures, notes, outlook: as the terminal tells them. code: None where nothing is
    recommended, or its lines can't be made: no_code says why. points: every trial, in order; finalists: those that met the
    default in blocks; path: the best so far after each trial of the search. refusals: what, rules, why. speed_unit: of every
    point's speed; quality_words: what every point's quality figure is. is_stale: whether its device has other versions by now.
    """

    study: StudyRecord
    about: tuple[tuple[str, str], ...]
    verdict: str
    headline: str
    against: tuple[str, ...]
    figures: tuple[str, ...]
    notes: tuple[str, ...]
    outlook: tuple[str, ...]
    code: Code | None
    no_code: str
    points: tuple[Point, ...]
    finalists: tuple[Finalist, ...]
    path: tuple[Step, ...]
    default_value: float | None
    refusals: tuple[tuple[str, str, str], ...]
    speed_unit: str
    quality_words: str
    is_stale: bool = False

    @property
    def is_recommended(self) -> bool:
        """Whether anything is recommended."""
        return any(point.role is Role.CHOSEN for point in self.points)

    @property
    def is_sure(self) -> bool:
        """Whether the verdict is one that stands: neither unconfirmed nor unsearched, nor of versions that are gone."""
        return Conclusion(self.verdict).exit_status == 0 and not self.is_stale

    @property
    def failures(self) -> tuple[Point, ...]:
        """The trials that came to nothing."""
        return tuple(point for point in self.points if point.role is Role.FAILED)

    @property
    def searched(self) -> tuple[Point, ...]:
        """A point of each configuration whose speed was measured: its best trial of the search."""
        return tuple(point for point in self.points if point.is_drawn)

    @property
    def title(self) -> str:
        """The page's title."""
        return f"Study {self.study.id}: {self.study.model_name}"

    @property
    def workload(self) -> str:
        """The workload in words."""
        return str(self.study.workload)

    @property
    def device(self) -> str:
        """The device in words, with the versions that matter most."""
        return str(self.study.environment)

    @property
    def date(self) -> str:
        """The day it was measured."""
        return (self.study.finished_at or self.study.started_at).date().isoformat()

    @property
    def in_memory_chart(self) -> tuple[Point, ...]:
        """The points whose peak memory is known."""
        return tuple(point for point in self.searched if point.peak_bytes)

    @property
    def in_quality_chart(self) -> tuple[Point, ...]:
        """The points whose quality figure is known."""
        return tuple(point for point in self.searched if point.quality is not None)

    @property
    def without_quality(self) -> str:
        """What is missing in the chart of quality, in words; "" where nothing is."""
        count = len(self.searched) - len(self.in_quality_chart)
        return f" {count} of {len(self.searched)} are not in it: their quality was not looked at." if count else ""

    @staticmethod
    def legend(points: Sequence[Point]) -> list[tuple[str, str]]:
        """Return the roles that a chart of these points shows: the mark of each, and what it is in words."""
        seen = {point.role for point in points}
        return [(str(role), str(role)) for role in Role if role in seen]

    def in_words(self, speed: float | None) -> str:
        """Return a speed without its unit."""
        return "–" if speed is None else f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"

    def best_after(self, number: int) -> str:
        """Return the best so far after a trial of the search, for its row."""
        step = next((step for step in self.path if step.number == number), None)
        return figure(self.study.objective.metric, step.best) if step is not None else "–"

    @property
    def memory_summary(self) -> str:
        """The chart of speed against peak memory, in words."""
        return self._summary("peak memory", [(p, gib(p.peak_bytes)) for p in self.in_memory_chart])

    @property
    def quality_summary(self) -> str:
        """The chart of speed against the quality figure, in words."""
        shown = [(p, f"{p.quality:.2e}") for p in self.in_quality_chart]
        return self._summary(self.quality_words, shown)

    def _summary(self, across: str, shown: Sequence[tuple[Point, str]]) -> str:
        """Return a chart of points in words: how many of each kind, and where the default and the winner are."""
        counts = [(role, sum(point.role is role for point, _ in shown)) for role in Role]
        counted = ", ".join(f"{count} {role}" for role, count in counts if count)
        marked = [
            f"{'the default' if point.is_default else 'recommended'} {point.configuration} at "
            f"{self.in_words(point.speed)} {self.speed_unit} and {words}"
            for point, words in shown
            if point.is_default or point.role is Role.CHOSEN
        ]
        what = f"Scatter chart of speed against {across}, {many(len(shown), 'configuration')}"
        return f"{what}: {counted}. {'; '.join(marked)}. {_TABLE}"

    @property
    def blocks_summary(self) -> str:
        """The chart of the finalists, in words."""
        best = self.finalists[0]
        return (
            f"Chart of {many(len(self.finalists), 'ratio')} over the default with intervals. The highest is "
            f"{best.configuration}, {best.ratio:.2f}: {best.verdict}. The table below has all of them."
        )

    @property
    def path_summary(self) -> str:
        """The chart of the search's path, in words."""
        metric, last = self.study.objective.metric, self.path[-1]
        best = next((step for step in self.path if step.best == last.best), last)
        return (
            f"Line chart over {many(len(self.path), 'trial')}: the best so far ends at {figure(metric, last.best)}, "
            f"first reached by trial {best.number}; the default has {figure(metric, self.default_value)}. {_TABLE}"
        )


def report_of(
    store: Store, study_id: int, source: ModelSource | None = None, here: Iterable[Environment] = ()
) -> StudyReport:
    """Return what the report of a study shows. source: where its model is now, None where that is not known.

    here: the environments that there are now, so that a study is marked whose device has other versions by now.
    Raises BadInput where there is no such study, NotMeasured where it has no finished trial yet.
    """
    try:
        study = store.study(study_id)
    except NotMeasured as error:
        raise BadInput(str(error), "advisor trials lists them") from None
    if source is not None and study.workload.key_for(source.architecture_key) != study.workload_key:
        source = None  # another model is at its place by now
    measured = store.trials(study_id)
    job = None if study.facts is None else Amortised.of(study.objective, study.workload, study.facts, measured)
    trials = over_calls(measured, job)  # or the page would contradict the answer's ratios
    found, reasons = _recommended(store, study, source, upgraded(study.environment, here))
    known = _candidates(store, study, trials, found, job)
    chosen = found.configuration if found is not None else None
    kind = kind_of(study.workload)
    measure = measure_of(trials)
    points = points_of(study, trials, known, chosen, measure)
    code, no_code = _code_of(found)
    default = default_of(trials)
    refusals = refusal_rows(found.refusals if found else store.refusals(study_id))
    return StudyReport(
        study=study,
        about=about(study),
        verdict=str(found.verdict) if found else str(NONE_RIGHT),
        headline=_plain(headline(found))
        if found
        else "nothing is right: every configuration was refused, failed or was wrong",
        against=tuple(map(_plain, against(found))) if found else tuple(reasons),
        figures=_figures(found),
        notes=(*(found.notes if found else ()), *_unlike(study, source)),
        outlook=tuple(_plain(line).strip() for lines in outlook(found) for line in lines) if found else (),
        code=code,
        no_code=no_code,
        points=points,
        finalists=finalists_of(known, chosen),
        path=path_of(study, points, trials),
        default_value=default.value(study.objective.metric) if default else None,
        refusals=tuple(refusals),
        speed_unit=kind.speed.unit,
        quality_words=measure.words,
        is_stale=found is not None and bool(found.stale),
    )


def _recommended(
    store: Store, study: StudyRecord, source: ModelSource | None, now: Environment | None
) -> tuple[Recommendation | None, tuple[str, ...]]:
    """Return what a study recommends under its own objective and for its own weights, or None and why nothing is left.

    Raises NotMeasured where no trial has ended yet.
    """
    try:
        return recommend(store, own_source(study, source), study, study.objective, now=now), ()
    except NothingAdmissible as error:
        return None, error.reasons


def _candidates(
    store: Store,
    study: StudyRecord,
    trials: Sequence[Trial],
    found: Recommendation | None,
    job: Amortised | None,
) -> dict[Configuration, Candidate]:
    """Return every configuration that was measured with its evidence: the recommendation's, or where there is none, its own."""
    if found is not None:
        all_of = [found.chosen, found.default, *found.runners_up, *found.rejected]
    else:
        evidence = Evidence.of(store, own_source(study, None), study, study.objective, trials, job)
        all_of = [evidence.default, *evidence.rejected]
    return {candidate.configuration: candidate for candidate in all_of if candidate is not None}


def own_source(study: StudyRecord, source: ModelSource | None) -> ModelSource:
    """Return the model that a study measured: its weights, where they are now if that is known."""
    digest = study.weights_digest
    weights = "random" if is_drawn(digest) else "trained"
    if source is None:
        return ModelSource(study.model_name, study.model_name, {}, weights, digest, has_tokenizer=False)
    return replace(source, name=study.model_name, weights=weights, weights_digest=digest)


def _plain(markup: str) -> str:
    return Text.from_markup(markup).plain


def _figures(found: Recommendation | None) -> tuple[str, ...]:
    if found is None or found.chosen is None:
        return ()
    lines = [line.strip() for line in figures_of(found, found.chosen).splitlines()]
    return (*lines, f"quality tier: {found.tier}")


def _code_of(found: Recommendation | None) -> tuple[Code | None, str]:
    """Return the code of what is recommended, or why there is none."""
    if found is None or found.chosen is None:
        return None, "nothing is recommended, so there is no code"
    study, chosen = found.study, found.chosen.configuration
    device = "cuda" if study.environment.is_cuda else "cpu"
    try:
        lines = loading_lines(found.source, chosen, found.facts, study.workload, device)
        return Code(
            "\n".join(lines),
            batching_words(chosen, found.facts, found.study.workload),
            recommended_script(found, device),
        ), ""
    except (BadInput, OSError) as error:  # OSError: a name of another machine that can be no path here
        return None, str(error)


def _unlike(study: StudyRecord, source: ModelSource | None) -> tuple[str, ...]:
    """Return what is to be told of a model that is not where it was, or not as it was."""
    if source is None:
        return (
            f"the model that was measured is not found here: the code names it {study.model_name}, as it was named",
        )
    if source.weights_digest != study.weights_digest:
        return ("the weights of the model here are not those that were measured",)
    return ()
