"""Files of texts: where each row begins, and what the rows that were chosen hold. Nothing is kept but places and sizes.

A file is looked through once, with a few bytes of memory a row; the rows that are wanted are then read at their places. A
JSON document alone is read whole.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from advisor.errors import BadInput, named
from advisor.models.shapes import CHATS, Found, found_in, rows_of
from advisor.nouns.entry import Sent, Unreadable, names

#: How a name ends, and what the file is.
KINDS = {".txt": "lines", ".jsonl": "rows", ".ndjson": "rows", ".json": "document", ".csv": "table", ".tsv": "table"}

HINT = (
    "a .txt file has one text a line, a .jsonl file one JSON value a line, a .json file an array of them, a .csv or .tsv "
    "file a header; FILE:COLUMN names a column or a key"
)

#: Compressed files, which are not read.
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".lz4", ".7z")

#: A document, or a line, is read whole into memory: at most so many bytes.
MOST_BYTES = 2**30

#: Where a row begins: a byte of the file, or its number in a document; and which row of a line that holds an array.
Place = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """A file that was named: its path, what it is, and the column or key whose text is wanted ("": the keys tell)."""

    path: str
    kind: str
    column: str = ""

    @property
    def separator(self) -> str:
        """What separates the cells of a table."""
        return "\t" if self.path.lower().endswith(".tsv") else ","


@dataclass(frozen=True)
class Index:
    """The rows of a file, in its order: where each begins and how large it is, in bytes or characters."""

    starts: array[int]
    parts: array[int]
    sizes: array[int]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.starts)

    def places(self, numbers: Iterable[int]) -> list[Place]:
        """Return the places of these rows."""
        return [(self.starts[number], self.parts[number]) for number in numbers]


def source_of(file: str) -> Source:
    """Return the file that --lengths-from names. Raises BadInput where it is of a kind that is not read."""
    path, column = file, ""
    if Path(file).suffix.lower() not in KINDS and (cut := file.rpartition(":"))[0]:
        path, column = (cut[0], cut[2]) if Path(cut[0]).suffix.lower() in KINDS else (file, "")
    if path.lower().endswith(_COMPRESSED):
        raise BadInput(f"{named('lengths_from')} can't read {path!r}: it is compressed", "decompress it first")
    kind = KINDS.get(Path(path).suffix.lower())
    if kind is None:
        raise BadInput(f"{named('lengths_from')} can't read {file!r}", HINT)
    if column and kind == "lines":
        raise BadInput(f"{named('lengths_from')} {file}: a .txt file has no columns", HINT)
    return Source(str(Path(path).expanduser().absolute()) if path.startswith("~") else path, kind, column)


def index_of(source: Source) -> Index:
    """Look through the file once. Raises BadInput with the line's number where that can't be done."""
    index = Index(array("q"), array("q"), array("q"))
    with _opened(source) as stream:
        for start, part, size in _ROWS[source.kind](source, stream):
            index.starts.append(start)
            index.parts.append(part)
            index.sizes.append(size)
    return index


def read(source: Source, places: Sequence[Place], sent: Sent) -> Iterator[tuple[Found, bytes]]:
    """Yield what the rows at these places hold, and bytes that tell whether they are the same rows later.

    sent: how texts that belong together are sent. Raises BadInput with the line's number where a row can't be read.
    """
    with _opened(source) as stream:
        if source.kind == "document":
            rows = _document(source, stream)
            for start, _ in places:
                row = rows[start] if start < len(rows) else None
                yield _found(source, row, sent, f"row {start + 1}"), json.dumps(row, sort_keys=True).encode()
            return
        head = _header(source, stream) if source.kind == "table" else []
        for start, part in places:
            stream.seek(start)
            try:
                raw, rows = _row_at(source, stream, head)
                yield _found(source, rows[part] if part < len(rows) else None, sent), raw
            except Unreadable as error:
                raise BadInput(f"{source.path}, line {_line_number(stream, start)}: {error}") from None


def digest_of(parts: Iterable[bytes]) -> str:
    """Return 16 hex digits over the rows' bytes, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def _found(source: Source, value: Any, sent: Sent, where: str = "") -> Found:
    try:
        return found_in(value, source.column, sent)
    except Unreadable as error:
        if not where:
            raise
        raise BadInput(f"{source.path}, {where}: {error}") from None


