"""Work in numbers: what it needs of a model's class, how its list is laid out, and what a pass over the list takes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from advisor.nouns.entry import Sent


class Head(StrEnum):
    """Which head of a model is run, behind its body."""

    NONE = "none"
    LANGUAGE = "language"
    CLASSIFICATION = "classification"

    @property
    def gives(self) -> str:
        """What comes out of it, in words."""
        return {Head.NONE: "hidden states", Head.LANGUAGE: "logits", Head.CLASSIFICATION: "scores"}[self]


@dataclass(frozen=True)
class Needs:
    """What work needs of a model's class: a head, and whether that must predict the next token, as no encoder does.

    sent: how texts that belong together are sent. otherwise: what to ask for where the class has it not, in words.
    """

    head: Head
    next_token: bool = False
    sent: Sent = Sent.PLAIN
    otherwise: str = ""

    @property
    def embeds(self) -> bool:
        """Whether a sequence gives one embedding, as the files beside the weights say (`advisor.models.beside`)."""
        return self.head is Head.NONE and self.sent is Sent.APART


#: What transformers loads a model by where a head of its own is asked for, or none.
_AUTO_CLASSES = {Head.NONE: "AutoModel", Head.CLASSIFICATION: "AutoModelForSequenceClassification"}


def auto_class(needs: Needs, logits_class: str) -> str:
    """Return the name of transformers' Auto class that gives what is needed. logits_class: the one of the model's logits."""
    return _AUTO_CLASSES.get(needs.head, logits_class)


@dataclass(frozen=True)
class Layout:
    """How a list is laid out in batches.

    by_length: of neighbours in length. packs: the sequences of a batch share a row. pads: pads are computed too. apart: no
    scores are computed between the sequences of a row.
    """

    by_length: bool = False
    packs: bool = False
    pads: bool = True
    apart: bool = True


@dataclass(frozen=True)
class Work:
    """What one pass over the list takes, in numbers that `advisor.search.cost` makes operations and bytes of.

    tokens: useful ones; processed: with pads, where those are computed; useful_pairs, pairs: of tokens that attend to one
    another, and of those whose scores are computed. predictions: positions whose logits are asked for. rows, columns: of the
    largest call; kept: positions of it whose logits are in memory at once. passes: how many forward passes the operations of
    one are worth (about 3 with a backward pass).
    """

    tokens: int
    processed: int
    useful_pairs: int
    pairs: int
    predictions: int
    rows: int
    columns: int
    kept: int = 0
    passes: float = 1.0
