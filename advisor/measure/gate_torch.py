"""The gate with tensors: what an output is compared with, and what is looked for in it (measurement.md, D).

Nothing is judged here: figures go to the parent, and `advisor.quality.judge` says what they mean. Loaded by the worker alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from advisor.measure.fp32_torch import Settings
from advisor.measure.messages import Figure, Subject
from advisor.measure.tokens_torch import special_ids
from advisor.workloads import Call, Runtime, shape_class

#: The independence probe runs the smallest batch of so many shape classes of the list.
MOST_PROBED = 3

#: Of a batch so many sequences are compared with what they are alone: at both ends of the batch, and of all lengths.
MOST_COMPARED = 64

#: Stands for a difference from what is not finite (σ): infinity has no place in JSON.
BEYOND = 1e30

#: Entries of a configuration that name tokens, beside those that end in "_token_id".
_TOKEN_LISTS = ("eos_token_id", "suppress_tokens", "begin_suppress_tokens")


@dataclass(frozen=True)
class Looked:
    """What is run and how: the model, how its workload runs it, at which distances from a sequence's end, and on what device.

    deviation: of the reference's values, in which all differences are counted (σ). settings: what the model's were when it
    was loaded: a sequence that is run alone begins with them, a configuration's batches run one after the other as timed ones.
    """

    model: Any
    runtime: Runtime
    distances: Sequence[int]
    device: str
    deviation: float
    settings: Settings

    def values(self, call: Call) -> list[torch.Tensor]:
        """Return every sequence's values, [positions, width] in fp32: copies, for a CUDA graph writes into its last output."""
        found = self.runtime.by_sequence(self.model, call, self.device, self.distances)
        return [values.clone() for values in found]

    def moved(self, ours: torch.Tensor, theirs: torch.Tensor) -> float:
        """Return the largest difference of two sequences' values in σ; BEYOND where one is not finite."""
        moved = float((ours - theirs).abs().max()) / self.deviation
        return moved if math.isfinite(moved) else BEYOND


# ---------------------------------------------------------------------------------------------------- one at a time


def to_compare(lengths: Sequence[int]) -> list[int]:
    """Return the places of a batch's sequences that are compared with themselves alone: all, or MOST_COMPARED of them.

    The first and the last, for what runs past an end meets them; and evenly by length, the longest and the shortest among them,
    so that every side of a window that some have is there.
    """
    if len(lengths) <= MOST_COMPARED:
        return list(range(len(lengths)))
    ends, by_length = [0, len(lengths) - 1], sorted(range(len(lengths)), key=lambda place: lengths[place])
    step = (len(lengths) - 1) / (MOST_COMPARED - len(ends) - 1)
    return sorted({*ends, *(by_length[round(rank * step)] for rank in range(MOST_COMPARED - len(ends)))})


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


def ids_of(model: Any, subject: Subject) -> Ids:
    """Return the ids that contents can be changed to: neither what the model's configuration names nor its tokenizer."""
    return Ids.of(subject.facts.vocabulary, named_ids(model) | special_ids(subject))


def _inside(call: Call) -> torch.Tensor:
    """Return which columns belong to a sequence, [rows, columns]."""
    inside = torch.zeros(call.arguments["input_ids"].shape, dtype=torch.bool)
    for row, start, end in call.places:
        inside[row, start:end] = True
    return inside


def _with_changed(call: Call, ids: Ids, changed: Collection[int], *, pads: bool = False) -> Call:
    """Return the call with other contents of some of its sequences, by their place in it, or of everything that is none."""
    input_ids = call.arguments["input_ids"].clone()
    if pads:
        generator = torch.Generator().manual_seed(7)
        plain = ids.ordinary[torch.randint(len(ids.ordinary), input_ids.shape, generator=generator)]
        input_ids = torch.where(_inside(call), input_ids, plain)
    for number in changed:
        row, start, end = call.places[number]
        input_ids[row, start:end] = ids.instead_of(input_ids[row, start:end], number)
    return replace(call, arguments={**call.arguments, "input_ids": input_ids})


