"""The answer, from stored trials alone: which configuration, how sure, and why not the others. No torch, no GPU.

The candidate with the highest confirmed ratio over the default, or the default itself where nothing is clear of a tie. What
a study comes to under its own objective is stored beside it (:func:`keep_answer`), so that SQL needs no second decision;
any other question is answered from the trials.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from advisor.answer import NONE_RIGHT, Answer
from advisor.configuration import Configuration
from advisor.environment import Environment
from advisor.errors import DamagedRow, NothingAdmissible, NotMeasured
from advisor.knobs import Reason, advised, find_choice, tier_of
from advisor.measurement import TIE_ZONE, Comparison
from advisor.method import METHOD
from advisor.model import ModelFacts, ModelSource
from advisor.numerics import UNAIDED
from advisor.objective import Metric, Objective
from advisor.rows import now
from advisor.space import recommendable, useful_operations
from advisor.store import Store, StudyRecord
from advisor.trial import Outcome, Trial
from advisor.workloads import Workload


@dataclass(frozen=True)
class Candidate:
    """A configuration that may be recommended, with its evidence.

    search_ratio: its score over the default's in the search phase (one process each: a hint); comparison: the confirmed one.
    Ratios are above 1 where it is better at what the objective asks for, whichever way that is counted.
    """

    trial: Trial
    search_ratio: float | None
    comparison: Comparison | None

    @property
    def configuration(self) -> Configuration:
        """What ran."""
        return self.trial.ran

    @property
    def payload(self) -> dict[str, Any]:
        """The candidate as JSON values."""
        speed = self.trial.measurement("tokens_per_s")
        blocks = len(self.comparison.block_ratios) if self.comparison else 0
        return {
            "configuration": dict(self.configuration),
            "trial": self.trial.number,
            "tokens_per_s": speed.median if speed else None,
            "tokens_per_s_interval": list(speed.interval) if speed else None,
            "search_ratio": self.search_ratio,
            "ratio": self.comparison.ratio if self.comparison else None,
            "ratio_interval": list(self.comparison.interval) if self.comparison and blocks > 1 else None,
            "blocks": blocks,
            "verdict": self.comparison.verdict if self.comparison else None,
            "slowest_batch_s": self.trial.value("slowest_batch_s"),
            "sequences_per_s": self.trial.value("sequences_per_s"),
            "joules_per_token": self.trial.value("joules_per_token"),
            "peak_bytes": self.trial.peak_bytes,
            "weight_bytes": self.trial.weight_bytes,
            "load_s": self.trial.load_s,
            "first_call_s": self.trial.first_call_s,
            "quality": self.trial.quality.payload if self.trial.quality else None,
        }


@dataclass(frozen=True)
class Recommendation:
    """What to run and why.

    verdict: "faster" (confirmed); "tie", "default" (nothing looked faster) and "unconfirmed" (what did was not compared)
    keep the default; "only": the default itself can't be recommended, and this is the best of what can.
    notes: what a reader must know to weigh it, in words; failures: trials that came to nothing; measured_at: ISO time.
    pareto: candidates that no other beats in speed, memory and quality at once, fastest first. ceilings: what the device
    was seen to reach (`matmul_<precision>_per_s`, `copy_bytes_per_s`), None where that was not measured. tried: how many
    configurations were, failures included; admissible: of how many, None where that is not known.
    """

    source: ModelSource
    study: StudyRecord
    objective: Objective
    facts: ModelFacts
    chosen: Candidate
    default: Candidate | None
    verdict: str
    runners_up: tuple[Candidate, ...]
    refusals: tuple[Reason, ...]
    failures: tuple[Trial, ...]
    notes: tuple[str, ...]
    pareto: tuple[Candidate, ...] = ()
    ceilings: Mapping[str, float] | None = None
    tried: int = 0
    admissible: int | None = None

    def __str__(self) -> str:
        """Return it in a line."""
        ratio = f", {self.chosen.comparison.ratio:.2f} × the default" if self.chosen.comparison else ""
        return f"{self.source.name}: {self.configuration} ({self.verdict}{ratio})"

    @property
    def configuration(self) -> Configuration:
        """What is recommended."""
        return self.chosen.configuration

    @property
    def tier(self) -> str:
        """Its quality tier."""
        return str(tier_of(self.configuration.items(), self.facts))

    @property
    def ceiling_share(self) -> float | None:
        """Useful operations per second over what matrix products in this precision reach here; None where unknown."""
        ceiling = (self.ceilings or {}).get(f"matmul_{self.configuration['precision']}_per_s")
        speed = self.chosen.trial.tokens_per_s
        if not ceiling or not speed:
            return None
        return useful_operations(self.facts, self.study.workload) / self.study.workload.tokens * speed / ceiling

    @property
    def ceiling_words(self) -> str:
        """The same for people, "" where it is not known."""
        share, precision = self.ceiling_share, self.configuration["precision"]
        if share is None or self.ceilings is None:
            return ""
        reached = self.ceilings[f"matmul_{precision}_per_s"]
        unit, scale = ("TFLOP/s", 1e12) if reached >= 1e12 else ("GFLOP/s", 1e9)
        text = f"{share:.0%} of the {reached / scale:,.0f} {unit} that matrix products in {precision} reach here"
        return f"{text}, counting useful operations"

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
            "verdict": self.verdict,
            "tier": self.tier,
            "recommendation": self.chosen.payload,
            "default": self.default.payload if self.default else None,
            "runners_up": [candidate.payload for candidate in self.runners_up],
            "pareto": [candidate.payload for candidate in self.pareto],
            "ceilings": dict(self.ceilings) if self.ceilings else None,
            "ceiling_share": self.ceiling_share,
            "tried": self.tried,
            "admissible": self.admissible,
            "refusals": [
                {"subject": r.subject, "about": r.about, "rule": r.rule, "verdict": str(r.verdict), "reason": r.text,
                 "remedy": r.remedy} for r in self.refusals
            ],
            "failures": [
                {"trial": t.number, "configuration": dict(t.requested), "outcome": str(t.outcome), "reason": t.reason}
                for t in self.failures
            ],
            "notes": list(self.notes),
        }  # fmt: skip


def suggest(store: Store, source: ModelSource, workload: Workload, objective: Objective, here: Environment,
            on: str | None = None) -> Recommendation:  # fmt: skip
    """Return the recommendation for a model, a workload and an objective on an environment.

    on: a key's beginning or a part of the device's name; without it `here`, and where `here` is a CPU that nothing was
    measured on, whatever environment has rows. Raises NotMeasured with the nearest that was measured, NothingAdmissible
    with every reason.
    """
    studies = store.studies_for(source.architecture_key, workload.key_for(source.architecture_key))
    studies, notes = _in_environment(studies, here, on)
    if not studies and store.damaged:
        raise DamagedRow(store.damaged[0])
    if not studies:
        raise NotMeasured(_nearest(store, source, workload, objective, here, on))
    study, more = _best_study(studies, source, objective)
    return recommend(store, source, study, objective, (*notes, *more))


def recommend(store: Store, source: ModelSource, study: StudyRecord, objective: Objective,
              notes: Sequence[str] = ()) -> Recommendation:  # fmt: skip
    """Return what a study's rows recommend under an objective."""
    trials = store.trials(study.id)
    facts = study.facts
    if facts is None or all(trial.outcome is Outcome.RUNNING for trial in trials):
        raise NotMeasured("the study has no finished trial yet; run the same tune again")
    same_weights = study.weights_digest == source.weights_digest
    refusals = tuple(store.refusals(study.id))
    failures = tuple(t for t in trials if t.outcome.is_failure)
    # Comparisons count for what the study aimed at: a ratio of speeds says nothing of memory.
    comparisons = store.comparisons(study.id) if study.objective.metric == objective.metric else []
    default_trial = _default_trial(trials)
    admissible = [
        t for t in trials
        if recommendable(t, objective, facts, same_weights=same_weights)
        and _is_within(objective, trials[0].requested, t.ran)
    ]  # fmt: skip
    if not admissible:
        outside = {
            t.number: _outside(t, objective, facts, trials[0].requested, same_weights=same_weights) for t in trials
        }
        raise NothingAdmissible(_every_reason(refusals, trials, outside))
    aim = objective.aim
    default = _candidate(default_trial, default_trial, comparisons, aim) if default_trial else None
    candidates = {
        t.ran: _candidate(t, default_trial, comparisons, aim) for t in sorted(admissible, key=lambda t: t.score(aim))
    }
    chosen, verdict = _choose(candidates, default, aim)
    others = sorted((c for c in candidates.values() if c is not chosen), key=lambda c: -c.trial.score(aim))
    return Recommendation(
        source, study, objective, facts, chosen, default, verdict, tuple(others), refusals, failures,
        notes=(*notes, *_notes(study, source, objective, chosen, default)),
        pareto=tuple(_pareto(list(candidates.values()), facts)),
        ceilings=store.ceilings(study.environment_key),
        tried=_tried(study, trials),
        admissible=study.admissible,
    )  # fmt: skip


