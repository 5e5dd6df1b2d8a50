"""Question: what a user asked for, as values of Python's own types. Keywords and the command line make the same one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from advisor.asking.options import (
    DEFAULT_BUDGET,
    DEFAULT_PAYBACK,
    EFFORT,
    LABEL,
    ON,
    PLACE,
    Restriction,
    objective_options,
)
from advisor.errors import BadInput, named
from advisor.nouns.checked import shortened
from advisor.nouns.measurement import LEAST_BLOCKS
from advisor.nouns.near import meant
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.option import values_of
from advisor.nouns.reading import read_duration, read_text, shown
from advisor.plugins import PLUGINS
from advisor.workloads import DEFAULT_KIND, Kind, kind_named


@dataclass(frozen=True)
class Question:
    """What is asked: which work on which model, what is wanted of it, and where.

    model: as it is named; asked: the values of the kind's own options by name; lengths: of the sequences in tokens, None where
    the file of `lengths_from` is to give them; device: None for the first usable one; threads: of the CPU, None for what torch
    takes; on: the environment whose measurements answer, by key or part of the device's name, None for this machine's.
    """

    model: str
    kind: Kind
    asked: Mapping[str, Any]
    lengths: tuple[int, ...] | None
    objective: Objective
    device: str | None = None
    threads: int | None = None
    allow_pickle: bool = False
    on: str | None = None


@dataclass(frozen=True)
class Effort:
    """How much a tune may spend, the deadline of one trial in seconds, and the seed of the search's random choices."""

    budget: Budget
    trial_timeout_s: float
    seed: int


def know_plugins() -> None:
    """Have the modules in ADVISOR_PLUGINS register their kinds of work: whoever has none of them need not wait for that."""
    if PLUGINS:
        import advisor.knobs  # noqa: F401


def kind_of(given: Mapping[str, Any]) -> Kind:
    """Return the kind of work that is asked for by name, the default kind where none is. Raises BadInput."""
    know_plugins()
    name = given.get("workload")
    return DEFAULT_KIND if name is None else kind_named(read_text(name, "workload"))


def question_of(model: str, given: Mapping[str, Any]) -> Question:
    """Return the question of a model and what is given of its options by name. Raises BadInput."""
    kind = kind_of(given)
    asked = values_of(kind.options, given)
    wanted = values_of((*objective_options(kind), *PLACE, ON), given)
    return Question(
        model,
        kind,
        asked,
        kind.lengths(asked),
        _objective(kind, wanted, asked),
        wanted["device"],
        wanted["threads"],
        wanted["allow_pickle"],
        wanted["on"],
    )


def _objective(kind: Kind, wanted: Mapping[str, Any], asked: Mapping[str, Any]) -> Objective:
    rules = wanted["ignore_rule"]
    _refuse_unknown_rules(rules)
    if wanted["max_latency"] is not None and not any(metric.is_latency for metric in kind.metrics):
        raise BadInput(f"{named('max_latency')}: work of the kind {kind.name} has no latency to be bounded")
    aim = kind.objectives[wanted["objective"]]
    if wanted["calls"] is not None and (not aim.is_of_time or aim.less_is_better):
        text = f"{named('calls')} spreads what it takes to begin over a job, and {wanted['objective']} is not of a job"
        raise BadInput(text, f"leave it out, or ask for {named('objective')} {kind.aim.name}")
    restrictions = (*wanted["only"], *wanted["fix"])
    return Objective(
        quality=Tier(wanted["quality"]),
        max_memory_bytes=wanted["max_memory"],
        allow_unjudged=wanted["allow_unjudged"],
        ignored_rules=tuple(sorted(set(rules))),
        metric=kind.objectives[wanted["objective"]].metric,
        max_latency_s=wanted["max_latency"],
        calls=wanted["calls"],
        only=_kept(kind, restrictions, is_batch_open=asked.get("batch") is None) if restrictions else (),
    )


def _refuse_unknown_rules(rules: Sequence[str]) -> None:
    """Raise BadInput for an id that no rule has: what is ignored by mistake would be refused without a word."""
    if not rules:
        return
    from advisor.knobs import rule_ids

    known = rule_ids()
    for rule in rules:
        if not re.fullmatch(r"[A-Z]\d+", rule) or (known is not None and rule not in known):
            near = meant(rule, known or (), alike=0.5)
            hint = f"{near} advisor tune MODEL --dry-run names the rules that refuse something".strip()
            raise BadInput(
                f"{named('ignore_rule')} takes a rule's id such as P1, and there is no rule {shortened(rule)}", hint
            )


