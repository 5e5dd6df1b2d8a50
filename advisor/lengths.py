"""How long somebody's own texts are in a model's tokens: what `--lengths-from FILE` reads.

Lengths alone leave this module: no text is kept, printed or stored. The model's own tokenizer counts, with the special
tokens it adds; the library `tokenizers` is enough where there is a tokenizer.json, so that `suggest` needs no transformers.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from advisor.errors import BadInput
from advisor.model import ModelSource

#: Where the text of a line of JSON may stand, the first that is there counts.
ENTRIES = ("text", "prompt", "content", "input", "messages")

#: Texts that are tokenized at once.
_AT_ONCE = 1000

_HINT = "a .txt file has one text a line, a .jsonl file one JSON value a line, a table is FILE.csv:COLUMN"


@dataclass(frozen=True)
class Lengths:
    """The tokens of every text, in the file's order. cut: how many were longer; longest: what they were cut to.

    empty: how many texts have no token at all and are left out.
    """

    lengths: tuple[int, ...]
    longest: int | None
    cut: int
    empty: int

    @property
    def notes(self) -> list[str]:
        """What a person must know of them, a line each."""
        notes, count = [], len(self.lengths)
        if self.cut:
            notes.append(
                f"{self.cut} of {count} texts are longer than the model's {self.longest} positions and were cut"
            )
        if self.empty:
            notes.append(f"{self.empty} texts without a token are left out")
        return notes


def lengths_from(file: str, source: ModelSource, longest: int | None, most: int | None = None) -> Lengths:
    """Return the lengths of the texts in a file, `most` of them at most. longest: what the model has positions for.

    Raises BadInput with the line's number where a line can't be read.
    """
    texts, count, empty, cut = texts_of(file), _counter(source), 0, 0
    found: list[int] = []
    while (most is None or len(found) < most) and (part := list(islice(texts, _AT_ONCE))):
        counted = count(part)
        kept = [n for n in counted if n > 0][: None if most is None else most - len(found)]
        empty += sum(n == 0 for n in counted)
        if longest is not None:
            cut += sum(n > longest for n in kept)
            kept = [min(n, longest) for n in kept]
        found += kept
    if not found:
        raise BadInput(f"{file} has no text", _HINT)
    return Lengths(tuple(found), longest, cut, empty)


def texts_of(file: str) -> Iterator[str]:
    """Yield the texts of a .txt, .jsonl or .csv file in its order. Raises BadInput where that can't be done."""
    path, _, column = file.rpartition(":") if file.rpartition(":")[0].endswith(".csv") else (file, "", "")
    kind = Path(path).suffix.lower()
    if kind not in (".txt", ".jsonl", ".csv"):
        raise BadInput(f"--lengths-from can't read {file!r}", _HINT)
    if kind == ".csv":
        return _of_table(path, column)
    return _of_lines(path) if kind == ".txt" else _of_json(path)


def _of_lines(path: str) -> Iterator[str]:
    return (text for _, line in _lines(path) if (text := line.rstrip("\r\n")))


def _of_json(path: str) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise BadInput(f"{path}, line {number}: this is no JSON") from None
        text = _text_of(value)
        if text is None:
            raise BadInput(f"{path}, line {number}: neither a string nor an object with {', '.join(ENTRIES)}")
        yield text


def _text_of(value: Any) -> str | None:
    """Return the text of a value of JSON: a string, an entry of an object, or a chat's messages joined; None without one."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        name = next((name for name in ENTRIES if name in value), None)
        return None if name is None else _text_of(value[name])
    if isinstance(value, list) and value:
        parts = [_text_of(part) if isinstance(part, dict) else None for part in value]
        return None if None in parts else "\n".join(part for part in parts if part is not None)
    return None


def _of_table(path: str, column: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # texts can be longer than the 128 KiB that Python allows a field
    rows = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        header = next(rows, [])
        if column not in header:
            has = f"its columns: {', '.join(header)}" if header else "it is empty"
            raise BadInput(
                f"{path} has no column {column!r}" if column else f"--lengths-from {path}:COLUMN is wanted", has
            )
        place = header.index(column)
        for row in rows:
            if not row:
                continue
            if len(row) <= place:
                raise BadInput(f"{path}, line {rows.line_num}: there is no column {column!r}")
            yield row[place]
    except csv.Error as error:
        raise BadInput(f"{path}, line {rows.line_num}: {error}") from None


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their numbers, as UTF-8 with or without a byte-order mark."""
    try:
        with Path(path).expanduser().open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise BadInput(f"{path}, line {number}: this is no UTF-8 text") from None
    except OSError as error:
        raise BadInput(f"--lengths-from {path}: {error.strerror}") from None


def _counter(source: ModelSource) -> Callable[[list[str]], list[int]]:
    """Return what counts the tokens of texts, special ones included. Raises BadInput where the model has no tokenizer."""
    if not source.has_tokenizer:
        raise BadInput(
            f"{source.name} has no tokenizer, so texts can't be counted in its tokens", "give --lengths instead"
        )
    path = Path(source.path)
    try:
        return _fast(path / "tokenizer.json") if (path / "tokenizer.json").is_file() else _slow(path)
    except Exception as error:  # noqa: BLE001 - the library raises Exception itself, transformers whatever it meets
        said = " ".join(str(error).split())[:200]
        raise BadInput(f"the tokenizer of {source.name} can't be used: {said}", "download it again") from None


def _fast(file: Path) -> Callable[[list[str]], list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()  # some files ask for it, down to 128 tokens, and for padding to as many
    tokenizer.no_padding()
    return lambda texts: [len(found.ids) for found in tokenizer.encode_batch([_whole(text) for text in texts])]


def _slow(path: Path) -> Callable[[list[str]], list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    tokenizer.model_max_length = 10**30  # else it warns of long texts; they are cut and told here
    return lambda texts: [len(ids) for ids in tokenizer([_whole(text) for text in texts])["input_ids"]]


def _whole(text: str) -> str:
    """Return the text without half characters, which JSON can spell and tokenizers refuse."""
    return text.encode("utf-8", "replace").decode()