def _is_within(objective: Objective, default: Configuration, ran: Configuration) -> bool:
    """Whether --only leaves what ran; the default is always within it, for it is what everything is held to."""
    return ran == default or objective.leaves(ran)


def answer_of(store: Store, study: StudyRecord) -> Answer:
    """Return what a study comes to under its own objective and for its own weights, "none-right" where nothing is left.

    Raises NotMeasured where it has no finished trial yet, or its model's facts are not known.
    """
    made_at = now()  # before anything is read: what is written meanwhile makes the answer stale
    digest = study.weights_digest
    weights = "random" if digest.startswith("random:") else "trained"
    own = ModelSource(study.model_name, "", {}, weights, digest, has_tokenizer=False)
    try:
        found = recommend(store, own, study, study.objective)
    except NothingAdmissible as error:
        tried = _tried(study, store.trials(study.id))
        return Answer(None, NONE_RIGHT, None, None, None, 0, tried, study.admissible, error.reasons, METHOD, made_at)
    chosen, default = found.chosen, found.default
    ratio, low, high, blocks = None, None, None, 0
    if default is not None and chosen.configuration == default.configuration:
        ratio = low = high = 1.0
    elif chosen.comparison is not None:
        ratio, (low, high) = chosen.comparison.ratio, chosen.comparison.interval
        blocks = len(chosen.comparison.block_ratios)
    evidence = (ratio, low, high, blocks, found.tried, found.admissible)
    return Answer(chosen.configuration, found.verdict, *evidence, found.notes, METHOD, made_at)


