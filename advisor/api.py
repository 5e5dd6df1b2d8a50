"""advisor in Python: `suggest`, `load` and `tune`. What the command line's verbs do, as functions.

Keyword arguments are the command line's flags with underscores (`max_memory="24GiB"` is `--max-memory 24GiB`), and they
are read by the same parser: the same defaults, the same errors, as exceptions of `advisor.errors`.
"""

from __future__ import annotations

import os
import shlex
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from advisor import arguments
from advisor.configuration import Configuration
from advisor.device import energy_problem
from advisor.environment import Machine
from advisor.errors import AdvisorError, BadInput, NothingAdmissible, NotMeasured, StoreError
from advisor.metrics import Gauge
from advisor.model import ModelFacts, ModelSource
from advisor.objective import Objective
from advisor.workloads import DEALT, DEFAULT_BATCHES, DEFAULT_KIND, Head, Workload, kind_of

if TYPE_CHECKING:  # the database's driver and Optuna take time to import
    from advisor.plan import Plan
    from advisor.recommendation import Recommendation
    from advisor.reproduction import Reproduction
    from advisor.store import Store
    from advisor.tuning import Job

#: How long a device may take to show what it reaches, in seconds.
_CEILINGS_S = 120.0

#: The list of a workload as long as a file's lengths are not known.
_DRAFT = (512,)

Listener = Callable[[Mapping[str, Any]], None]


class Flags(TypedDict, total=False):
    """What suggest, load and tune take: the workload and what is wanted. `advisor suggest --help` says what each means.

    workload: the kind of work, whose own flags are taken too; lengths: a number, or all of them; max_memory: bytes or text;
    max_latency: seconds or text; only: choices by knob.
    """

    workload: str
    lengths: int | str | Sequence[int]
    lengths_from: str | os.PathLike[str] | None
    padding: float | None
    batch: int | str
    batches: int | None
    output: str | None
    objective: str
    quality: str
    max_memory: int | str | None
    max_latency: float | str | None
    only: Mapping[str, str | Sequence[str]]
    ignore_rule: str | Sequence[str]
    allow_unjudged: bool
    allow_pickle: bool
    device: str | None
    threads: int


class SuggestFlags(Flags, total=False):
    """What suggest takes beside these: another environment than this machine's, by key or part of the device's name."""

    on: str | None


class TuneFlags(Flags, total=False):
    """What tune takes beside these: how much may be spent (seconds or text), and the search's seed."""

    budget: float | str | None
    payback: float | str | None
    trials: int | None
    exhaustive: bool
    blocks: int
    timeout: float | str
    seed: int


def suggest(model: str | os.PathLike[str], **flags: Unpack[SuggestFlags]) -> Recommendation:
    """Return what stored measurements recommend for a model and a workload. Needs no GPU and no torch.

    Raises NotMeasured where nothing stored answers, NothingAdmissible where nothing is left, BadInput.

        >>> found = advisor.suggest("meta-llama/Llama-3.1-8B", lengths=2048, padding=0.3, batch=8)
        >>> print(found.configuration, found.verdict)
        flash_attention_2 · bf16 · none · packed faster
    """
    return _suggested(model, flags, SuggestFlags)[0]


def load(model: str | os.PathLike[str], **flags: Unpack[Flags]) -> Ready:
    """Load a model as it is recommended for a workload on this machine, by the code that the measurement ran.

    Nothing is measured: raises NotMeasured where this workload was not tuned on this machine, and what suggest raises.
    It switches what the recommendation switches for the whole process (fp32 products, sdpa's kernels, CPU threads).

        >>> ready = advisor.load("meta-llama/Llama-3.1-8B", lengths=2048, padding=0.3, batch=8)
        >>> for batch in ready.batches(sequences):  # your own token ids
        ...     logits = ready.results([sequences[i] for i in batch])  # [sequences in the batch, vocabulary]
    """
    recommendation, machine = _suggested(model, flags, Flags)
    if recommendation.chosen is None:
        raise NothingAdmissible(
            [f"{c.configuration}: {text}" for c in recommendation.rejected for text in c.objections]
        )
    if recommendation.study.environment_key != machine.environment.key:
        raise NotMeasured(
            f"{recommendation.source.name} was tuned on {recommendation.study.environment}, not on this "
            f"machine's {machine.user_device}",
            "advisor.tune measures here",
        )
    return _loaded(recommendation, machine)


