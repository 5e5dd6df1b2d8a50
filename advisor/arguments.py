"""What can be written on the command line, and what it means: flags to lengths, objectives and budgets. Prints nothing."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from advisor import __version__
from advisor.checked import shortened
from advisor.errors import BadInput
from advisor.objective import Budget, Objective, Tier
from advisor.plugins import PLUGINS
from advisor.workloads import DEFAULT_KIND, Kind, kind_named, names

DEFAULT_BUDGET = "10m"

#: So much work is to pay for a search that nobody bounds. On made-up landscapes a quarter of it ended too early in 5 of 80.
DEFAULT_PAYBACK = "1h"

_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_LATENCIES = {"ms": 1e-3, "s": 1.0}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are exceptions of advisor's own."""

    def error(self, message: str) -> NoReturn:
        """Raise BadInput with argparse's words."""
        raise BadInput(message, f"see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is left over here, where the command is known whose help has what it takes."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def parse_size(text: str) -> int:
    """Read a size such as 24GiB or 500MB; return bytes. Raises BadInput."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _SIZES or float(match[1]) == 0:
        raise BadInput(f"--max-memory must be a size such as 24GiB, not {text!r}")
    if not match[2] and float(match[1]) < 2**20:
        raise BadInput(f"--max-memory {text.strip()} is so many bytes", f"write {text.strip()}GiB or {text.strip()}MiB")
    return int(float(match[1]) * _SIZES[match[2].upper()])


def parse_duration(text: str, flag: str = "--budget") -> float:
    """Read a duration such as 90s, 10m or 2h; return seconds. Raises BadInput, which names the flag it was given to."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise BadInput(f"{flag} must be a duration such as 90s, 10m or 2h, not {text!r}")
    return float(match[1]) * _SECONDS[match[2]]


def parse_latency(text: str) -> float:
    """Read a latency such as 80ms or 0.5s; return seconds. Raises BadInput."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip())
    if match is None or float(match[1]) == 0:
        raise BadInput(f"--max-latency must be a time such as 80ms or 0.5s, not {text!r}")
    return float(match[1]) * _LATENCIES[match[2]]


def parse_trial(text: str) -> tuple[int, int]:
    """Read a trial's id; return its study's number and its own. Raises BadInput."""
    match = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", text)
    if match is None:
        raise BadInput(f"a trial's id is STUDY.NUMBER, for example 3.7, not {text!r}", "advisor trials lists them")
    return int(match[1]), int(match[2])


# ------------------------------------------------------------------------------------------------------------- parsers


def kind_in(words: Sequence[str]) -> Kind:
    """Return the kind of work that a command line names with --workload, the default kind where it names none that there is.

    Looked for before anything is parsed: the kind says which flags there are.
    """
    _know_plugins()
    flag = "--workload"
    for place, word in enumerate(words):
        given, sign, value = word.partition("=")
        if word == "--":
            break
        if len(given) > 2 and flag.startswith(given):
            name = value if sign else "".join(words[place + 1 : place + 2])
            return kind_named(name) if name in names() else DEFAULT_KIND
    return DEFAULT_KIND


def kind_of(options: argparse.Namespace) -> Kind:
    """Return the kind of work that parsed options are of."""
    return kind_named(options.workload)


def _know_plugins() -> None:
    """Have the modules in ADVISOR_PLUGINS register their kinds of work: whoever has none of them need not wait for that."""
    if PLUGINS:
        import advisor.knobs  # noqa: F401


def build_parser(kind: Kind = DEFAULT_KIND) -> argparse.ArgumentParser:
    """Return the parser of the whole command line, with the flags of one kind of work."""
    _know_plugins()
    parser = _Parser(
        prog="advisor",
        description="The fastest way to run a transformers model on your GPU that is still right, with the proof.",
    )
    parser.add_argument("--version", action="version", version=f"advisor {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, words, add in _COMMANDS:
        add(commands.add_parser(name, help=words), kind)
    return parser


def _probe(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument(
        "--ceilings",
        action="store_true",
        help="measure what the device reaches at best in matrix products and copies, and store it",
    )
    _add_device(parser, threads=True)
    _add_format(parser, "text", "json")


def _tune(parser: argparse.ArgumentParser, kind: Kind) -> None:
    _add_workload(parser, kind)
    _add_objective(parser, kind)
    parser.add_argument("--budget", metavar="TIME", help=f"time to spend, for example 10m (default: {DEFAULT_BUDGET})")
    parser.add_argument(
        "--payback",
        metavar="TIME",
        help="how much work is to pay for the search: it ends where a second of it is expected to save less than "
        f"a second of that work (default: {DEFAULT_PAYBACK} where no budget, trials or exhaustive is given)",
    )
    parser.add_argument("--trials", type=int, metavar="N", help="configurations to try in the search")
    parser.add_argument(
        "--exhaustive",
        action="store_true",
        help="measure every admissible configuration to its end, however long it takes",
    )
    parser.add_argument(
        "--blocks",
        type=int,
        default=Budget().blocks,
        metavar="N",
        help="at most N blocks in the confirmation, at least 3; it stops as soon as the answer is clear; "
        "0 leaves it out (default: %(default)s)",
    )
    parser.add_argument("--timeout", default="10m", metavar="TIME", help="deadline of one trial (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the search's random choices (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be tried and how long it would take")
    _add_device(parser, threads=True)
    _add_format(parser, "text", "json", "python")


def _suggest(parser: argparse.ArgumentParser, kind: Kind) -> None:
    _add_workload(parser, kind)
    _add_objective(parser, kind)
    parser.add_argument(
        "--why-not",
        metavar="CHOICE[,CHOICE…]",
        help="say why a choice (nf4), what has several (nf4,packed) or a whole configuration, as it is printed, "
        "is not recommended",
    )
    parser.add_argument(
        "--pareto", action="store_true", help="show what no other beats in speed, memory and quality at once"
    )
    parser.add_argument("--on", metavar="ENVIRONMENT", help="an environment's key or part of a device's name")
    _add_device(parser, threads=True)
    _add_format(parser, "text", "json", "python")


def _limit(text: str) -> int:
    """Read --limit. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"a whole number from 0 on, not {text!r}")
    return int(text)