def keep_answer(store: Store, study_id: int) -> None:
    """Store what a study comes to by now; a study that has no answer yet keeps none."""
    with suppress(NotMeasured):
        store.save_answer(study_id, answer_of(store, store.study(study_id)))


def _keep_if_readable(store: Store, study_id: int) -> None:
    """Do the same, and note a damaged row: the other studies' answers do not wait for it."""
    try:
        keep_answer(store, study_id)
    except DamagedRow as error:
        if str(error) not in store.damaged:
            store.damaged.append(str(error))


def keep_answers(store: Store, study_ids: Iterable[int] | None = None) -> int:
    """Store the answers of these studies, or of all whose stored one is missing or of another method; return of how many.

    Each is a transaction of its own: broken off, it goes on where it was when it is called again.
    """
    ids = list(store.unanswered(METHOD) if study_ids is None else study_ids)
    for study_id in ids:
        _keep_if_readable(store, study_id)
    return len(ids)


def _tried(study: StudyRecord, trials: Sequence[Trial]) -> int:
    """Return how many of what --only leaves was tried: the default is measured beside it."""
    tried = {t.requested for t in trials if t.phase == "search" and t.outcome is not Outcome.RUNNING}
    return sum(study.objective.leaves(configuration) for configuration in tried)


def _pareto(candidates: Sequence[Candidate], facts: ModelFacts) -> list[Candidate]:
    """Return those that no other is at least as good as in speed, peak memory and quality tier, and better in one."""

    def costs(candidate: Candidate) -> tuple[float, float, float]:
        tier = tier_of(candidate.configuration.items(), facts).rank
        return (-candidate.trial.tokens_per_s, candidate.trial.peak_bytes or 0, tier)

    found = [
        c for c in candidates
        if not any(all(a <= b for a, b in zip(costs(o), costs(c), strict=True)) and costs(o) != costs(c) for o in candidates)
    ]  # fmt: skip
    return sorted(found, key=lambda candidate: -candidate.trial.tokens_per_s)


