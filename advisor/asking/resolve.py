"""What a question speaks of: its model is found, its machine read, and its workload made, of the user's texts too."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from advisor.asking.question import Question
from advisor.errors import BadInput, named
from advisor.machine.device import energy_problem
from advisor.nouns.entry import Texts
from advisor.nouns.environment import Machine
from advisor.nouns.metrics import Gauge
from advisor.nouns.model import ModelSource
from advisor.nouns.objective import Objective, Tier
from advisor.workloads import DEALT, DEFAULT_BATCHES, Workload

#: The list of a workload as long as a file's lengths are not known.
_DRAFT = (512,)


@dataclass(frozen=True)
class Resolved:
    """A question's nouns. flags: the workload as the user spelled it; notes: what is to be told of the workload.

    texts: where the user's own texts are (Lengths.texts); earlier: what was stored for their file in other ways, in words.
    """

    source: ModelSource
    workload: Workload
    objective: Objective
    machine: Machine
    flags: str
    notes: tuple[str, ...]
    texts: Texts | None = None
    earlier: Callable[[], Iterator[tuple[str, Workload]]] = lambda: iter(())


class Look(Protocol):
    """How the device and the model of a question are looked up by who answers many, and has looked at both before."""

    def machine(self, wanted: str | None, threads: int | None) -> Machine:
        """Return what `advisor.machine.probe.machine` does. Raises BadInput."""

    def model(self, name: str, *, allow_pickle: bool) -> ModelSource:
        """Return what `advisor.models.checkpoint.find_model` does without a download. Raises BadInput."""


def resolve(question: Question, *, to_measure: bool, look: Look | None = None) -> Resolved:
    """Find the model and the device that a question names, and the workload for them. Raises BadInput.

    to_measure: on this machine, so that the model may be downloaded, and all that would hinder it is said now. look: how both
    are looked up where nothing is to be measured, None for a look at this moment.
    """
    if look is not None and not to_measure:
        machine = look.machine(question.device, question.threads)
        return _with_workload(question, look.model(question.model, allow_pickle=question.allow_pickle), machine)
    from advisor.machine import probe
    from advisor.machine.locks import somebody_measures
    from advisor.measure.launch import warm_up
    from advisor.models.checkpoint import find_model
    from advisor.models.declared import refuse_unknown

    if to_measure and not somebody_measures():
        warm_up()  # importing takes the longest of all that comes before the first trial
    if to_measure:
        probe.refuse_too_many(question.threads)
    machine = probe.machine(question.device, question.threads)
    if to_measure and machine.problem:
        raise BadInput(machine.problem, machine.remedy)
    if to_measure and question.objective.aim.gauge is Gauge.ENERGY:
        _refuse_unseen_energy(machine, question.objective)
    source = find_model(question.model, allow_pickle=question.allow_pickle, download=to_measure)
    if to_measure:
        refuse_unknown(source)
    return _with_workload(question, source, machine)


def _refuse_unseen_energy(machine: Machine, objective: Objective) -> None:
    """Raise BadInput where no energy would be read: before an hour is spent on figures that are not there."""
    asked = f"{named('objective')} {objective.aim.name}"
    if not machine.environment.is_cuda:
        raise BadInput(f"{asked}: energy is read from the GPU's counter, and a CPU has none")
    if problem := energy_problem(machine.uuid):
        device = machine.environment.device_name
        raise BadInput(f"{asked}: the energy counter of {device} can't be read: {problem}")


def _with_workload(question: Question, source: ModelSource, machine: Machine) -> Resolved:
    from advisor.models.declared import max_positions, refuse_foreign

    lengths = question.lengths
    workload = question.kind.parse(question.asked, source, lengths or _DRAFT)
    refuse_foreign(source)
    _refuse_tier(workload, source, question.objective)
    limit = max_positions(source.config)
    if lengths is None:
        return _with_texts(question, source, machine, workload, limit)
    if limit is not None and max(lengths) > limit:
        raise BadInput(f"{named('lengths')} {max(lengths)} is beyond the model's {limit} positions")
    return Resolved(source, workload, question.objective, machine, workload.flags, ())


def _refuse_tier(workload: Workload, source: ModelSource, objective: Objective) -> None:
    """Raise BadInput where the work asks for weights in fewer bits than the quality tier allows: nothing would be admissible."""
    if (
        workload.quantises_base
        and objective.quality.rank < Tier.EIGHT_BIT.rank
        and not source.config.get("quantization_config")
    ):
        text = f"{workload.output} has weights in 4 or 8 bits, and {named('quality', str(objective.quality))} admits neither"
        raise BadInput(
            text,
            f"{named('quality', str(Tier.FOUR_BIT))}, and {named('allow_unjudged')} where weights are drawn at random",
        )


def _with_texts(
    question: Question, source: ModelSource, machine: Machine, draft: Workload, limit: int | None
) -> Resolved:
    """Read the lengths of the user's own texts. draft: the workload but for its lengths; limit: the model's most positions."""
    from advisor.models.lengths import MOST_ROWS_WHOLE, earlier, lengths_from

    file, batch, batches = (question.asked[name] for name in ("lengths_from", "batch", "batches"))
    most, sent = (batches or DEFAULT_BATCHES) * (batch or DEALT), draft.needs.sent
    found = lengths_from(file, source, limit, most, sent)
    flags = f"--lengths-from {shlex.quote(file)} --batch {batch or 'auto'}"
    flags += f"{'' if batches is None else f' --batches {batches}'} {draft.own_flags}"

    def others() -> Iterator[tuple[str, Workload]]:
        first = batches is not None
        if found.rows > MOST_ROWS_WHOLE and not first:
            return
        for words, lengths in earlier(file, source, limit, most, sent, first=first):
            yield words, replace(draft, lengths=lengths)

    workload, notes = replace(draft, lengths=found.lengths), tuple(found.notes)
    return Resolved(source, workload, question.objective, machine, flags, notes, found.texts, others)
