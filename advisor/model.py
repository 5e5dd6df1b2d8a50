"""The neural network to be run: where it is, what it is, and the two keys it goes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from advisor.checked import Test, checked, matches
from advisor.configuration import key_of

#: Entries of config.json that change neither a shape nor a speed: they stay out of the architecture's key.
NOT_ARCHITECTURE = frozenset(
    {
        "_name_or_path", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache",
        "initializer_range", "id2label", "label2id", "task_specific_params", "finetuning_task", "auto_map",
    }
)  # fmt: skip


def architecture_key_of(config: Mapping[str, Any]) -> str:
    """Return the key of an architecture and its shapes: fine-tunes of one model share it, and so their timings."""
    return key_of({name: value for name, value in config.items() if name not in NOT_ARCHITECTURE})


@dataclass(frozen=True)
class ModelSource:
    """A model found: `name` as the user wrote it, `path` a directory or a config.json, weights "trained" or "random".

    weights_digest identifies the weights ("random:<seed>" where they are drawn); it is what quality is keyed by.
    """

    name: str
    path: str
    config: Mapping[str, Any]
    weights: str
    weights_digest: str
    has_tokenizer: bool
    allow_pickle: bool = False

    @property
    def architecture_key(self) -> str:
        """The key that timings go by."""
        return architecture_key_of(self.config)

    @property
    def has_random_weights(self) -> bool:
        """Whether the weights are drawn: then a lossy choice has no judged quality."""
        return self.weights == "random"

    @property
    def request(self) -> dict[str, Any]:
        """What a worker needs to load it."""
        return {"path": self.path, "weights": self.weights, "digest": self.weights_digest,
                "allow_pickle": self.allow_pickle, "has_tokenizer": self.has_tokenizer}  # fmt: skip


#: How texts among the facts are spelled: some become part of a script, and a stored row can have been written by anybody.
_NAME = r"[\w.:/@+-]{0,200}"
_AUTO_CLASS = r"(AutoModel[A-Za-z]*)?"
_DTYPE = r"float(64|32|16)|bfloat16|float(8_(e4m3fn|e4m3fnuz|e5m2|e5m2fnuz|e8m0fnu)|4_e2m1fn_x2)|u?int(8|16|32|64)"
_SPELLED: Mapping[str, Test] = {
    "architecture": matches(_NAME), "model_type": matches(_NAME), "checkpoint_dtype": matches(_DTYPE),
    "default_attention": matches(_NAME), "logits_class": matches(_AUTO_CLASS), "body_class": matches(_AUTO_CLASS),
    "pooling": matches("[a-z_]{0,40}"), "head": matches("[a-z_]{0,40}"),
    "layer_types": lambda names: all(map(matches(_NAME), names)), "accepts": lambda names: all(map(str.isidentifier, names)),
}  # fmt: skip


@dataclass(frozen=True)
class ModelFacts:
    """What the rules need to know of a model, read once by a worker and stored. Rules read nothing else of it.

    Sizes are counts of elements; `*_bytes` are bytes in the checkpoint's dtype. `layer_types` holds the distinct kinds
    of layers. `switches_attention`: the class follows transformers' AttentionInterface, so the implementation can be
    changed without loading again (rule A23). `linear_parameters` are those inside torch.nn.Linear layers. `accepts`: which
    of the optional call arguments the class's forward takes. `is_causal`: False for encoders. `position_offset`: the first
    position of a sequence (padding_idx + 1 for RoBERTa and its kin, rule P8). `pooling`: how an embedding is made of hidden
    states: "mean", "cls" or "last". `head`: how a classification head reads hidden states: "pooler" (the pooler's output),
    "features" (the head looks at the first position itself), "" where it is not known to be either. `fused_encoder`: the
    layers have the shape that torch.nn.TransformerEncoderLayer has. `pads`: False for a classifier that finds the end of a
    sequence by its pad token and has none: it takes one sequence at a time. `logits_class`: transformers' Auto class that
    gives its logits, "" where none does.

    `experts`: how many experts tokens are routed to, 0 without. `recurrent`: some layers carry a state from token to token.
    `windows`: lengths in tokens beyond which the model computes otherwise: sliding windows, attention chunks, the length
    where a long-context rope switches. `finds_pads_by_id`: the class looks for pad_token_id among the ids by itself.
    `takes_mask`: its forward has an attention_mask. `takes_positions`: its forward has position_ids. `max_row`: the longest
    row that its buffers and learned positions hold, None where nothing bounds it. `active_linear_parameters`: multiplied
    per token, executions counted (a layer shared by twelve counts twelve times, an expert by its share of the tokens); 0
    where that was not counted. `body_class`: transformers' Auto class that gives its hidden states. `after_pooling`: what
    is done with an embedding after pooling, step by step: see :mod:`advisor.beside`.
    """

    architecture: str
    model_type: str
    checkpoint_dtype: str
    parameters: int
    parameter_bytes: int
    linear_parameters: int
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    max_positions: int | None
    supports_sdpa: bool
    supports_flash: bool
    switches_attention: bool
    default_attention: str
    softcap: bool = False
    alibi: bool = False
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = field(default_factory=tuple)
    prequantized: str | None = None
    accepts: tuple[str, ...] = ("attention_mask", "position_ids", "logits_to_keep", "cu_seq_lens_q")
    supports_flex: bool = False
    is_causal: bool = True
    position_offset: int = 0
    pooling: str = "last"
    head: str = ""
    fused_encoder: bool = False
    pads: bool = True
    logits_class: str = "AutoModelForCausalLM"
    experts: int = 0
    recurrent: bool = False
    windows: tuple[int, ...] = ()
    finds_pads_by_id: bool = False
    takes_mask: bool = True
    takes_positions: bool = True
    max_row: int | None = None
    active_linear_parameters: int = 0
    body_class: str = "AutoModel"
    after_pooling: tuple[str, ...] = ()

    @property
    def payload(self) -> dict[str, Any]:
        """The facts as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> ModelFacts:
        """Build them from their payload. Raises Malformed for a value that can't be, TypeError where one is missing or new."""
        return cls(**checked(cls, payload, _SPELLED))
