"""What a step of training holds in memory beside the weights, by arithmetic: gradients, the optimizer's, activations, logits.

What autograd keeps is counted tensor by tensor, as transformers' decoders compute (modeling_llama.py): what is kept of norms, of
products, of attention, of a gated MLP. It is a prediction, and no bound: `benchmarks/predicted_peaks.py` prints it beside what
was measured (docs/results).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from advisor.nouns.model import ModelFacts
from advisor.workloads.work import Work

#: Bytes of a number in fp32, of a lse or an rsqrt a row, and of the products under autocast.
_FULL, _HALF = 4.0, 2.0

#: What torch's allocator takes beyond the tensors, for blocks do not fit each other: with large ones of logits in fp32 among
#: them, and without. Measured, see above: 1.03 to 1.09, and 1.00 to 1.02.
_FRAGMENTS_WITH_LOGITS, _FRAGMENTS = 1.06, 1.01


class Numbers(Protocol):
    """What is asked of a configuration's traits (`advisor.knobs.traits`)."""

    @property
    def bytes_per_value(self) -> float:
        """Of a weight."""

    @property
    def bytes_per_weight(self) -> float:
        """Of a weight of a linear layer that is quantised, 0 where none is."""

    @property
    def autocasts(self) -> bool:
        """Whether products are in 16 bits whatever weights are in."""

    @property
    def recomputes(self) -> bool:
        """Whether layers are computed again on the way back."""

    @property
    def keeps_logits(self) -> bool:
        """Whether all logits are in memory."""

    @property
    def state_bytes(self) -> float:
        """That an optimizer keeps of a value, 0 for two like it."""

    @property
    def writes_scores(self) -> bool:
        """Whether attention's scores are in memory."""

    @property
    def tells_apart(self) -> bool:
        """Whether attention needs no mask."""

    @property
    def drops_pads(self) -> bool:
        """Whether it takes the pads out."""

    @property
    def packs(self) -> bool:
        """Whether several sequences share a row."""

    @property
    def masks_by_block(self) -> bool:
        """Whether its mask is of blocks."""

    @property
    def compiles_model(self) -> bool:
        """Whether layers are compiled."""

    @property
    def compiles_loss(self) -> bool:
        """Whether the loss of the logits is."""

    @property
    def keeps_inputs(self) -> bool:
        """Whether linear layers keep their inputs in fp16, whatever is computed again."""

    @property
    def fuses_parts(self) -> bool:
        """Whether norms and gated MLPs are a kernel each, which keeps what it is given alone."""


@dataclass(frozen=True)
class Shape:
    """A decoder's layer in numbers: of the hidden state, of the queries, of the keys, and of the MLP."""

    hidden: float
    queries: float
    keys: float
    inner: float

    @classmethod
    def of(cls, facts: ModelFacts) -> Shape:
        """Return the shape of a model's mean layer: what its linear layers have beside attention is taken to be a gated MLP."""
        hidden, queries, keys = facts.hidden_size, facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
        active = facts.active_linear_parameters or facts.linear_parameters
        layer = (active - facts.vocabulary * hidden) / facts.layers
        inner = (layer - hidden * (2 * queries + 2 * keys)) / (3 * hidden)
        return cls(hidden, queries, keys, max(inner, hidden))


def trained_values(facts: ModelFacts, *, adapters: bool, rank: int, everywhere: bool) -> float:
    """Return how many values are trained: all of them, or those of adapters of queries and values, or of every linear layer."""
    if not adapters:
        return float(facts.parameters)
    shape = Shape.of(facts)
    sides = 2 * shape.hidden + shape.queries + shape.keys
    if everywhere:
        sides += 2 * shape.hidden + shape.queries + shape.keys + 3 * (shape.hidden + shape.inner)
    return rank * facts.layers * sides


