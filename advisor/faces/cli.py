"""The command line: parse → run the command → its exit status, or one line of how it failed.

It, `commands`, `records`, `pages` and `printing` are the only files that print; `advisor.__main__` exits.
"""

from __future__ import annotations

import io
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from advisor.errors import AdvisorError, NothingAdmissible
from advisor.faces.arguments import build_parser, kind_in
from advisor.faces.commands import COMMANDS
from advisor.terminal import in_a_line

#: Interrupts that follow one within so many seconds are the same one.
_AGAIN_S = 2.0


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
        print(in_a_line(f"advisor: interrupted{_goes_on(arguments, _stored(error))}"), file=sys.stderr)
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
        _interrupt_by_signals()
        return COMMANDS[options.command](options, began)
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where it can still be told in a line why that is impossible


def _interrupt_by_signals() -> None:
    """Have SIGTERM interrupt as Ctrl-C does, and either once in a while: who presses it again at once has not seen it end yet.

    A later one breaks off what is tidied up meanwhile. Where Ctrl-C is ignored or somebody's own, it stays so.
    """
    last = -math.inf

    def interrupt(_: int, __: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last > _AGAIN_S:
            last = time.monotonic()
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)


def _stored(error: BaseException) -> int:
    """Return how many trials an interrupted command had stored: the first interrupt carries it, where more came after it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, KeyboardInterrupt) and seen.args:
            return int(seen.args[0])
        seen = seen.__context__
    return 0


def _goes_on(arguments: Sequence[str], stored: int) -> str:
    """Return what an interrupted command leaves and what goes on with it, "" where it measures nothing."""
    if not {"tune", "reproduce-seed"} & set(arguments[:1]) or "--dry-run" in arguments:
        return ""
    command = shlex.join(["advisor", *arguments])
    given = f": {command}" if in_a_line(command) == command else ""  # what can't be printed as it is can't be pasted
    return (
        f"; this run stored {stored} trial{'' if stored == 1 else 's'}, and the same command goes on from there{given}"
    )


def _write_any_character() -> None:
    """Let a terminal that lacks a character show a question mark: that is no reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _discard_output() -> None:
    """Point stdout to nothing: what is left in its buffer can't be written, and Python would complain about that."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
