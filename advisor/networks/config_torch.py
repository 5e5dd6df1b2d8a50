"""What a model's configuration object says, made afresh each time, and the dtype that a checkpoint is loaded in."""

from __future__ import annotations

from typing import Any

import torch

from advisor.networks import kinds_torch
from advisor.nouns.model import ModelFiles


def config_of(source: ModelFiles) -> Any:
    """Return the model's configuration object, fresh: a failed load leaves its request in the one it was given.

    Without what asks for a hub kernel, which is code of others; and where weights are drawn, without a quantisation, whose
    packed and scaled tensors can't be drawn. Both are told by :func:`advisor.models.declared.notes_on`.
    """
    config = kinds_torch.read_config(source)
    for part in [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]:
        asked = getattr(part, "_attn_implementation", None)
        if isinstance(asked, str) and set(asked) & set("/|"):
            part._attn_implementation_internal = None
        if part is not None and source.has_random_weights and hasattr(part, "quantization_config"):
            del part.quantization_config
    return config


def checkpoint_dtype_of(source: ModelFiles, config: Any) -> torch.dtype:
    """Return the dtype that transformers loads the checkpoint in when told nothing: the config's, else the weights'.

    The weights' is that of the first floating-point tensor of the first file, not the most common one: transformers' rule
    (modeling_utils.get_state_dict_dtype), read of the files by :mod:`advisor.models.checkpoint`.
    """
    declared = getattr(config, "dtype", None)
    if isinstance(declared, torch.dtype):
        return declared
    found = getattr(torch, str(source.beside.get("weights_dtype") or "float32"))
    return found if isinstance(found, torch.dtype) else torch.float32
