"""The neural network to be run: where it is, what it is, and the two keys it goes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from advisor.nouns.checked import Test, checked, matches
from advisor.nouns.configuration import key_of

#: Entries of config.json that change neither a shape nor a speed: they stay out of the architecture's key. What facts
#: depend on all the same is read of the very model when it is answered for: see :meth:`ModelFacts.for_source`.
NOT_ARCHITECTURE = frozenset(
    {
        "_name_or_path",
        "transformers_version",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "use_cache",
        "initializer_range",
        "id2label",
        "label2id",
        "task_specific_params",
        "finetuning_task",
        "auto_map",
    }
)


#: A classification head with this many labels or more is a shape of its own; below, it takes no time that could be seen.
MANY_LABELS = 256

#: The kinds whose first position is the one after the pad token's: as many of the positions declared are never used.
COUNT_FROM_PAD = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)


#: Kinds of layers that carry a state from token to token and so need kernels that know where a sequence begins.
RECURRENT = frozenset({"linear_attention", "mamba", "mamba2", "recurrent", "conv", "hybrid"})


def architecture_key_of(config: Mapping[str, Any], weights_dtype: str | None = None) -> str:
    """Return the key of an architecture and its shapes: fine-tunes of one model share it, and so their timings.

    weights_dtype: of the weights, where config.json names no dtype: then they decide what transformers loads.
    """
    entries = {name: value for name, value in config.items() if name not in NOT_ARCHITECTURE}
    labels = config.get("id2label")
    if isinstance(labels, Mapping) and len(labels) >= MANY_LABELS:
        entries["num_labels"] = len(labels)
    if weights_dtype not in (None, "float32") and declared_dtype(config) is None:
        entries["dtype"] = weights_dtype
    return key_of(entries)


def declared_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype that a config.json names, None where it leaves that to the weights."""
    name = config.get("dtype", config.get("torch_dtype"))
    return name if isinstance(name, str) and name != "auto" else None


def first_position(config: Mapping[str, Any]) -> int:
    """Return the first position of a configuration's kind: the one after the pad token's for RoBERTa and its kin."""
    counts = config.get("model_type") in COUNT_FROM_PAD
    if not counts or config.get("position_embedding_type", "absolute") != "absolute":
        return 0
    pad = config.get("pad_token_id", 0 if config.get("model_type") == "markuplm" else 1)  # the classes' own defaults
    return pad + 1 if isinstance(pad, int) else 0


def is_drawn(weights_digest: str) -> bool:
    """Whether a digest is of weights that are drawn at random, "random:<seed>"."""
    return weights_digest.startswith("random:")


@dataclass(frozen=True)
class ModelFiles:
    """What a worker needs to load a model: where its files are, and what it is to do with them. See :class:`ModelSource`.

    digest: of the weights. beside: as `ModelSource.beside` has it.
    """

    path: str
    weights: str
    digest: str
    allow_pickle: bool
    has_tokenizer: bool
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_random_weights(self) -> bool:
        """Whether the weights are drawn."""
        return self.weights == "random"


@dataclass(frozen=True)
class ModelSource:
    """A model found: `name` as the user wrote it, `path` a directory or a config.json, weights "trained" or "random".

    weights_digest identifies the weights ("random:<seed>" where they are drawn); it is what quality is keyed by. beside: what
    the files beside config.json say (:func:`advisor.models.beside.read_beside`), and weight_bytes and weights_dtype of
    the weights.
    """

    name: str
    path: str
    config: Mapping[str, Any]
    weights: str
    weights_digest: str
    has_tokenizer: bool
    allow_pickle: bool = False
    beside: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def architecture_key(self) -> str:
        """The key that timings go by."""
        return architecture_key_of(self.config, self.beside.get("weights_dtype"))

    @property
    def has_random_weights(self) -> bool:
        """Whether the weights are drawn: then a lossy choice has no judged quality."""
        return self.weights == "random"

    @property
    def files(self) -> ModelFiles:
        """What a worker needs to load it."""
        return ModelFiles(
            self.path,
            self.weights,
            self.weights_digest,
            self.allow_pickle,
            self.has_tokenizer,
            dict(self.beside),
        )


