"""Kind: the face of a kind of work. Its name, options and metrics, what it asks of a model, and how the worker runs it.

Nothing here needs torch: a kind says by a function of its own where its part with tensors is, and that imports inside itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from advisor.models.declared import refuse_unpadded
from advisor.nouns.metrics import Metric
from advisor.nouns.model import ModelFacts, ModelFiles, ModelSource
from advisor.nouns.objective import Limits, Tier
from advisor.nouns.option import Option
from advisor.workloads.options import LIST_OPTIONS, lengths_of
from advisor.workloads.runtime import Runtime
from advisor.workloads.workload import Workload


@dataclass(frozen=True)
class Running:
    """The function that runs a call: the worker times, profiles and judges it, and the suggestion prints its source.

    module, name: where it stands; it takes the model, the arguments of the call, and each sequence's row, first column and the
    column after its last. positions: which positions are asked for, by their distance from a sequence's end, None for what the
    function gives without that. given: further arguments by name, plain values. A row of what it returns is a sequence's,
    where by_sequence says so; else it is [rows, columns, …], as the model gives it. result: what a sequence gets, in words.
    useful: what is counted of a pass over the list, in Python, of `lengths`; unit: what that is a second.
    Of work that trains the function takes the model and the calls of a step. labelled: the function of the module that gives a
    layout's call its labels; counted: the one that tells all calls of a step how many of its tokens have a loss. variables: of
    the environment that it is run with, set before torch is imported.
    """

    module: str
    name: str
    given: Mapping[str, Any] = field(default_factory=dict)
    positions: tuple[int, ...] | None = None
    by_sequence: bool = True
    result: str = "the result"
    useful: str = "sum(lengths)"
    unit: str = "tokens/s"
    labelled: str = ""
    counted: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Preparation:
    """What is done with a model after it is loaded: the worker executes these statements, and the suggestion prints them.

    imports: what the functions' source needs; functions: (module, name) of what the statements call; `model` is there. adapters:
    peft's configuration of what is trained beside the weights, as an expression, "" where nothing is. packages: distributions
    that the statements need beside torch and transformers.
    """

    imports: tuple[str, ...] = ()
    functions: tuple[tuple[str, str], ...] = ()
    statements: tuple[str, ...] = ()
    adapters: str = ""
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Served:
    """Whether another library's own call does a kind of work, and how.

    task: what that library calls it; refused: why it does not do it, "" where it does; instead: what to do then.
    """

    task: str = ""
    refused: str = ""
    instead: str = "--format python prints a script"


def _unserved(library: str, _: Workload) -> Served:
    return Served(refused=f"{library} has no call that is known to do this work")


def _refuse_unpadded(workload: Workload, facts: ModelFacts, name: str) -> None:
    refuse_unpadded(name, pads=facts.pads, batch=workload.batch)


def _unprepared(_: Workload, __: ModelFacts, ___: ModelFiles, ____: str) -> Preparation:
    return Preparation()


@dataclass(frozen=True)
class Kind:
    """A kind of work.

    name: what `--workload` calls it; summary: what it is, for `--help`; stored_as: the words that its workloads are stored by.
    workload: their class. metrics: what is measured, what is made the best of by default first.
    options: what may be asked of it by name, beside what may be of all work: flags and keywords. lengths(asked): the lengths that
    their values, by name, stand for, None where the file of `lengths_from` is to give them; parse(asked, source, lengths): the
    workload, refused with BadInput where the model's files say that it can't be: both raise what is wrong in a line.
    examples: workloads that differ in what rules look at, for the table of choices. limits: what a lossy tier may cost, by
    tier, where that is other than with other work (`advisor.quality.limits.LIMITS`).
    running(workload, facts): the function that runs a call; runtime(workload, facts): the part with tensors;
    refuse(workload, facts, name): raise BadInput where a model of these facts can't do it, before each trial fails for it.
    preparation(workload, facts, source, device): what is done with the model first, source: its `ModelSource.files`.
    commands: by command, what `--help` shows in the place of its examples: command lines, each with what it does.
    served(library, workload): whether a library's own call does this work: "pipeline" (transformers'), "sentence-transformers".
    """

    name: str
    summary: str
    stored_as: tuple[str, ...]
    workload: type[Workload]
    metrics: tuple[Metric, ...]
    parse: Callable[[Mapping[str, Any], ModelSource, tuple[int, ...]], Workload]
    running: Callable[[Workload, ModelFacts], Running]
    runtime: Callable[[Workload, ModelFacts], Runtime]
    refuse: Callable[[Workload, ModelFacts, str], None] = _refuse_unpadded
    examples: tuple[Workload, ...] = ()
    limits: Mapping[Tier, Limits] = field(default_factory=dict, hash=False)
    preparation: Callable[[Workload, ModelFacts, ModelFiles, str], Preparation] = _unprepared
    served: Callable[[str, Workload], Served] = _unserved
    options: tuple[Option, ...] = LIST_OPTIONS
    commands: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict, hash=False)
    lengths: Callable[[Mapping[str, Any]], tuple[int, ...] | None] = lengths_of

    def measured(self, workload: Workload) -> tuple[Metric, ...]:
        """Return the metrics that mean something of a workload."""
        return tuple(metric for metric in self.metrics if metric.applies(workload))

    @property
    def objectives(self) -> dict[str, Metric]:
        """The metrics that an objective can be made of, by the names that `--objective` calls them."""
        return {metric.name: metric for metric in self.metrics if metric.name}

    @property
    def aim(self) -> Metric:
        """What is made the best of where nobody says."""
        return next(iter(self.objectives.values()))

    @property
    def speed(self) -> Metric:
        """The metric that people call speed."""
        return next(metric for metric in self.metrics if metric.is_speed)

    def useful(self, workload: Workload) -> float:
        """Return how much of what its speed counts is in one pass over the list."""
        return self.speed.samples(workload, {"wall_s": [1.0]})[0]