def _trials(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="this model and others of its shapes (default: all)")
    parser.add_argument("--study", type=int, metavar="N", help="one study alone")
    parser.add_argument("--failed", action="store_true", help="what came to nothing alone")
    parser.add_argument(
        "--limit", type=_limit, default=50, metavar="N", help="the newest N trials (default: 50), 0 for all"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="MODEL may have a pickle checkpoint")
    _add_format(parser, "text", "json")


def _show(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument("trial", metavar="ID", help="STUDY.NUMBER, as advisor trials lists them")
    _add_format(parser, "text", "json")


def _reproduce(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument("trial", metavar="ID", help="STUDY.NUMBER, as advisor trials lists them")
    parser.add_argument("--model", metavar="MODEL", help="where the model is now (default: where it was)")
    parser.add_argument("--anyway", action="store_true", help="although the environment or the weights differ")
    parser.add_argument("--timeout", default="10m", metavar="TIME", help="deadline of the run (default: %(default)s)")
    parser.add_argument("--allow-pickle", action="store_true", help="load pickle checkpoints, which can run code")
    _add_device(parser)
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
    parser.add_argument(
        "--budget", metavar="TIME", default=DEFAULT_BUDGET, help="time for a case (default: %(default)s)"
    )
    parser.add_argument("--trials", type=int, metavar="N", help="configurations to try in the search of a case")
    parser.add_argument(
        "--blocks",
        type=int,
        default=Budget().blocks,
        metavar="N",
        help="at most N blocks in the confirmation, at least 3; it stops as soon as the answer is clear "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--batches", type=int, default=2, metavar="N", help="batches in the list (default: %(default)s)"
    )
    parser.add_argument("--timeout", default="10m", metavar="TIME", help="deadline of one trial (default: %(default)s)")
    parser.add_argument("--svg", metavar="FILE", help="draw the figures into this file")
    parser.add_argument("--allow-pickle", action="store_true", help="load pickle checkpoints, which can run code")
    parser.set_defaults(exhaustive=False, payback=None)
    _add_device(parser, threads=True)
    _add_format(parser, "text", "json")


def _export(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument("--study", type=int, metavar="N", action="append", help="one study; repeat it (default: all)")


def _import(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument("file", metavar="FILE", help="what advisor export wrote; - reads from stdin")


def _db(parser: argparse.ArgumentParser, _: Kind) -> None:
    parser.add_argument("action", choices=("upgrade", "url", "path"))


_COMMANDS: Sequence[tuple[str, str, Callable[[argparse.ArgumentParser, Kind], None]]] = (
    ("probe", "what this machine can do, what it cannot, why, and how to get it", _probe),
    ("tune", "measure configurations of a model and find the fastest that is right", _tune),
    ("suggest", "answer from what was measured; needs no GPU", _suggest),
    ("trials", "list what was measured", _trials),
    ("show", "all that is known of one trial", _show),
    ("reproduce", "run a stored trial again and compare", _reproduce),
    (
        "reproduce-seed",
        "measure the advice that advisor grew from on this GPU, and say what it is worth",
        _reproduce_seed,
    ),
    ("export", "write studies to stdout, for another database", _export),
    ("import", "add studies that another database exported", _import),
    ("db", "the database: upgrade it, show its URL or its path", _db),
)


def _add_format(parser: argparse.ArgumentParser, *forms: str) -> None:
    parser.add_argument("--format", choices=forms, default=forms[0])


def _add_device(parser: argparse.ArgumentParser, *, threads: bool = False) -> None:
    default = "the first usable GPU" if threads else "a GPU where it ran on one"
    parser.add_argument("--device", metavar="DEVICE", help=f"cuda:0, cuda:1, … or cpu (default: {default})")
    if threads:
        parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: %(default)s)")


def _add_workload(parser: argparse.ArgumentParser, kind: Kind) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a hub id, a directory, or a config.json (weights drawn at random)"
    )
    parser.add_argument(
        "--workload",
        choices=names(),
        default=kind.name,
        help=f"the kind of work, here {kind.name}: {kind.summary}. Each has flags of its own, which "
        "--workload NAME --help lists (default: %(default)s)",
    )
    kind.add_flags(parser)


def _add_objective(parser: argparse.ArgumentParser, kind: Kind) -> None:
    parser.add_argument(
        "--objective",
        choices=tuple(kind.objectives),
        default=kind.aim.name,
        help="what to make the best of (default: %(default)s)",
    )
    parser.add_argument(
        "--quality",
        choices=[str(tier) for tier in Tier],
        default=str(Tier.DTYPE),
        help="the most that may be lost (default: %(default)s)",
    )
    parser.add_argument("--max-memory", metavar="SIZE", help="peak memory allowed, for example 24GiB")
    parser.add_argument("--max-latency", metavar="TIME", help="time allowed to the slowest batch, for example 80ms")
    parser.add_argument(
        "--only",
        metavar="KNOB=CHOICE[,CHOICE…]",
        action="append",
        default=[],
        help="try these choices of a knob alone, beside the default",
    )
    parser.add_argument("--fix", metavar="KNOB=CHOICE", action="append", default=[], help="the same with one choice")
    parser.add_argument(
        "--ignore-rule", metavar="ID", action="append", default=[], help="try what a rule refuses; the gate judges it"
    )
    parser.add_argument(
        "--allow-unjudged", action="store_true", help="recommend lossy choices although weights are random"
    )
    parser.add_argument("--allow-pickle", action="store_true", help="load pickle checkpoints, which can run code")


# ------------------------------------------------------------------------------------------------------- what is meant


def objective_of(options: argparse.Namespace) -> Objective:
    """Return the objective. Raises BadInput."""
    _refuse_unknown_rules(options.ignore_rule)
    kind = kind_of(options)
    if options.max_latency is not None and not any(metric.is_latency for metric in kind.metrics):
        raise BadInput(f"--max-latency: work of the kind {kind.name} has no latency to be bounded")
    return Objective(
        quality=Tier(options.quality),
        max_memory_bytes=None if options.max_memory is None else parse_size(options.max_memory),
        allow_unjudged=options.allow_unjudged,
        ignored_rules=tuple(sorted(set(options.ignore_rule))),
        metric=kind.objectives[options.objective].metric,
        max_latency_s=None if options.max_latency is None else parse_latency(options.max_latency),
        only=_only_of(options) if options.only or options.fix else (),
    )


def _refuse_unknown_rules(rules: Sequence[str]) -> None:
    """Raise BadInput for an id that no rule has: what is ignored by mistake would be refused without a word."""
    if not rules:
        return
    from advisor.knobs import rule_ids

    known = rule_ids()
    for rule in rules:
        if not re.fullmatch(r"[A-Z]\d+", rule) or (known is not None and rule not in known):
            near = get_close_matches(rule.upper(), known or [], n=3, cutoff=0.5)
            nearest = f"nearest: {', '.join(near)}; " if near else ""
            hint = f"{nearest}advisor tune MODEL --dry-run names the rules that refuse something"
            raise BadInput(f"--ignore-rule takes a rule's id such as P1, and there is no rule {shortened(rule)}", hint)


def _only_of(options: argparse.Namespace) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the knobs that --only and --fix name, with the choices that are left of each, in one order for all spellings."""
    from advisor.knobs import KNOBS

    kept: dict[str, tuple[str, ...]] = {}
    for flag, text in [*(("--only", text) for text in options.only), *(("--fix", text) for text in options.fix)]:
        knob, sign, names = text.partition("=")
        choices = tuple(sorted(set(names.split(","))))
        if not sign or not all(choices) or (flag == "--fix" and len(choices) > 1):
            form = "KNOB=CHOICE" if flag == "--fix" else "KNOB=CHOICE[,CHOICE…]"
            raise BadInput(f"{flag} takes {form}, not {text!r}")
        if knob not in KNOBS:
            raise BadInput(f"{flag}: there is no knob {knob!r}", f"there are {', '.join(KNOBS)}")
        if unknown := [name for name in choices if name not in KNOBS[knob].choices]:
            raise BadInput(f"{flag}: {knob} has no choice {unknown[0]!r}", f"it has {', '.join(KNOBS[knob].choices)}")
        if knob in kept:
            raise BadInput(f"{flag}: {knob} is named twice", f"--only {knob}=CHOICE,CHOICE names several choices")
        if knob == "batch" and options.batch is not None:
            raise BadInput(f"{flag}: batch is a knob with --batch auto alone")
        kept[knob] = choices
    return tuple(sorted(kept.items()))


def budget_of(options: argparse.Namespace) -> Budget:
    """Return the budget: ten minutes where nothing else bounds it. Raises BadInput."""
    if options.trials is not None and options.trials < 1:
        raise BadInput(f"--trials must be at least 1, not {options.trials}")
    if options.blocks < 0:
        raise BadInput(f"--blocks must be at least 0, not {options.blocks}")
    if options.exhaustive and options.trials is not None:
        raise BadInput("--exhaustive measures all there is: leave --trials out")
    if options.payback is not None and (options.trials is not None or options.exhaustive):
        raise BadInput("--payback ends a search, and --trials and --exhaustive say how far it goes: leave one out")
    is_bounded = options.trials is not None or options.exhaustive
    is_default = options.budget is None and not is_bounded
    seconds = DEFAULT_BUDGET if is_default else options.budget
    payback = DEFAULT_PAYBACK if is_default and options.payback is None else options.payback
    return Budget(
        None if seconds is None else parse_duration(seconds),
        options.trials,
        options.exhaustive,
        options.blocks,
        None if payback is None else parse_duration(payback, "--payback"),
    )


def threads_of(options: argparse.Namespace) -> int:
    """Return the CPU threads. Raises BadInput."""
    if options.threads < 1:
        raise BadInput(f"--threads must be at least 1, not {options.threads}")
    return int(options.threads)
