"""What advisor says of a family's layouts: the facts it reads, what a rule refuses beforehand, and the gate of a real trial.

Everything goes through the worker's own operations, in this process instead of one started for it. `verdict_of` is the one
place that knows how a trial is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from families_table import BATCH, LENGTHS, Family

from advisor.errors import AdvisorError
from advisor.knobs import KNOBS, baseline_choices
from advisor.measure import worker
from advisor.measure.lines import encode
from advisor.measure.messages import (
    Answer,
    Done,
    Failure,
    Gate,
    Ran,
    ReferenceAsked,
    ReferenceWritten,
    Request,
    Subject,
    Timing,
    TrialAsked,
    TrialDone,
    Unjudged,
    decode_event,
)
from advisor.measure.session_torch import Session, runtime_of
from advisor.measure.stopping import Stopping
from advisor.models.checkpoint import find_model
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Machine
from advisor.nouns.model import ModelFacts
from advisor.nouns.objective import Budget, Objective, Tier
from advisor.nouns.trial import Outcome, Quality, Trial
from advisor.quality.judge import wrong
from advisor.search.space import build_space
from advisor.study.opening import facts_for
from advisor.study.tuning import Job
from advisor.workloads import Call, Runtime
from advisor.workloads.forward import Forward

LAYOUTS, PRECISIONS = ("padded", "sorted", "packed"), ("fp32", "bf16")

#: One round is enough: the gate is what is looked at.
ONE_ROUND = Stopping(least=1, most=1, seconds=0.01, least_long=1, seconds_long=0.01)


@dataclass(frozen=True)
class Verdict:
    """What became of a cell: "accepted", "rejected", "refused" (before measuring) or "failed" (the trial raised).

    rule: of a refusal, "facts" where the model can't be read; figures: the gate's.
    """

    kind: str
    reason: str = ""
    rule: str = ""
    figures: Quality | None = None


class InProcess:
    """A runner that answers requests in this process, with the worker's own operations."""

    interrupted = ""

    def __init__(self) -> None:
        """Hold no model yet."""
        self.session = Session(lambda _: None)

    def run(self, request: Request, timeout_s: float) -> Answer:  # noqa: ARG002 - nobody waits
        """Run a request as the worker does; what it raises is its outcome."""
        worker.switches_torch.forget_compiled()
        answer = worker.answered(self.session, encode(request))
        event = decode_event(encode(Done(id=0, result=answer)))
        assert isinstance(event, Done)
        return event.result

    def restart(self) -> None:
        """Forget the model."""
        self.session = Session(lambda _: None)

    def close(self) -> None:
        """Nothing is held."""


