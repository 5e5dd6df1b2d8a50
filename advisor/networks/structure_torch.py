"""What a model is made of, read from its modules and its configuration: positions, windows, states."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

#: Rows longer than this are not tried: their scores alone would take gigabytes.
MOST_TRIED = 4200

#: Above this a limit is a sentinel for "none".
_NO_LIMIT = 10**9

#: Attributes of configurations that name each layer's kind.
_LAYER_KINDS = ("layer_types", "layers_block_type", "block_types", "hybrid_layer_types", "layers_type")

#: Parameters that a layer has which carries a state from token to token (Mamba, RWKV, gated delta nets, RG-LRU, xLSTM).
_STATE = re.compile(r"A_log|dt_bias|time_decay|recurrent_param|igate_preact|fgate_preact|decay.*|.*_decay|a_log|r_k")

#: Entries whose whole number is a length at which attention changes.
_WINDOWS = re.compile(
    r"(attention_)?(sliding_)?window(_size|s)?|local_attention|attention_chunk_size|index_topk"
    r"|local_window(_size)?|sliding_window_size|local_radius"
)

#: Modules of learned or tabulated positions, by the last parts of their names; not of boxes, images, or distances.
_POSITIONS = re.compile(
    r"(wpe|position_embeddings?|embed_positions|positions_embed|pos_encoding|pos_emb\w*)(\.weights?)?"
)

#: Parts of a model that do not see the row of tokens, and tables of something else than its positions.
_OTHER_PARTS = re.compile(r"vision|visual|image|audio|speech|sound|entity|relative")


def weighed(model: Any) -> tuple[str, ...]:
    """Return the names of modules with a matrix of weights, sorted, with * in place of numbers: those of layers are alike."""
    found = {
        re.sub(r"(?<![^.])[0-9]+(?![^.])", "*", name)
        for name, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), torch.Tensor) and weight.dim() == 2
    }
    return tuple(sorted(found))


def of_layers(config: Any, name: str) -> list[Any]:
    """Return an entry's values, layer by layer where layers differ, without None; one where they do not."""
    try:
        found = [getattr(config, name, None)]
    except RuntimeError:  # transformers refuses to name one for all where layers differ (Gemma 4)
        found = [getattr(layer, name, None) for layer in config.per_layer_config]
    return [value for value in found if value is not None]


def most(config: Any, *names: str) -> int:
    """Return the largest whole number that layers have under the first of these names that says anything, 0 for none."""
    for name in names:
        found = [value for value in of_layers(config, name) if isinstance(value, int) and value > 0]
        if found:
            return max(found)
    return 0


def layer_kinds(config: Any) -> list[str]:
    """Return each layer's kind as the configuration names it, in whatever attribute; empty where it names none."""
    for name in _LAYER_KINDS:
        found = getattr(config, name, None)
        if isinstance(found, (list, tuple)) and found and all(isinstance(kind, str) for kind in found):
            return list(found)
    return []


def is_recurrent(model: Any) -> bool:
    """Whether a layer mixes tokens with earlier or neighbouring ones by a state or a convolution along the row."""
    for name, parameter in model.named_parameters():
        if _STATE.fullmatch(name.rpartition(".")[2]) and parameter.numel() and not _OTHER_PARTS.search(name):
            return True
    return any(
        isinstance(module, torch.nn.Conv1d) and module.kernel_size[0] > 1 and not _OTHER_PARTS.search(name)
        for name, module in model.named_modules()
    )


def windows_of(config: Any) -> tuple[int, ...]:
    """Return the lengths in tokens at which attention or positions change, ascending."""
    text = config.get_text_config()
    entries = text.to_dict()
    slides = entries.get("use_sliding_window", True) is not False and _has_local_layers(text)
    found = set()
    for name, value in entries.items():
        if _WINDOWS.fullmatch(name) and (slides or "sliding" not in name):
            values = value if isinstance(value, (list, tuple)) else [value]
            found |= {n for n in values if type(n) is int and 0 < n < _NO_LIMIT}
    for rope in ropes(entries):
        if rope.get("rope_type", rope.get("type")) in ("dynamic", "longrope", "su"):
            found.add(
                rope.get("original_max_position_embeddings")
                or entries.get("original_max_position_embeddings")
                or entries.get("max_position_embeddings")
            )
    if entries.get("attention_type") == "block_sparse":  # BigBird attends to all below this length
        found.add((5 + 2 * entries.get("num_random_blocks", 3)) * entries.get("block_size", 64))
    return tuple(sorted(n for n in found if type(n) is int and 0 < n < _NO_LIMIT))