def tune(
    model: str | os.PathLike[str], *, listen: Listener | None = None, **flags: Unpack[TuneFlags]
) -> Recommendation:
    """Measure configurations of a model, store what was found, and return what is recommended.

    The same call goes on where an interrupted one stopped. listen: is called with every event, a mapping.

        >>> found = advisor.tune("meta-llama/Llama-3.1-8B", lengths_from="prompts.jsonl", batch="auto", budget="20m")
        >>> found.chosen.trial.tokens_per_s
        104523.6
    """
    began = time.monotonic()
    options = _parsed("tune", model, flags, TuneFlags)
    options.began = began
    job, notes = job_of(options)
    with open_to_write() as store:
        found = measured(job, store, listen or (lambda _: None))
    return replace(found, notes=(*notes, *found.notes))


@dataclass(frozen=True)
class Ready:
    """A model, loaded as recommended, and how to call it as it was measured.

    model: the torch module, in evaluation mode, on `device`; batch: how many sequences it was measured with at once.
    """

    model: Any = field(repr=False)
    recommendation: Recommendation = field(repr=False)
    device: str
    batch: int
    _session: Any = field(repr=False)
    _request: Mapping[str, Any] = field(repr=False)

    def collate(self, sequences: Iterable[Any]) -> dict[str, Any]:
        """Return the arguments of `model(**arguments)` for a batch of token ids, on the device: padded, or in one row.

        sequences: lists or 1-D tensors of whole numbers, none of them empty. Where the last logits are asked for, those of
        every sequence's end alone are computed, in the order of the sequences, as far as the model's class can. Raises
        BadInput for scores of a packed row, which only :meth:`results` can read.
        """
        call = self._call(sequences)
        if call.is_packed and self._workload.needs.head is Head.CLASSIFICATION:
            raise BadInput("model(**arguments) gives one score a row, and these sequences share one", "use results()")
        return dict(self._runtime.arguments(call).on(self.device))

    def results(self, sequences: Iterable[Any]) -> Any:
        """Run a batch and return what was asked for, a row a sequence: its last logits, its embedding or its scores.

        Hidden states and all logits come as the model gives them, [rows, columns, width].
        """
        import torch

        with torch.inference_mode():
            return self._runtime.run(self.model, self._call(sequences), self.device)

    def batches(self, sequences: Sequence[Any]) -> list[list[int]]:
        """Return, batch by batch, the places in `sequences` of those to run together: by length where that was measured."""
        lengths = tuple(len(sequence) for sequence in sequences)
        if not lengths:
            return []
        from advisor.knobs import traits_of

        by_length = traits_of(self._configuration).by_length
        work = replace(self._workload, lengths=lengths, batch=self.batch)
        return [list(batch) for batch in work.batches(by_length=by_length)]

    @property
    def _configuration(self) -> Configuration:
        chosen = self.recommendation.chosen
        assert chosen is not None  # nothing else is loaded
        return chosen.configuration

    @property
    def _workload(self) -> Workload:
        return self.recommendation.study.workload

    @property
    def _runtime(self) -> Any:
        from advisor import session_torch

        return session_torch.runtime_of(self._request)

    def _call(self, sequences: Iterable[Any]) -> Any:
        """Return the worker's call for a batch."""
        import torch

        tensors = [torch.as_tensor(sequence, dtype=torch.long, device="cpu") for sequence in sequences]
        if not tensors or any(tensor.dim() != 1 or not len(tensor) for tensor in tensors):
            raise BadInput("a batch is one or more lists of token ids, none of them empty")
        (call,) = self._session.calls_of(self._request, self._configuration, tensors, [range(len(tensors))])
        return call