@contextmanager
def _opened(source: Source) -> Iterator[BinaryIO]:
    """Open a file after its byte-order mark. Raises BadInput where it can't be opened, or is not in UTF-8."""
    path = Path(source.path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise BadInput(f"{named('lengths_from')} {source.path}: it is no regular file, and is read twice")
        with path.open("rb") as stream:
            head = stream.read(4)
            if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
                raise BadInput(f"{source.path} is UTF-16 or binary, not UTF-8 text", "iconv -f UTF-16 -t UTF-8")
            stream.seek(3 if head[:3] == b"\xef\xbb\xbf" else 0)
            yield stream
    except OSError as error:
        raise BadInput(f"{named('lengths_from')} {source.path}: {error.strerror}") from None


def _lines(source: Source, stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines, none of them longer than MOST_BYTES."""
    if os.fstat(stream.fileno()).st_size < MOST_BYTES:
        for line in stream:  # not `yield from`: it would close the file with this generator
            yield line
        return
    while line := stream.readline(MOST_BYTES):
        if len(line) == MOST_BYTES:
            raise BadInput(f"{source.path} has a line of more than {MOST_BYTES // 2**30} GiB")
        yield line


def _of_lines(source: Source, stream: BinaryIO) -> Iterator[tuple[int, int, int]]:
    start = stream.tell()
    for line in _lines(source, stream):
        if line not in (b"\n", b"\r\n", b"\r"):
            yield start, 0, len(line)
        start += len(line)


def _of_rows(source: Source, stream: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Find rows of JSON without parsing them; only a line that is an array is looked into, for it may hold many."""
    start = stream.tell()
    for number, line in enumerate(_lines(source, stream), 1):
        if line[:1] == b"{":
            yield start, 0, len(line)
        elif (text := line.strip())[:1] == b"[":
            try:
                rows = rows_of(_value(text))
            except Unreadable as error:
                raise BadInput(f"{source.path}, line {number}: {error}") from None
            yield from ((start, part, len(text) if len(rows) == 1 else _size(row)) for part, row in enumerate(rows))
        elif text:
            yield start, 0, len(text)
        start += len(line)


def _of_document(source: Source, stream: BinaryIO) -> Iterator[tuple[int, int, int]]:
    return ((number, 0, _size(row)) for number, row in enumerate(_document(source, stream)))


def _of_table(source: Source, stream: BinaryIO) -> Iterator[tuple[int, int, int]]:
    head = _header(source, stream)
    if not head or (source.column and source.column not in head):
        raise BadInput(
            f"{source.path} has no column {source.column!r}", f"its columns: {names(head)}" if head else "it is empty"
        )
    place = head.index(source.column) if source.column else None
    lines = _Cells(stream, source)
    rows, start = csv.reader(lines, delimiter=source.separator, strict=True), lines.end
    before = start
    try:
        for row in rows:
            if row:
                yield start, 0, lines.end - start if place is None else len(row[place]) if place < len(row) else 0
            start = lines.end
    except (csv.Error, Unreadable) as error:
        number = _line_number(stream, before) + rows.line_num - isinstance(error, csv.Error)
        raise BadInput(f"{source.path}, line {number}: {error}") from None


#: How the rows of each kind of file are found: where each begins, its number within a line, and its size.
_ROWS = {"lines": _of_lines, "rows": _of_rows, "document": _of_document, "table": _of_table}


class _Cells:
    """The lines of a table as text. end: the byte after the last one that was given."""

    def __init__(self, stream: BinaryIO, source: Source) -> None:
        self.stream, self.source, self.end = _lines(source, stream), source, stream.tell()

    def __iter__(self) -> _Cells:
        return self

    def __next__(self) -> str:
        line = next(self.stream)
        text = _text(line)
        self.end += len(line)
        return text


def _header(source: Source, stream: BinaryIO) -> list[str]:
    """Read the names of a table's columns; the stream stands behind them."""
    csv.field_size_limit(2**31 - 1)  # texts can be longer than the 128 KiB that Python allows a field
    lines = _Cells(stream, source)
    try:
        head = next(csv.reader(lines, delimiter=source.separator, strict=True), [])
    except (csv.Error, Unreadable) as error:
        raise BadInput(f"{source.path}, line 1: {error}") from None
    stream.seek(lines.end)
    return head


def _row_at(source: Source, stream: BinaryIO, head: Sequence[str]) -> tuple[bytes, list[Any]]:
    """Return the bytes of the line where the stream stands, and its rows. Raises Unreadable."""
    if source.kind != "table":
        line = stream.readline()
        return line, [_text(line).rstrip("\r\n")] if source.kind == "lines" else rows_of(_value(line))
    try:
        row = next(csv.reader(_Cells(stream, source), delimiter=source.separator, strict=True), [])
    except csv.Error as error:
        raise Unreadable(str(error)) from None
    return json.dumps(row).encode(), [dict(zip(head, row, strict=False))]


def _document(source: Source, stream: BinaryIO) -> list[Any]:
    """Return the rows of a JSON document: of an array, of an object of arrays, or of the one array of objects in it."""
    size = os.fstat(stream.fileno()).st_size
    if size > MOST_BYTES:
        raise BadInput(
            f"{source.path} is one JSON document of {size / 2**30:.1f} GiB", "write it as .jsonl, a row a line"
        )
    try:
        value = _value(stream.read())
    except Unreadable as error:
        raise BadInput(f"{source.path}: {error}") from None
    if not isinstance(value, dict):
        return rows_of(value)
    tables = [
        rows for rows in value.values() if isinstance(rows, list) and rows and all(isinstance(r, dict) for r in rows)
    ]
    if len(tables) == 1 and not any(name in value for name in (*CHATS, "prompt", source.column)):
        return list(tables[0])
    columns = {name: cells for name, cells in value.items() if isinstance(cells, list)}
    if value and len(columns) == len(value):
        if len({len(cells) for cells in columns.values()}) > 1:
            raise BadInput(f"{source.path}: its arrays {names(columns)} differ in length, so they are no columns")
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return [value]


def _value(line: bytes) -> Any:
    text = _text(line)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("this is no JSON") from None


def _text(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise Unreadable("this is no UTF-8 text") from None


def _size(row: Any) -> int:
    return len(row) if isinstance(row, str) else len(json.dumps(row))


def _line_number(stream: BinaryIO, place: int) -> int:
    """Return the number of the line that begins at a byte of the file: counted only where somebody must be told."""
    stream.seek(0)
    count = 1
    while place > 0 and (block := stream.read(min(place, 2**20))):
        count, place = count + block.count(b"\n"), place - len(block)
    return count