def _kept(
    kind: Kind, restrictions: Iterable[Restriction], *, is_batch_open: bool
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the knobs that are named with the choices that are left of each, in one order for all spellings."""
    from advisor.knobs import KNOBS

    kept: dict[str, tuple[str, ...]] = {}
    for name, knob, choices in _spelled_out(kind, restrictions):
        option = named(name)
        if knob not in KNOBS:
            raise BadInput(
                f"{option}: there is no knob {knob!r}", meant(knob, KNOBS) or f"there are {', '.join(KNOBS)}"
            )
        if unknown := [each for each in choices if each not in KNOBS[knob].choices]:
            known = KNOBS[knob].choices
            hint = meant(unknown[0], known, most=1) or f"it has {', '.join(known)}"
            raise BadInput(f"{option}: {knob} has no choice {unknown[0]!r}", hint)
        if knob in kept:
            hint = f"{named('only')} {knob}=CHOICE,CHOICE names several choices"
            raise BadInput(f"{option}: {knob} is named twice", hint)
        if knob == "batch" and not is_batch_open:
            raise BadInput(f"{option}: batch is a knob with {named('batch', 'auto')} alone")
        kept[knob] = choices
    return tuple(sorted(kept.items()))


def _spelled_out(kind: Kind, restrictions: Iterable[Restriction]) -> Iterator[Restriction]:
    """Yield restrictions of knobs alone: a label is one of every knob of such work, implied choices too. Raises BadInput."""
    from advisor.advice.labels import labelled
    from advisor.knobs import KNOBS

    own = [knob.name for knob in KNOBS.values() if any(map(knob.applies, kind.examples))]
    for name, knob, choices in restrictions:
        if knob != LABEL:
            yield name, knob, choices
            continue
        found = labelled(choices[0])
        if found is None:
            several = "" if name == "fix" else "[,CHOICE…]"
            hint = f"KNOB=CHOICE{several}, or a whole configuration as it is printed"
            raise BadInput(f"{named(name)}: {shown(choices[0])} is no configuration's label", hint)
        chosen = {**dict(found.over(own)), **found.spelled}
        yield from ((name, each, (choice,)) for each, choice in chosen.items())


def effort_of(given: Mapping[str, Any], objective: Objective) -> Effort:
    """Return how much a tune for an objective may spend, of what is given by name. Raises BadInput."""
    spent = values_of(EFFORT, given)
    budget, aim = budget_of(spent), objective.aim
    if spent["payback"] is not None and not aim.is_of_time:
        is_none = f"{named('objective')} {aim.name} is none"
        raise BadInput(f"{named('payback')} weighs time against time, and {is_none}", "leave one out")
    if objective.job_calls is not None and spent["payback"] is None and budget.payback_s is not None:
        budget = replace(budget, job_pays=True)  # a job of seconds is not worth a search for an hour's work
    return Effort(budget, spent["timeout"], spent["seed"])


def budget_of(spent: Mapping[str, Any]) -> Budget:
    """Return the budget, of options' values: ten minutes where nothing else bounds it. Raises BadInput."""
    seconds, payback_s, trials = spent["budget"], spent.get("payback"), spent["trials"]
    exhaustive, blocks = spent.get("exhaustive", False), spent["blocks"]
    if blocks != 0 and blocks < LEAST_BLOCKS:
        few = f"fewer than {LEAST_BLOCKS} decide nothing: 0 leaves the confirmation out"
        raise BadInput(f"{named('blocks')} must be 0 or at least {LEAST_BLOCKS}, not {blocks}", few)
    if exhaustive and trials is not None:
        raise BadInput(f"{named('exhaustive')} measures all there is: leave {named('trials')} out")
    is_bounded = trials is not None or exhaustive
    if payback_s is not None and is_bounded:
        others = f"{named('trials')} and {named('exhaustive')} say how far it goes"
        raise BadInput(f"{named('payback')} ends a search, and {others}: leave one out")
    if seconds is None and not is_bounded:
        seconds = read_duration(DEFAULT_BUDGET, "budget")
        payback_s = read_duration(DEFAULT_PAYBACK, "payback") if payback_s is None else payback_s
    return Budget(seconds, trials, exhaustive, blocks, payback_s)
