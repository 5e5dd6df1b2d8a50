"""Attention with tensors: what the choices `torch_varlen` and `bettertransformer` run. Loaded by the worker alone.

`varlen_attention` and `fuse_encoder` stand on their own: `advisor suggest --format python` prints their source, so the
script a user runs calls the very lines that were measured. They use torch, builtins and what they import themselves.
"""

from __future__ import annotations

from typing import Any

import torch

#: Kinds of models whose fused layers gave the same hidden states as their own. Names of parts do not tell a kind of attention
#: apart: canine, mra and yoso have the parts of bert and came out wrong, or not at all.
_CHECKED = (
    "bert",
    "bert-generation",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "roberta",
    "roc_bert",
    "splinter",
    "xlm-roberta",
)

#: The parameters of a layer that torch's fused encoder layer can stand for; one more or one fewer, and it is another kind.
_ENCODER_LAYER = frozenset(
    f"{part}.{kind}"
    for part in (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    )
    for kind in ("weight", "bias")
)


def varlen_attention(  # noqa: PLR0913, PLR0917  (the arguments that transformers hands to every implementation)
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with the FlashAttention inside torch; sequences are told apart by where they begin, never by a mask.

    query, key, value: [batch, heads, tokens, head size] in fp16 or bf16, key and value with fewer heads perhaps; returns
    [batch, tokens, heads, head size]. cu_seq_lens_*: int32, where sequences begin and the last one ends; without them,
    from positions that start again in a batch of one row, else every row is a sequence. Raises ValueError for a mask with
    pads and for what the kernel does not compute.
    """
    from torch.nn.attention import varlen

    unknown = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if attention_mask is not None or dropout or unknown:
        what = ", ".join(unknown) or ("a mask: pack the batch" if attention_mask is not None else "dropout")
        raise ValueError(f"torch's varlen_attn does not take {what}")
    rows, heads, tokens, size = query.shape
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    positions = kwargs.get("position_ids")

    def whole_rows(length: int) -> torch.Tensor:
        return torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=query.device)

    if cu_seq_lens_q is None or cu_seq_lens_k is None or max_length_q is None or max_length_k is None:
        cu_seq_lens_q, cu_seq_lens_k = whole_rows(tokens), whole_rows(key.shape[2])
        max_length_q, max_length_k = tokens, key.shape[2]
        if positions is not None and positions.shape == (1, tokens) and rows == 1 and max_length_k == tokens:
            inner = (positions[0].diff() != 1).nonzero()[:, 0] + 1
            cu_seq_lens_q = cu_seq_lens_k = torch.cat([cu_seq_lens_q[:1], inner.int(), cu_seq_lens_q[1:]])
            max_length_q = max_length_k = int(cu_seq_lens_q.diff().max())

    # torch 2.10 has the flag is_causal, 2.11 scale and window_size in its place, 2.12 also enable_gqa; the kernel has
    # always taken fewer key heads.
    attend: Any = varlen.varlen_attn
    accepted: dict[str, Any] = attend.__kwdefaults__ or {}
    options: dict[str, Any] = {}
    left = sliding_window - 1 if sliding_window is not None and sliding_window < max_length_k else -1
    if "window_size" in accepted:
        options["window_size"] = (left, 0 if causal else left)
    elif left >= 0:
        raise ValueError("this torch's varlen_attn takes no sliding window: use torch 2.11 or newer")
    else:
        options["is_causal"] = causal
    if "enable_gqa" in accepted:
        options["enable_gqa"] = key.shape[1] != heads
    if "scale" in accepted:
        options["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * size**0.5)
    flat = [states.transpose(1, 2).reshape(-1, states.shape[1], size) for states in (query, key, value)]
    output = attend(*flat, cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k, **options)
    return output.view(rows, tokens, heads, size), None


def fuse_encoder(model: Any) -> Any:
    """Replace the layers of a BERT-like encoder by torch's fused ones, which leave the pads out. Returns the model.

    For inference. The weights are moved, not doubled. Pads must stand on the right; the model's last hidden state is 0
    there. Masks that do more than hide pads are refused with ValueError; attentions and hidden states aren't recorded.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

    config = model.config

    class FusedLayer(torch.nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            own, after, feed, last = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
            parts = [
                torch.cat([own.query.weight, own.key.weight, own.value.weight]),
                torch.cat([own.query.bias, own.key.bias, own.value.bias]),
                after.dense.weight,
                after.dense.bias,
                after.LayerNorm.weight,
                after.LayerNorm.bias,
                last.LayerNorm.weight,
                last.LayerNorm.bias,
                feed.dense.weight,
                feed.dense.bias,
                last.dense.weight,
                last.dense.bias,
            ]
            detached = [torch.nn.Parameter(part.detach(), requires_grad=False) for part in parts]
            self.parts = torch.nn.ParameterList(detached)

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            qkv, qkv_bias, out, out_bias, *rest = self.parts
            return torch._transformer_encoder_layer_fwd(
                states,
                config.hidden_size,
                config.num_attention_heads,
                qkv,
                qkv_bias,
                out,
                out_bias,
                config.hidden_act == "gelu",
                False,
                config.layer_norm_eps,
                *rest,
            )

    class FusedEncoder(torch.nn.Module):
        def __init__(self, layers: Any) -> None:
            super().__init__()
            self.layer = layers
            for number, layer in enumerate(layers):
                layers[number] = FusedLayer(layer)

        @torch.no_grad()
        def forward(
            self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *_: Any, **__: Any
        ) -> Any:
            shape = hidden_states.shape
            if attention_mask is not None:
                kept = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
                if not torch.equal(kept, kept[:, :, :1].expand_as(kept)):
                    raise ValueError("bettertransformer hides pads and nothing else: this mask differs between tokens")
                kept = kept[:, 0, 0].expand(shape[:2])
                hidden_states = torch._nested_tensor_from_mask(hidden_states, kept)
            for layer in self.layer:
                hidden_states = layer(hidden_states)
            if attention_mask is not None:
                hidden_states = hidden_states.to_padded_tensor(0.0, shape)
            return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states)

    model.base_model.encoder = FusedEncoder(model.base_model.encoder.layer)
    return model


def is_fusable(model: Any) -> bool:
    """Whether fuse_encoder can take the model: of a kind that was checked, and its layers have exactly BERT's parts.

    Looks at names and shapes only, so a model on the device "meta" will do.
    """
    config = model.config
    encoder: Any = getattr(model.base_model, "encoder", None)
    layers = getattr(encoder, "layer", None)
    if config.model_type not in _CHECKED or not isinstance(layers, torch.nn.ModuleList) or not layers:
        return False
    # An odd number of heads is refused by torch.nn.TransformerEncoder before it takes this path, so here too.
    if getattr(config, "hidden_act", None) not in ("gelu", "relu") or config.num_attention_heads % 2:
        return False
    return bool(
        not getattr(config, "is_decoder", False)
        and sum(1 for _ in encoder.parameters()) == len(layers) * len(_ENCODER_LAYER)
        and all(_is_plain(layer) for layer in layers)
    )


def _is_plain(layer: torch.nn.Module) -> bool:
    kinds = (torch.nn.Linear, torch.nn.LayerNorm)
    with_weights = [part for part in layer.modules() if list(part.parameters(recurse=False))]
    return (
        {name for name, _ in layer.named_parameters()} == _ENCODER_LAYER
        and not list(layer.buffers())
        and all(type(part) in kinds for part in with_weights)
    )
