"""Entry: a text, a pair or a chat that is sent to a model, and how those of one row belong together."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Sent(StrEnum):
    """How a model is sent the texts of a row that belong together, a query and its documents.

    APART: each on its own, as sentence-transformers sends what it embeds; PAIRED: two by two, for a score; PLAIN: not known.
    """

    APART = "apart"
    PAIRED = "paired"
    PLAIN = "plain"


class Unreadable(ValueError):
    """A row that can't be counted whole: its text says why, in words that follow "line N: "."""


@dataclass(frozen=True)
class Text:
    """One text. pair: the second of two that are sent together; part: "query" or "document" where the row tells."""

    text: str
    pair: str | None = None
    part: str = ""


@dataclass(frozen=True)
class Texts:
    """Where somebody's own texts are, and how to know them again: what a worker reads them by. No text is in it; never stored.

    path, kind, column: of the file, see `advisor.models.texts.Source`. rows: by text, the place of its
    row (`advisor.models.texts.Index.places`), and its number there; lengths: in tokens; longest: what texts were cut to.
    digest: of the rows; words: what they are, for people.
    """

    path: str
    kind: str
    column: str
    rows: tuple[tuple[int, int, int], ...]
    lengths: tuple[int, ...]
    longest: int | None
    digest: str = ""
    words: str = ""


@dataclass(frozen=True)
class Chat:
    """Turns, as transformers' chat templates take them, and the tools that are offered in it."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Any, ...] = ()

    @property
    def joined(self) -> str:
        """The contents alone, a line each: what is counted for a model without a template. What a tool is called with counts."""
        lines = [json.dumps(tool, ensure_ascii=False) for tool in self.tools]
        for message in self.messages:
            if message["content"] is not None:
                lines.append(message["content"])
            lines += [json.dumps(call, ensure_ascii=False) for call in list_in(message.get("tool_calls"))]
        return "\n".join(lines)


Entry = Text | Chat


def list_in(value: Any) -> list[Any]:
    """Return a list, which a table spells as JSON in a cell; none where it is no list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return value if isinstance(value, list) else []


def names(keys: Collection[str]) -> str:
    """Return keys as they may be printed, eight of them at most."""
    return ", ".join(clean(key) for key in list(keys)[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")


def clean(name: str, most: int = 40) -> str:
    """Return a name as it may be printed: somebody else's file spells it."""
    return "".join(c if c.isprintable() else "?" for c in str(name)[:most])
