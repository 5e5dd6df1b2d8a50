"""The facts of a model that rules ask for, read of its class and of a model without memory: nothing of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from advisor.errors import BadInput
from advisor.knobs import KNOBS, Batching
from advisor.networks import counts_torch, kinds_torch, packed_torch, structure_torch
from advisor.networks.call_torch import accepted, accepted_arguments
from advisor.networks.config_torch import checkpoint_dtype_of, config_of
from advisor.nouns.model import ModelFacts, ModelFiles
from advisor.workloads import Head, Needs


def read_facts(source: ModelFiles, needs: Needs) -> dict[str, Any]:
    """Read what the rules need to know, from the class and a model without memory (device meta). Returns the payload.

    Raises BadInput where the model can't be run on token ids, or can't give what is needed.
    """
    config = config_of(source)
    auto, dtype = kinds_torch.auto_of(needs, config), checkpoint_dtype_of(source, config)
    model = kinds_torch.built(source, config, auto, dtype)
    executed, products = kinds_torch.hand_experts_on(model), counts_torch.Products()
    runs_on_meta = kinds_torch.refuse_unrunnable(source, model, config, auto, needs, products)
    counts = counts_torch.counted(model, config, products if runs_on_meta else None, executed)
    if not source.has_random_weights and _prequantized(source, config) is None:
        _refuse_missing(source, auto, needs)
    beside = source.beside
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
        weighed=structure_torch.weighed(model),
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
    source: ModelFiles, model: Any, config: Any, dtype: torch.dtype, counts: counts_torch.Counts
) -> dict[str, Any]:
    """Return how large the model is, and how much it computes."""
    text, most = config.get_text_config(), structure_torch.most
    parameters = sum(p.numel() for p in model.parameters())
    heads = most(text, "num_attention_heads") or 1
    hidden = most(text, "hidden_size", "d_model")
    return {
        "parameters": parameters,
        "parameter_bytes": source.beside.get("weight_bytes") or parameters * dtype.itemsize,
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
        "drops_attention": any(
            isinstance(share := getattr(text, name, 0.0), (int, float)) and share > 0
            for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
        ),
    }


def _positions(source: ModelFiles, model: Any, config: Any, auto: Any) -> dict[str, Any]:
    """Return what the class takes beside ids, where positions begin, and how far they reach."""
    accepts, declared = accepted_arguments(model), structure_torch.limit_of(config.get_text_config())
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


def _refuse_missing(source: ModelFiles, auto: Any, needs: Needs) -> None:
    """Raise BadInput where weights that the output depends on are not in the checkpoint: they would be drawn at every load.

    A classifier made of a language model has no head yet; hidden states and embeddings do not depend on a pooler.
    """
    _, found = auto.from_pretrained(
        source.path,
        config=config_of(source),
        trust_remote_code=False,
        device_map="meta",
        output_loading_info=True,
        use_safetensors=None if source.allow_pickle else True,
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


def _prequantized(source: ModelFiles, config: Any) -> str | None:
    """Return how a checkpoint's weights are quantised, None where they are not: drawn ones never are (:func:`config_of`)."""
    declared = getattr(config, "quantization_config", None)
    if declared is None or source.has_random_weights:
        return None
    method = declared.get("quant_method") if isinstance(declared, Mapping) else getattr(declared, "quant_method", "")
    return str(method)
