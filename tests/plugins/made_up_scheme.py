"""A made-up quantization scheme, whole in this one file: ADVISOR_PLUGINS=made_up_scheme, and its folder on PYTHONPATH.

Weights of linear layers in 8 bits with a scale a row, turned into floats again for each product: right, small and slow.
"""

from __future__ import annotations

from typing import Any

from advisor.knobs.choice import Choice, Reading, Reason, Situation, Term, Verdict
from advisor.knobs.traits import Traits
from advisor.nouns.objective import Tier

NAME = "made-up-8bit"

#: A byte a weight, and a scale of four bytes every 256 of them.
BYTES = 1.0 + 4 / 256


def in_eight_bits(model: Any) -> Any:
    """Put the weights of all linear layers but the output's into 8 bits, in place. Returns the model."""
    import torch

    class MadeUpLinear(torch.nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.in_features, self.out_features = layer.in_features, layer.out_features
            scale = layer.weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            self.register_buffer("scale", scale)
            self.register_buffer("whole", (layer.weight.detach() / scale).round().to(torch.int8))
            self.bias = layer.bias

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(inputs, self.whole.to(inputs.dtype) * self.scale, self.bias)

    output = model.get_output_embeddings()
    for part in list(model.modules()):
        for name, layer in list(part.named_children()):
            if isinstance(layer, torch.nn.Linear) and layer is not output:
                setattr(part, name, MadeUpLinear(layer))
    return model


def _why_not(situation: Situation) -> list[Reason]:
    if situation.facts.prequantized:
        return [Reason("Z2", Verdict.INVALID, "made up for weights that are not quantised yet")]
    return []


def _proof(reading: Reading) -> str | None:
    return None if reading.linears.get("MadeUpLinear") else "no linear layer is a MadeUpLinear"


CHOICES = [
    Choice(
        "quantization",
        NAME,
        "weights in 8 bits with a scale a row",
        "https://example.org/made-up-8bit",
        why_not=_why_not,
        after=("model = in_eight_bits(model)",),
        imports=("import torch", "from typing import Any"),
        functions=(("made_up_scheme", "in_eight_bits"),),
        proof=_proof,
        tier=lambda _: Tier.EIGHT_BIT,
        rates=lambda _: {Term.LINEAR: 0.5},
        traits=Traits(quantises=True, linear="MadeUpLinear", bytes_per_weight=BYTES),
    )
]
