"""The command line's parsers: the commands and their flags, out of the options that are declared. Prints nothing."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from advisor.asking.options import ALLOW_PICKLE, CASE_EFFORT, DEVICE, EFFORT, ON, PLACE, TIMEOUT, objective_options
from advisor.asking.question import know_plugins
from advisor.faces import daemon_arguments
from advisor.faces.examples import epilog
from advisor.faces.parser import Parser
from advisor.nouns.agreement import LEAST_PROCESSES, MOST_PROCESSES, USUAL_PROCESSES
from advisor.nouns.option import Option
from advisor.nouns.reading import read_switch, shown
from advisor.show.formats import FORMATS, NAMES
from advisor.version import __version__, commit
from advisor.workloads import DEFAULT_KIND, Kind, kind_named, names


class _Version(argparse._VersionAction):
    """Prints the version and the commit, and ends; a checkout is asked for its commit only then."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        """Print it."""
        made_of = commit()
        self.version = f"advisor {__version__}{f' ({made_of})' if made_of else ''}"
        super().__call__(parser, *given)


def kind_in(words: Sequence[str]) -> Kind:
    """Return the kind of work that a command line names with --workload, the default kind where it names none that there is.

    Looked for before anything is parsed: the kind says which flags there are.
    """
    know_plugins()
    flag = "--workload"
    for place, word in enumerate(words):
        given, sign, value = word.partition("=")
        if word == "--":
            break
        if len(given) > 2 and flag.startswith(given):
            name = value if sign else "".join(words[place + 1 : place + 2])
            return kind_named(name) if name in names() else DEFAULT_KIND
    return DEFAULT_KIND


def build_parser(kind: Kind = DEFAULT_KIND) -> argparse.ArgumentParser:
    """Return the parser of the whole command line, with the flags of one kind of work."""
    know_plugins()
    parser = Parser(
        prog="advisor",
        description="The fastest way to run a transformers model on your GPU that is still right,\nwith the proof.",
        epilog=epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, help="the version, and the commit that it was made of")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, words, add in _COMMANDS:
        raw = argparse.RawDescriptionHelpFormatter
        sentence = f"{words[:1].upper()}{words[1:]}."
        made = commands.add_parser(
            name, help=words, description=sentence, epilog=epilog(name, kind.commands), formatter_class=raw
        )
        add(made, kind)
        made.of_kind = f" --workload {kind.name}" if kind is not DEFAULT_KIND and made.takes_kind else ""
    return parser


def _probe(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument(
        "--ceilings",
        action="store_true",
        help="measure what the device reaches at best in matrix products and copies, and store it",
    )
    _add(parser, PLACE)
    _add_format(parser, "text", "json", "csv")


def _tune(parser: argparse.ArgumentParser, kind: Kind) -> None:
    parser.usage = "advisor tune MODEL [flags]"
    _add_question(parser, kind)
    _add(parser.add_argument_group("how much may be spent"), EFFORT)
    where = parser.add_argument_group("where")
    _add(where, PLACE)
    shown = _add_shown(parser)
    shown.add_argument("--dry-run", action="store_true", help="say what would be tried and how long it would take")
    _add_format(shown, *NAMES)


def _suggest(parser: argparse.ArgumentParser, kind: Kind) -> None:
    parser.usage = "advisor suggest MODEL [flags]"
    _add_question(parser, kind)
    _add(parser.add_argument_group("where it was measured"), (ON, *PLACE, daemon_arguments.SERVER))
    shown = _add_shown(parser)
    shown.add_argument(
        "--why-not",
        metavar="CHOICE[,CHOICE…]",
        help="say why a choice (nf4), what has several (nf4,packed) or a whole configuration, as it is printed, "
        "is not recommended",
    )
    _add_format(shown, *NAMES, "csv")


def _limit(text: str) -> int:
    """Read --limit. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"a whole number from 0 on, not {text!r}")
    return int(text)


