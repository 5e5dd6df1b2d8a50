"""Fresh processes of a stored trial: the same is asked of each as was asked then, of a search trial or of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from advisor.measure.messages import (
    Answer,
    BlockAsked,
    BlockDone,
    Failure,
    Gate,
    Request,
    Subject,
    Timing,
    TrialAsked,
    TrialDone,
)
from advisor.measure.runner import LocalRunner, read_facts
from advisor.nouns.configuration import Configuration
from advisor.nouns.metrics import Gauge
from advisor.nouns.model import ModelFacts, ModelSource
from advisor.nouns.trial import Outcome, Trial, best_laps_s
from advisor.storage.study_record import StudyRecord
from advisor.study.attempt import attempt, with_figures
from advisor.study.confirm import parts_for, processes, takes_turns, turns_for

#: The gate's calls are made, for what a process did before changes its speed: a search trial of the shipped model on a CPU was
#: 6 to 7 % slower without. What they give is not judged again, and what is slow to look at counts as known.
_UNJUDGED = Gate(
    path=None,
    reference="not judged again",
    is_default=True,
    known={"probed": "not probed again", "layout": None, "layout_words": "not looked at again"},
)


@dataclass(frozen=True)
class Stored:
    """A stored trial, its study and that study's trials."""

    study: StudyRecord
    trial: Trial
    trials: Sequence[Trial]


def fresh_processes(stored: Stored, source: ModelSource, runner: LocalRunner, timeout_s: float) -> Iterator[Trial]:
    """Run a trial's configuration in one fresh process after the other, without end, and yield what came of each.

    Nothing is stored. timeout_s: of each process.
    """
    study, old = stored.study, stored.trial
    facts, uuid = read_facts(runner, source, study.workload), runner.machine.uuid
    best_s = best_laps_s(stored.trials).get(uuid)
    while True:
        request, came_of = _request(stored, source, facts, runner, best_s)

        def run(request: Request = request) -> Answer:
            return runner.run(request, timeout_s)

        runner.restart()
        answer, attempts = attempt(runner, run)
        came = came_of(answer)
        fresh = Trial(old.number, old.requested, None, came.outcome, phase=old.phase, block=old.block)
        found = with_figures(replace(fresh, device_uuid=uuid, attempts=attempts), study.workload, came)
        if isinstance(came, TrialDone):
            is_timed = (
                found.outcome is Outcome.WRONG_OUTPUT and came.rounds is not None
            )  # by a gate without a reference
            found = replace(found, reading=came.reading, outcome=Outcome.OK if is_timed else found.outcome)
        if (lap_s := best_laps_s([found]).get(uuid)) is not None:
            best_s = min(lap_s, best_s or lap_s)
        yield found


def _request(
    stored: Stored, source: ModelSource, facts: ModelFacts, runner: LocalRunner, best_s: float | None
) -> tuple[Request, Callable[[Answer], TrialDone | Failure]]:
    """Return what is asked of a process, and what makes of its answer what came of the trial's configuration."""
    study, old = stored.study, stored.trial
    subject = Subject(
        source=source.files,
        facts=facts,
        workload=study.workload,
        sample=tuple(study.workload.sample(facts.windows)),
        configuration=old.requested,
    )
    group = contestants(stored)
    if not group:
        energy = study.objective.aim.gauge is Gauge.ENERGY
        return TrialAsked.of(subject, gate=_UNJUDGED, timing=Timing(energy=energy, best_lap_s=best_s)), _of_trial
    machine, default = runner.machine, stored.trials[0].requested
    request = BlockAsked.of(
        subject,
        configuration=default,
        contestants=tuple(group),
        seed=old.block or 0,
        best_lap_s=best_s,
        turns=turns_for(machine, group, stored.trials, study.objective.aim),
        parts=tuple(parts_for(each, stored.trials, machine, study.workload) for each in group),
        in_turn=takes_turns(group, stored.trials, machine.free_bytes, facts, study.workload),
    )
    place = group.index(old.requested)

    def of_block(answer: Answer) -> TrialDone | Failure:
        if isinstance(answer, Failure):
            return answer
        assert isinstance(answer, BlockDone)
        return answer.results[place].came

    return request, of_block


def _of_trial(answer: Answer) -> TrialDone | Failure:
    assert isinstance(answer, (TrialDone, Failure))
    return answer


def contestants(stored: Stored) -> list[Configuration]:
    """Return who shared a process of a block with a trial, and the trial's own configuration; nobody where it was in none."""
    old, aim = stored.trial, stored.study.objective.aim
    if old.block is None:
        return []
    met = [t.requested for t in stored.trials if t.block == old.block and t.device_uuid == old.device_uuid]
    default = stored.trials[0].requested
    order = sorted(dict.fromkeys(met), key=lambda each: each != default)
    groups = processes(order, is_alone=not aim.is_of_time)
    return next(group for group in groups if old.requested in group)
