"""The command line: parse → call → render. The only file that prints or exits.

Imports that cost time stand in the functions that need them: `advisor --help` imports none of them, `advisor suggest`
neither torch nor Alembic nor an ORM.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from advisor.arguments import budget_of, build_parser, kind_in, parse_duration, parse_trial, threads_of
from advisor.errors import AdvisorError, BadInput, NothingAdmissible, NotMeasured
from advisor.terminal import in_a_line, printable_json

if TYPE_CHECKING:
    from advisor.progress import Progress
    from advisor.recommendation import Recommendation
    from advisor.tuning import Job


def run(arguments: Sequence[str], began: float | None = None) -> int:
    """Run a command line and return its exit status. began: when the command did, by time.monotonic(); None: now."""
    _write_any_character()
    try:
        return _run(arguments, time.monotonic() if began is None else began)
    except AdvisorError as error:
        reasons = error.reasons if isinstance(error, NothingAdmissible) else ()
        print("\n  ".join(map(in_a_line, [f"advisor: {error}", *reasons])), file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt as error:
        print(in_a_line(f"advisor: interrupted{_goes_on(arguments, *error.args or (0,))}"), file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_output()  # the reader of a pipe has gone: nothing is wrong
        return 0
    except OSError as error:
        _discard_output()
        print(in_a_line(f"advisor: {error}"), file=sys.stderr)
        return 2
    except MemoryError:
        print("advisor: this machine has no memory left", file=sys.stderr)
        return 2


def _run(arguments: Sequence[str], began: float) -> int:
    try:
        options = build_parser(kind_in(arguments)).parse_args(arguments)
        options.began = began
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return _COMMANDS[options.command](options)
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where it can still be told in a line why that is impossible


def _goes_on(arguments: Sequence[str], stored: int) -> str:
    """Return what an interrupted command leaves and what goes on with it, "" where it measures nothing."""
    if not {"tune", "reproduce-seed"} & set(arguments[:1]) or "--dry-run" in arguments:
        return ""
    command = shlex.join(["advisor", *arguments])
    given = f": {command}" if in_a_line(command) == command else ""  # what can't be printed as it is can't be pasted
    return (
        f"; this run stored {stored} trial{'' if stored == 1 else 's'}, and the same command goes on from there{given}"
    )


@contextmanager
def _counting(progress: Progress, before: int = 0) -> Iterator[None]:
    """Have an interrupt carry how many trials were stored until then. before: by what ran before."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(before + progress.done) from None


def _write_any_character() -> None:
    """Let a terminal that lacks a character show a question mark: that is no reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _discard_output() -> None:
    """Point stdout to nothing: what is left in its buffer can't be written, and Python would complain about that."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Let Python look for no garbage meanwhile, nor among what is alive now when it exits: a quarter of suggest's time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _json(payload: object) -> str:
    return printable_json(json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False))


def _json_line(payload: object) -> str:
    return printable_json(json.dumps(payload, ensure_ascii=False, allow_nan=False))


def _note(texts: Sequence[str]) -> None:
    for text in texts:
        print(in_a_line(f"note: {text}"), file=sys.stderr)


def _say_waiting(event: Mapping[str, Any]) -> None:
    """Say that the device is taken by another advisor: what follows would look like a hang."""
    stage = str(event.get("stage", ""))
    if stage.startswith("waiting"):
        print(in_a_line(stage), file=sys.stderr)


# ------------------------------------------------------------------------------------------------- probe, tune, suggest


def _probe(options: argparse.Namespace) -> int:
    from advisor import probe
    from advisor.console import console
    from advisor.probe_report import probe_payload, probe_text

    threads = threads_of(options)
    machines = probe.machines(threads)
    chosen = probe.machine(options.device, threads)
    ceilings = None
    if options.ceilings:
        from advisor.api import ceilings_of

        ceilings = ceilings_of(chosen, _say_waiting)
    availability = probe.availability(chosen.environment)
    if options.format == "json":
        payload = probe_payload(machines, chosen, availability)
        print(_json({**payload, "ceilings": ceilings} if options.ceilings else payload))
    else:
        console(stderr=False).print(probe_text(machines, chosen, availability, ceilings))
    return 0


