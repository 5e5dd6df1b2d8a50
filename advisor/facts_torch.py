"""A model as torch and transformers see it: how it is loaded, its facts, and what can be read of it once loaded."""

from __future__ import annotations

import copy
import inspect
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from advisor import counts_torch, kinds_torch, packed_torch, structure_torch
from advisor.configuration import Configuration
from advisor.errors import BadInput
from advisor.knobs import KNOBS, Batching, Choice, choices_of, function_of
from advisor.model import ModelFacts
from advisor.workloads import Head, Needs

#: The seed that random weights are drawn from: every process of every study draws the same ones.
SEED = 0

_OPTIONAL = ("attention_mask", "position_ids", "logits_to_keep", "cu_seq_lens_q")
_FLASH_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def config_of(source: Mapping[str, Any]) -> Any:
    """Return the model's configuration object, fresh: a failed load leaves its request in the one it was given.

    Without what asks for a hub kernel, which is code of others; and where weights are drawn, without a quantisation, whose
    packed and scaled tensors can't be drawn. Both are told by :func:`advisor.checkpoint.notes_on`.
    """
    config = kinds_torch.read_config(source)
    for part in [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]:
        asked = getattr(part, "_attn_implementation", None)
        if isinstance(asked, str) and set(asked) & set("/|"):
            part._attn_implementation_internal = None
        if part is not None and source["weights"] == "random" and hasattr(part, "quantization_config"):
            del part.quantization_config
    return config


def checkpoint_dtype_of(source: Mapping[str, Any], config: Any) -> torch.dtype:
    """Return the dtype that transformers loads the checkpoint in when told nothing: the config's, else the weights'.

    The weights' is that of the first floating-point tensor of the first file, not the most common one: transformers' rule
    (modeling_utils.get_state_dict_dtype), read of the files by :mod:`advisor.checkpoint`.
    """
    declared = getattr(config, "dtype", None)
    if isinstance(declared, torch.dtype):
        return declared
    found = getattr(torch, str(source.get("beside", {}).get("weights_dtype") or "float32"))
    return found if isinstance(found, torch.dtype) else torch.float32


def statements(choices: Sequence[Choice]) -> dict[str, Any]:
    """Run what the choices import, define and do before loading; return the names that their expressions may use.

    What an earlier configuration switched in this process is set back first.
    """
    torch.set_float32_matmul_precision("highest")
    allow_kernels(tuple(_KERNEL_SWITCHES))
    names: dict[str, Any] = {"torch": torch}
    lines = [line for choice in choices for line in (*choice.imports, *choice.before)]
    names |= {name: function_of(module, name) for choice in choices for module, name in choice.functions}
    for line in dict.fromkeys(lines):
        exec(line, names)  # noqa: S102  (our own lines: the ones that the suggestion prints)
    return names


def compiled_frames() -> int:
    """Return how many frames torch has compiled, or tried to, in this process."""
    if "torch._dynamo" not in sys.modules:
        return 0
    from torch._dynamo.utils import counters

    return int(counters["frames"]["total"])


def forget_compiled() -> None:
    """Forget what torch compiled: its cache is per function, and the ninth variant of flex_attention would run uncompiled."""
    torch._dynamo.reset()  # type: ignore[no-untyped-call,unused-ignore]


#: torch's kernels of scaled_dot_product_attention: what allows each, and what says whether it is allowed.
_KERNEL_SWITCHES = {
    "flash": (torch.backends.cuda.enable_flash_sdp, torch.backends.cuda.flash_sdp_enabled),
    "efficient": (torch.backends.cuda.enable_mem_efficient_sdp, torch.backends.cuda.mem_efficient_sdp_enabled),
    "cudnn": (torch.backends.cuda.enable_cudnn_sdp, torch.backends.cuda.cudnn_sdp_enabled),
    "math": (torch.backends.cuda.enable_math_sdp, torch.backends.cuda.math_sdp_enabled),
}


def allowed_kernels() -> tuple[str, ...]:
    """Return the kernels that torch's scaled_dot_product_attention may use."""
    return tuple(name for name, (_, is_allowed) in _KERNEL_SWITCHES.items() if is_allowed())  # type: ignore[no-untyped-call]


def allow_kernels(names: Sequence[str]) -> None:
    """Allow these kernels and no others."""
    for name, (allow, _) in _KERNEL_SWITCHES.items():
        allow(name in names)


