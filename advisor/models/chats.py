"""Chats in data: which value is one, and its turns as transformers' templates take them, ShareGPT's too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from advisor.nouns.entry import Unreadable, clean, list_in

#: What ShareGPT calls who speaks.
_SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
}


def is_chat(value: Any) -> bool:
    """Whether a value is a list of turns: objects that say who speaks, or at least hold a content."""
    turns = value if isinstance(value, list) and value else [None]
    return all(
        isinstance(turn, dict) and ({"role", "from"} & turn.keys() or turn.keys() == {"content"}) for turn in turns
    )


def turns_of(value: Any, name: str) -> list[Any]:
    """Return the turns of a chat, which a table spells as JSON in a cell; none where it is no chat. Raises Unreadable."""
    listed = list_in(value)
    if isinstance(value, list) and listed and not is_chat(listed):
        raise Unreadable(f"{name} is no chat: a turn is an object with role and content, or from and value")
    return listed if is_chat(listed) else []


def messages_of(turns: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Return turns with role and content, ShareGPT's too. Raises Unreadable where one holds more than text."""
    found = []
    for turn in turns:
        said = str(turn.get("role") or turn.get("from") or "user")
        role = said if "role" in turn else _SPEAKERS.get(said.lower(), said.lower())
        content = next((turn[key] for key in ("content", "value", "text") if key in turn), None)
        rest = {key: value for key, value in turn.items() if key not in ("from", "value", "text")}
        found.append({**rest, "role": role, "content": _content(content)})
    return tuple(found)


def _content(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, (int, float)):
        return str(value)
    parts = value if isinstance(value, list) else [value]
    return "\n".join(_part(part) for part in parts)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = str(part.get("type") or ", ".join(part)) if isinstance(part, dict) else type(part).__name__
    if isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text").endswith("text"):
        return str(part["text"])
    raise Unreadable(f"a message holds a part that is no text ({clean(kind)}), and only text is counted and run")
