"""Traits: what everybody else asks of a choice, so that nobody has to know its name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

#: Names that several knobs may have: they say nothing without their knob.
GENERIC = frozenset({"none", "off", "default", "auto"})


@dataclass(frozen=True)
class Traits:
    """What a choice is like. What is left out is as with any other choice.

    Attention. tells_apart: it keeps packed sequences apart by where they begin, without a mask. masks_by_block: pairs that a
    mask hides cost next to nothing. builds_mask: several sequences in a row get a dense mask. adds_mask: a mask is added to
    the scores, so that it must be of floats. writes_scores: all T×T scores of a layer are in memory; writes_shared: so they are
    on a GPU in fp32, where queries share keys and there is no mask. drops_pads: it takes the pads out by itself.

    Layout. packs: several sequences share a row; by_length: batches are of neighbours in length.

    Numbers. dtype: torch's name of what weights and arithmetic are in; bytes_per_value: of each; mantissa_bits: how fine its
    numbers are, 0 where that is not known; rounds: the dtypes of a safetensors file that do not fit into it; float32_matmul:
    torch's mode of 32-bit matrix products. quantises: the weights are no floats, so that they can't be looked at in fp32;
    loaded_in_bits: transformers marks the model then, as loaded in 4 or 8 bits, by which other libraries know it;
    linear: the class of the linear layers then, as the worker names it; bytes_per_weight: of these layers; as_stored: weights
    take what they take in the checkpoint.

    fuses_layers: a layer is one operator of torch's.

    Training. autocasts: products are in 16 bits whatever the weights are in; recomputes: what a layer computed is computed again
    on the way back, and not kept; keeps_logits: logits are in memory as a whole, and so are their logarithms; fuses_parts: norms
    and gated MLPs are a kernel each, which keeps its input alone; keeps_inputs: linear layers keep theirs in fp16, whatever is
    computed again (bitsandbytes' autograd function of LLM.int8 does); state_bytes: that an optimizer keeps of each value that is
    trained, 0 where they are two values like it.

    How it runs. compiles: attention itself is compiled, anew for every shape of a call. compiles_model: the layers around it
    are, or the whole model; compiles_regions: parts of it alone; compiles_loss: the loss of its logits.
    pins_kernel: it holds torch to a kernel by a switch that what was compiled does not look at. pays_compiled: it is slower than
    nothing unless the model is compiled; breaks_graphs: a layer with it is no graph of its own any more,
    breaks_backward: where gradients are wanted. replays: kernels are
    recorded once and replayed, without the operators that launch them.
    own_load: this choice alone of its knob needs the weights loaded for itself. process_wide: it switches something of the
    process, so that two models in one process would have it both. independent: False where the arithmetic depends on the whole
    batch by design (LLM.int8 chooses its outlier columns over all of it): the independence probe then looks at the layout
    without it, and the user is told. advised: False for a form that is there to be refused or caught: where a user insists it
    is run and judged, but it is never recommended, and no lines to paste are printed for it.
    """

    tells_apart: bool = False
    masks_by_block: bool = False
    builds_mask: bool = False
    adds_mask: bool = False
    writes_scores: bool = False
    writes_shared: bool = False
    drops_pads: bool = False
    packs: bool = False
    by_length: bool = False
    dtype: str = "float32"
    bytes_per_value: float = 4.0
    mantissa_bits: int = 0
    rounds: tuple[str, ...] = ()
    float32_matmul: str = "highest"
    quantises: bool = False
    loaded_in_bits: bool = False
    linear: str = ""
    bytes_per_weight: float = 0.0
    as_stored: bool = False
    fuses_layers: bool = False
    autocasts: bool = False
    recomputes: bool = False
    keeps_logits: bool = True
    fuses_parts: bool = False
    state_bytes: float = 0.0
    keeps_inputs: bool = False
    compiles: bool = False
    compiles_model: bool = False
    compiles_regions: bool = False
    compiles_loss: bool = False
    pins_kernel: bool = False
    pays_compiled: bool = False
    breaks_graphs: bool = False
    breaks_backward: bool = False
    replays: bool = False
    own_load: bool = False
    process_wide: bool = False
    independent: bool = True
    advised: bool = True

    @property
    def compiles_any(self) -> bool:
        """Whether something beside attention itself is compiled: the model, parts of it, or its loss."""
        return self.compiles_model or self.compiles_regions or self.compiles_loss

    def __hash__(self) -> int:
        """Hash by value, which is found once: of each choice it is asked for with every configuration that has it."""
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the traits alone: a hash is of its process."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, each.name) for each in fields(self)))


@lru_cache(maxsize=4096)
def merged(traits: tuple[Traits, ...]) -> Traits:
    """Return the traits of choices together: of each trait what a choice says that is not as with any other.

    Of two that say something the first counts: a trait with a value belongs to one knob.
    """
    said = {
        each.name: getattr(one, each.name)
        for each in fields(Traits)
        for one in reversed(traits)
        if getattr(one, each.name) != each.default
    }
    return Traits(**said)
