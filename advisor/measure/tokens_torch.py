"""The tokens that are run: the user's own texts where a file was named, else the bundled text, or random ids. Worker only.

Either way as the model's library sends them, special tokens included, and the same in every process of a study.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from advisor.errors import BadInput
from advisor.measure.messages import Subject
from advisor.models.lengths import entries_of, refuse_beyond
from advisor.models.tokenizing import Tokenizing
from advisor.nouns.entry import Sent, Texts
from advisor.nouns.model import ModelFiles
from advisor.workloads import Workload

#: What is run where no file of texts is named.
BUNDLED = Path(__file__).parents[1] / "workloads" / "text.txt"

#: What stands for the model in messages: its name stays with the parent.
_NAME = "the model"


@lru_cache(maxsize=2)
def _tokenizing(path: str, sent: Sent) -> Tokenizing:
    return Tokenizing(_NAME, path, sent)


def key_of(subject: Subject, workload: Workload) -> str:
    """Return what the tokens of a workload depend on: the model's tokenizer and vocabulary, the texts, the lengths."""
    source, texts = subject.source, subject.texts
    which = [texts.path, texts.column, texts.digest] if texts else None
    return json.dumps([source.path, source.digest, subject.facts.vocabulary, which, workload.payload])


def tokens_of(subject: Subject, workload: Workload) -> list[torch.Tensor]:
    """Return one int64 tensor per sequence of a workload, which may be a part of the subject's own.

    Raises BadInput where the file of texts is no longer what it was, or an id has no row in the embedding.
    """
    source, texts, vocabulary = subject.source, subject.texts, subject.facts.vocabulary
    if not source.has_tokenizer:
        return _random(workload, vocabulary)
    tokenizing = _tokenizing(source.path, workload.needs.sent)
    tokens = (
        _bundled(workload, tokenizing)
        if texts is None
        else _of_lengths(_own(texts, tokenizing, workload.needs.sent), workload)
    )
    refuse_beyond(_NAME, max(int(ids.max()) for ids in tokens), vocabulary)
    return tokens


def words_of(subject: Subject) -> str:
    """Return what the tokens are, in words that may be stored: no path and no part of a text."""
    if subject.texts:
        return subject.texts.words
    return "the bundled text, with special tokens" if subject.source.has_tokenizer else "random tokens"


def special_ids(subject: Subject) -> frozenset[int]:
    """Return the tokenizer's special ids, none where the model has no tokenizer."""
    source, sent = subject.source, subject.workload.needs.sent
    if not source.has_tokenizer:
        return frozenset()
    return frozenset(_tokenizing(source.path, sent).transformers.all_special_ids)


def refuse_unfit(source: ModelFiles, sent: Sent, vocabulary: int) -> None:
    """Raise BadInput where the tokenizer can't be used, or is of another model: before a reference is run."""
    if not source.has_tokenizer:
        return
    tokenizing = _tokenizing(source.path, sent)
    ids = [*tokenizing.plain(BUNDLED.read_text(encoding="utf-8")), *sum(tokenizing.ends, ()), *tokenizing.pad]
    refuse_beyond(_NAME, max(ids, default=0), vocabulary)


def _random(workload: Workload, vocabulary: int) -> list[torch.Tensor]:
    """Draw ids; special ones are avoided as far as they are the lowest few, as is the custom."""
    generator = torch.Generator().manual_seed(0)
    low = min(16, vocabulary - 1)
    return [torch.randint(low, vocabulary, (n,), generator=generator) for n in workload.lengths]


def _bundled(workload: Workload, tokenizing: Tokenizing) -> list[torch.Tensor]:
    """Cut stretches out of the bundled text, each between the tokens that the tokenizer puts around a text, if there is room."""
    text = torch.tensor(tokenizing.plain(BUNDLED.read_text(encoding="utf-8")), dtype=torch.long)
    if not len(text):
        raise BadInput(
            f"the tokenizer of {_NAME} gives no token for a text: its files are not whole", "download it again"
        )
    starts, length = [(number * 7919) % len(text) for number in range(len(workload.lengths))], len(text)
    text = text.repeat(max(workload.lengths) // length + 2)
    prefix, suffix = (torch.tensor(ends, dtype=torch.long) for ends in tokenizing.ends)
    made, around = [], len(prefix) + len(suffix)
    for start, n in zip(starts, workload.lengths, strict=True):
        body = text[start : start + n - around if n > around else start + n]
        made.append(torch.cat([prefix, body, suffix]) if n > around else body.clone())
    return made


def _own(texts: Texts, tokenizing: Tokenizing, sent: Sent) -> list[torch.Tensor]:
    """Read and tokenize the user's own texts, and see that they are those whose lengths were read."""
    entries, digest = entries_of(texts, sent)
    if digest != texts.digest:
        raise BadInput("the file of texts has changed since its lengths were read", "give the same command again")
    longest, lengths = texts.longest, texts.lengths
    found = tokenizing.ids(entries, longest)
    most = math.inf if longest is None else longest
    if any(len(ids) != n and not n == most < len(ids) for ids, n in zip(found, lengths, strict=True)):
        raise BadInput(
            "the texts have other lengths in tokens than were read: the tokenizer has changed",
            "give the same command again",
        )
    return [torch.tensor(tokenizing.cut(ids, n), dtype=torch.long) for ids, n in zip(found, lengths, strict=True)]


def _of_lengths(tokens: Sequence[torch.Tensor], workload: Workload) -> list[torch.Tensor]:
    """Return for each length of a workload the next text that has it: the workload's own, or a part of it in its order."""
    waiting: dict[int, list[torch.Tensor]] = defaultdict(list)
    for ids in reversed(tokens):
        waiting[len(ids)].append(ids)
    if any(not waiting[n] for n in workload.lengths):
        raise BadInput("the workload has sequences that are none of the texts'", "give the same command again")
    return [waiting[n].pop() if len(waiting[n]) > 1 else waiting[n][0] for n in workload.lengths]