def bytes_of_step(
    work: Work, facts: ModelFacts, traits: Numbers, *, trained: float, adapters: bool, accumulates: bool
) -> float:
    """Return the bytes that a step holds beside the weights where it holds the most.

    work: of the largest forward pass its rows, columns and how many positions have logits. trained: values, see
    :func:`trained_values`. The most is held at the loss, with all that layers keep, or at the optimizer, with all gradients.
    accumulates: a step has several passes, and what the first ones found is there at the loss of the others.
    """
    size = _FULL if adapters else traits.bytes_per_value
    states = trained * (traits.state_bytes or 2 * size)
    layers = facts.layers * _of_layer(work, facts, traits, adapters=adapters, kept=traits.recomputes)
    again = _of_layer(work, facts, traits, adapters=adapters, kept=False) if traits.recomputes else 0.0
    way_back = again + (_of_scores(work, facts, traits)[1] if traits.writes_scores else 0.0)
    at_loss = layers + max(_of_loss(work, facts, traits, adapters=adapters), way_back)
    copies = _HALF * facts.linear_parameters if traits.autocasts and traits.bytes_per_value > _HALF else 0.0
    gradients = trained * size
    fragments = _FRAGMENTS_WITH_LOGITS if traits.keeps_logits and not traits.compiles_loss else _FRAGMENTS
    return states + fragments * max(at_loss + copies + (gradients if accumulates else 0.0), gradients)


def _of_layer(work: Work, facts: ModelFacts, traits: Numbers, *, adapters: bool, kept: bool) -> float:
    """Return the bytes that a layer keeps for the way back. kept: its input alone."""
    tokens, shape, size = float(work.kept), Shape.of(facts), traits.bytes_per_value
    inputs = _HALF * (5 * shape.hidden + shape.queries + shape.inner) if traits.keeps_inputs else 0.0
    if kept:
        return tokens * (shape.hidden * size + inputs)
    product = _HALF if traits.autocasts else size
    apart = traits.tells_apart or traits.masks_by_block
    is_masked = not (apart or traits.drops_pads) and (traits.packs or work.processed > work.tokens)
    keys = shape.queries if is_masked else shape.keys  # a mask has keys be repeated
    attention = product * (2 * shape.queries + 2 * keys)
    weighed = 0.0 if adapters else product  # a product with a weight that is trained keeps its input
    given = weighed * (2 * shape.hidden + shape.queries) + (
        2 * product * shape.hidden if traits.autocasts and adapters else 0
    )
    given += 2 * _FULL * shape.hidden if adapters and not traits.autocasts else 0.0
    if traits.fuses_parts or traits.compiles_model:
        own = 2 * size * shape.hidden + (2 * product + weighed) * shape.inner
    else:
        own = 2 * (_FULL + (0 if adapters else size)) * shape.hidden + (3 * product + weighed) * shape.inner
    pairs = float(work.rows) * work.columns**2
    scores = _of_scores(work, facts, traits)[0] if traits.writes_scores else 0.0
    return (
        tokens * (own + given + attention + inputs + _FULL * facts.heads)
        + scores
        + (product * pairs if is_masked else 0.0)  # each layer makes numbers of a mask of bools
    )


def _of_scores(work: Work, facts: ModelFacts, traits: Numbers) -> tuple[float, float]:
    """Return the bytes of a layer's scores, where they are written: what is kept of them, and what their way back needs beside.

    transformers' eager attention: their softmax in fp32 is kept, and a copy of it in 16 bits; on the way back there are the
    gradients of that copy, the same in fp32, and those of the softmax.
    """
    product = _HALF if traits.autocasts else traits.bytes_per_value
    pairs = facts.heads * float(work.rows) * work.columns**2
    copy = product if product < _FULL else 0.0
    return pairs * (_FULL + copy), pairs * (2 * _FULL + copy)


def _of_loss(work: Work, facts: ModelFacts, traits: Numbers, *, adapters: bool) -> float:
    """Return the bytes of logits, three in fp32: as they are, their logarithms, and their gradients; of chunks in a fused loss.

    Twelve bytes each were measured, with weights in 16 bits and under autocast. What is compiled writes the logits and their
    gradients alone, in their own dtype.
    """
    product = _HALF if traits.autocasts else traits.bytes_per_value
    if traits.keeps_logits:
        return work.kept * facts.vocabulary * (2 * product if traits.compiles_loss else 3 * _FULL)
    gradient = 0.0 if adapters else product * facts.vocabulary * facts.hidden_size
    return gradient + work.kept * facts.hidden_size * 2 * product
