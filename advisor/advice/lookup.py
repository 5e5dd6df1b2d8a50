"""Which stored study answers a question; and where none does, what the nearest is and how it differs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from advisor.advice.command import command_for
from advisor.errors import DamagedRow, NotMeasured
from advisor.nouns.answer import Conclusion
from advisor.nouns.environment import Environment
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Objective
from advisor.storage.nearest import nearest_studies
from advisor.storage.store import Store
from advisor.storage.study_record import StudyRecord
from advisor.terminal import gib
from advisor.workloads import Workload, kind_of


def study_for(
    store: Store, source: ModelSource, workload: Workload, objective: Objective, here: Environment, on: str | None
) -> tuple[StudyRecord, list[str]]:
    """Return the study that answers best, and what is to be told of the choice. on: as for `advisor.advice.suggest.suggest`.

    Raises NotMeasured with the nearest that was measured, DamagedRow where what there is can't be read.
    """
    damaged: list[str] = []  # of this question: an open store's own list is of all that were asked
    studies = store.studies_for(source.architecture_key, workload.key_for(source.architecture_key), damaged)
    for line in damaged:
        if line not in store.damaged:
            store.damaged.append(line)
    studies, notes = _in_environment(store, studies, here, on)
    if not studies and damaged:
        raise DamagedRow(damaged[0])
    if not studies:
        raise NotMeasured(_nearest(store, source, workload, objective, here, on))
    study, more = _best_study(studies, source, objective)
    return study, [*notes, *more]


def _in_environment(
    store: Store, studies: list[StudyRecord], here: Environment, on: str | None
) -> tuple[list[StudyRecord], list[str]]:
    if on is not None:
        wanted = [s for s in studies if _is_on(s, on)]
        newest = [s for s in wanted if s.environment_key == wanted[0].environment_key]
        return newest, []
    own = [s for s in studies if s.environment_key == here.key]
    stale = [s for s in studies if s.environment.changes_to(here)]
    done = [s for s in stale if s.state == "done"]
    # What has only begun to be measured again answers when it is done: a slot lets go of it where another job waits.
    if (stale and not own) or (done and not any(_stands(store, s) for s in own)):
        key = (done or stale)[0].environment_key
        return [s for s in stale if s.environment_key == key], []
    if own or here.is_cuda or not studies:
        return own, []
    newest = [s for s in studies if s.environment_key == studies[0].environment_key]
    others = sorted({str(s.environment) for s in studies})
    differs = ", ".join(_elsewhere(newest[0].environment, here))
    return newest, [
        f"measured on {newest[0].environment}, which differs from here in {differs}; rows of: {', '.join(others)}"
    ]


def _stands(store: Store, study: StudyRecord) -> bool:
    """Whether a study is done, or was before it was gone on with: what it came to then is sure, and stored."""
    if study.state == "done":
        return True
    with suppress(DamagedRow):
        found = store.answer(study.id)
        return found is not None and Conclusion(found.verdict).exit_status == 0
    return False


def _is_on(study: StudyRecord, on: str) -> bool:
    return _is_meant(study.environment_key, study.environment, on)


def _is_meant(key: str, environment: Environment, on: str) -> bool:
    return key.startswith(on) or on.lower() in str(environment).lower()


def _best_study(
    studies: Sequence[StudyRecord], source: ModelSource, objective: Objective
) -> tuple[StudyRecord, list[str]]:
    """Prefer the same weights, then the same objective, then one that searched at least as wide; finished and newest first.

    One that was made for another number of calls comes after a finished one that was not, though that searched less wide.
    """
    own = [s for s in studies if s.weights_digest == source.weights_digest] or list(studies)
    own.sort(key=lambda s: s.state != "done")
    same = [s for s in own if s.objective.payload == objective.payload]
    if same:
        return same[0], []
    asked = [s for s in own if s.objective.metric == objective.metric] or own
    plain = [s for s in asked if not s.objective.ignored_rules and not s.objective.only] or asked

    def is_of_job(study: StudyRecord) -> bool:
        return study.objective.calls in (None, objective.calls)

    def is_within(study: StudyRecord) -> bool:
        return _was_as_wide(study.objective.max_memory_bytes, objective.max_memory_bytes)

    wide = [s for s in plain if s.objective.quality.rank >= objective.quality.rank and is_within(s)]
    # A study that was done within a limit answers before one without it that has only begun.
    wide.sort(
        key=lambda s: (
            s.state != "done",
            not _was_as_wide(s.objective.max_latency_s, objective.max_latency_s),
            not is_of_job(s),
            s.objective.quality.rank,  # what searched wider than was asked for spent its trials elsewhere
        )
    )
    if wide and is_of_job(wide[0]):
        return wide[0], []
    # A search for a job of so many calls may have ended at the default, for the job's sake: for another one, what was done for
    # any says more, though it looked at a narrower quality.
    narrower = [s for s in plain if is_of_job(s) and is_within(s) and s.state == "done"]
    best = (narrower or wide or plain)[0]
    if best in wide:
        return best, []
    searched = best.objective
    limit = f" within {gib(searched.max_memory_bytes)}" if searched.max_memory_bytes is not None else ""
    return best, [f"only quality {searched.quality}{limit} was searched, which is narrower than what was asked for"]


def _was_as_wide(searched: float | None, asked: float | None) -> bool:
    """Whether a search under one limit (None: under none) saw all that another one leaves."""
    return searched is None or (asked is not None and searched >= asked)


def _nearest(
    store: Store, source: ModelSource, workload: Workload, objective: Objective, here: Environment, on: str | None
) -> str:
    """Say that it was not measured, what the nearest measured is and how it differs, and what would measure it."""
    text = f"not measured: {source.name}, {workload}, on {on or here}."
    known = store.environments()
    if on is not None and known and not any(_is_meant(key, environment, on) for key, environment in known):
        stored = "; ".join(f"{key}, {environment}" for key, environment in known)
        return f"not measured: no environment {on!r} is stored, by name or key. There are rows of: {stored}"
    neighbours = nearest_studies(store, source.architecture_key, workload)
    if neighbours:
        elsewhere = {s.id: s.environment_key != here.key if on is None else not _is_on(s, on) for s in neighbours}
        nearest = min(neighbours, key=lambda s: elsewhere[s.id])
        differences = _differences(nearest.workload, workload)
        if elsewhere[nearest.id]:
            differences += _elsewhere(nearest.environment, here) if on is None else [f"device (not {on})"]
        text += f" Nearest measured: {nearest.workload} on {nearest.environment}"
        text += f"; it differs in {', '.join(differences)}."
    else:
        names = ", ".join(str(environment) for _, environment in known)
        text += f" No workload of this architecture was measured{f'; there are rows of: {names}' if names else ''}."
    return f"{text} To measure it: {command_for(source, workload, objective, here if on is None else None)}"


def _differences(other: Workload, workload: Workload) -> list[str]:
    """Return what differs between a workload that was measured and the one asked for; nothing where they are the same."""
    theirs, ours = ({"kind of work": kind_of(each).name, **each.described} for each in (other, workload))
    found = [f"{name} ({theirs.get(name)}, not {value})" for name, value in ours.items() if theirs.get(name) != value]
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