def load(
    source: Mapping[str, Any], configuration: Configuration, device: str, needs: Needs, names: dict[str, Any]
) -> Any:
    """Load the model as the configuration says, in evaluation mode, on the device.

    names: from :func:`statements`. Keyword arguments and statements are the choices' own, the ones that the suggestion
    prints.
    """
    choices = choices_of(configuration)
    arguments = arguments_of(choices, configuration, names)
    auto = kinds_torch.auto_of(needs, config_of(source))
    if source["weights"] == "random":
        model = _drawn(source, arguments, device, auto)
    else:
        model = auto.from_pretrained(
            source["path"],
            config=config_of(source),
            trust_remote_code=False,
            device_map=device,
            use_safetensors=None if source["allow_pickle"] else True,
            **arguments,
        )
    names["model"] = model.eval()
    for line in dict.fromkeys(line for choice in choices for line in choice.after):
        exec(line, names)  # noqa: S102
    return names.pop("model").eval()


def arguments_of(choices: Sequence[Choice], configuration: Configuration, names: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the choices' keyword arguments of from_pretrained."""
    expressions: dict[str, str] = {}
    for choice in choices:
        expressions |= choice.load(configuration)
    return evaluated(expressions, names)


def evaluated(expressions: Mapping[str, str], names: dict[str, Any]) -> dict[str, Any]:
    """Return the values of choices' expressions. names: from :func:`statements`."""
    return {key: eval(text, names) for key, text in expressions.items()}  # noqa: S307  (our own expressions)


def _drawn(source: Mapping[str, Any], arguments: dict[str, Any], device: str, auto: Any) -> Any:
    """Draw the weights on the device, in the checkpoint's dtype, from SEED; quantise or convert afterwards."""
    config, quantization = config_of(source), arguments.pop("quantization_config", None)
    wanted = arguments.pop("dtype")
    # The caller of advisor.load has seeds of their own, on this device and no other.
    with torch.random.fork_rng([torch.device(device)] if device != "cpu" else []), torch.device(device):
        torch.manual_seed(SEED)
        model = auto.from_config(config, dtype=checkpoint_dtype_of(source, config), **arguments)
    if quantization is None:
        return _converted(model, wanted)
    state = {name: tensor.to("cpu", wanted) for name, tensor in model.state_dict().items()}
    kind = type(model)
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


def accepted(arguments: dict[str, Any], accepts: Sequence[str]) -> dict[str, Any]:
    """Return the arguments without those that the class's forward does not take."""
    dropped = {name for name in _OPTIONAL if name not in accepts}
    if "no_use_cache" in accepts:
        dropped.add("use_cache")
    if "cu_seq_lens_q" in dropped:
        dropped |= set(_FLASH_ARGUMENTS)
    return {name: value for name, value in arguments.items() if name not in dropped}


def pad_token_of(model: Any) -> int:
    """Return an id to pad with; what it is does not matter, since pads are masked."""
    token = getattr(model.config, "pad_token_id", None)
    return token if isinstance(token, int) and 0 <= token < model.config.vocab_size else 0


def attention_of(model: Any) -> dict[str, str]:
    """Return the implementation of attention of the configuration and of all its sub-configurations."""
    found = {"": str(model.config._attn_implementation)}
    for name in getattr(model.config, "sub_configs", {}):
        part = getattr(model.config, name, None)
        if part is not None and getattr(part, "_attn_implementation", None):
            found[name] = str(part._attn_implementation)
    return found


def dtypes_of(model: Any) -> dict[str, int]:
    """Return how many floating-point parameters have each dtype."""
    counts: Counter[str] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return dict(counts)


def linears_of(model: Any) -> dict[str, int]:
    """Return how many linear layers there are of each class; bitsandbytes' with their type, threshold, and "double"."""
    counts: Counter[str] = Counter()
    for module in model.modules():
        # Experts in mxfp4 are layers of their own kind, without in_features.
        if isinstance(module, torch.nn.Linear) or hasattr(module, "in_features") or "Mxfp4" in type(module).__name__:
            counts[type(module).__name__ + _settings(module)] += 1
    return dict(counts)


def _settings(module: Any) -> str:
    kind = getattr(module.weight, "quant_type", None) if hasattr(module, "weight") else None
    if kind:
        return f":{kind}" + (":double" if getattr(module.weight.quant_state, "nested", False) else "")
    threshold = getattr(getattr(module, "state", None), "threshold", None)
    return "" if threshold is None else f":{float(threshold)}"


def weight_bytes_of(model: Any) -> int:
    """Return the bytes that parameters and buffers really take, shared storage once, quantisation state included."""
    storages: dict[int, int] = {}
    for tensor in _tensors(model):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _tensors(model: Any) -> list[torch.Tensor]:
    found = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        weight = getattr(module, "weight", None)
        for state in (getattr(weight, "quant_state", None), getattr(weight, "CB", None), getattr(weight, "SCB", None)):
            if torch.is_tensor(state):
                found.append(state)
            elif state is not None:
                found += [value for value in vars(state).values() if torch.is_tensor(value)]
    return [tensor for tensor in found if tensor.device.type != "meta"]


def read_facts(source: Mapping[str, Any], needs: Needs) -> dict[str, Any]:
    """Read what the rules need to know, from the class and a model without memory (device meta). Returns the payload.

    Raises BadInput where the model can't be run on token ids, or can't give what is needed.
    """
    config = config_of(source)
    auto, dtype = kinds_torch.auto_of(needs, config), checkpoint_dtype_of(source, config)
    model = kinds_torch.built(source, config, auto, dtype)
    executed, products = kinds_torch.hand_experts_on(model), counts_torch.Products()
    runs_on_meta = kinds_torch.refuse_unrunnable(source, model, config, auto, needs, products)
    counts = counts_torch.counted(model, config, products if runs_on_meta else None, executed)
    if source["weights"] != "random" and _prequantized(source, config) is None:
        _refuse_missing(source, auto, needs)
    beside = source.get("beside", {})
    if needs.embeds and beside.get("problem"):
        raise BadInput(beside["problem"])
    causal, classifies = _is_causal(model), needs.head is Head.CLASSIFICATION
    positions = _positions(source, model, config, auto)
    batching = Batching(
        0, causal=causal, first_position=positions["position_offset"], apart=False, dtype=torch.float32, left=causal
    )
    packed = packed_torch.packed_row(
        source,
        model,
        config,
        auto,
        batching,
        lambda call: accepted(call, positions["accepts"]),
        scores=classifies,
    )
    return ModelFacts(
        architecture=type(model).__name__,
        model_type=config.model_type,
        checkpoint_dtype=str(dtype).removeprefix("torch."),
        **_sizes(source, model, config, dtype, counts),
        **_attention(model, config),
        **positions,
        **{name: value for knob in KNOBS.values() for name, value in knob.facts(model).items()},
        packed_row=packed,
        prequantized=_prequantized(source, config),
        is_causal=causal,
        pooling=beside.get("pooling") or ("last" if causal else "mean"),
        after_pooling=tuple(beside.get("after_pooling", ())),
        head=_head(model),
        logits_class=kinds_torch.logits_class(config),
        pads=not (classifies and causal and getattr(config.get_text_config(), "pad_token_id", None) is None),
        recurrent=structure_torch.is_recurrent(model),
    ).payload


def _sizes(
    source: Mapping[str, Any], model: Any, config: Any, dtype: torch.dtype, counts: counts_torch.Counts
) -> dict[str, Any]:
    """Return how large the model is, and how much it computes."""
    text, most = config.get_text_config(), structure_torch.most
    parameters = sum(p.numel() for p in model.parameters())
    heads = most(text, "num_attention_heads") or 1
    hidden = most(text, "hidden_size", "d_model")
    return {
        "parameters": parameters,
        "parameter_bytes": source.get("beside", {}).get("weight_bytes") or parameters * dtype.itemsize,
        "linear_parameters": counts.stored,
        "active_linear_parameters": counts.active,
        "attention_width": counts.attention,
        "experts": counts_torch.experts_of(model, config),
        "layers": most(text, "num_hidden_layers") or 1,
        "hidden_size": hidden,
        "heads": heads,
        "kv_heads": _kv_heads(text, heads),
        "head_dim": most(text, "head_dim", "global_head_dim") or hidden // heads,
        "vocabulary": int(text.vocab_size),
    }


def _attention(model: Any, config: Any) -> dict[str, Any]:
    """Return what attention the class has and can be given."""
    text = config.get_text_config()
    return {
        "supports_sdpa": bool(getattr(model, "_supports_sdpa", False)),
        "supports_flash": bool(getattr(model, "_supports_flash_attn", False)),
        "supports_flex": bool(getattr(model, "_supports_flex_attn", False)),
        "switches_attention": _switches_attention(model),
        "default_attention": str(model.config._attn_implementation),
        "softcap": bool(getattr(text, "attn_logit_softcapping", None)),
        "alibi": bool(getattr(text, "alibi", False)) or config.model_type in ("bloom", "mpt"),
        "sliding_window": structure_torch.most(text, "sliding_window") or None
        if getattr(text, "use_sliding_window", True)
        else None,
        "layer_types": tuple(sorted(set(structure_torch.layer_kinds(text)))),
        "windows": structure_torch.windows_of(config),
    }


def _positions(source: Mapping[str, Any], model: Any, config: Any, auto: Any) -> dict[str, Any]:
    """Return what the class takes beside ids, where positions begin, and how far they reach."""
    accepts, declared = _accepted_arguments(model), structure_torch.limit_of(config.get_text_config())
    offset, takes_positions = structure_torch.position_offset(model, declared), "position_ids" in accepts
    return {
        "accepts": accepts,
        "takes_positions": takes_positions,
        "position_offset": offset,
        "max_positions": structure_torch.max_positions(model, config, offset),
        "max_row": structure_torch.max_row(
            model,
            declared,
            takes_positions=takes_positions,
            takes_row=lambda tokens: kinds_torch.takes_row(source, config, auto, tokens),
        ),
    }


def _refuse_missing(source: Mapping[str, Any], auto: Any, needs: Needs) -> None:
    """Raise BadInput where weights that the output depends on are not in the checkpoint: they would be drawn at every load.

    A classifier made of a language model has no head yet; hidden states and embeddings do not depend on a pooler.
    """
    _, found = auto.from_pretrained(
        source["path"],
        config=config_of(source),
        trust_remote_code=False,
        device_map="meta",
        output_loading_info=True,
        use_safetensors=None if source["allow_pickle"] else True,
    )
    missing = sorted(k for k in found["missing_keys"] if needs.head is not Head.NONE or "pooler" not in k)
    if missing:
        more = f" and {len(missing) - 2} more" if len(missing) > 2 else ""
        raise BadInput(
            f"the checkpoint has no weights for {', '.join(missing[:2])}{more}: its {needs.head.gives} would be random"
        )


def _kv_heads(config: Any, heads: int) -> int:
    """Return the number of key-value heads; Falcon's first generation has one, and says so in its own words."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    return structure_torch.most(config, "num_key_value_heads", "num_kv_heads") or heads


def _is_causal(model: Any) -> bool:
    """Whether tokens attend to earlier ones alone: its attention modules say so; an encoder's say the contrary."""
    said = [module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    return any(said) if said else kinds_torch.logits_class(model.config) == "AutoModelForCausalLM"


def _head(model: Any) -> str:
    """Return how a classification head reads hidden states, "" where that is not known: see ModelFacts."""
    base, classifier = getattr(model, "base_model", None), getattr(model, "classifier", None)
    if base is None or base is model or classifier is None or _is_causal(model):
        return ""
    pooler = getattr(base, "pooler", None)
    # A bare linear layer has its tanh elsewhere (ALBERT); a head with layers of its own ignores the pooler (BigBird).
    if pooler is not None:
        return "pooler" if isinstance(classifier, torch.nn.Linear) and not isinstance(pooler, torch.nn.Linear) else ""
    return "features" if hasattr(classifier, "dense") and hasattr(classifier, "out_proj") else ""


def _switches_attention(model: Any) -> bool:
    check = getattr(type(model), "_can_set_attn_implementation", None)
    return bool(check and check()) and all(
        bool(part._can_set_attn_implementation())
        for part in model.modules()
        if hasattr(part, "_can_set_attn_implementation")
    )


def _prequantized(source: Mapping[str, Any], config: Any) -> str | None:
    """Return how a checkpoint's weights are quantised, None where they are not: drawn ones never are (:func:`config_of`)."""
    declared = getattr(config, "quantization_config", None)
    if declared is None or source["weights"] == "random":
        return None
    method = declared.get("quant_method") if isinstance(declared, Mapping) else getattr(declared, "quant_method", "")
    return str(method)


def _accepted_arguments(model: Any) -> tuple[str, ...]:
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    named = tuple(name for name in _OPTIONAL if name in parameters)
    if takes_any and "cu_seq_lens_q" not in named:
        named = (*named, "cu_seq_lens_q")
    # Facts stored by an earlier version say nothing of it: then it is taken, as by every decoder.
    return named if takes_any or "use_cache" in parameters else (*named, "no_use_cache")


class NotDequantised(Exception):
    """The weights of a quantised checkpoint can't be had as floats."""


def dequantised(model: Any) -> Any:
    """Return a loaded quantised checkpoint with floats for weights. Raises NotDequantised where transformers can't."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return model
    try:
        plain = model.dequantize()
    except (NotImplementedError, ValueError, RuntimeError, TypeError, AttributeError):
        plain = None
    left = [] if plain is None else [name for name in linears_of(plain) if name != "Linear"]
    if plain is None or left:
        method = getattr(quantizer.quantization_config, "quant_method", "quantised")
        raise NotDequantised(f"transformers can't turn this checkpoint's {method} weights back into floats")
    return plain


def loses_bits(source: Mapping[str, Any], wider: Sequence[str]) -> bool:
    """Whether loading a checkpoint rounds some of its weights: those of these dtypes. Then the reference is loaded in fp32."""
    path = Path(source["path"])
    if source["weights"] == "random" or not path.is_dir():
        return False
    files = sorted(path.glob("*.safetensors"))
    return not files or any(entry.get("dtype") in wider for file in files for entry in _header(file).values())


def _header(file: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: its tensors' dtypes and shapes."""
    with file.open("rb") as stream:
        return dict(json.loads(stream.read(int.from_bytes(stream.read(8), "little"))))
