"""Workloads: what the model is run on. One kind of work is a pair of files; this module is their table.

Further kinds come from the modules named in ADVISOR_PLUGINS: the KINDS of each are registered (`advisor.plugins`).
"""

from __future__ import annotations

from collections.abc import Mapping
from keyword import iskeyword
from typing import Any

from advisor.errors import BadInput, named
from advisor.nouns import metrics
from advisor.nouns.checked import Malformed, shortened
from advisor.nouns.option import TAKEN
from advisor.workloads import forward, train
from advisor.workloads.kind import Kind, Preparation, Running, Served
from advisor.workloads.likeness import Likeness
from advisor.workloads.quantiles import DEALT, DEFAULT_BATCHES, quantile_lengths
from advisor.workloads.runtime import Call, Runtime, plain
from advisor.workloads.work import Head, Layout, Needs, Work, auto_class
from advisor.workloads.workload import Workload, shape_class

__all__ = [
    "DEALT",
    "DEFAULT_BATCHES",
    "DEFAULT_KIND",
    "KINDS",
    "Call",
    "Head",
    "Kind",
    "Layout",
    "Likeness",
    "Needs",
    "Preparation",
    "Running",
    "Runtime",
    "Served",
    "UnknownKind",
    "Work",
    "Workload",
    "auto_class",
    "kind_named",
    "kind_of",
    "names",
    "plain",
    "quantile_lengths",
    "register",
    "shape_class",
    "workload_of",
]

#: Kinds of work by the words that their workloads are stored by.
KINDS: dict[str, Kind] = {}

#: The kind that is meant where none is named.
DEFAULT_KIND = forward.KIND


class UnknownKind(Malformed):
    """A workload of a kind that this process has not: nobody can say what was done."""

    def __init__(self, word: object) -> None:
        """Name the kind."""
        super().__init__(
            f"it is of a kind of work that is not known here, {shortened(word)}: there are {', '.join(names())} "
            "(ADVISOR_PLUGINS names modules with more)"
        )


def register(kind: Kind) -> None:
    """Add a kind and its metrics.

    Raises ValueError for a name, a stored word, a metric or an option that means something else already.
    """
    for word in {kind.name, *kind.stored_as}:
        if word in KINDS or word in names():
            raise ValueError(f"there is a kind of work {word!r} already")
    if not (kind.stored_as and kind.objectives and sum(metric.is_speed for metric in kind.metrics) == 1):
        raise ValueError(
            f"the kind of work {kind.name!r} needs a word that it is stored by, an objective, and one metric that is its speed"
        )
    _refuse_options(kind)
    for metric in kind.metrics:
        metrics.register(metric)
    KINDS.update(dict.fromkeys(kind.stored_as, kind))


def _refuse_options(kind: Kind) -> None:
    """Raise ValueError for an option that can be no keyword or flag, or whose name is another's."""
    seen: set[str] = set()
    for option in kind.options:
        name = option.name
        if not name.isidentifier() or name.startswith("_") or iskeyword(name):
            raise ValueError(
                f"the kind of work {kind.name!r} has an option {name!r}, which can be no keyword in Python"
            )
        if name in TAKEN or name in seen:
            whose = "all work" if name in TAKEN else "its own"
            raise ValueError(f"the kind of work {kind.name!r} has an option {name!r}, and {whose} has one already")
        seen.add(name)


def names() -> list[str]:
    """Return the names of all kinds."""
    return list(dict.fromkeys(kind.name for kind in KINDS.values()))


def kind_named(name: str) -> Kind:
    """Return the kind of a name. Raises BadInput."""
    found = next((kind for kind in KINDS.values() if kind.name == name), None)
    if found is None:
        raise BadInput(f"{named('workload')}: there is no kind of work {name!r}", f"there are {', '.join(names())}")
    return found


def kind_of(workload: Workload) -> Kind:
    """Return the kind of a workload."""
    return KINDS[workload.kind]


def workload_of(payload: Mapping[str, Any]) -> Workload:
    """Build the workload that a stored payload describes. Raises UnknownKind where its kind is not known here, Malformed."""
    if not isinstance(payload, Mapping) or not isinstance(payload.get("kind"), str):
        raise Malformed(f"no kind of workload: {shortened(payload)}")
    if payload["kind"] not in KINDS:
        raise UnknownKind(payload["kind"])
    return KINDS[payload["kind"]].workload.of(payload)


register(DEFAULT_KIND)
register(train.KIND)