def _tune(options: argparse.Namespace) -> int:
    from advisor import api

    if options.dry_run and options.format == "python":
        raise BadInput("--dry-run measures nothing, so there is no script", "--format text or json")
    job, notes = api.job_of(options)
    if options.dry_run:
        return _dry_run(options.format, job, notes)
    from advisor.progress import Progress

    with api.open_to_write() as store:
        _note((*notes, *store.notes))
        with Progress(job) as progress, _counting(progress):
            recommendation = api.measured(job, store, progress.hear)
    return _answer(options.format, recommendation, job.machine.user_device, to_stderr=True)


def _dry_run(form: str, job: Job, notes: Sequence[str]) -> int:
    from advisor.api import planned
    from advisor.history_report import print_plan

    plan = planned(job, _say_waiting)
    _note(notes)
    if form == "json":
        print(_json(plan.payload))
    else:
        print_plan(plan)
    return 0


@_without_collection()
def _suggest(options: argparse.Namespace) -> int:
    from advisor.api import answered, asked_of
    from advisor.place import default_url
    from advisor.store import Store
    from advisor.why_not import choices_in, spelled, why_not

    about = options.why_not
    choice = None if about is None else spelled(choices_in(about))
    asked = asked_of(options, to_measure=False)
    with Store.open(default_url(), write=False) as store:
        _note(asked.notes)
        recommendation = answered(asked, store, options.on)
        _note(store.damaged)
        if about is not None:
            lines = why_not(recommendation, store.trials(recommendation.study.id), about)
            as_json = options.format == "json"
            print(_json({"choice": choice, "why_not": lines}) if as_json else "\n".join(map(in_a_line, lines)))
            return 0
    device = "cuda" if recommendation.study.environment.is_cuda else "cpu"
    return _answer(options.format, recommendation, device, to_stderr=False, pareto=options.pareto)


def _answer(form: str, recommendation: Recommendation, device: str, *, to_stderr: bool, pareto: bool = False) -> int:
    """Print a recommendation, JSON and Python on stdout alone, text for people; return the status of what it says."""
    from advisor import report
    from advisor.headline import summary
    from advisor.script import script_for

    status = recommendation.exit_status
    if form == "json":
        print(_json(report.recommendation_payload(recommendation, device)))
    elif form == "python" and recommendation.chosen is not None:
        study, facts = recommendation.study, recommendation.facts
        threads, configuration = study.environment.threads or 1, recommendation.chosen.configuration
        print(script_for(recommendation.source, configuration, study.workload, facts, device, threads), end="")
    elif form == "text":
        report.print_recommendation(recommendation, device, stderr=to_stderr, pareto=pareto)
    if status and form != "text":
        print(f"advisor: {summary(recommendation)}", file=sys.stderr)
    return status


# ----------------------------------------------------------------------------------------------------------- one by one


def _trials(options: argparse.Namespace) -> int:
    from advisor.checkpoint import find_model
    from advisor.history import listed
    from advisor.history_report import print_trials
    from advisor.place import default_url
    from advisor.store import Store

    key = None
    if options.model is not None:
        key = find_model(options.model, allow_pickle=options.allow_pickle, download=False).architecture_key
    with Store.open(default_url(), write=False) as store:
        shown = 0
        for each in listed(store, key, options.study, failed=options.failed, limit=options.limit):
            if options.format == "json":
                print(_json_line(each.payload))
            else:
                print_trials(each, is_next=shown > 0)
            shown += len(each.trials)
        _note(store.damaged)
    if shown == options.limit:
        _note([f"these are the newest {shown} trials: --limit N lists more, --limit 0 all"])
    return 0


def _show(options: argparse.Namespace) -> int:
    from advisor.history import stored_trial, study_payload, trial_payload
    from advisor.history_report import print_trial
    from advisor.place import default_url
    from advisor.store import Store

    number = parse_trial(options.trial)
    with Store.open(default_url(), write=False) as store:
        study, trial = stored_trial(store, *number)
    if options.format == "json":
        print(_json({**study_payload(study), "trial": trial_payload(study, trial)}))
    else:
        print_trial(study, trial)
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    from advisor.api import reproduced
    from advisor.history_report import print_reproduction
    from advisor.script import script_for

    done, source, machine = reproduced(options, _say_waiting)
    if options.format == "json":
        print(_json(done.payload))
    else:
        print_reproduction(done, stderr=options.format == "python")
    facts = done.study.facts
    if options.format == "python" and facts is not None:
        device, threads = machine.user_device, machine.environment.threads or 1
        print(script_for(source, done.old.requested, done.study.workload, facts, device, threads), end="")
    return 0 if done.is_reproduced else 1