def _loaded(recommendation: Recommendation, machine: Machine) -> Ready:
    """Load what is recommended through the worker's own session: the lines that were measured."""
    import torch

    from advisor import facts_torch, session_torch

    assert recommendation.chosen is not None
    configuration, source = recommendation.chosen.configuration, recommendation.source.request
    workload = recommendation.study.workload.under(configuration)
    # Read anew: stored facts can be those of a class that gives another output.
    facts = facts_torch.read_facts(source, workload.needs)
    kind_of(workload).refuse(workload, ModelFacts.of(facts), recommendation.source.name)
    request = {"source": source, "facts": facts, "workload": workload.payload, "device": machine.user_device}
    if not machine.environment.is_cuda:
        torch.set_num_threads(machine.environment.threads or 1)
    session = session_torch.Session(lambda _: None)
    session.load(request, configuration)
    return Ready(session.model, recommendation, machine.user_device, workload.size, session, request)


# --------------------------------------------------------------------------------------- shared with the command line


@dataclass(frozen=True)
class Asked:
    """A question with its nouns: flags: the workload as the user spelled it; notes: what is to be told of the workload.

    texts: where the user's own texts are (Lengths.texts); earlier: what was stored for their file in other ways, in words.
    """

    source: ModelSource
    workload: Workload
    objective: Objective
    machine: Machine
    flags: str
    notes: tuple[str, ...]
    texts: Mapping[str, Any] | None = None
    earlier: Callable[[], Iterator[tuple[str, Workload]]] = lambda: iter(())


def asked_of(options: Namespace, *, to_measure: bool) -> Asked:
    """Find the model and the device that options name, and the workload for them. Raises BadInput.

    to_measure: on this machine, so that the model may be downloaded, and all that would hinder it is said now.
    """
    lengths, objective = arguments.kind_of(options).lengths(options), arguments.objective_of(options)
    threads = arguments.threads_of(options)
    from advisor import probe
    from advisor.checkpoint import find_model
    from advisor.declared import refuse_unknown
    from advisor.launch import warm_up
    from advisor.leftovers import somebody_measures

    if to_measure and not somebody_measures():
        warm_up()  # importing takes the longest of all that comes before the first trial
    machine = probe.machine(options.device, threads)
    if to_measure and machine.problem:
        raise BadInput(machine.problem, machine.remedy)
    if to_measure and objective.aim.gauge is Gauge.ENERGY:
        _refuse_unseen_energy(machine)
    source = find_model(options.model, allow_pickle=options.allow_pickle, download=to_measure)
    if to_measure:
        refuse_unknown(source)
    return _with_workload(options, source, objective, machine, lengths)


def _refuse_unseen_energy(machine: Machine) -> None:
    """Raise BadInput where no energy would be read: before an hour is spent on figures that are not there."""
    if not machine.environment.is_cuda:
        raise BadInput("--objective energy: energy is read from the GPU's counter, and a CPU has none")
    if problem := energy_problem(machine.uuid):
        raise BadInput(
            f"--objective energy: the energy counter of {machine.environment.device_name} can't be read: {problem}"
        )


def _with_workload(
    options: Namespace, source: ModelSource, objective: Objective, machine: Machine, lengths: tuple[int, ...] | None
) -> Asked:
    from advisor.declared import max_positions, refuse_foreign

    workload = arguments.kind_of(options).parse(options, source, lengths or _DRAFT)
    refuse_foreign(source)
    limit = max_positions(source.config)
    if lengths is None:
        return _with_texts(options, source, objective, machine, (workload, limit))
    if limit is not None and max(lengths) > limit:
        raise BadInput(f"--lengths {max(lengths)} is beyond the model's {limit} positions")
    return Asked(source, workload, objective, machine, workload.flags, ())


def _with_texts(
    options: Namespace, source: ModelSource, objective: Objective, machine: Machine, asked: tuple[Workload, int | None]
) -> Asked:
    """Read the lengths of the user's own texts. asked: the workload but for its lengths, and the model's most positions."""
    from advisor.lengths import MOST_ROWS_WHOLE, earlier, lengths_from

    workload, limit = asked
    file, most = os.fspath(options.lengths_from), (options.batches or DEFAULT_BATCHES) * (options.batch or DEALT)
    found = lengths_from(file, source, limit, most, workload.needs.sent)
    batches = "" if options.batches is None else f" --batches {options.batches}"
    flags = f"--lengths-from {shlex.quote(file)} --batch {options.batch or 'auto'}{batches} {workload.own_flags}"

    def others() -> Iterator[tuple[str, Workload]]:
        first = options.batches is not None
        if found.rows > MOST_ROWS_WHOLE and not first:
            return
        for words, lengths in earlier(file, source, limit, most, workload.needs.sent, first=first):
            yield words, replace(workload, lengths=lengths)

    workload = replace(workload, lengths=found.lengths)
    return Asked(source, workload, objective, machine, flags, tuple(found.notes), found.texts, others)


