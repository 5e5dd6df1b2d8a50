"""How a model is loaded as a configuration says: from its checkpoint, or with weights that are drawn."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from advisor.errors import BadInput
from advisor.knobs import Choice, choices_of, function_of
from advisor.networks import kinds_torch, readback_torch
from advisor.networks.config_torch import checkpoint_dtype_of, config_of
from advisor.networks.switches_torch import KERNELS, allow_kernels, restore_flash, restore_tag
from advisor.nouns.configuration import Configuration
from advisor.nouns.model import ModelFiles
from advisor.workloads import Needs

#: The seed that random weights are drawn from: every process of every study draws the same ones.
SEED = 0


def statements(choices: Sequence[Choice]) -> dict[str, Any]:
    """Run what the choices import, define and do before loading; return the names that their expressions may use.

    What an earlier configuration switched in this process is set back first.
    """
    torch.set_float32_matmul_precision("highest")
    allow_kernels(KERNELS)
    restore_flash()
    restore_tag()
    names: dict[str, Any] = {"torch": torch}
    lines = [line for choice in choices for line in (*choice.imports, *choice.before)]
    names |= {name: function_of(module, name) for choice in choices for module, name in choice.functions}
    for line in dict.fromkeys(lines):
        exec(line, names)  # noqa: S102  (our own lines: the ones that the suggestion prints)
    return names


def import_class(source: ModelFiles, needs: Needs) -> None:
    """Have transformers import the module of the model's class: a process that imports it amid a load seems to load for longer.

    Raises BadInput where there is none.
    """
    config = config_of(source)
    kinds_torch.auto_of(needs, config)._model_mapping[type(config)]


def load(source: ModelFiles, configuration: Configuration, device: str, needs: Needs, names: dict[str, Any]) -> Any:
    """Load the model as the configuration says, in evaluation mode, on the device.

    names: from :func:`statements`. Keyword arguments and statements are the choices' own, the ones that the suggestion
    prints. Raises BadInput where bitsandbytes would fail at the first call.
    """
    choices = choices_of(configuration)
    arguments = arguments_of(choices, configuration, names)
    auto = kinds_torch.auto_of(needs, config_of(source))
    if source.has_random_weights:
        model = _drawn(source, arguments, device, auto)
    else:
        model = auto.from_pretrained(
            source.path,
            config=config_of(source),
            trust_remote_code=False,
            device_map=device,
            use_safetensors=None if source.allow_pickle else True,
            **arguments,
        )
    names["model"] = model.eval()
    for line in dict.fromkeys(line for choice in choices for line in choice.after):
        exec(line, names)  # noqa: S102
    model = names.pop("model").eval()
    if device == "cpu" and (misfit := readback_torch.cpu_misfit(model)):
        raise BadInput(
            f"bitsandbytes can't run this model in 4 bit on this CPU: {misfit}; take a GPU, or none of its 4-bit choices"
        )
    return model


def arguments_of(choices: Sequence[Choice], configuration: Configuration, names: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the choices' keyword arguments of from_pretrained."""
    expressions: dict[str, str] = {}
    for choice in choices:
        expressions |= choice.load(configuration)
    return evaluated(expressions, names)


def evaluated(expressions: Mapping[str, str], names: dict[str, Any]) -> dict[str, Any]:
    """Return the values of choices' expressions. names: from :func:`statements`."""
    return {key: eval(text, names) for key, text in expressions.items()}  # noqa: S307  (our own expressions)


def _drawn(source: ModelFiles, arguments: dict[str, Any], device: str, auto: Any) -> Any:
    """Draw the weights on the device, in the checkpoint's dtype, from SEED; quantise or convert afterwards."""
    config, quantization = config_of(source), arguments.pop("quantization_config", None)
    wanted = arguments.pop("dtype")
    # The caller of advisor.load has seeds of their own, on this device and no other.
    with torch.random.fork_rng([torch.device(device)] if device != "cpu" else []), torch.device(device):
        torch.manual_seed(SEED)
        model = auto.from_config(config, dtype=checkpoint_dtype_of(source, config), **arguments)
    if quantization is None:
        return _converted(model, wanted)
    drawn = model.state_dict()
    place = device if _has_room_beside(drawn.values(), device) else "cpu"
    state = {name: tensor.to(place, wanted) for name, tensor in drawn.items()}
    kind = type(model)
    del drawn
    del model
    return kind.from_pretrained(
        None,
        config=copy.deepcopy(config_of(source)),
        state_dict=state,
        dtype=wanted,
        quantization_config=quantization,
        device_map=device,
        **arguments,
    )


def _has_room_beside(tensors: Iterable[torch.Tensor], device: str) -> bool:
    """Whether a device has room for as much again: copying the weights to the CPU and back takes longer than to quantise them."""
    if torch.device(device).type != "cuda":
        return False
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return free_bytes > sum(tensor.nbytes for tensor in tensors)


def _converted(model: Any, dtype: torch.dtype) -> Any:
    """Convert what from_pretrained would: parameters and persistent buffers. Rotary frequencies stay in fp32.

    `model.to(dtype)` would round them too, and with 4096 positions in bf16 that is another model: measured on an H200, its
    logits are 1.1 nats from the right ones.
    """
    persistent = set(model.state_dict())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in persistent and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return model
