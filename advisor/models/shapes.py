"""Which texts a row of data holds: its keys tell. Pure: values of JSON in, texts and chats out, and what was read of which key.

A row is counted whole or refused: the shapes below are those of public instruction, chat, question and retrieval data.
Whatever is left over is named, so that a person sees what did not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advisor.errors import named
from advisor.models.chats import is_chat, messages_of, turns_of
from advisor.nouns.entry import Chat, Entry, Sent, Text, Unreadable, clean, list_in, names
from advisor.nouns.near import meant

#: Where a chat's turns stand.
CHATS = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns")

#: The parts of a request and of its answer, in the order in which they are sent.
REQUESTS = ("system_prompt", "system", "instruction", "context", "prompt", "question", "query", "problem", "input")
ANSWERS = ("output", "response", "completion", "answer", "solution", "target")

#: Where a text stands alone, the first that is there counts. `text` comes before all parts: it is what they make together.
TEXTS = ("content", "document", "passage", "sentence", "article", "body", "abstract", "review")

#: What is looked for, and where it is looked for: retrieval and sentence pairs.
QUERIES = ("query", "anchor", "question", "question1", "sentence1", "premise", "sentence_a", "text1")
PASSAGES = (
    "passage",
    "passages",
    "document",
    "documents",
    "positive",
    "positives",
    "pos",
    "negative",
    "negatives",
    "neg",
    "question2",
    "sentence2",
    "hypothesis",
    "sentence_b",
    "text2",
)

#: Keys of data that was made into tokens already.
TOKENS = ("input_ids", "token_ids")


@dataclass(frozen=True)
class Found:
    """What a row gives: its entries (none: it has no text), in words what was read, and the keys that were not."""

    entries: tuple[Entry, ...]
    read: str
    unread: tuple[str, ...] = ()


def rows_of(value: Any) -> list[Any]:
    """Return the rows of a value of JSON: those of an array, a chat or anything else as the one that it is."""
    return [value] if not isinstance(value, list) or is_chat(value) else value


def found_in(value: Any, column: str, sent: Sent) -> Found:
    """Return the texts of a row. column: the one that was named, or ""; sent: how texts that belong together are sent.

    Raises Unreadable.
    """
    if column:
        if not isinstance(value, dict) or column not in value:
            among = f" among {names(value)}" if isinstance(value, dict) else ""
            near = meant(column, value, most=1) if isinstance(value, dict) else ""
            raise Unreadable(f"there is no column {column!r}{among}{f' ({clean(near)})' if near else ''}")
        return _of_column(value, column, sent)
    if value is None:
        return Found((), "null")
    if isinstance(value, str):
        return Found((Text(value),), "a string")
    if isinstance(value, list) and is_chat(value):
        return Found((Chat(messages_of(value)),), "messages")
    if not isinstance(value, dict):
        raise Unreadable(
            "neither a string nor an object with text, prompt, instruction, question, messages or their like"
        )
    return _of_object(value, sent)


def _of_column(row: Mapping[str, Any], column: str, sent: Sent) -> Found:
    value, unread = row[column], tuple(sorted(key for key in row if key != column))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) or value is None:
        return Found(() if value is None else (Text(value),), column, unread)
    if isinstance(value, list) and not is_chat(value):
        raise Unreadable(f"{column} holds a list that is no chat")
    found = found_in(value, "", sent)
    return Found(found.entries, column if isinstance(value, list) else f"{column}.{found.read}", unread)


def _of_object(row: Mapping[str, Any], sent: Sent) -> Found:
    """Return the texts of an object by its keys, in whatever case they are written. Raises Unreadable."""
    keys = {key.strip().lower().replace(" ", "_"): key for key in reversed(list(row))}
    values = {name: row[key] for name, key in keys.items()}
    for read in (_preference, _chat, _tokens, _text, _pair, _parts, _alone, _only_string):
        found = read(values, sent)
        if found is not None:
            entries, used, manner = found
            unread = tuple(sorted(key for name, key in keys.items() if name not in used and row[key] is not None))
            return Found(entries, " + ".join(clean(keys[name]) for name in used) + manner, unread)
    strings = [key for key, value in row.items() if isinstance(value, str)]
    if not strings and any(value in (None, []) for value in row.values()):
        return Found((), "null", tuple(sorted(key for key in row if row[key] is not None)))
    what = f"which of its keys is the text? {names(strings)}" if strings else f"no key of it holds a text: {names(row)}"
    raise Unreadable(f"{what} (name one as FILE:COLUMN)")


_Read = tuple[tuple[Entry, ...], tuple[str, ...], str]


def _chat(values: Mapping[str, Any], sent: Sent) -> _Read | None:
    """Read a chat, with a system text and tools that stand beside it."""
    name = next((name for name in CHATS if turns_of(values.get(name), name)), None)
    used: tuple[str, ...]
    if name is not None:
        turns, used = messages_of(list_in(values[name])), (name,)
    elif name := next((name for name in ("prompt", "input") if is_chat(values.get(name))), None):
        turns, used = messages_of(values[name]), (name,)
        for more in ANSWERS:
            if is_chat(values.get(more)):
                turns, used = turns + messages_of(values[more]), (*used, more)
                break
    else:
        return None
    system = next(
        (key for key in ("system", "system_prompt") if isinstance(values.get(key), str) and values[key]), None
    )
    if system and turns[0]["role"] != "system":
        turns, used = ({"role": "system", "content": values[system]}, *turns), (system, *used)
    for key in ("tools", "functions"):
        if offered := list_in(values.get(key)):
            tools = tuple({"type": "function", "function": tool} if key == "functions" else tool for tool in offered)
            return (Chat(turns, tools),), (*used, key), ""
    return (Chat(turns),), used, ""


def _tokens(values: Mapping[str, Any], sent: Sent) -> _Read | None:
    """Refuse tokens where there is no text."""
    name = next((name for name in TOKENS if isinstance(values.get(name), list)), None)
    if name is None or any(isinstance(value, str) for value in values.values()):
        return None
    raise Unreadable(f"{name} holds token ids, not text: give their numbers to {named('lengths')}")


def _preference(values: Mapping[str, Any], sent: Sent) -> _Read | None:
    """Refuse two answers to one request: which is sent is not known."""
    if (
        values.get("chosen") is None
        or values.get("rejected") is None
        or any(list_in(values.get(name)) for name in CHATS)
    ):
        return None
    raise Unreadable("chosen and rejected are two answers to one request (name one as FILE:chosen)")


def _text(values: Mapping[str, Any], sent: Sent) -> _Read | None:
    """Read `text`, or an object or a chat that stands in its place."""
    return _read_alone(values, "text", sent) if "text" in values else None


def _pair(values: Mapping[str, Any], sent: Sent) -> _Read | None:
    """Read a query and what belongs to it: apart for an embedding, together for a score."""
    query = next((name for name in QUERIES if isinstance(values.get(name), str)), None)
    passages = [name for name in PASSAGES if _strings(values.get(name))]
    if query is None or all(name.startswith("neg") for name in passages):
        return None
    used, texts = (query, *passages), [text for name in passages for text in _strings(values[name])]
    if sent is Sent.APART:
        own = (Text(values[query], part="query"), *(Text(text, part="document") for text in texts))
        return own, used, ", each on its own"
    if sent is Sent.PAIRED:
        return tuple(Text(values[query], pair=text) for text in texts), used, " in pairs"
    raise Unreadable(
        f"{', '.join(used)}: how a model is given them for this work is not known (name one as FILE:{query})"
    )


def _parts(values: Mapping[str, Any], sent: Sent) -> _Read | None:
    """Read the parts of a request and of its answer, joined: a completion as it is, others a line each."""
    used = tuple(name for name in (*REQUESTS, *ANSWERS) if name in values and _is_part(values[name]))
    texts = [(name, str(values[name])) for name in used if values[name] not in (None, "")]
    if not used or not (texts or any(values[name] == "" for name in used)):
        return None
    if set(used) <= {"system", "system_prompt", "context"} and _others(values, used):
        return None  # what they go with stands under a name that is not known
    joined = "".join(
        ("" if not number or name == "completion" else "\n") + text for number, (name, text) in enumerate(texts)
    )
    return (Text(joined),), used, " joined" if len(used) > 1 else ""


def _alone(values: Mapping[str, Any], sent: Sent) -> _Read | None:
    """Read a text under a name that is known for one."""
    name = next((name for name in TEXTS if values.get(name) is not None), None)
    return None if name is None else _read_alone(values, name, sent)


def _only_string(values: Mapping[str, Any], sent: Sent) -> _Read | None:
    """Read the only string there is."""
    names = [name for name, value in values.items() if isinstance(value, str)]
    return ((Text(values[names[0]]),), (names[0],), "") if len(names) == 1 else None


def _read_alone(values: Mapping[str, Any], name: str, sent: Sent) -> _Read | None:
    value = values[name]
    if value is None:
        return None if any(isinstance(other, (str, list, dict)) for other in values.values()) else ((), (name,), "")
    if isinstance(value, str):
        return (Text(value),), (name,), ""
    if isinstance(value, dict) or is_chat(value):
        return found_in(value, "", sent).entries, (name,), ""
    kind = "a number" if isinstance(value, (int, float)) else "a list"
    raise Unreadable(f"{name} is {kind}, not a text")


def _is_part(value: Any) -> bool:
    return value is None or (isinstance(value, (str, int, float)) and not isinstance(value, bool))


def _strings(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    return texts if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts) else []


def _others(values: Mapping[str, Any], used: Sequence[str]) -> bool:
    return any(isinstance(value, str) for name, value in values.items() if name not in used)
