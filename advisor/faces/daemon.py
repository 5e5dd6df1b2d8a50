"""The commands of the daemon: serve, worker, submit, jobs and cancel. Imports that cost time stand in the functions."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.asking.options import EFFORT, ON, THREADS, objective_options
from advisor.asking.question import kind_of
from advisor.errors import AdvisorError, BadInput, DamagedRow, StoreError, named
from advisor.faces.daemon_arguments import SERVE_OPTIONS, WORKER_OPTIONS
from advisor.faces.printing import note, print_json
from advisor.nouns.option import values_of
from advisor.terminal import PIPE_COLUMNS, in_a_line, printable
from advisor.workloads import DEFAULT_KIND

if TYPE_CHECKING:
    from advisor.asking.submission import Submission
    from advisor.faces.remote import Remote
    from advisor.web.served import Served

#: How often a watcher looks, seconds.
_LOOK_S = 1.0


def _remote(url: str) -> Remote:
    """Return a daemon elsewhere. Python's own HTTP costs as much as half of `--help`: who stays here does not wait for it."""
    from advisor.faces.remote import Remote

    return Remote(url)


@contextmanager
def _needing_extra() -> Iterator[None]:
    """Say which extra is lacking where a library of the daemon's is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        hint = "pip install 'transformers-advisor[serve]'"
        raise AdvisorError(f"the daemon's commands need {error.name}, which isn't installed", hint) from None


# ------------------------------------------------------------------------------------------------------ serve, worker


def _serve(options: argparse.Namespace, _: float) -> int:
    given = values_of(SERVE_OPTIONS, vars(options))
    with _needing_extra():
        from advisor.web.answering import usual_processes
        from advisor.web.security import Settings
        from advisor.web.served import Limits
        from advisor.web.server import serving

        root = given["model_root"] and _folder(given["model_root"])
        count = given["answer_processes"]
        many = usual_processes() if count is None else count
        limits = Limits(root, given["max_budget"], given["max_waiting"], answer_processes=many)
        token, names = os.environ.get("ADVISOR_TOKEN", ""), given["allowed_host"]
        settings = Settings(given["host"], _port(given["port"]), token, allowed_hosts=tuple(names))
        settings.refuse_open()
        return _at_work(options.workers, given, lambda served, stop: serving(served, settings, stop, _say), limits)


def _worker(options: argparse.Namespace, _: float) -> int:
    given = values_of(WORKER_OPTIONS, vars(options))
    with _needing_extra():
        return _at_work(options.workers, given, None, None)


def _at_work(workers: str, given: Mapping[str, Any], serving: Any, limits: Any) -> int:
    """Run this host's slots, and what serves, until SIGTERM or Ctrl-C; return the exit status."""
    from advisor.daemon.logs import logged_as_json

    with logged_as_json():
        return _logged_at_work(workers, given, serving, limits)


def _logged_at_work(workers: str, given: Mapping[str, Any], serving: Any, limits: Any) -> int:
    from advisor.daemon.courtesy import Hours
    from advisor.daemon.engine import prepare
    from advisor.daemon.recheck import IDLE_S
    from advisor.daemon.supervisor import Supervisor, machines_of
    from advisor.storage.clock import refuse_wrong_clock
    from advisor.storage.place import default_url
    from advisor.storage.roster import Roster
    from advisor.storage.store import Store

    if given["only"]:
        Hours.of(given["only"])
    url, machines = default_url(), machines_of(workers)
    with Store.open(url, write=True) as store:  # the schemas are made here once, and not by every slot
        refuse_wrong_clock(store)
        roster = Roster(store)
        for machine in machines:
            roster.know(machine.uuid, machine.host, machine.environment)
        holders = {slot.name: slot.holder for slot in roster.slots()}
    prepare(url)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings = {name: given[name] for name in ("only", "assume_idle", "allow_pickle", "max_download")}
    settings["recheck_after_s"] = None if given["no_recheck"] else IDLE_S
    days = given.get("keep_jobs")  # a host that serves removes jobs, one that only works leaves that to it
    supervisor = Supervisor(url, machines, settings, keep_jobs=timedelta(days=days) if days else None)
    if serving is None:
        for machine in machines:
            held = holders.get(machine.uuid, "")
            _say(f"slot {machine.uuid}{held and f': {held} has it, and is waited for'}")
        supervisor.run(stop)
        return 0
    from advisor.web.served import Served

    served = Served.open(url, limits)
    at_work = threading.Thread(target=supervisor.run, args=(stop,), name="advisor-supervisor")
    at_work.start()
    try:
        serving(served, stop)
    finally:
        stop.set()
        at_work.join()
        served.close()
    return 0


def _say(text: str) -> None:
    print(in_a_line(text), flush=True)