def _has_local_layers(config: Any) -> bool:
    kinds = layer_kinds(config)
    return not kinds or any(word in kind for kind in kinds for word in ("sliding", "local", "chunk"))


def ropes(entries: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the settings of rotary positions that a configuration holds, one a kind of layer where those differ."""
    for name in ("rope_parameters", "rope_scaling"):
        found = entries.get(name)
        if isinstance(found, Mapping):
            yield found
            yield from (part for part in found.values() if isinstance(part, Mapping))


def position_offset(model: Any, declared: int | None) -> int:
    """Return the first position of a sequence: padding_idx + 1 where the table of positions has a padding_idx (rule P8).

    A plain table with more rows than positions starts after those (Nyströmformer); OPT's adds them by itself.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and _is_positions(name):
            padding = getattr(module, "padding_idx", None)
            if isinstance(padding, int):
                return padding + 1
            plain = isinstance(module, torch.nn.Embedding) and declared is not None
            spare = module.num_embeddings - (declared or 0) if plain else 0
            return int(spare) if 0 < spare <= 4 else 0
    return 0


def max_positions(model: Any, config: Any, offset: int) -> int | None:
    """Return the longest sequence plus the first position, None where nothing bounds it.

    A table of positions bounds it truly; rotary positions by what the configuration declares, scaled as its rope is; relative
    ones, ALiBi, states and layers without positions do not.
    """
    text = config.get_text_config()
    declared = limit_of(text)
    if declared is None or getattr(text, "alibi", False):
        return None
    tables = [t.shape[0] for name, t in _tensors(model) if t.dim() == 2 and _is_positions(name)]
    near = [rows for rows in tables if declared <= rows <= declared + 4]
    if near:
        plain = offset > 0 and min(near) > declared
        return declared + offset if plain else declared
    if any("rotary" in type(module).__name__.lower() for module in model.modules()):
        return scaled(declared, text.to_dict())
    return None


def limit_of(config: Any) -> int | None:
    """Return the positions that a configuration declares; None for a sentinel, as XLNet's -1."""
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        found = [value for value in of_layers(config, name) if isinstance(value, (int, float))]
        if found:
            return int(found[0]) if 0 < found[0] < _NO_LIMIT else None
    return None


def scaled(declared: int, entries: Mapping[str, Any]) -> int:
    """Return the positions of a rope that was scaled: the original ones times the factor, where that is more."""
    found = [declared]
    for rope in ropes(entries):
        factor, original = rope.get("factor"), rope.get("original_max_position_embeddings") or declared
        if isinstance(factor, (int, float)) and factor > 1 and rope.get("rope_type", rope.get("type")) != "default":
            found.append(int(original * factor))
    return max(found)


def _is_positions(name: str) -> bool:
    """Whether a tensor's name is a table's of positions in a text: of the model itself, not of its images or boxes."""
    parts = name.split(".")
    if _OTHER_PARTS.search(name):
        return False
    return any(_POSITIONS.fullmatch(".".join(parts[n:])) for n in (-1, -2))


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
    # What a class keeps beside its parameters and buffers (CTRL's table).
    yield from ((f"{n}.{k}", v) for n, m in model.named_modules() for k, v in vars(m).items() if torch.is_tensor(v))


def max_row(model: Any, declared: int | None, *, takes_positions: bool, takes_row: Callable[[int], bool]) -> int | None:
    """Return the longest row that the model takes, None where nothing bounds it although no sequence is that long.

    declared: the positions that its tables hold. Where positions are passed and start again, a row may be longer than that,
    unless a buffer is cut to the row's length: takes_row tries such a row and says so.
    """
    if declared is None:
        return None
    if not takes_positions:
        tables = [t.shape[0] for name, t in _tensors(model) if t.dim() == 2 and _is_positions(name)]
        return declared if any(declared <= rows <= declared + 4 for rows in tables) else None
    buffers = [t for name, t in model.named_buffers() if t.dim() and t.shape[-1] == declared]
    return declared if buffers and not (declared <= MOST_TRIED and takes_row(declared + 8)) else None
