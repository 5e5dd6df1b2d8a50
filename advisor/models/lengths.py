"""How long somebody's own texts are in a model's tokens: what `--lengths-from FILE` reads.

Lengths leave this module, and where in the file their texts stand, so that a worker can read them again; no text is kept,
printed or stored. Of a large file a sample is taken: evenly over the rows by their size, so that it needs no tokenizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from advisor.errors import BadInput, named
from advisor.models.texts import HINT, Source, digest_of, index_of, read, source_of
from advisor.models.tokenizing import Tokenizing
from advisor.nouns.entry import Chat, Entry, Sent, Texts, names
from advisor.nouns.model import ModelSource

#: A file of so many rows is also looked for as it was stored before samples were taken: whole.
MOST_ROWS_WHOLE = 20_000


@dataclass(frozen=True)
class Lengths:
    """The tokens of every text, in the file's order, and what a person must know of them.

    longest: what texts were cut to; cut: how many were longer; limit: what sets that, in words; empty: texts without a token,
    null: rows without a text, both left out; rows: how many rows the file has; read: in words, what was read. texts: where the
    texts are and how to know them again: what a worker needs, never stored; None where nothing was read.
    """

    lengths: tuple[int, ...]
    longest: int | None
    cut: int
    empty: int
    null: int = 0
    rows: int = 0
    read: str = ""
    limit: str = "positions"
    texts: Texts | None = field(default=None, compare=False, repr=False)

    @property
    def notes(self) -> list[str]:
        """What a person must know of them, a line each."""
        notes, count = [self.read], len(self.lengths)
        if self.cut:
            whose = "the model's " if self.limit == "positions" else "the "
            notes.append(f"{self.cut} of {count} texts are longer than {whose}{self.longest} {self.limit} and were cut")
        if self.empty:
            notes.append(f"{_count(self.empty, 'text')} without a token {'is' if self.empty == 1 else 'are'} left out")
        if self.null:
            notes.append(f"{_count(self.null, 'row')} without a text {'is' if self.null == 1 else 'are'} left out")
        return notes


def lengths_from(
    file: str, source: ModelSource, longest: int | None, most: int | None = None, sent: Sent = Sent.PLAIN
) -> Lengths:
    """Return the lengths of the texts in a file, of an even sample of `most` of them where it has more.

    longest: what the model has positions for; sent: how texts that belong together are sent. Raises BadInput with the line's
    number where a row can't be read, or where the tokenizer has ids that the model has no embedding for.
    """
    named = source_of(file)
    tokenizing = _tokenizing(source, sent)
    index = index_of(named)
    if not len(index):
        raise BadInput(f"{file} has no text", HINT)
    counted = _Counted(named, source, tokenizing, longest, sent)
    counted.add(index.places(sampled(index.sizes, most)))
    if not counted.lengths:
        raise BadInput(f"{file} has no text", HINT)
    return counted.told(len(index), most)


def earlier(
    file: str, source: ModelSource, longest: int | None, most: int, sent: Sent = Sent.PLAIN, *, first: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield, in words and as lengths, what was stored for a file before samples were taken, as far as it is cheap to count.

    The whole file where it has at most MOST_ROWS_WHOLE rows; with `first`, its first `most` texts, which --batches once took.
    Nothing where the sample is the whole file.
    """
    named, tokenizing = source_of(file), _tokenizing(source, sent)
    index = index_of(named)
    if len(index) <= most:
        return
    everything = range(len(index))
    wanted = [("the whole file", everything)] if len(index) <= MOST_ROWS_WHOLE else []
    if first:
        wanted.append((f"the first {most} texts of the file", everything[: 2 * most]))
    for words, numbers in wanted:
        counted = _Counted(named, source, tokenizing, longest, sent)
        try:
            counted.add(index.places(numbers))
        except BadInput:  # a row outside the sample that can't be read: then it never was
            return
        yield words, tuple(counted.lengths if numbers is everything else counted.lengths[:most])


