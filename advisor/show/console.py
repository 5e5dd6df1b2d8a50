"""A console for people: nothing is sent to the terminal that would steer it but rich's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from advisor.terminal import printable


def console(*, stderr: bool) -> Console:
    """Return a console; on a pipe its lines have up to 160 columns, unless COLUMNS says how many."""
    stream = sys.stderr if stderr else sys.stdout
    known = (stream is not None and stream.isatty()) or os.environ.get("COLUMNS", "").isdigit()
    return _Console(stderr=stderr, width=None if known else 160, highlight=False, soft_wrap=False)


class SafeConsole(Console):
    """A console to which nothing is sent that would steer the terminal but rich's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Spell out what a text would do to the terminal: names and reasons come from files and databases."""
        for segment in super().render(renderable, options):
            is_ours = segment.control is not None
            yield segment if is_ours else Segment(printable(segment.text), segment.style)


class _Console(SafeConsole):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line to say what a reader that has gone means; rich would exit with status 1."""
        raise BrokenPipeError
