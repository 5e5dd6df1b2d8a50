"""The commands: each parsed one is called and its answer printed. Imports that cost time stand in the functions that need them.

`advisor --help` imports none of them, `advisor suggest` neither torch nor Alembic nor an ORM.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.asking.options import CASE_EFFORT, PLACE, THREADS, TIMEOUT
from advisor.asking.question import budget_of, effort_of, question_of
from advisor.errors import BadInput
from advisor.faces.daemon import DAEMON
from advisor.faces.pages import PAGES
from advisor.faces.printing import note, print_json
from advisor.faces.records import STORED
from advisor.nouns.option import values_of
from advisor.nouns.reading import read_trial
from advisor.show.formats import FORMATS
from advisor.terminal import in_a_line

if TYPE_CHECKING:
    from advisor.advice.recommendation import Recommendation
    from advisor.show.progress import Progress
    from advisor.study.tuning import Job


@contextmanager
def _counting(progress: Progress, before: int = 0) -> Iterator[None]:
    """Have an interrupt carry how many trials were stored until then. before: by what ran before."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(before + progress.done) from None


@contextmanager
def _without_collection() -> Iterator[None]:
    """Let Python look for no garbage meanwhile, nor among what is alive now when it exits: a quarter of suggest's time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _say_waiting(event: Mapping[str, Any]) -> None:
    """Say that the device is taken by another advisor: what follows would look like a hang."""
    stage = str(event.get("stage", ""))
    if stage.startswith("waiting"):
        print(in_a_line(stage), file=sys.stderr)


# ------------------------------------------------------------------------------------------------- probe, tune, suggest


def _probe(options: argparse.Namespace, _: float) -> int:
    from advisor.machine import probe
    from advisor.show.console import console
    from advisor.show.probe_report import probe_payload, probe_text
    from advisor.show.rows import as_csv, choice_rows

    threads = THREADS.value(options.threads)
    probe.refuse_too_many(threads)
    machines = probe.machines(threads)
    chosen = probe.machine(options.device, threads)
    ceilings = None
    if options.ceilings:
        from advisor.asking.verbs import ceilings_of

        ceilings = ceilings_of(chosen, _say_waiting)
    availability = probe.availability(chosen.environment)
    if options.format == "json":
        payload = probe_payload(machines, chosen, availability)
        print_json({**payload, "ceilings": ceilings} if options.ceilings else payload)
    elif options.format == "csv":
        print(as_csv(choice_rows(availability)), end="")
    else:
        console(stderr=False).print(probe_text(machines, chosen, availability, ceilings))
    return 0


def _tune(options: argparse.Namespace, began: float) -> int:
    from advisor.asking.verbs import job_of, measured, open_to_write

    if options.dry_run and options.format in FORMATS:
        raise BadInput("--dry-run measures nothing, so there is nothing to paste", "--format text or json")
    given = vars(options)
    question = question_of(options.model, given)
    job, notes = job_of(question, effort_of(given, question.objective), began)
    if options.format in FORMATS:
        FORMATS[options.format].refuse(job.source, job.workload)
    if options.dry_run:
        return _dry_run(options.format, job, notes)
    from advisor.show.progress import Progress

    with open_to_write() as store:
        note((*notes, *store.notes))
        with Progress(job) as progress, _counting(progress):
            recommendation = measured(job, store, progress.hear)
    return _answer(options, recommendation, job.machine.user_device)


def _dry_run(form: str, job: Job, notes: Sequence[str]) -> int:
    from advisor.asking.verbs import planned
    from advisor.show.history_report import print_plan

    plan = planned(job, _say_waiting)
    note(notes)
    if form == "json":
        print_json(plan.payload)
    else:
        print_plan(plan)
    return 0


@_without_collection()
def _suggest(options: argparse.Namespace, _: float) -> int:
    if options.server:
        from advisor.faces.daemon import suggested

        return suggested(options)
    from advisor.advice.labels import choices_in
    from advisor.advice.why_not import spelled, why_not
    from advisor.asking.resolve import resolve
    from advisor.asking.verbs import answered
    from advisor.show.report import print_lines
    from advisor.storage.place import default_url
    from advisor.storage.store import Store

    about = options.why_not
    if about is not None and options.format not in ("text", "json"):
        raise BadInput(f"--why-not is told in words, not as {options.format}", "--format text or json")
    choice = None if about is None else spelled(choices_in(about))
    question = question_of(options.model, vars(options))
    asked = resolve(question, to_measure=False)
    with Store.open(default_url(), write=False) as store:
        note(asked.notes)
        recommendation = answered(asked, store, question.on)
        note(store.damaged)
        if about is not None:
            lines = why_not(recommendation, store.trials(recommendation.study.id), about)
            if options.format == "json":
                print_json({"choice": choice, "why_not": lines})
            else:
                print_lines(lines)
            return 0
    device = "cuda" if recommendation.study.environment.is_cuda else "cpu"
    return _answer(options, recommendation, device)


def _answer(options: argparse.Namespace, recommendation: Recommendation, device: str) -> int:
    """Print a recommendation on stdout in the form that was asked for; return the status of what it says."""
    from advisor.show import report
    from advisor.show.headline import summary
    from advisor.show.rows import as_csv, candidate_rows

    form, status = options.format, recommendation.exit_status
    if form == "json":
        print_json(report.recommendation_payload(recommendation, device))
    elif form in FORMATS and recommendation.chosen is not None:
        print(FORMATS[form].write(recommendation, device), end="")
    elif form == "csv":
        print(as_csv(candidate_rows(recommendation)), end="")
    elif form == "text":
        report.print_recommendation(recommendation, device, pareto=options.pareto, refusals=options.refusals)
    if status and form != "text":
        print(f"advisor: {summary(recommendation)}", file=sys.stderr)
    return status


# ----------------------------------------------------------------------------------------------------------- one by one


def _reproduce(options: argparse.Namespace, _: float) -> int:
    from advisor.asking.verbs import Rerun, reproduced
    from advisor.show.reproduction_report import print_reproduction, say_process
    from advisor.show.script import script_for

    rerun = Rerun(
        read_trial(options.trial),
        TIMEOUT.value(options.timeout),
        options.model,
        options.device,
        options.allow_pickle,
        options.anyway,
        options.format == "python",
        options.processes,
    )

    def listen(event: Mapping[str, Any]) -> None:
        _say_waiting(event)
        say_process(event)

    done, source, machine = reproduced(rerun, listen)
    if options.format == "json":
        print_json(done.payload)
    else:
        print_reproduction(done, stderr=options.format == "python")
    facts = done.study.facts
    if options.format == "python" and facts is not None:
        device, threads = machine.user_device, machine.environment.threads or 1
        print(script_for(source, done.old.requested, done.study.workload, facts, device, threads), end="")
    return done.exit_status


def _reproduce_seed(options: argparse.Namespace, _: float) -> int:
    from advisor.asking.verbs import open_to_write
    from advisor.measure.runner import LocalRunner
    from advisor.models.checkpoint import find_model
    from advisor.models.declared import refuse_unknown
    from advisor.seed import reproduce_seed, seed, seed_report
    from advisor.show.progress import Progress

    cases = [seed.Case.of(text) for text in options.case] or list(seed.CASES)
    given = values_of((*CASE_EFFORT, *PLACE), vars(options))
    budget, svg = budget_of(given), Path(options.svg) if options.svg else None
    if svg is not None and not svg.parent.is_dir():
        raise BadInput(f"--svg: there is no directory {svg.parent}")
    machine = reproduce_seed.machine_for(
        given["device"], given["threads"], own=options.model is None or not options.case
    )
    source = find_model(options.model or str(seed.FALCON), allow_pickle=options.allow_pickle)
    refuse_unknown(source)
    make_job = reproduce_seed.jobs(source, machine, budget, given["batches"], given["timeout"])
    prepared, results = [(case, make_job(case)) for case in cases], []
    stored = 0
    with open_to_write() as store:
        for case, job in prepared:
            with Progress(job) as progress, _counting(progress, stored):
                runner = LocalRunner(machine, progress.hear)
                try:
                    results += reproduce_seed.reproduce([case], make_job, store, runner, progress.hear)
                finally:
                    runner.close()
            stored += progress.done
    if svg is not None:
        svg.write_text(seed_report.chart(results, options.model or "Falcon-7B's shape"), encoding="utf-8")
    if options.format == "json":
        print_json(seed_report.payload(results))
    else:
        print(f"{seed_report.table(results)}\n{seed_report.verdict(results)}")
    return 0


#: What runs each command: its parsed options, and when it began by time.monotonic(), to its exit status.
COMMANDS: dict[str, Callable[[argparse.Namespace, float], int]] = {
    "probe": _probe,
    "tune": _tune,
    "suggest": _suggest,
    "reproduce": _reproduce,
    "reproduce-seed": _reproduce_seed,
    **STORED,
    **PAGES,
    **DAEMON,
}