def sampled(sizes: Sequence[int], most: int | None) -> Sequence[int]:
    """Return the numbers of `most` rows, in the file's order: the middle one of each of as many strata of equal numbers.

    The strata are the rows ranked by size, equal ones by their place in the file. Deterministic; memory for the sizes that
    there are, not for the rows.
    """
    if most is None or len(sizes) <= most:
        return range(len(sizes))
    counts = Counter(sizes)
    wanted: dict[int, set[int]] = {}
    ranks, before = iter((2 * i + 1) * len(sizes) // (2 * most) for i in range(most)), 0
    rank = next(ranks, None)
    for size in sorted(counts):
        while rank is not None and rank < before + counts[size]:
            wanted.setdefault(size, set()).add(rank - before)
            rank = next(ranks, None)
        before += counts[size]
    seen, chosen = dict.fromkeys(wanted, 0), []
    for number, size in enumerate(sizes):
        if size in seen:
            if seen[size] in wanted[size]:
                chosen.append(number)
            seen[size] += 1
    return chosen


class _Counted:
    """Texts being counted: their lengths, where they stand, and what was read of the rows."""

    def __init__(
        self, named: Source, source: ModelSource, tokenizing: Tokenizing, longest: int | None, sent: Sent
    ) -> None:
        self.named, self.source, self.tokenizing, self.sent = named, source, tokenizing, sent
        limit = tokenizing.sentences.limit if tokenizing.sentences else None
        self.longest = min((n for n in (longest, limit) if n is not None), default=None)
        self.limit = "positions" if self.longest == longest else "tokens that sentence-transformers cuts to"
        self.lengths: list[int] = []
        self.rows: list[tuple[int, int, int]] = []
        self.shapes: Counter[str] = Counter()
        self.unread: dict[str, None] = {}
        self.cut = self.empty = self.null = 0
        self.is_long: list[bool] = []
        self.has_chats = False

    def add(self, places: Sequence[tuple[int, int]]) -> None:
        """Read and count the rows at these places."""
        for place, (found, _) in zip(places, read(self.named, places, self.sent), strict=True):
            self.unread |= dict.fromkeys(found.unread)
            if not found.entries:
                self.null += 1
                continue
            self.shapes[found.read + self._manner(found.entries[0])] += 1
            for number, (entry, ids) in enumerate(zip(found.entries, self._ids(found.entries), strict=True)):
                self.has_chats |= isinstance(entry, Chat)
                if not ids:
                    self.empty += 1
                    continue
                self.is_long.append(self.longest is not None and len(ids) > self.longest)
                self.lengths.append(len(ids) if self.longest is None else min(len(ids), self.longest))
                self.rows.append((*place, number))

    def told(self, rows: int, most: int | None) -> Lengths:
        """Return what was counted, `most` texts of it. rows: how many the file has."""
        read_rows, count = self.shapes.total(), len(self.lengths)
        kept = list(range(count)) if most is None or count <= most else [i * count // most for i in range(most)]
        texts = Texts(
            str(Path(self.named.path).expanduser().absolute()),
            self.named.kind,
            self.named.column,
            tuple(self.rows[i] for i in kept),
            tuple(self.lengths[i] for i in kept),
            self.longest,
        )
        digest = entries_of(texts, self.sent)[1]
        manner = " through the model's chat template" if self.has_chats and self.tokenizing.has_template else ""
        words = f"{len(kept)} of your own texts{manner} (digest {digest})"
        return Lengths(
            tuple(self.lengths[i] for i in kept),
            self.longest,
            sum(self.is_long[i] for i in kept),
            self.empty,
            self.null,
            rows,
            self._said(read_rows, rows, most),
            self.limit,
            replace(texts, digest=digest, words=words),
        )

    def _said(self, read_rows: int, rows: int, most: int | None) -> str:
        of = "" if most is None or rows <= most else f" of {rows:,}"
        how = ", spread evenly over all sizes and kept in the file's order" if of else ""
        shapes = [shape for shape, _ in self.shapes.most_common()]
        if len(shapes) > 1:
            shapes = [f"{n:,} × {shape}" for shape, n in self.shapes.most_common(6)]
        more = f"; {len(self.shapes) - 6} other shapes" if len(self.shapes) > 6 else ""
        unread = f"; not read: {names(sorted(self.unread))}" if self.unread else ""
        count = f"{read_rows:,}{of} row{'' if rows == 1 else 's'}"
        return f"read {count}{how}: {'; '.join(shapes)}{more}{unread}"

    def _manner(self, entry: Entry) -> str:
        if isinstance(entry, Chat):
            return (
                " with the model's chat template"
                if self.tokenizing.has_template
                else " joined, for the model has no chat template"
            )
        return f", {self.tokenizing.words}" if self.tokenizing.words else ""

    def _ids(self, entries: Sequence[Entry]) -> list[list[int]]:
        found = self.tokenizing.ids(entries, self.longest)
        refuse_beyond(
            self.source.name, max((max(ids, default=0) for ids in found), default=0), vocabulary_of(self.source.config)
        )
        return found


def entries_of(texts: Texts, sent: Sent) -> tuple[list[Entry], str]:
    """Return the texts that a recipe (Lengths.texts) names, and the digest of their rows. Raises BadInput."""
    named = Source(texts.path, texts.kind, texts.column)
    places = list(dict.fromkeys((start, part) for start, part, _ in texts.rows))
    found, raw = {}, []
    for place, (row, line) in zip(places, read(named, places, sent), strict=True):
        found[place] = row.entries
        raw.append(line)
    if any(number >= len(found[start, part]) for start, part, number in texts.rows):
        return [], ""
    return [found[start, part][number] for start, part, number in texts.rows], digest_of(raw)


def vocabulary_of(config: Mapping[str, Any]) -> int | None:
    """Return how many rows a model's embedding has, as its configuration says; None where it says nothing."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None


def refuse_beyond(name: str, largest: int, vocabulary: int | None) -> None:
    """Raise BadInput where an id that the tokenizer gives has no row in the model's embedding."""
    if vocabulary is not None and largest >= vocabulary:
        raise BadInput(
            f"the tokenizer of {name} gives ids up to {largest}, and the model's embedding has {vocabulary} rows",
            "they are not of one model, or resize_token_embeddings was not called",
        )


def _tokenizing(source: ModelSource, sent: Sent) -> Tokenizing:
    if not source.has_tokenizer:
        raise BadInput(
            f"{source.name} has no tokenizer, so texts can't be counted in its tokens",
            f"give {named('lengths')} instead",
        )
    return Tokenizing(source.name, source.path, sent)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