class Bench:
    """One family in one precision: a checkpoint, the work, and advisor's own machinery on it."""

    def __init__(self, family: Family, precision: str, path: Path, machine: Machine) -> None:
        """Read nothing yet. path: the checkpoint's directory, in this precision."""
        self.family, self.precision, self.path, self.machine = family, precision, path, machine
        self.workload = Forward(LENGTHS, BATCH, family.output)
        self.runner = InProcess()

    @cached_property
    def source(self) -> Any:
        """The checkpoint as advisor finds it."""
        return find_model(str(self.path))

    @cached_property
    def facts(self) -> ModelFacts:
        """The facts that a tune reads. Raises AdvisorError where they can't be."""
        job = Job(self.source, self.workload, Objective(), Budget(), self.machine)
        return facts_for(job, self.runner)

    @cached_property
    def default(self) -> Configuration:
        """What transformers does when told nothing."""
        return Configuration.of(baseline_choices(self.facts, self.workload))

    def subject(self, configuration: Configuration) -> Subject:
        """Return what is the same in every request."""
        return Subject(
            source=self.source.files,
            facts=self.facts,
            workload=self.workload,
            sample=self.workload.sample(self.facts.windows),
            configuration=configuration,
        )

    @cached_property
    def gate(self) -> Gate:
        """What every output is held to: where the reference is and what it is; a path of None where there is none."""
        path = str(self.path.parent / f"{self.precision}.pt")
        answer = self.runner.run(ReferenceAsked.of(self.subject(self.default), path=path), 0)
        if isinstance(answer, ReferenceWritten):
            return Gate(path=path, reference=answer.words)
        assert isinstance(answer, (Unjudged, Failure))
        why = answer.why if isinstance(answer, Unjudged) else answer.reason
        return Gate(path=None, reference=f"none: {why}")

    @cached_property
    def trial_of_default(self) -> Trial:
        """The default's trial, judged like everybody's."""
        return self.trial(self.default, None)

    def trial(self, configuration: Configuration, default: Trial | None) -> Trial:
        """Run a trial with its gate, as tune does. default: None where this is the default."""
        given = None
        if default is not None and default.quality is not None:
            given = Ran(configuration=default.ran, quality=default.quality)
        gate = self.gate.replaced(default=given, is_default=configuration == self.default)
        asked = TrialAsked.of(self.subject(configuration), gate=gate, timing=Timing(stopping=ONE_ROUND))
        answer, number = self.runner.run(asked, 0), 0 if default is None else 1
        if isinstance(answer, Failure):
            return Trial(number, configuration, None, answer.outcome, answer.reason, reading={"alias": None})
        assert isinstance(answer, TrialDone)
        reason, reading = answer.reason or answer.alias, {"alias": answer.alias}
        ran = answer.effective
        return Trial(number, configuration, ran, answer.outcome, reason, quality=answer.quality, reading=reading)

    def refusal(self, configuration: Configuration) -> Verdict | None:
        """Return the rule that refuses a configuration, None where it is admissible or the default."""
        only = tuple((knob, (name,)) for knob, name in configuration.over(KNOBS))
        objective = Objective(quality=Tier.EXACT, only=only)
        space = build_space(self.facts, self.workload, self.machine.environment, objective, self.machine.free_bytes)
        if configuration in (*space.admissible, space.baseline):
            return None
        subjects = {f"{knob}={name}" for knob, name in configuration.over(KNOBS)}
        reason = next(r for r in space.refusals if r.subject in subjects and r.verdict.refuses)
        return Verdict("refused", reason.text, reason.rule)

    def laid_out(self, layout: str) -> tuple[Any, list[Call], Runtime]:
        """Return the model, loaded anew, a layout's calls as a trial makes them, and what is asked of it."""
        configuration = self.default.replaced(packing=layout)
        subject, session = self.subject(configuration), self.runner.session
        session.unload()  # a fresh one: what a class keeps from earlier calls must not show
        session.load(subject, configuration)
        calls = session.calls(subject, self.workload.under(configuration), configuration, self.tokens)
        return session.model, calls, runtime_of(subject)

    @property
    def tokens(self) -> Sequence[torch.Tensor]:
        """The tokens that a trial draws."""
        return self.runner.session.tokens(self.subject(self.default))


def verdict_of(bench: Bench, layout: str) -> Verdict:
    """Return what advisor says of a layout in the bench's precision, under the family's default attention."""
    try:
        configuration = bench.default.replaced(packing=layout)
        if (refused := bench.refusal(configuration)) is not None:
            return refused
        default = bench.trial_of_default
        trial = default if configuration == bench.default else bench.trial(configuration, default)
    except AdvisorError as error:
        return Verdict("refused", " ".join(str(error).split()), "facts")
    if (why := _not_run(bench, trial)) is not None:
        return why
    found = wrong(trial, default, bench.facts)
    if not found and trial.quality is not None and trial.quality.lacks_layout:  # unjudged: it is not recommended either
        found = (f"its layout was {trial.quality.layout_words}",)
    return Verdict("rejected" if found else "accepted", "; ".join(found), figures=trial.quality)


def _not_run(bench: Bench, trial: Trial) -> Verdict | None:
    """Return what became of a trial that says nothing of a layout in the bench's precision, None where it does."""
    if trial.outcome.is_failure and trial.outcome is not Outcome.WRONG_OUTPUT:
        return Verdict("failed", trial.reason)
    if bench.default["precision"] != bench.precision:
        return Verdict("failed", f"the checkpoint in {bench.precision} is loaded in {bench.default['precision']}")
    if trial.reading["alias"]:
        return Verdict("refused", trial.reason, "E1", trial.quality)
    if bench.gate.path is None and trial.outcome is not Outcome.WRONG_OUTPUT:
        return Verdict("failed", f"there is no reference in fp32: {bench.gate.reference}", figures=trial.quality)
    return None