def answered(asked: Asked, store: Store, on: str | None) -> Recommendation:
    """Return what a store recommends. Raises NotMeasured with the command that would measure it, in the user's words."""
    from advisor.suggest import suggest as answer

    try:
        found = answer(store, asked.source, asked.workload, asked.objective, asked.machine.environment, on)
        return replace(found, command=found.command.replace(asked.workload.flags, asked.flags))
    except NotMeasured as error:
        lacking = NotMeasured(str(error).replace(asked.workload.flags, asked.flags))
    for words, workload in asked.earlier():
        with suppress(NotMeasured):
            found = answer(store, asked.source, workload, asked.objective, asked.machine.environment, on)
            return replace(found, notes=(f"this was measured on {words}, not on a sample of it", *found.notes))
    raise lacking


def job_of(options: Namespace) -> tuple[Job, tuple[str, ...]]:
    """Return what is to be tuned, and what is to be told of its workload. Raises BadInput."""
    budget, timeout_s = arguments.budget_of(options), arguments.parse_duration(options.timeout, "--timeout")
    if options.payback is not None and not arguments.objective_of(options).aim.is_of_time:
        raise BadInput(
            f"--payback weighs time against time, and --objective {options.objective} is none", "leave one out"
        )
    asked = asked_of(options, to_measure=True)
    from advisor.tuning import Job

    nouns = asked.source, asked.workload, asked.objective
    began = getattr(options, "began", None)
    job = Job(*nouns, budget, asked.machine, options.seed, timeout_s, texts=asked.texts, began=began, flags=asked.flags)
    return job, asked.notes


def open_to_write() -> Store:
    """Open the database to write to. Raises StoreError for a read-only file: SQLite in WAL mode says so only at a row."""
    from advisor.place import database_path, default_url
    from advisor.store import Store

    path = database_path(default_url())
    if path is not None and path.exists() and not os.access(path, os.W_OK):
        raise StoreError(f"{path} can't be written: the file or its directory is read-only")
    return Store.open(default_url(), write=True)


def measured(job: Job, store: Store, listen: Listener) -> Recommendation:
    """Tune on this machine and return what the rows just written recommend."""
    from advisor.runner import LocalRunner
    from advisor.suggest import recommend
    from advisor.tune import tune as search

    runner = LocalRunner(job.machine, listen)
    try:
        study = search(job, store, runner, listen)
    finally:
        runner.close()
    found = recommend(store, job.source, store.study(study), job.objective)
    return replace(found, command=found.command.replace(job.workload.flags, job.flags or job.workload.flags))


def planned(job: Job, listen: Listener) -> Plan:
    """Return what a tune would try. The model's facts are read, nothing is measured, and nothing is written."""
    from advisor.place import default_url
    from advisor.plan import plan, usual_trial_s
    from advisor.runner import LocalRunner
    from advisor.store import Store

    try:
        with Store.open(default_url(), write=False) as store:
            trial_s = usual_trial_s(store, job.source.architecture_key, job.machine.environment.key)
    except NotMeasured:  # there is no database yet
        trial_s = None
    runner = LocalRunner(job.machine, listen)
    try:
        return plan(job, runner, trial_s)
    finally:
        runner.close()


def ceilings_of(machine: Machine, listen: Listener) -> dict[str, float]:
    """Measure what a device reaches at best, store it and return it: `matmul_<precision>_per_s`, `copy_bytes_per_s`."""
    from advisor.runner import LocalRunner

    if machine.problem:
        raise BadInput(machine.problem, machine.remedy)
    with open_to_write() as store:
        runner = LocalRunner(machine, listen)
        try:
            found = runner.run({"op": "ceilings"}, _CEILINGS_S)
        finally:
            runner.close()
        if "outcome" in found:
            raise AdvisorError(f"the ceilings can't be measured: {found['reason']}")
        store.save_ceilings(machine.environment, found)
    return found