def _reproduce_seed(options: argparse.Namespace) -> int:
    from advisor import reproduce_seed, seed, seed_report
    from advisor.api import open_to_write
    from advisor.checkpoint import find_model
    from advisor.declared import refuse_unknown
    from advisor.progress import Progress
    from advisor.runner import LocalRunner

    cases, budget = [seed.Case.of(text) for text in options.case] or list(seed.CASES), budget_of(options)
    timeout_s, svg = parse_duration(options.timeout, "--timeout"), Path(options.svg) if options.svg else None
    if svg is not None and not svg.parent.is_dir():
        raise BadInput(f"--svg: there is no directory {svg.parent}")
    machine = reproduce_seed.machine_for(
        options.device, threads_of(options), own=options.model is None or not options.case
    )
    source = find_model(options.model or str(seed.FALCON), allow_pickle=options.allow_pickle)
    refuse_unknown(source)
    make_job = reproduce_seed.jobs(source, machine, budget, options.batches, timeout_s)
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
    print(
        _json(seed_report.payload(results))
        if options.format == "json"
        else f"{seed_report.table(results)}\n{seed_report.verdict(results)}"
    )
    return 0


# -------------------------------------------------------------------------------------------------------- the database


def _export(options: argparse.Namespace) -> int:
    from advisor.exchange import export_lines
    from advisor.place import default_url
    from advisor.store import Store

    with Store.open(default_url(), write=False) as store:
        for study in options.study or ():
            try:
                store.study(study)
            except NotMeasured as error:
                raise BadInput(str(error), "advisor trials lists them") from None
        for line in export_lines(store, options.study):
            print(printable_json(line))
    return 0


def _import(options: argparse.Namespace) -> int:
    from advisor import api
    from advisor.exchange import bounded_lines, import_lines

    with _opened(options.file) as lines, api.open_to_write() as store:
        try:
            done = import_lines(store, bounded_lines(lines))
        except BadInput as error:
            raise BadInput(f"{options.file}, {error}", "whole studies before it are stored") from None
    counts = ", ".join(f"{count} {name}" for name, count in done.new.items() if count)
    print(f"new here: {counts or 'nothing'}; known already: {sum(done.known.values())} rows")
    return 0


@contextmanager
def _opened(file: str) -> Iterator[TextIO]:
    """Open what is to be imported, or stdin, as lines of UTF-8."""
    if file == "-":
        if sys.stdin is None:
            raise BadInput("there is no stdin to read from")
        yield io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8")
        return
    try:
        stream = Path(file).open(encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise BadInput(f"{file} can't be read: {error.strerror}") from None
    with stream:
        yield stream


def _db(options: argparse.Namespace) -> int:
    from advisor.database import upgrade
    from advisor.place import database_path, default_url, shown_url
    from advisor.store import Store

    if options.action == "upgrade":
        from advisor.kept_answers import keep_answers

        revision = upgrade(default_url())
        with Store.open(default_url(), write=True) as store:
            keep_answers(store)  # of databases from before answers were stored, or made by older rules
        print(f"{shown_url(default_url())} is at revision {revision}")
    elif options.action == "url":
        path = database_path(default_url())
        print(f"sqlite:///{path}" if path else shown_url(default_url()))
    else:
        path = database_path(default_url())
        if path is None:
            raise BadInput("this database is no file", "advisor db url shows where it is")
        print(path)
    return 0


_COMMANDS = {
    "probe": _probe,
    "tune": _tune,
    "suggest": _suggest,
    "trials": _trials,
    "show": _show,
    "reproduce": _reproduce,
    "reproduce-seed": _reproduce_seed,
    "export": _export,
    "import": _import,
    "db": _db,
}
