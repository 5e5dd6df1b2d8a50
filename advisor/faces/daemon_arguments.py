"""The parsers of the daemon's commands: serve, worker, submit, jobs, cancel. Prints nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from advisor.asking.options import ALLOW_PICKLE, EFFORT, ON, THREADS
from advisor.errors import BadInput, named
from advisor.nouns.option import Option, switch, whole_word
from advisor.nouns.reading import read_count, read_duration, read_size, read_text, read_texts, read_whole
from advisor.workloads import Kind

#: Where a daemon is asked instead of the database.
SERVER = Option(
    "server",
    "ask the daemon at this URL, with the token in ADVISOR_TOKEN (default: the database itself)",
    read_text,
    metavar="URL",
)

#: A century: more days than any database has.
_MOST_DAYS = 36_525

#: Which devices a host brings, and when they may be used.
_WORKING = (
    Option(
        "only",
        "use the devices in these hours of this host's local time alone, such as 22:00-07:00",
        read_text,
        metavar="HOURS",
    ),
    switch("assume_idle", "take a GPU for idle where nobody can see who else uses it, as in a container"),
    switch("no_recheck", "don't measure again in idle time what was measured before a driver or a package changed"),
    Option(
        "max_download",
        "refuse models of which more is to be downloaded (default: as much as the disk has room for)",
        read_size,
        metavar="SIZE",
    ),
    replace(ALLOW_PICKLE, help="load pickle checkpoints, which can run code: of every job"),
)

#: More processes than these answer on no host.
_MOST_PROCESSES = 64


def _read_processes(value: Any, name: str) -> int:
    number = read_whole(value, name)
    if not 0 <= number <= _MOST_PROCESSES:
        raise BadInput(f"{named(name)} takes a number from 0 to {_MOST_PROCESSES}, not {number}")
    return number


#: How an address is listened at, and what requests may do.
_SERVING = (
    Option(
        "host", "the address to listen at (default: %(default)s)", read_text, default="127.0.0.1", metavar="ADDRESS"
    ),
    Option("port", "the port to listen at, 0 for any (default: %(default)s)", read_text, default="8420", metavar="N"),
    Option(
        "allowed_host",
        "a name beside localhost and that address by which requests may call the daemon; may be given again",
        read_texts,
        default=(),
        metavar="NAME",
        repeats=True,
    ),
    Option("model_root", "let requests name models of this host, in this folder", read_text, metavar="FOLDER"),
    Option(
        "max_budget",
        "time that a requested job may spend (default: %(default)s)",
        read_duration,
        default="1h",
        metavar="TIME",
    ),
    Option(
        "answer_processes",
        "processes beside the daemon that answer questions, at most, 0 for none (default: one for four cores, four at most)",
        _read_processes,
        metavar="N",
        word=whole_word,
    ),
    Option(
        "max_waiting",
        "jobs that may wait before others are refused (default: %(default)s)",
        read_count,
        default=10_000,
        metavar="N",
        word=whole_word,
    ),
)


def _read_days(value: object, name: str) -> int:
    """Return days, 0 for ever. Raises BadInput."""
    days = read_whole(value, name)
    if not 0 <= days <= _MOST_DAYS:
        raise BadInput(f"{named(name)} takes days from 0, for ever, to {_MOST_DAYS}, not {days}")
    return days


#: What is stored, and what is removed again.
_KEEPING = (
    Option(
        "keep_jobs",
        "days that a job which is over stays in the list, 0 for ever; what it measured stays anyway (default: %(default)s)",
        _read_days,
        default=30,
        metavar="DAYS",
        word=whole_word,
    ),
)

WORKER_OPTIONS, SERVE_OPTIONS = _WORKING, (*_SERVING, *_KEEPING, *_WORKING)

Add = Callable[[argparse._ActionsContainer, Iterable[Option]], None]


#: Whom the limits are for.
_WHOSE = """--max-budget, --max-waiting and --model-root bound what comes over HTTP. Who runs
a plain advisor submit has the database in hand, and is bound by none of them."""


def serve(parser: argparse.ArgumentParser, add: Add) -> None:
    """Add the flags of `advisor serve`."""
    parser.epilog = f"{_WHOSE}\n\n{parser.epilog}"
    add(parser, (*_SERVING, *_KEEPING))
    _add_workers(parser, "auto", "cpu", "none")
    add(parser, _WORKING)


def worker(parser: argparse.ArgumentParser, add: Add) -> None:
    """Add the flags of `advisor worker`."""
    _add_workers(parser, "auto", "cpu")
    add(parser, _WORKING)


def submit(parser: argparse.ArgumentParser, add: Add, kind: Kind, question: Callable[..., None]) -> None:
    """Add the flags of `advisor submit`: those of a tune that any host can answer. question: adds the model and the work."""
    parser.usage = "advisor submit MODEL [flags]"
    question(parser, kind)
    add(parser.add_argument_group("how much may be spent"), EFFORT)
    group = parser.add_argument_group("where, and when")
    add(
        group,
        (
            replace(
                ON, help="a device's name or a part of it, or an environment's key (default: a GPU, if there is one)"
            ),
        ),
    )
    group.add_argument("--priority", type=int, default=0, metavar="N", help="a higher one is tuned first (default: 0)")
    add(group, (THREADS, SERVER))
    _add_format(parser)


def _count(text: str) -> int:
    """Read how many. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text!r}")
    return int(text)


def jobs(parser: argparse.ArgumentParser, add: Add) -> None:
    """Add the flags of `advisor jobs`."""
    parser.add_argument("job", metavar="JOB", nargs="?", help="one job, by its id or a beginning of it (default: all)")
    states = ("queued", "running", "done", "failed", "cancelled")
    parser.add_argument("--state", choices=states, help="jobs of this state alone")
    parser.add_argument("--limit", type=_count, default=50, metavar="N", help="the newest N jobs (default: 50)")
    parser.add_argument("--watch", action="store_true", help="tell what changes, until no job waits or runs")
    add(parser, (SERVER,))
    _add_format(parser)


def cancel(parser: argparse.ArgumentParser, add: Add) -> None:
    """Add the flags of `advisor cancel`."""
    parser.add_argument("job", metavar="JOB", help="its id, or a beginning of it")
    add(parser, (SERVER,))
    _add_format(parser)


def _add_workers(parser: argparse.ArgumentParser, *words: str) -> None:
    parser.add_argument(
        "--workers",
        choices=words,
        default=words[0],
        help="auto: a slot for each GPU that this process may use, or one for the CPU where there is none; "
        f"cpu: that one{'; none: no slot, only answers' if 'none' in words else ''} (default: %(default)s)",
    )


def _add_format(parser: argparse.ArgumentParser, forms: Sequence[str] = ("text", "json")) -> None:
    parser.add_argument(
        "--format", choices=forms, default=forms[0], help="as what it is printed (default: %(default)s)"
    )