def reproduced(options: Namespace, listen: Listener) -> tuple[Reproduction, ModelSource, Machine]:
    """Run a stored trial again on this machine; return how it compares, the model, and the device.

    Raises BadInput where the trial has no end to compare with, its model is not there, or what it ran under is not what is
    here and the options do not say that it should be run anyway.
    """
    trial, timeout_s = arguments.parse_trial(options.trial), arguments.parse_duration(options.timeout, "--timeout")
    from advisor import history, probe, reproduction
    from advisor.checkpoint import find_model
    from advisor.place import default_url
    from advisor.runner import LocalRunner
    from advisor.script import refuse_unprintable
    from advisor.store import Store

    with Store.open(default_url(), write=False) as store:
        study, old = history.stored_trial(store, *trial)
    reproduction.refuse_unrepeatable(old)
    if options.format == "python":
        refuse_unprintable(old.requested)
    device = options.device or (None if study.environment.is_cuda else "cpu")
    machine = probe.machine(device, study.environment.threads or 1)
    source = find_model(options.model or study.model_name, allow_pickle=options.allow_pickle, download=False)
    reproduction.refuse_other_work(study, source)
    differences = reproduction.differences(study, source, machine.environment)
    if differences and not options.anyway:
        raise BadInput(
            f"this is not what trial {options.trial} ran under: {'; '.join(differences)}", "--anyway runs it"
        )
    if machine.problem:
        raise BadInput(machine.problem, machine.remedy)
    runner = LocalRunner(machine, listen)
    try:
        new = reproduction.run_again(study, old, source, runner, timeout_s)
    finally:
        runner.close()
    return reproduction.Reproduction(study, old, new, tuple(differences)), source, machine


# ------------------------------------------------------------------------------------------- keyword arguments to flags


def _suggested(model: str | os.PathLike[str], flags: Mapping[str, Any], known: type) -> tuple[Recommendation, Machine]:
    from advisor.place import default_url
    from advisor.store import Store

    options = _parsed("suggest", model, flags, known)
    asked = asked_of(options, to_measure=False)
    with Store.open(default_url(), write=False) as store:
        found = answered(asked, store, options.on)
    return replace(found, notes=(*asked.notes, *found.notes)), asked.machine


def _parsed(command: str, model: str | os.PathLike[str], flags: Mapping[str, Any], known: type) -> Namespace:
    """Return what the command line's parser makes of keyword arguments. Raises TypeError for one that is none of ours."""
    kind = arguments.kind_in(["--workload", str(flags.get("workload", ""))])
    own = {name for each in (known, *known.__mro__) for name in getattr(each, "__annotations__", {})}
    names = own - DEFAULT_KIND.keywords | kind.keywords
    if unknown := sorted(flags.keys() - names):
        raise TypeError(f"{command}() got an unexpected keyword argument {unknown[0]!r}")
    name = os.fspath(model)
    words = [word for flag, value in flags.items() for word in _words("--" + flag.replace("_", "-"), value)]
    return arguments.build_parser(kind).parse_args([command, *words, f"./{name}" if name.startswith("-") else name])


def _words(flag: str, value: Any) -> list[str]:
    """Return a keyword argument as words of a command line."""
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    if flag == "--only":
        return [
            f"--only={knob}={names if isinstance(names, str) else ','.join(names)}" for knob, names in value.items()
        ]
    if flag == "--ignore-rule":
        return [f"{flag}={rule}" for rule in ([value] if isinstance(value, str) else value)]
    if flag == "--lengths" and not isinstance(value, (int, str)):
        return [f"{flag}={','.join(str(int(length)) for length in value)},"]
    unit = "s" if flag == "--max-latency" else ""
    return [
        f"{flag}={value:f}{unit}"
        if isinstance(value, float)
        else f"{flag}={value}{unit if isinstance(value, int) else ''}"
    ]