def _default_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the newest search trial of the default that ran: it is trial 0, or a later attempt where that one failed."""
    ran = [t for t in trials if t.phase == "search" and t.requested == trials[0].requested and t.outcome is Outcome.OK]
    return ran[-1] if ran else None


def _candidate(trial: Trial, default: Trial | None, comparisons: Sequence[Comparison], aim: Metric) -> Candidate:
    ratio = trial.score(aim) / default.score(aim) if default is not None and default.score(aim) else None
    found = None
    if default is not None:
        keys = (trial.ran.key, default.ran.key)
        found = next((c for c in comparisons if (c.candidate, c.baseline) == keys), None)
    return Candidate(trial, ratio, found)


def _choose(candidates: dict[Configuration, Candidate], default: Candidate | None,
            aim: Metric) -> tuple[Candidate, str]:  # fmt: skip
    """Return the choice and its verdict: the highest confirmed ratio, else the default, else the fastest there is."""
    compared = [c for c in candidates.values() if c.comparison is not None]
    faster = [c for c in compared if c.comparison is not None and c.comparison.verdict == "faster"]
    if faster:
        return max(faster, key=lambda c: (c.comparison.ratio if c.comparison else 0.0, c.trial.score(aim))), "faster"
    if default is not None and default.configuration in candidates:
        looked_faster = any((c.search_ratio or 0.0) > 1 + TIE_ZONE for c in candidates.values())
        if any(c.comparison.verdict == "tie" for c in compared if c.comparison):
            return candidates[default.configuration], "tie"
        return candidates[default.configuration], "unconfirmed" if looked_faster and not compared else "default"
    fastest = max(candidates.values(), key=lambda c: (c.comparison.ratio if c.comparison else 0.0, c.trial.score(aim)))
    return fastest, "only"


def _notes(study: StudyRecord, source: ModelSource, objective: Objective, chosen: Candidate,
           default: Candidate | None) -> list[str]:  # fmt: skip
    notes = []
    if study.state != "done":
        notes.append(f"the study is {study.state}: run the same tune again to go on with it")
    if default is None:
        notes.append("the default could not be measured, so there is no ratio")
    own = default.trial.quality if default is not None else None
    most = UNAIDED.get(default.configuration["precision"]) if default is not None else None
    if own is not None and most is not None and own.rms > most.rms:
        notes.append(
            f"the default's own output is far from the reference's (rms {own.rms:.2f}): see that the model is whole"
        )
    if study.weights_digest != source.weights_digest:
        notes.append("speeds were measured with other weights of the same shapes")
    if source.has_random_weights:
        notes.append("random weights: speed is true, quality of lossy choices is not judged")
    if chosen.trial.quality and not chosen.trial.quality.judged:
        notes.append("the quality of this choice was not judged")
    if study.objective.ignored_rules:
        notes.append(f"rules ignored: {', '.join(study.objective.ignored_rules)}")
    if unmet := sorted(set(objective.ignored_rules) - set(study.objective.ignored_rules)):
        notes.append(
            f"nothing was measured with {', '.join(unmet)} ignored: tune --ignore-rule {' '.join(unmet)} would"
        )
    return notes + _aim_notes(study, objective)


def _aim_notes(study: StudyRecord, objective: Objective) -> list[str]:
    """Say what the study was after where that is not what is asked."""
    notes = []
    if study.objective.metric != objective.metric:
        notes.append(f"the study aimed at {study.objective.aim.name}: nothing is confirmed for {objective.aim.name}; "
                     f"tune --objective {objective.aim.name} would")  # fmt: skip
    if study.objective.max_latency_s is not None and study.objective.max_latency_s != objective.max_latency_s:
        notes.append(f"the study was made for at most {study.objective.max_latency_s * 1000:g} ms a batch")
    if study.objective.only:
        kept = "; ".join(f"{knob} {', '.join(names)}" for knob, names in study.objective.only)
        notes.append(f"only this was searched: {kept}")
    return notes


def _every_reason(
    refusals: Sequence[Reason], trials: Sequence[Trial], outside: Mapping[int, Sequence[str]]
) -> list[str]:
    texts = []
    for trial in trials:
        if trial.phase == "search" and trial.outcome is not Outcome.RUNNING:
            why = (
                ", ".join(outside[trial.number])
                if trial.outcome is Outcome.OK
                else f"{trial.outcome} ({trial.reason[:160]})"
            )
            texts.append(f"{trial.requested}: {why}")
    return texts + [str(reason) for reason in refusals]


def _in_environment(
    studies: list[StudyRecord], here: Environment, on: str | None
) -> tuple[list[StudyRecord], list[str]]:
    if on is not None:
        wanted = [s for s in studies if _is_on(s, on)]
        newest = [s for s in wanted if s.environment_key == wanted[0].environment_key]
        return newest, []
    own = [s for s in studies if s.environment_key == here.key]
    if own or here.is_cuda or not studies:
        return own, []
    newest = [s for s in studies if s.environment_key == studies[0].environment_key]
    others = sorted({str(s.environment) for s in studies})
    differs = ", ".join(_elsewhere(newest[0].environment, here))
    return newest, [
        f"measured on {newest[0].environment}, which differs from here in {differs}; rows of: {', '.join(others)}"
    ]


def _is_on(study: StudyRecord, on: str) -> bool:
    return study.environment_key.startswith(on) or on.lower() in str(study.environment).lower()


def _best_study(
    studies: Sequence[StudyRecord], source: ModelSource, objective: Objective
) -> tuple[StudyRecord, list[str]]:
    """Prefer the same weights, then the same objective, then one that searched at least as wide; finished and newest first."""
    own = [s for s in studies if s.weights_digest == source.weights_digest] or list(studies)
    own.sort(key=lambda s: s.state != "done")
    same = [s for s in own if s.objective.payload == objective.payload]
    if same:
        return same[0], []
    asked = [s for s in own if s.objective.metric == objective.metric] or own
    plain = [s for s in asked if not s.objective.ignored_rules and not s.objective.only] or asked
    wide = [
        s for s in plain if s.objective.quality.rank >= objective.quality.rank
        and _was_as_wide(s.objective.max_memory_bytes, objective.max_memory_bytes)
    ]  # fmt: skip
    # A study that was done within a limit answers before one without it that has only begun.
    wide.sort(key=lambda s: (s.state != "done", not _was_as_wide(s.objective.max_latency_s, objective.max_latency_s)))
    if wide:
        return wide[0], []
    searched = plain[0].objective
    limit = f" within {searched.max_memory_bytes} bytes" if searched.max_memory_bytes is not None else ""
    return plain[0], [f"only quality {searched.quality}{limit} was searched, which is narrower than what was asked for"]


def _was_as_wide(searched: float | None, asked: float | None) -> bool:
    """Whether a search under one limit (None: under none) saw all that another one leaves."""
    return searched is None or (asked is not None and searched >= asked)


def _nearest(
    store: Store, source: ModelSource, workload: Workload, objective: Objective, here: Environment, on: str | None
) -> str:
    """Say that it was not measured, what the nearest measured is and how it differs, and what would measure it."""
    text = f"not measured: {source.name}, {workload}, on {on or here}."
    neighbours = store.studies(source.architecture_key)
    if neighbours:
        elsewhere = {s.id: s.environment_key != here.key if on is None else not _is_on(s, on) for s in neighbours}
        nearest = min(neighbours, key=lambda s: (s.workload.distance(workload), elsewhere[s.id]))
        differences = _differences(nearest.workload, workload)
        if elsewhere[nearest.id]:
            differences += _elsewhere(nearest.environment, here) if on is None else [f"device (not {on})"]
        text += f" Nearest measured: {nearest.workload} on {nearest.environment}"
        text += f"; it differs in {', '.join(differences)}."
    else:
        known = [str(environment) for _, environment in store.environments()]
        text += " No workload of this architecture was measured" + (
            f"; there are rows of: {', '.join(known)}." if known else "."
        )
    return f"{text} To measure it: {_command(source, workload, objective, here if on is None else None)}"


def _command(source: ModelSource, workload: Workload, objective: Objective, here: Environment | None) -> str:
    """Return the command line that measures this. here: the machine it is for, where that is this one."""
    flags = [workload.flags]
    if objective.quality != Objective().quality:
        flags.append(f"--quality {objective.quality}")
    if objective.max_memory_bytes is not None:
        flags.append(f"--max-memory {objective.max_memory_bytes}")
    if objective.metric != Objective().metric:
        flags.append(f"--objective {objective.aim.name}")
    if objective.max_latency_s is not None:
        flags.append(f"--max-latency {objective.max_latency_s * 1000:g}ms")
    flags += [f"--only {knob}={','.join(names)}" for knob, names in objective.only]
    flags += ["--allow-unjudged"] if objective.allow_unjudged else []
    flags += [f"--ignore-rule {rule}" for rule in objective.ignored_rules]
    flags += ["--allow-pickle"] if source.allow_pickle else []
    flags += ["--device cpu"] if here is not None and not here.is_cuda else []
    if here is not None and here.threads > 1:
        flags.append(f"--threads {here.threads}")
    return f"advisor tune {shlex.quote(source.name)} {' '.join(flags)}"


def _differences(other: Workload, workload: Workload) -> list[str]:
    """Return what differs between a workload that was measured and the one asked for; nothing where they are the same."""
    there, here = other.dealt, workload.dealt
    found = [
        f"{name} ({theirs}, not {ours})"
        for name, theirs, ours in (
            ("longest sequence", max(other.lengths), max(workload.lengths)),
            ("padding", round(there.padding, 2), round(here.padding, 2)),
            ("batch", other.batch or "auto", workload.batch or "auto"),
            ("output", other.output, workload.output),
            ("number of sequences", len(other.lengths), len(workload.lengths)),
        )
        if theirs != ours
    ]
    return found or (["the lengths of its sequences"] if other.lengths != workload.lengths else [])


def _elsewhere(there: Environment, here: Environment) -> list[str]:
    """Return what differs between two environments: the device, else its settings, else versions."""
    if there.device_name != here.device_name:
        return [f"device ({there.device_name}, not {here.device_name})"]
    theirs, ours = ({**e.payload, **e.packages, "packages": ""} for e in (there, here))
    changed = sorted(
        name.replace("_", " ") for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)
    )
    return [f"the environment ({', '.join(changed)})"]


def why_not(recommendation: Recommendation, trials: Sequence[Trial], name: str) -> list[str]:
    """Return, in words, why a choice is not what is recommended: rules that refuse it, trials that failed, or its figures."""
    choice = find_choice(name)
    assert choice is not None
    if recommendation.configuration.get(choice.knob) == name:
        return [f"{name} is recommended"]
    subject = f"{choice.knob}={name}"
    wider = recommendation.objective.quality.rank > recommendation.study.objective.quality.rank
    texts = [
        f"{r.subject}{' with ' + r.about if r.about else ''}: rule {r.rule}: {r.text}{f' → {r.remedy}' if r.remedy else ''}"
        for r in recommendation.refusals if subject in f"{r.subject} {r.about}".split()
    ]  # fmt: skip
    for trial in trials:
        if trial.phase == "search" and name in (trial.requested.get(choice.knob), trial.ran.get(choice.knob)):
            texts.append(_figures(trial, recommendation))
    if wider and any(r.rule == "T0" and r.subject == subject for r in recommendation.refusals):
        texts.append(f"{recommendation.objective.quality} was asked for, but not searched: advisor tune … --quality "
                     f"{recommendation.objective.quality} would")  # fmt: skip
    if choice.knob not in recommendation.configuration:
        return [f"{choice.knob} is no knob of this workload: --batch auto makes it one"]
    return texts or [
        f"{subject} was not tried: the search ended before its turn (more --trials or a longer --budget go on with it)"
    ]


def _figures(trial: Trial, recommendation: Recommendation) -> str:
    if trial.outcome is not Outcome.OK:
        return f"trial {trial.number}, {trial.requested}: {trial.outcome}: {trial.reason}"
    best, default = recommendation.chosen.trial, recommendation.default
    text = f"trial {trial.number}, {trial.requested}:"
    text += f" {trial.tokens_per_s / max(best.tokens_per_s, 1e-9):.2f} × the speed of what is recommended"
    if default is not None:
        text += f", {trial.tokens_per_s / max(default.trial.tokens_per_s, 1e-9):.2f} × the default's"
    confirmed = next((c.comparison for c in recommendation.runners_up if c.configuration == trial.ran), None)
    if confirmed is not None:
        low, high = confirmed.interval
        text += f"; confirmed {confirmed.ratio:.2f} × the default ({low:.2f}–{high:.2f}): {confirmed.verdict}"
    if trial.quality is not None and trial.quality.kl is not None:
        text += f"; KL {trial.quality.kl:.1e}" + ("" if trial.quality.judged else ", not judged")
    if trial.weight_bytes and best.weight_bytes:
        text += f"; weights {(trial.weight_bytes - best.weight_bytes) / 2**30:+.2f} GiB"
    same_weights = recommendation.study.weights_digest == recommendation.source.weights_digest
    first = default.trial.requested if default is not None else trial.requested
    outside = _outside(trial, recommendation.objective, recommendation.facts, first, same_weights=same_weights)
    return "; ".join([text, *outside])


def _outside(
    trial: Trial, objective: Objective, facts: ModelFacts, first: Configuration, *, same_weights: bool
) -> list[str]:
    """Return in words what keeps a trial that ran from being recommended under an objective."""
    texts, tier, limit, peak = [], tier_of(trial.ran.items(), facts), objective.max_memory_bytes, trial.peak_bytes or 0
    slowest_s = trial.value("slowest_batch_s")
    if not advised(trial.ran):
        texts.append(f"what ran, {trial.ran}, is no configuration that is ever recommended")
    elif tier.rank <= objective.quality.rank and not _is_within(objective, first, trial.ran):
        texts.append(f"what ran, {trial.ran}, is outside --only")
    if not trial.value(objective.metric):
        texts.append(f"its {objective.aim.words} was not measured")
    if objective.max_latency_s is not None and (slowest_s is None or slowest_s > objective.max_latency_s):
        took = "not measured" if slowest_s is None else f"{slowest_s * 1000:.1f} ms"
        texts.append(f"its slowest batch ({took}) is above the {objective.max_latency_s * 1000:g} ms allowed")
    if limit is not None and peak > limit:
        texts.append(f"its peak of {peak / 2**30:.2f} GiB is above the {limit / 2**30:.2f} GiB allowed")
    if tier.rank > objective.quality.rank:
        texts.append(f"its quality tier is {tier}, and {objective.quality} was asked for")
    judged = trial.quality is not None and trial.quality.judged
    if not objective.allow_unjudged and not (judged and (same_weights or tier.rank == 0)):
        texts.append("its quality with these weights is not judged, and --allow-unjudged is not set")
    return texts


def tie_set(recommendation: Recommendation) -> list[Candidate]:
    """Return the runners-up that are within the tie zone of what is recommended, either way.

    By their confirmed ratios to the default where both have one (the default's own is 1), else by their scores in the search.
    """
    chosen, default, near = recommendation.chosen, recommendation.default, 1 + TIE_ZONE

    def confirmed(candidate: Candidate) -> float | None:
        if default is not None and candidate.configuration == default.configuration:
            return 1.0
        return candidate.comparison.ratio if candidate.comparison else None

    def over_chosen(candidate: Candidate) -> float:
        mine, best, aim = confirmed(candidate), confirmed(chosen), recommendation.objective.aim
        return mine / best if mine and best else candidate.trial.score(aim) / chosen.trial.score(aim)

    return [candidate for candidate in recommendation.runners_up if 1 / near <= over_chosen(candidate) <= near]
