"""The gate with tensors: what an output is compared with, and what is looked for in it (measurement.md, D).

Nothing is judged here: figures go to the parent, and `advisor.judge` says what they mean. Loaded by the worker alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from advisor.fp32_torch import Settings
from advisor.model import ModelFacts
from advisor.workloads.forward import shape_class
from advisor.workloads.forward_torch import Asked, Call, score_deviation

#: The independence probe runs the smallest batch of so many shape classes of the list.
MOST_PROBED = 3

#: Stands for a difference from what is not finite (σ): infinity has no place in JSON.
BEYOND = 1e30

#: Entries of a configuration that name tokens, beside those that end in "_token_id".
_TOKEN_LISTS = ("eos_token_id", "suppress_tokens", "begin_suppress_tokens")


@dataclass(frozen=True)
class Looked:
    """What is run and how: the model, what is asked of it, at which distances from a sequence's end, and on what device.

    deviation: of the reference's values, in which all differences are counted (σ). settings: what the model's were when it
    was loaded: a sequence that is run alone begins with them, a configuration's batches run one after the other as timed ones.
    """

    model: Any
    asked: Asked
    distances: Sequence[int]
    device: str
    deviation: float
    settings: Settings

    def values(self, call: Call) -> list[torch.Tensor]:
        """Return every sequence's values, [positions, width] in fp32: copies, for a CUDA graph writes into its last output."""
        return [values.clone() for values in self.asked.by_sequence(self.model, call, self.device, self.distances)]

    def moved(self, ours: torch.Tensor, theirs: torch.Tensor) -> float:
        """Return the largest difference of two sequences' values in σ; BEYOND where one is not finite."""
        moved = float((ours - theirs).abs().max()) / self.deviation
        return moved if math.isfinite(moved) else BEYOND


# ---------------------------------------------------------------------------------------------------- one at a time


def alone(looked: Looked, tokens: Mapping[int, torch.Tensor], accepts: Sequence[str]) -> dict[int, torch.Tensor]:
    """Return the values of sequences that are run one at a time, unpadded, with nothing beside them."""
    more = {} if "no_use_cache" in accepts else {"use_cache": False}
    calls = (
        (number, Call({"input_ids": ids[None], **more}, (number,), ((0, 0, len(ids)),)))
        for number, ids in tokens.items()
    )
    found = {}
    for number, call in calls:
        looked.settings.restore()  # whatever ran before it, a sequence alone is what the model as it was loaded gives
        found[number] = looked.values(call)[0]
    looked.settings.restore()
    return found


def deviation_of(values: Iterable[torch.Tensor], output: str) -> float:
    """Return the standard deviation of values at a position, over all sequences: the σ of every figure."""
    if output == "scores":
        return score_deviation(torch.cat(list(values)))
    squares = count = 0.0
    for found in values:
        squares += float((found - found.mean(-1, keepdim=True)).double().square().sum())
        count += found.numel()
    return float(max((squares / max(count, 1)) ** 0.5, 1e-30))


# ------------------------------------------------------------------------------------------------ the independence probe


def named_ids(model: Any) -> frozenset[int]:
    """Return the ids that a model's configuration names: they mean something by themselves."""
    found: set[int] = set()
    for config in (model.config, model.config.get_text_config()):
        for name, value in config.to_dict().items():
            if name.endswith("_token_id") or name in _TOKEN_LISTS:
                found |= (
                    {value} if isinstance(value, int) else set(value) if isinstance(value, (list, tuple)) else set()
                )
    return frozenset(id_ for id_ in found if isinstance(id_, int) and id_ >= 0)


