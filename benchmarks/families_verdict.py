"""What advisor says of a family's layouts: the facts it reads, what a rule refuses beforehand, and the gate of a real trial.

Everything goes through the worker's own operations, in this process instead of one started for it. `verdict_of` is the one
place that knows how a trial is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from families_table import BATCH, LENGTHS, Family

from advisor import worker
from advisor.checkpoint import find_model
from advisor.configuration import Configuration
from advisor.environment import Machine
from advisor.errors import AdvisorError
from advisor.knobs import baseline_choices
from advisor.model import ModelFacts
from advisor.objective import Budget, Objective, Tier
from advisor.space import build_space
from advisor.trial import Outcome, Quality
from advisor.tune import Job, facts_for
from advisor.workloads import Workload
from advisor.workloads import forward_torch as forward

LAYOUTS, PRECISIONS = ("padded", "sorted", "packed"), ("fp32", "bf16")

#: One round is enough: the gate is what is looked at.
ONE_ROUND = {"least": 1, "most": 1, "seconds": 0.01, "least_long": 1, "seconds_long": 0.01}


@dataclass(frozen=True)
class Verdict:
    """What became of a cell: "accepted", "rejected", "refused" (before measuring) or "failed" (the trial raised).

    rule: of a refusal, "facts" where the model can't be read; figures: the gate's.
    """

    kind: str
    reason: str = ""
    rule: str = ""
    figures: Quality | None = None


def _once(run: Callable[[], Any]) -> Iterator[Any]:
    """Warm up in one round: times are not looked at."""
    yield run()


class InProcess:
    """A runner that answers requests in this process, with the worker's own operations."""

    def __init__(self) -> None:
        """Hold no model yet."""
        self.stage = "start"
        self.session = worker.Session(self._hear)

    def _hear(self, message: Mapping[str, Any]) -> None:
        self.stage = str(message.get("stage", self.stage))

    def run(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:  # noqa: ARG002 - nobody waits
        """Run a request as the worker does; what it raises is its outcome."""
        message = json.loads(json.dumps({**request, "id": 0, "device": "cpu", "uuid": ""}))
        worker.facts_torch.forget_compiled()
        try:
            with patch.object(worker, "_until_warm", _once):
                result = worker._OPERATIONS[request["op"]](self.session, message)
        except Exception as error:  # noqa: BLE001 - as in the worker
            result = worker.failure_of(error, self.stage)
        return json.loads(json.dumps(worker._finite(result), default=str))

    def restart(self) -> None:
        """Forget the model."""
        self.session = worker.Session(self._hear)

    def close(self) -> None:
        """Nothing is held."""


class Bench:
    """One family in one precision: a checkpoint, the work, and advisor's own machinery on it."""

    def __init__(self, family: Family, precision: str, path: Path, machine: Machine) -> None:
        """Read nothing yet. path: the checkpoint's directory, in this precision."""
        self.family, self.precision, self.path, self.machine = family, precision, path, machine
        self.workload = Workload(LENGTHS, BATCH, family.output)
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
    def baseline(self) -> Configuration:
        """What transformers does when told nothing."""
        return Configuration.of(baseline_choices(self.facts, self.workload))

    def request(self, configuration: Configuration) -> dict[str, Any]:
        """Return what is the same in every request."""
        return {
            "source": self.source.request,
            "facts": self.facts.payload,
            "workload": self.workload.payload,
            "gate_workload": self.workload.payload,
            "configuration": dict(configuration),
            "gate": None,
            "measured": [],
            "timing": {"stopping": ONE_ROUND, "incumbent_s": None},
            "device": "cpu",
        }

    @cached_property
    def reference(self) -> Path:
        """The file that the gate compares with. Raises AdvisorError where it can't be written."""
        path = self.path.parent / f"{self.precision}.pt"
        fp32 = self.baseline.replaced(attention="eager", precision="fp32", packing="padded")
        result = self.runner.run({**self.request(fp32), "op": "reference", "path": str(path)}, 0)
        if "outcome" in result:
            raise AdvisorError(f"no reference: {result['reason']}")
        return path

    @cached_property
    def default(self) -> dict[str, Any]:
        """The result of the default's trial."""
        return self.trial(self.baseline, None)

    def trial(self, configuration: Configuration, default: Mapping[str, Any] | None) -> dict[str, Any]:
        """Run a trial with its gate. default: the default's quality, None where this is the default."""
        gate = {"path": str(self.reference), "reference": "fp32, eager, one sequence at a time", "precision": "fp32",
                "baseline": default, "is_baseline": configuration == self.baseline}  # fmt: skip
        return self.runner.run({**self.request(configuration), "op": "trial", "gate": gate}, 0)

    def refusal(self, configuration: Configuration) -> Verdict | None:
        """Return the rule that refuses a configuration, None where it is admissible or the default."""
        only = tuple((knob, (name,)) for knob, name in configuration.items())
        objective = Objective(quality=Tier.EXACT, only=only)
        space = build_space(self.facts, self.workload, self.machine.environment, objective, self.machine.free_bytes)
        if configuration in (*space.admissible, space.baseline):
            return None
        subjects = {f"{knob}={name}" for knob, name in configuration.items()}
        reason = next(r for r in space.refusals if r.subject in subjects and r.verdict.refuses)
        return Verdict("refused", reason.text, reason.rule)

    def laid_out(self, layout: str) -> tuple[Any, list[forward.Call], forward.Asked]:
        """Return the model, loaded anew, a layout's calls as a trial makes them, and what is asked of it."""
        configuration = self.baseline.replaced(packing=layout)
        request, session = self.request(configuration), self.runner.session
        session.unload()  # a fresh one: what a class keeps from earlier calls must not show
        session.load(request, configuration)
        return session.model, session.calls(request, self.workload, configuration), worker.asked_of(request)

    @property
    def tokens(self) -> Sequence[torch.Tensor]:
        """The tokens that a trial draws."""
        return self.runner.session.tokens(self.request(self.baseline), self.workload)


def verdict_of(bench: Bench, layout: str) -> Verdict:
    """Return what advisor says of a layout in the bench's precision, under the family's default attention."""
    try:
        configuration = bench.baseline.replaced(packing=layout)
        if (refused := bench.refusal(configuration)) is not None:
            return refused
        result, default = bench.default, bench.default.get("quality")
        if configuration != bench.baseline:
            result = bench.trial(configuration, default)
    except AdvisorError as error:
        return Verdict("refused", " ".join(str(error).split()), "facts")
    figures, outcome = Quality.of(result.get("quality")), Outcome(result["outcome"])
    if outcome is Outcome.WRONG_OUTPUT:
        return Verdict("rejected", str(result["reason"]), figures=figures)
    if outcome.is_failure:
        return Verdict("failed", str(result["reason"]), figures=figures)
    if result.get("alias"):
        return Verdict("refused", str(result["alias"]), "E1", figures)
    return Verdict("accepted", figures=figures)