def _study(text: str) -> int:
    """Read --study. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"a study's number, as advisor trials lists them, not {shown(text)}")
    return int(text)


def _processes(text: str) -> int:
    """Read --processes. Raises ArgumentTypeError."""
    if not re.fullmatch("[0-9]{1,2}", text) or int(text) < LEAST_PROCESSES:
        raise argparse.ArgumentTypeError(
            f"a whole number from {LEAST_PROCESSES} to {MOST_PROCESSES}, not {shown(text)}"
        )
    return int(text)


def _trials(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="this model and others of its shapes (default: all)")
    parser.add_argument("--study", type=_study, metavar="N", help="one study alone")
    parser.add_argument("--failed", action="store_true", help="what came to nothing alone")
    parser.add_argument(
        "--limit", type=_limit, default=50, metavar="N", help="the newest N trials (default: 50), 0 for all"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="MODEL may have a pickle checkpoint")
    _add_format(parser, "text", "json", "csv")


def _show(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument("trial", metavar="ID", help="STUDY.NUMBER, as advisor trials lists them, or STUDY and a LABEL")
    parser.add_argument(
        "label", metavar="LABEL", nargs="?", help="a configuration as it is printed: its trial of the search"
    )
    _add_format(parser, "text", "json")


def _report(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument(
        "study",
        metavar="STUDY",
        type=_study,
        nargs="?",
        help="its number, as advisor trials lists them (default: the newest)",
    )
    parser.add_argument("--compare", metavar=("A", "B"), type=_study, nargs=2, help="two studies beside each other")
    parser.add_argument("--allow-pickle", action="store_true", help="the model may have a pickle checkpoint")
    _add_page(parser)


def _map(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument("model", metavar="MODEL", help="this model and others of its shapes")
    parser.add_argument("--allow-pickle", action="store_true", help="MODEL may have a pickle checkpoint")
    _add(parser, (replace(ON, help="an environment's key or part of a device's name (default: the newest study's)"),))
    _add_page(parser)


def _reproduce(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument("trial", metavar="ID", help="STUDY.NUMBER, as advisor trials lists them")
    parser.add_argument("--model", metavar="MODEL", help="where the model is now (default: where it was)")
    parser.add_argument("--anyway", action="store_true", help="although the environment or the weights differ")
    parser.add_argument(
        "--processes",
        type=_processes,
        metavar="N",
        help=f"run at most N fresh processes, {LEAST_PROCESSES} at least; it stops as soon as it is clear "
        f"(default: {USUAL_PROCESSES})",
    )
    device = replace(DEVICE, help="cuda:0, cuda:1, … or cpu (default: a GPU where it ran on one)")
    _add(parser, (replace(TIMEOUT, help="deadline of each process (default: %(default)s)"), ALLOW_PICKLE, device))
    _add_format(parser, "text", "json", "python")


def _reproduce_seed(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument(
        "--model", metavar="MODEL", help="a hub id, a directory or a config.json (default: Falcon-7B's shape)"
    )
    parser.add_argument(
        "--case",
        metavar="LENGTH:PADDING:BATCH",
        action="append",
        default=[],
        help="measure this instead of the advice's three cases; repeat it",
    )
    _add(parser, CASE_EFFORT)
    parser.add_argument("--svg", metavar="FILE", help="draw the figures into this file")
    _add(parser, (ALLOW_PICKLE, *PLACE))
    _add_format(parser, "text", "json")


def _export(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument(
        "--study", type=_study, metavar="N", action="append", help="one study; repeat it (default: all)"
    )


def _import(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument("file", metavar="FILE", help="what advisor export wrote; - reads from stdin")


def _completion(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def _db(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument("action", choices=("upgrade", "url", "path"))


def _serve(parser: argparse.ArgumentParser, _: Kind) -> None:
    daemon_arguments.serve(parser, _add)


def _worker(parser: argparse.ArgumentParser, _: Kind) -> None:
    daemon_arguments.worker(parser, _add)


def _submit(parser: argparse.ArgumentParser, kind: Kind) -> None:
    daemon_arguments.submit(parser, _add, kind, _add_question)


def _jobs(parser: argparse.ArgumentParser, _: Kind) -> None:
    daemon_arguments.jobs(parser, _add)


def _cancel(parser: argparse.ArgumentParser, _: Kind) -> None:
    daemon_arguments.cancel(parser, _add)


_COMMANDS: Sequence[tuple[str, str, Callable[[argparse.ArgumentParser, Kind], None]]] = (
    ("probe", "what this machine can do, what it cannot, why, and how to get it", _probe),
    ("tune", "measure configurations of a model and find the fastest that is right", _tune),
    ("suggest", "answer from what was measured; needs no GPU", _suggest),
    ("trials", "list what was measured", _trials),
    ("show", "all that is known of one trial", _show),
    ("report", "write a page about a study for browsers: charts, code, and all that was tried", _report),
    ("map", "write a page on which choice wins over length and padding, of what was measured", _map),
    ("reproduce", "run a stored trial again and compare", _reproduce),
    (
        "reproduce-seed",
        "measure the advice that advisor grew from on this GPU, and say what it is worth",
        _reproduce_seed,
    ),
    ("serve", "answer over HTTP, and tune what is submitted on this host's devices", _serve),
    ("worker", "tune what is submitted to a daemon's database on this host's devices", _worker),
    ("submit", "have a model tuned by a daemon, and go on", _submit),
    ("jobs", "list what was submitted, or watch it", _jobs),
    ("cancel", "cancel a job that waits or runs", _cancel),
    ("export", "write studies to stdout, for another database", _export),
    ("import", "add studies that another database exported", _import),
    ("db", "the database: upgrade it, show its URL or its path", _db),
    ("completion", "write what completes this command line in a shell", _completion),
)


def _add_shown(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add what may be shown beside an answer, and return the group of that."""
    group = parser.add_argument_group("what is printed")
    group.add_argument("--refusals", action="store_true", help="show what was refused or failed, and why")
    group.add_argument(
        "--pareto", action="store_true", help="show what no other beats in speed, memory and quality at once"
    )
    return group


