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
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from advisor import __version__
from advisor.errors import AdvisorError, BadInput, NothingAdmissible, StoreError
from advisor.objective import Budget, Objective, Tier
from advisor.workloads.forward import DEFAULT_BATCHES, OUTPUTS, Workload, parse_lengths

#: What `advisor tune MODEL` measures when no workload is given.
DEFAULT_LENGTHS, DEFAULT_PADDING, DEFAULT_BATCH = "512", 0.3, 8

DEFAULT_BUDGET = "10m"

_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line to stderr and exit with status 2."""
        print(f"advisor: {' '.join(message.split())} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


def parse_size(text: str) -> int:
    """Read a size such as 24GiB or 500MB; return bytes. Raises BadInput."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _SIZES or float(match[1]) == 0:
        raise BadInput(f"--max-memory must be a size such as 24GiB, not {text!r}")
    return int(float(match[1]) * _SIZES[match[2].upper()])


def parse_duration(text: str, flag: str = "--budget") -> float:
    """Read a duration such as 90s, 10m or 2h; return seconds. Raises BadInput, which names the flag it was given to."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise BadInput(f"{flag} must be a duration such as 90s, 10m or 2h, not {text!r}")
    return float(match[1]) * _SECONDS[match[2]]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(prog="advisor", description="The fastest way to run a transformers model on your GPU that is still "
                     "right, with the proof.")  # fmt: skip
    parser.add_argument("--version", action="version", version=f"advisor {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    probe = commands.add_parser("probe", help="what this machine can do, what it cannot, why, and how to get it")
    probe.add_argument("--format", choices=("text", "json"), default="text")
    probe.add_argument("--device", metavar="DEVICE", help="cuda:0, cuda:1, … or cpu (default: the first usable GPU)")
    tune = commands.add_parser("tune", help="measure configurations of a model and find the fastest that is right")
    _add_workload_flags(tune)
    _add_tune_flags(tune)
    suggest = commands.add_parser("suggest", help="answer from what was measured; needs no GPU")
    _add_workload_flags(suggest)
    suggest.add_argument("--why-not", metavar="CHOICE", help="say why a choice, for example nf4, is not recommended")
    suggest.add_argument("--on", metavar="ENVIRONMENT", help="an environment's key or part of a device's name")
    database = commands.add_parser("db", help="the database: upgrade it, show its URL or its path")
    database.add_argument("action", choices=("upgrade", "url", "path"))
    return parser


def _add_workload_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a hub id, a directory, or a config.json (weights drawn at random)"
    )
    parser.add_argument("--lengths", metavar="N[,N…]", default=DEFAULT_LENGTHS,
                        help="longest sequence in tokens, or every length (default: %(default)s)")  # fmt: skip
    parser.add_argument("--padding", type=float, metavar="P",
                        help=f"share of pads in padded batches (default: {DEFAULT_PADDING})")  # fmt: skip
    parser.add_argument(
        "--batch", type=int, metavar="N", default=DEFAULT_BATCH, help="sequences a batch (default: %(default)s)"
    )
    parser.add_argument("--batches", type=int, metavar="N", default=DEFAULT_BATCHES,
                        help="batches in the list (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--output", choices=OUTPUTS, default=OUTPUTS[0], help="what is asked of the model (default: %(default)s)"
    )
    parser.add_argument("--quality", choices=[str(tier) for tier in Tier], default=str(Tier.DTYPE),
                        help="the most that may be lost (default: %(default)s)")  # fmt: skip
    parser.add_argument("--max-memory", metavar="SIZE", help="peak memory allowed, for example 24GiB")
    parser.add_argument(
        "--allow-unjudged", action="store_true", help="recommend lossy choices although weights are random"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="load pickle checkpoints, which can run code")
    parser.add_argument("--ignore-rule", metavar="ID", action="append", default=[],
                        help="try what a rule refuses; the gate judges it")  # fmt: skip
    parser.add_argument("--device", metavar="DEVICE", help="cuda:0, cuda:1, … or cpu (default: the first usable GPU)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")
    parser.add_argument("--format", choices=("text", "json", "python"), default="text")


def _add_tune_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--budget", metavar="TIME", help=f"time to spend, for example 10m (default: {DEFAULT_BUDGET})")
    parser.add_argument("--trials", type=int, metavar="N", help="configurations to try in the search")
    parser.add_argument("--timeout", default="10m", metavar="TIME", help="deadline of one trial (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the search's random choices (default: %(default)s)")


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit status."""
    _write_any_character()
    try:
        return _run(arguments)
    except AdvisorError as error:
        reasons = error.reasons if isinstance(error, NothingAdmissible) else ()
        print("\n  ".join([f"advisor: {error}", *reasons]), file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(
            "advisor: interrupted; every finished trial is stored, and the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        _discard_output()  # the reader of a pipe has gone: nothing is wrong
        return 0
    except OSError as error:
        _discard_output()
        print(f"advisor: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("advisor: this machine has no memory left", file=sys.stderr)
        return 2


def _run(arguments: Sequence[str]) -> int:
    try:
        options = build_parser().parse_args(arguments)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return {"probe": _probe, "tune": _tune, "suggest": _suggest, "db": _db}[options.command](options)
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where it can still be told in a line why that is impossible


def _write_any_character() -> None:
    """Let a terminal that lacks a character show a question mark: that is no reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _discard_output() -> None:
    """Point stdout to nothing: what is left in its buffer can't be written, and Python would complain about that."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _workload(options: argparse.Namespace) -> Workload:
    padding = options.padding
    if padding is None and "," not in options.lengths and options.batch > 1:
        padding = DEFAULT_PADDING
    return Workload(
        parse_lengths(options.lengths, padding, options.batch, options.batches), options.batch, options.output
    )


def _objective(options: argparse.Namespace) -> Objective:
    for rule in options.ignore_rule:
        if not re.fullmatch(r"[A-Z]\d+", rule):
            raise BadInput(f"--ignore-rule takes a rule's id such as P1, not {rule!r}")
    return Objective(
        quality=Tier(options.quality),
        max_memory_bytes=None if options.max_memory is None else parse_size(options.max_memory),
        allow_unjudged=options.allow_unjudged,
        ignored_rules=tuple(sorted(set(options.ignore_rule))),
    )


def _budget(options: argparse.Namespace) -> Budget:
    if options.trials is not None and options.trials < 1:
        raise BadInput(f"--trials must be at least 1, not {options.trials}")
    seconds = DEFAULT_BUDGET if options.budget is None and options.trials is None else options.budget
    return Budget(None if seconds is None else parse_duration(seconds), options.trials)


def _check_positions(workload: Workload, config: object) -> None:
    from advisor.checkpoint import max_positions

    limit = max_positions(config) if isinstance(config, dict) else None
    if limit is not None and max(workload.lengths) > limit:
        raise BadInput(f"--lengths {max(workload.lengths)} is beyond the model's {limit} positions")


def _threads(options: argparse.Namespace) -> int:
    if options.threads < 1:
        raise BadInput(f"--threads must be at least 1, not {options.threads}")
    return int(options.threads)


def _probe(options: argparse.Namespace) -> int:
    from advisor import probe, report

    machines = probe.machines()
    chosen = probe.machine(options.device)
    availability = probe.availability(chosen.environment)
    if options.format == "json":
        print(_json(report.probe_payload(machines, chosen, availability)))
    else:
        report.console(stderr=False).print(report.probe_text(machines, chosen, availability))
    return 0


def _tune(options: argparse.Namespace) -> int:
    workload, objective, budget = _workload(options), _objective(options), _budget(options)
    timeout_s, threads = parse_duration(options.timeout, "--timeout"), _threads(options)
    from advisor import probe
    from advisor.checkpoint import find_model, refuse_unknown

    machine = probe.machine(options.device, threads)
    if machine.problem:
        raise BadInput(machine.problem, machine.remedy)
    source = find_model(options.model, allow_pickle=options.allow_pickle)
    refuse_unknown(source)
    _check_positions(workload, source.config)
    from advisor import report
    from advisor.runner import LocalRunner
    from advisor.store import Store, database_path, default_url
    from advisor.suggest import recommend
    from advisor.tune import Job, tune

    job = Job(source, workload, objective, budget, machine, options.seed, timeout_s)
    _refuse_read_only(database_path(default_url()))
    with Store.open(default_url(), write=True) as store, report.Progress(job) as progress:
        runner = LocalRunner(machine, progress.hear)
        try:
            study = tune(job, store, runner, progress.hear)
        finally:
            runner.close()
        progress.stop()
        record = store.study(study)
        recommendation = recommend(store, source, record, objective)
    _answer(options.format, recommendation, machine.user_device, to_stderr=True)
    return 0


def _refuse_read_only(path: Path | None) -> None:
    """Raise StoreError for a read-only file: SQLite in WAL mode says so only at the first row, after a worker's start."""
    if path is not None and path.exists() and not os.access(path, os.W_OK):
        raise StoreError(f"{path} can't be written: the file or its directory is read-only")


@contextmanager
def _without_collection() -> Iterator[None]:
    """Let Python look for no garbage meanwhile, nor among what is alive now when it exits: a quarter of suggest's time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@_without_collection()
def _suggest(options: argparse.Namespace) -> int:
    workload, objective, threads = _workload(options), _objective(options), _threads(options)
    from advisor import probe
    from advisor.checkpoint import find_model
    from advisor.knobs import find_choice
    from advisor.store import Store, default_url
    from advisor.suggest import suggest, why_not

    if options.why_not and find_choice(options.why_not) is None:
        raise BadInput(f"--why-not: there is no choice {options.why_not!r}", "advisor probe lists them")
    source = find_model(options.model, allow_pickle=options.allow_pickle, download=False)
    _check_positions(workload, source.config)
    machine = probe.machine(options.device, threads)
    with Store.open(default_url(), write=False) as store:
        recommendation = suggest(store, source, workload, objective, machine.environment, options.on)
        if options.why_not:
            lines = why_not(recommendation, store.trials(recommendation.study.id), options.why_not)
            as_json = options.format == "json"
            print(_json({"choice": options.why_not, "why_not": lines}) if as_json else "\n".join(lines))
            return 0
    device = "cuda" if recommendation.study.environment.is_cuda else "cpu"
    _answer(options.format, recommendation, device, to_stderr=False)
    return 0


def _answer(form: str, recommendation: object, device: str, *, to_stderr: bool) -> None:
    """Print a recommendation: JSON and Python on stdout alone, text for people."""
    from advisor import report
    from advisor.script import script_for
    from advisor.suggest import Recommendation

    assert isinstance(recommendation, Recommendation)
    if form == "json":
        print(_json(report.recommendation_payload(recommendation, device)))
    elif form == "python":
        study, facts = recommendation.study, recommendation.facts
        threads = study.environment.threads or 1
        print(
            script_for(recommendation.source, recommendation.configuration, study.workload, facts, device, threads),
            end="",
        )
    else:
        report.print_recommendation(recommendation, device, stderr=to_stderr)


def _json(payload: object) -> str:
    return json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False)


def _db(options: argparse.Namespace) -> int:
    from advisor.store import database_path, default_url, shown_url, upgrade

    if options.action == "upgrade":
        print(f"{shown_url(default_url())} is at revision {upgrade(default_url())}")
    elif options.action == "url":
        path = database_path(default_url())
        print(f"sqlite:///{path}" if path else shown_url(default_url()))
    else:
        path = database_path(default_url())
        if path is None:
            raise BadInput("this database is no file", "advisor db url shows where it is")
        print(path)
    return 0