#: How texts among the facts are spelled: some become part of a script, and a stored row can have been written by anybody.
_NAME = r"[\w.:/@+-]{0,200}"
_AUTO_CLASS = r"(AutoModel[A-Za-z]*)?"
_DTYPE = r"float(64|32|16)|bfloat16|float(8_(e4m3fn|e4m3fnuz|e5m2|e5m2fnuz|e8m0fnu)|4_e2m1fn_x2)|u?int(8|16|32|64)"
_SPELLED: Mapping[str, Test] = {
    "architecture": matches(_NAME),
    "model_type": matches(_NAME),
    "checkpoint_dtype": matches(_DTYPE),
    "default_attention": matches(_NAME),
    "logits_class": matches(_AUTO_CLASS),
    "body_class": matches(_AUTO_CLASS),
    "pooling": matches("[a-z_]{0,40}"),
    "head": matches("[a-z_]{0,40}"),
    "packed_row": matches("(wrong|raises)?"),
    "layer_types": lambda names: all(map(matches(_NAME), names)),
    "accepts": lambda names: all(map(str.isidentifier, names)),
}


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

    `experts`: how many experts tokens are routed to, 0 without. `recurrent`: some layers carry a state or a convolution along
    the row. `windows`: lengths in tokens beyond which the model computes otherwise: sliding windows, attention chunks, the
    length where a long-context rope switches. `takes_positions`: its forward has position_ids.
    `max_row`: the longest row that its buffers and tables of positions hold, None where nothing bounds it.
    `active_linear_parameters`: multiplied per token, executions counted (a layer shared by twelve counts twelve times, an
    expert by its share of the tokens). `attention_width`: heads · head size, summed over the layers with attention: four
    times that are the operations of a pair of tokens. Both are 0 where they could not be counted. `after_pooling`: what is
    done with an embedding after pooling, step by step: see :mod:`advisor.models.beside`. `packed_row`: what a small copy
    makes of sequences that share a row without FlashAttention: "wrong" (they come out otherwise than alone), "raises", ""
    where it is right or could not be tried: see :mod:`advisor.networks.packed_torch`. `repeated_layers`: how many layers
    transformers knows to be repeated, which can be compiled one by one; None where nobody looked. `liger`: whether the Liger that
    was installed when this was read has kernels for the type of model, None where none was. `checkpoints`: whether the class can
    compute its layers again on the way back; None where nobody looked. `drops_attention`: whether its configuration has a dropout
    of attention's scores, which is that of training alone. `weighed`: the names of modules with a matrix of
    weights, beside which adapters can stand, with * for numbers; none where nobody looked. `calls_loss`: whether the class makes
    its loss by a function that can be replaced; None where nobody looked.
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
    takes_positions: bool = True
    max_row: int | None = None
    active_linear_parameters: int = 0
    attention_width: int = 0
    after_pooling: tuple[str, ...] = ()
    packed_row: str = ""
    repeated_layers: int | None = None
    liger: bool | None = None
    checkpoints: bool | None = None
    drops_attention: bool = False
    weighed: tuple[str, ...] = ()
    calls_loss: bool | None = None

    @property
    def carries_state(self) -> bool:
        """Whether some layers carry a state or a convolution along the row."""
        return self.recurrent or bool(RECURRENT & set(self.layer_types))

    @property
    def pads_left(self) -> bool:
        """Whether pads go to the left: where positions can be passed. A decoder that takes none counts the pads on its left.

        On the right of a decoder's sequence nothing is read, and what encoders are trained with is there too.
        """
        return self.is_causal and "position_ids" in self.accepts

    @property
    def payload(self) -> dict[str, Any]:
        """The facts as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def for_source(self, source: ModelSource, *, classifies: bool) -> ModelFacts:
        """Return the facts of a model, given those of one that shares its architecture's key, and so its timings.

        What lies outside that key is the model's own: how it pools, where positions begin, whether it can pad. classifies:
        whether it is run with its classification head.
        """
        default, needs_pad = ("last" if self.is_causal else "mean"), classifies and self.is_causal
        counts = source.config.get("model_type") in COUNT_FROM_PAD
        text = source.config.get("text_config")
        text = text if isinstance(text, Mapping) else source.config
        return replace(
            self,
            pooling=source.beside.get("pooling") or default,
            after_pooling=tuple(source.beside.get("after_pooling", ())),
            position_offset=first_position(source.config) if counts else self.position_offset,
            pads=self.pads if not needs_pad else text.get("pad_token_id") is not None,
            parameter_bytes=source.beside.get("weight_bytes") or self.parameter_bytes,
        )

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> ModelFacts:
        """Build them from their payload. Raises Malformed for a value that can't be, TypeError where one is missing or new."""
        return cls(**checked(cls, payload, _SPELLED))