@contextmanager
def _other_vectors_of_pads(model: Any, call: Call) -> Iterator[list[bool]]:
    """Give the pads of a call the vectors of its sequences' tokens for a while, and leave their ids as they are.

    Yields a list that is empty as long as no table of embeddings was seen to be asked for the call's ids.
    """
    own, inside, seen = call.arguments["input_ids"], _inside(call), list[bool]()

    def give(_: Any, arguments: tuple[Any, ...], more: Mapping[str, Any], vectors: Any) -> Any:
        asked = next((each for each in (*arguments, *more.values()) if torch.is_tensor(each)), None)
        if asked is None or asked.shape not in (own.shape, own.T.shape):
            return None
        # Bart's kin ask a table of positions with the ids: what it gives is of no row.
        if not torch.is_tensor(vectors) or vectors.shape[:-1] != asked.shape:
            return None
        is_own = torch.equal(asked.cpu(), own)
        if not is_own and not torch.equal(asked.cpu(), own.T):  # XLNet's rows are columns
            return None
        seen.append(True)
        tokens = (inside if is_own else inside.T).to(vectors.device)
        changed, taken = vectors.clone(), vectors[tokens]
        changed[~tokens] = taken[torch.arange(int((~tokens).sum()), device=vectors.device) % len(taken)]
        return changed

    hooks = [
        module.register_forward_hook(give, with_kwargs=True)
        for module in model.modules()
        if "embedding" in type(module).__name__.lower() and not any(True for _ in module.children())
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


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


def probe(looked: Looked, calls: Sequence[tuple[Call, list[torch.Tensor]]], ids: Ids) -> dict[str, Figure]:
    """Change contents, look at what moves, and return the figures of `advisor.nouns.trial.Quality` that say so.

    calls: with the values that the gate saw. Two complementary runs change every sequence's contents once, one more those of
    the pads (see :func:`_moved_by_pads`): the values of a sequence that was not changed must be the same to the bit.
    """
    if len(ids.ordinary) < 2:
        return {"probe_void": "the vocabulary has no ordinary ids to change contents to"}
    neighbours, padded, own, by_vector = None, None, float("inf"), False
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
        if has_pads(call):
            moved, is_by_vector = _moved_by_pads(looked, call, base, ids)
            padded, by_vector = max(padded or 0.0, moved), by_vector or is_by_vector
    repeat = _repeat(looked, calls) if neighbours or padded else None
    void = "a sequence's own tokens do not move its output" if own == 0 else ""
    if own == math.inf:
        void = "there is no ordinary token whose contents could be changed"
    return {
        "neighbours": neighbours,
        "pads": padded,
        "own": own if own < float("inf") else None,
        "repeat": repeat,
        "probe_void": void,
        "probed": _probed_words(calls, neighbours, padded, by_vector=by_vector),
    }


def _moved_by_pads(looked: Looked, call: Call, base: list[torch.Tensor], ids: Ids) -> tuple[float, bool]:
    """Return how far (σ) outputs move with what is in the pads, and whether that was seen of their vectors.

    Other ids first. Where those move an output, the class may only look for the pad's id, to count positions or to find a
    sequence's end: then the ids stay and the vectors that are looked up for them are others.
    """
    others = looked.values(_with_changed(call, ids, (), pads=True))
    moved = max(looked.moved(a, b) for a, b in zip(others, base, strict=True))
    by_vector = moved_by_vectors_of_pads(looked, call, base) if moved else None
    return (moved, False) if by_vector is None else (by_vector, True)


def moved_by_vectors_of_pads(looked: Looked, call: Call, base: Sequence[torch.Tensor]) -> float | None:
    """Return how far (σ) outputs move when the pads of a call get other vectors; None where those were not looked up."""
    with _other_vectors_of_pads(looked.model, call) as seen:
        others = looked.values(call)
    return max(looked.moved(a, b) for a, b in zip(others, base, strict=True)) if seen else None


def _same(call: Call, other: Call, number: int) -> bool:
    """Whether a sequence's tokens are the same in two calls: it has special ids alone, which stay."""
    row, start, end = call.places[number]
    return bool(torch.equal(call.arguments["input_ids"][row, start:end], other.arguments["input_ids"][row, start:end]))


def _repeat(looked: Looked, calls: Sequence[tuple[Call, list[torch.Tensor]]]) -> float:
    """Return how far equal runs differ: asked only where something moved, for that alone would be no dependence."""
    call, base = calls[0]
    return max(looked.moved(a, b) for a, b in zip(looked.values(call), base, strict=True))


def _probed_words(
    calls: Sequence[tuple[Call, Any]], neighbours: float | None, padded: float | None, *, by_vector: bool
) -> str:
    batches = f"{len(calls)} batch{'es' if len(calls) != 1 else ''}"
    said = [f"neighbours of {batches}" if neighbours is not None else "no neighbours: one sequence a batch"]
    if padded is None:
        said.append("no pads")
    else:
        said.append("pads, whose ids the class looks for, by their vectors" if by_vector and not padded else "pads")
    return ", ".join(said)


# ------------------------------------------------------------------------------------------------- the layout in fp32


def layout_errors(
    looked: Looked, calls: Sequence[Call], truth: Mapping[int, torch.Tensor]
) -> tuple[dict[int, float], float | None]:
    """Return sequences' rms errors against themselves alone, and how far outputs move with the vectors of pads, in σ.

    calls: the configuration's own, made for fp32; truth: the values of those of their sequences that are compared, run alone.
    The vectors of pads are changed in the first call that has any; None where none has.
    """
    errors: dict[int, float] = {}
    pads = None
    for call in calls:
        values = looked.values(call)
        for number, found in zip(call.sequences, values, strict=True):
            if number not in truth:
                continue
            rms = float((found - truth[number]).double().square().mean()) ** 0.5
            errors[number] = max(errors.get(number, 0.0), rms / looked.deviation if math.isfinite(rms) else BEYOND)
        if pads is None and has_pads(call):
            pads = moved_by_vectors_of_pads(looked, call, values)
    return errors, pads
