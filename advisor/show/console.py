"""A console for people: nothing is sent to the terminal that would steer it but rich's own, and no blank ends a line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from advisor.terminal import PIPE_COLUMNS, printable


def console(*, stderr: bool) -> Console:
    """Return a console; on a pipe its lines have up to 160 columns, unless COLUMNS says how many."""
    return _Console(stderr=stderr, width=columns(stderr=stderr), highlight=False, soft_wrap=False)


def columns(*, stderr: bool) -> int | None:
    """Return how many columns a stream's lines may have, None where its terminal is to be asked."""
    stream = sys.stderr if stderr else sys.stdout
    known = (stream is not None and stream.isatty()) or os.environ.get("COLUMNS", "").isdigit()
    return None if known else PIPE_COLUMNS


class SafeConsole(Console):
    """A console to which nothing is sent that would steer the terminal but rich's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Spell out what a text would do to the terminal: names and reasons come from files and databases."""
        return _without_blanks(self._spelled(renderable, options))

    def _spelled(self, renderable: RenderableType, options: ConsoleOptions | None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            is_ours = segment.control is not None
            yield segment if is_ours else Segment(printable(segment.text), segment.style)


def _without_blanks(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Yield segments without the blanks that end a line: tables are filled up with them, and a diff or a paste shows them."""
    held: list[Segment] = []
    for segment in segments:
        if segment.control is not None:
            yield from (*held, segment)
            held = []
            continue
        for text in re.findall(r"\n| +|[^\n ]+", segment.text):
            if text == "\n":
                held = [each for each in held if each.control is not None]
            is_blank = text.isspace() and text != "\n"
            held.append(Segment(text, segment.style))
            if not is_blank:
                yield from held
                held = []
    yield from held


class _Console(SafeConsole):
    def on_broken_pipe(self) -> None:
        """Leave it to the command line to say what a reader that has gone means; rich would exit with status 1."""
        raise BrokenPipeError