def _folder(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_dir():
        raise BadInput(f"{named('model_root')}: there is no folder {path}")
    return path.resolve()


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise BadInput(f"{named('port')} takes a number from 0 to 65535, not {text!r}")
    return int(text)


# ------------------------------------------------------------------------------------------------ submit, jobs, cancel


def _submit(options: argparse.Namespace, _: float) -> int:
    from advisor.asking.submission import Submission

    given, notes = _given(options)
    model, warned = _meant(options)
    submission = Submission.of({"model": model, "given": given, "priority": options.priority})
    note([*notes, *warned])
    with _needing_extra():
        job = _remote(options.server).submit(submission.payload) if options.server else _submitted(submission)
    if job.get("why"):
        note([str(job["why"])])
    if options.format == "json":
        print_json(job)
        return 0
    at = f" --server {shlex.quote(options.server)}" if options.server else ""
    print(in_a_line(f"job {job['id']} waits for a device of the kind {job['device_class']}"))
    print(in_a_line(f"advisor jobs {job['id']} --watch{at} tells how it goes on"))
    return 0


def _submitted(submission: Submission) -> dict[str, Any]:
    with _opened() as served:
        return served.told(served.submit(submission, is_operator=True).id)


def _given(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Return what of the options is asked, as JSON values, and what is to be told of it.

    The lengths of a file of this machine are counted here, for a job runs on any.
    """
    given, kind = vars(options), kind_of(vars(options))
    if given.get("lengths_from") is None:
        return _without_defaults(given), []
    from advisor.asking.question import question_of
    from advisor.asking.resolve import resolve
    from advisor.faces.arguments import build_parser

    asked = resolve(question_of(options.model, given), to_measure=False)
    spelled = build_parser(kind).parse_args(["submit", options.model, *shlex.split(asked.workload.flags)])
    work = {option.name: getattr(spelled, option.name) for option in kind.options}
    told = "its texts stay here: the job runs others of these lengths"
    return _without_defaults({**given, **work}), [
        *asked.notes,
        f"the lengths of {given['lengths_from']} are sent; {told}",
    ]


def _without_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is asked of the options: neither what was left out nor what is meant where it is."""
    kind = kind_of(given)
    options = (*kind.options, *objective_options(kind), *EFFORT, ON, THREADS)
    said = {option.name: (given[option.name], option.default) for option in options if option.name in given}
    # 0 is something that is asked for, and equal to False.
    asked = {
        name: value
        for name, (value, usual) in said.items()
        if value is not False and value not in (None, [], ()) and value != usual
    }
    return asked if kind.name == DEFAULT_KIND.name else {"workload": kind.name, **asked}


def _meant(options: argparse.Namespace) -> tuple[str, list[str]]:
    """Return the model that is meant on every host: a path of this one is absolute. And what is to be told of it."""
    from advisor.asking.submission import is_hub_id

    path = Path(options.model).expanduser()
    if options.server:  # its own folder is meant, and it says what is not there
        return str(options.model), []
    if path.exists():
        return str(path.resolve()), []
    if is_hub_id(options.model):
        return str(options.model), []
    return str(path.absolute()), [f"{path.absolute()} is not here: the host that takes the job must have it there"]


def suggested(options: argparse.Namespace) -> int:
    """Print what a daemon elsewhere answers; return the status of what it says."""
    if options.why_not is not None:
        raise BadInput("--why-not is answered from a database alone", f"leave {named('server')} out")
    given, notes = _given(options)
    columns = {"columns": shutil.get_terminal_size((PIPE_COLUMNS, 24)).columns}
    shown = {"format": options.format, "pareto": options.pareto, "refusals": options.refusals, **columns}
    found = _remote(options.server).suggest(options.model, given, shown)
    note(notes)
    status = int(found.pop("exit_status", 0))
    if options.format == "json":
        print_json(found)
    else:
        print(printable(str(found.get("text", ""))), end="")
    return status


def _cancel(options: argparse.Namespace, _: float) -> int:
    with _needing_extra():
        if options.server:
            job = _remote(options.server).cancel(options.job)
        else:
            with _opened() as served:
                job = served.cancel(options.job).payload
    if options.format == "json":
        print_json(job)
    else:
        print(in_a_line(f"job {job['id']} is cancelled"))
    return 0


def _jobs(options: argparse.Namespace, _: float) -> int:
    with _needing_extra():
        if options.server:
            remote = _remote(options.server)
            return _listed(options, remote.job, lambda: remote.jobs(options.state, options.limit))
        with _opened() as served:
            every = served.listed
            return _listed(options, served.told, lambda: every(options.state, 0, options.limit))


def _listed(
    options: argparse.Namespace, one: Callable[[str], dict[str, Any]], every: Callable[[], list[dict[str, Any]]]
) -> int:
    from advisor.show.job_table import change, print_jobs

    def look() -> list[dict[str, Any]]:
        return every() if options.job is None else [one(options.job)]

    found = look()
    if not options.watch:
        if options.format == "json":
            print_json(found if options.job is None else found[0])
        else:
            print_jobs(found)
        return 0
    told: dict[str, str] = {}
    while True:
        for job in reversed(found):
            if (line := change(job)) != told.get(job["id"]):
                told[job["id"]] = line
                _say(line)
        if not any(job["state"] in ("queued", "running") for job in found):
            return 0
        found = _looked_again(look)


def _looked_again(look: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return how jobs stand a moment later. A daemon or a database that is away for a while is waited for, and said to be."""
    is_away = False
    while True:
        time.sleep(_LOOK_S)
        try:
            found = look()
        except DamagedRow:
            raise
        except StoreError as error:
            if not is_away:
                note([f"{error.args[0]}: it is tried again until it answers (Ctrl-C ends that)"])
            is_away = True
            continue
        if is_away:
            note(["it answers again"])
        return found


@contextmanager
def _opened() -> Iterator[Served]:
    """Give the jobs of the database, for whoever has it in hand. Raises NotMeasured where no daemon ever ran on it."""
    from advisor.storage.place import default_url
    from advisor.web.served import Limits, Served

    served = Served.open(default_url(), Limits())
    try:
        yield served
    finally:
        served.close()


#: What runs each of these commands, as `advisor.faces.commands.COMMANDS` has it.
DAEMON: dict[str, Callable[[argparse.Namespace, float], int]] = {
    "serve": _serve,
    "worker": _worker,
    "submit": _submit,
    "jobs": _jobs,
    "cancel": _cancel,
}
