"""What sentence-transformers does with an embedding after pooling, with tensors. Worker and script."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def after_pooling_of(folder: str, steps: Sequence[str], device: str) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """Return the functions to apply to embeddings [sequences, width] after pooling, in order, in fp32.

    steps: "normalize", "dense PATH ACTIVATION" or "layer_norm PATH" (advisor.models.beside), paths relative to the folder.
    """
    from safetensors.torch import load_file

    def made(step: str) -> Callable[[torch.Tensor], torch.Tensor]:
        functional = torch.nn.functional
        kind, *rest = step.split(" ")
        if kind == "normalize":
            return lambda embeddings: functional.normalize(embeddings, dim=-1)
        file = load_file(f"{folder}/{rest[0]}/model.safetensors")
        weights = {name.rpartition(".")[2]: tensor.to(device, torch.float32) for name, tensor in file.items()}
        if kind == "layer_norm":
            return lambda embeddings: functional.layer_norm(
                embeddings, embeddings.shape[-1:], weights["weight"], weights["bias"]
            )
        activation = getattr(functional, rest[1]) if rest[1:] else torch.clone
        return lambda embeddings: activation(functional.linear(embeddings, **weights))

    return [made(step) for step in steps]