@dataclass(frozen=True)
class Ids:
    """The ids that contents are changed to: ordinary ones, [count]; and those that stay where they are."""

    ordinary: torch.Tensor
    special: torch.Tensor

    @classmethod
    def of(cls, vocabulary: int, special: Collection[int]) -> Ids:
        """Return the ids of a vocabulary."""
        kept = [number for number in range(vocabulary) if number not in special]
        return cls(torch.tensor(kept, dtype=torch.long), torch.tensor(sorted(special), dtype=torch.long))

    def instead_of(self, ids: torch.Tensor, seed: int) -> torch.Tensor:
        """Return other ordinary ids in the place of every ordinary one."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(self.ordinary), ids.shape, generator=generator)
        other = self.ordinary[drawn]
        other = torch.where(other == ids, self.ordinary[(drawn + 1) % len(self.ordinary)], other)
        return torch.where(torch.isin(ids, self.special), ids, other)


def _with_changed(call: Call, ids: Ids, changed: Collection[int], *, pads: bool = False) -> Call:
    """Return the call with other contents of some of its sequences, by their place in it, or of everything that is none."""
    input_ids = call.arguments["input_ids"].clone()
    if pads:
        inside = torch.zeros(input_ids.shape, dtype=torch.bool)
        for row, start, end in call.places:
            inside[row, start:end] = True
        plain = ids.ordinary[
            torch.randint(len(ids.ordinary), input_ids.shape, generator=torch.Generator().manual_seed(7))
        ]
        input_ids = torch.where(inside, input_ids, plain)
    for number in changed:
        row, start, end = call.places[number]
        input_ids[row, start:end] = ids.instead_of(input_ids[row, start:end], number)
    return replace(call, arguments={**call.arguments, "input_ids": input_ids})


def has_pads(call: Call) -> bool:
    """Whether a call has columns that belong to no sequence."""
    return sum(call.lengths) < int(call.arguments["input_ids"].numel())


def to_probe(calls: Sequence[Call], windows: Sequence[int]) -> list[Call]:
    """Return the calls that the independence probe runs: of every shape class the one of the fewest tokens."""
    smallest: dict[Any, Call] = {}
    for call in sorted(calls, key=lambda call: (len(call.sequences) < 2, sum(call.lengths))):
        smallest.setdefault(shape_class(call.lengths, windows), call)
    # What is beyond the most windows first, then the cheapest.
    kept = sorted(
        smallest.values(),
        key=lambda call: (len(call.sequences) < 2, -sum(max(call.lengths) > w for w in windows), sum(call.lengths)),
    )
    return kept[:MOST_PROBED]


def probe(looked: Looked, calls: Sequence[tuple[Call, list[torch.Tensor]]], ids: Ids, *, pads: bool) -> dict[str, Any]:
    """Change contents, look at what moves, and return the figures of `advisor.trial.Quality` that say so.

    calls: with the values that the gate saw. Two complementary runs change every sequence's contents once, one more those of
    the pads: the values of a sequence that was not changed must be the same to the bit. pads: whether pads can be looked
    at: a class that finds them by their id reads them rightly.
    """
    if len(ids.ordinary) < 2:
        return {"probe_void": "the vocabulary has no ordinary ids to change contents to"}
    neighbours, padded, own = None, None, float("inf")
    for call, base in calls:
        count = len(call.sequences)
        for parity in (0, 1) if count > 1 else (0,):
            changed = {number for number in range(count) if number % 2 == parity}
            different = _with_changed(call, ids, changed)
            for number, values in enumerate(looked.values(different)):
                moved = looked.moved(values, base[number])
                if number not in changed:
                    neighbours = max(neighbours or 0.0, moved)
                elif not _same(call, different, number):
                    own = min(own, moved)
        if pads and has_pads(call):
            others = looked.values(_with_changed(call, ids, (), pads=True))
            padded = max(padded or 0.0, *(looked.moved(a, b) for a, b in zip(others, base, strict=True)))
    repeat = _repeat(looked, calls) if neighbours or padded else None
    void = "a sequence's own tokens do not move its output" if own == 0 else ""
    if own == math.inf:
        void = "there is no ordinary token whose contents could be changed"
    return {
        "neighbours": neighbours, "pads": padded, "own": own if own < float("inf") else None, "repeat": repeat,
        "probe_void": void, "probed": _probed_words(calls, neighbours, pads=pads),
    }  # fmt: skip


def _same(call: Call, other: Call, number: int) -> bool:
    """Whether a sequence's tokens are the same in two calls: it has special ids alone, which stay."""
    row, start, end = call.places[number]
    return bool(torch.equal(call.arguments["input_ids"][row, start:end], other.arguments["input_ids"][row, start:end]))


def _repeat(looked: Looked, calls: Sequence[tuple[Call, list[torch.Tensor]]]) -> float:
    """Return how far equal runs differ: asked only where something moved, for that alone would be no dependence."""
    call, base = calls[0]
    return max(looked.moved(a, b) for a, b in zip(looked.values(call), base, strict=True))


def _probed_words(calls: Sequence[tuple[Call, Any]], neighbours: float | None, *, pads: bool) -> str:
    batches = f"{len(calls)} batch{'es' if len(calls) != 1 else ''}"
    said = [f"neighbours of {batches}" if neighbours is not None else "no neighbours: one sequence a batch"]
    if not any(has_pads(call) for call, _ in calls):
        said.append("no pads")
    else:
        said.append("pads" if pads else "not the pads: the class finds them by their id")
    return ", ".join(said)


# ------------------------------------------------------------------------------------------------- the layout in fp32


def layout_error(looked: Looked, calls: Sequence[Call], truth: Mapping[int, torch.Tensor]) -> float:
    """Return the rms error of the sequence that is furthest from itself alone, in σ.

    calls: the configuration's own, made for fp32; truth: the values of every sequence of theirs, run alone. The worst
    sequence counts: among many, one that is past a window would be averaged away.
    """
    worst = 0.0
    for call in calls:
        for number, values in zip(call.sequences, looked.values(call), strict=True):
            rms = float((values - truth[number]).double().square().mean()) ** 0.5
            worst = max(worst, rms / looked.deviation if math.isfinite(rms) else BEYOND)
    return worst


def finds_pads_by_id(facts: ModelFacts, figures: Mapping[str, Any], limit: float) -> bool:
    """Whether outputs that move with the pads' contents are right nevertheless: with the pads as they are, they are right.

    The control is the layout in fp32. A class that looks for the pad's id takes another id for text, so that its output
    moves by far more than rounding; one that reads its pads a little is not excused by a layout that is right within it.
    """
    layout, moved = figures.get("layout"), figures.get("pads")
    if facts.finds_pads_by_id:
        return True
    return layout is not None and moved is not None and layout <= limit and moved > 100 * limit