def _add_format(parser: argparse._ActionsContainer, *forms: str) -> None:
    pasted = "".join(f"; {name}: {FORMATS[name].summary}" for name in forms if name in FORMATS)
    words = f"as what it is printed{pasted} (default: %(default)s)"
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--format", choices=forms, default=forms[0], help=words)
    if "csv" in forms:
        one.add_argument("--csv", dest="format", action="store_const", const="csv", help="the same as --format csv")


def _add_page(parser: argparse.ArgumentParser) -> None:
    words = "where to write the page; - for stdout (default: advisor-….html in this folder)"
    parser.add_argument("-o", dest="file", metavar="FILE", help=words)


def _add_question(parser: argparse.ArgumentParser, kind: Kind) -> None:
    """Add the model, the flags of a kind of work, and those that say what is wanted of it."""
    parser.add_argument(
        "model", metavar="MODEL", help="a hub id, a directory, or a config.json (weights drawn at random)"
    )
    work = parser.add_argument_group("the work")
    work.add_argument(
        "--workload",
        choices=names(),
        default=kind.name,
        help=f"the kind of work, here {kind.name}: {kind.summary}. Each has flags of its own, which "
        f"--workload NAME --help lists (default: {DEFAULT_KIND.name})",
    )
    _add(work, kind.options)
    _add(parser.add_argument_group("what is wanted"), objective_options(kind))


def _add(parser: argparse._ActionsContainer, options: Iterable[Option]) -> None:
    """Add options as flags: what their values mean is not looked at here, but for words that can't be numbers."""
    for option in options:
        if option.read is read_switch:
            parser.add_argument(option.flag, action="store_true", help=option.help)
        elif option.repeats:
            parser.add_argument(option.flag, metavar=option.metavar, action="append", default=[], help=option.help)
        else:
            parser.add_argument(
                option.flag,
                type=option.word,
                choices=option.choices or None,
                default=option.default,
                metavar=option.metavar,
                help=option.help,
            )
