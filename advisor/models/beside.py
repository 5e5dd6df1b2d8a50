"""What lies beside a model's config.json and decides what its owner gets: sentence-transformers' modules. No torch.

Of a folder written by sentence-transformers, modules.json says which modules run one after another and where each has its
config; one without it (before version 0.3, or made by hand) has its pooling in 1_Pooling. Versions before 5.4 write a flag a
mode ("pooling_mode_cls_token": true), later ones a name or a list of them ("pooling_mode": "cls").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: The modes that are served, by sentence-transformers' names: see :func:`advisor.workloads.forward_torch.run_pooled`.
MODES = {"cls": "cls", "mean": "mean", "lasttoken": "last"}

#: How versions before 5.4 name the modes.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

#: The activations of a Dense module that are served, by the last part of their name.
ACTIVATIONS = {"Tanh": "tanh", "Identity": "", "GELU": "gelu", "ReLU": "relu", "Sigmoid": "sigmoid", "SiLU": "silu"}


class _Unserved(Exception):
    """Modules that can't be followed: the text says why."""


def read_beside(folder: Path) -> dict[str, Any]:
    """Return what a folder's files beside config.json say of an embedding. Reads JSON files alone, raises nothing.

    pooling: "mean", "cls" or "last", None where nothing is said; after_pooling: the steps after it, "normalize",
    "dense PATH ACTIVATION" and "layer_norm PATH", paths relative to `folder`, which is where modules.json lies; problem: why
    `pooled` can't be what the owner's library gives, "" where it can.
    """
    found: dict[str, Any] = {"pooling": None, "after_pooling": [], "folder": str(folder), "problem": ""}
    try:
        root, modules = _modules(folder)
        pooling, after = _followed(root, modules) if modules else (_pooling(folder / "1_Pooling"), [])
    except _Unserved as error:
        return found | {"problem": str(error)}
    return found | {"pooling": pooling, "after_pooling": after, "folder": str(root)}


def transformer_folder(folder: Path) -> str | None:
    """Return the subfolder that holds the transformer of a folder whose modules.json places it there, None elsewhere."""
    try:
        modules = _listed(folder / "modules.json")
    except _Unserved:
        return None
    kind, path = modules[0] if modules else ("", "")
    return path if path and kind == "Transformer" and (folder / path / "config.json").is_file() else None


def kinds_of_modules(folder: Path) -> list[str]:
    """Return the kinds of modules that a folder's modules.json lists, none where it has none."""
    try:
        return [kind for kind, _ in _listed(folder / "modules.json")]
    except _Unserved:
        return []


def _modules(folder: Path) -> tuple[Path, list[tuple[str, str]]]:
    """Return where the paths of modules start from and what modules.json lists; a transformer's own folder is below it."""
    if (folder / "modules.json").is_file():
        return folder, _listed(folder / "modules.json")
    if transformer_folder(folder.parent) == folder.name:
        return folder.parent, _listed(folder.parent / "modules.json")
    return folder, []


def _listed(file: Path) -> list[tuple[str, str]]:
    """Return kind and path of the modules that a modules.json lists, none where there is no such file."""
    if not file.is_file():
        return []
    entries = _json(file)
    try:
        return [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in entries]
    except (TypeError, KeyError):
        raise _Unserved("modules.json lists no modules with a type and a path") from None


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise _Unserved(f"{'/'.join(file.parts[-2:])} can't be read as JSON") from None


def _config(folder: Path) -> Mapping[str, Any]:
    found = _json(folder / "config.json")
    if not isinstance(found, dict):
        raise _Unserved(f"{folder.name}/config.json holds no settings")
    return found


def _followed(root: Path, modules: list[tuple[str, str]]) -> tuple[str, list[str]]:
    """Return the pooling and the steps after it. Raises _Unserved where a module is not one that advisor runs."""
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise _Unserved(f"modules.json begins with {', '.join(kinds[:2])}: a Transformer and its Pooling are served")
    _check_transformer(root / modules[0][1])
    pooling = _pooling(root / modules[1][1])
    if pooling is None:
        raise _Unserved(f"modules.json places the Pooling in {modules[1][1]!r}, and there is no config.json")
    return pooling, [_step(root, kind, path) for kind, path in modules[2:] if kind != "Dropout"]


def _check_transformer(folder: Path) -> None:
    """Refuse a Transformer module that gives something else than hidden states (sentence-transformers 5.4)."""
    file = folder / "sentence_bert_config.json"
    task = _json(file).get("transformer_task", "feature-extraction") if file.is_file() else "feature-extraction"
    if task != "feature-extraction":
        raise _Unserved(f"sentence_bert_config.json asks the transformer for {task}, not for hidden states to pool")


def _pooling(folder: Path) -> str | None:
    """Return how a Pooling module pools, None where it has no config. Raises _Unserved where it is another way."""
    if not (folder / "config.json").is_file():
        return None
    config = _config(folder)
    if config.get("include_prompt", True) is not True:
        raise _Unserved(
            "its pooling leaves the prompt's tokens out (include_prompt is false): advisor pools all tokens"
        )
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [name for flag, name in _FLAGS.items() if config.get(flag)]
        modes += [flag for flag in config if flag.startswith("pooling_mode_") and flag not in _FLAGS and config[flag]]
    modes = list(map(str, modes)) if isinstance(modes, list) else [str(modes)]
    if len(modes) > 1:
        raise _Unserved(
            f"its pooling joins {', '.join(modes)} in one embedding: one of mean, cls and last token is served"
        )
    if modes and modes[0] not in MODES:
        raise _Unserved(f"pooling by {modes[0]} is not served: mean, cls and last token are")
    return MODES[modes[0]] if modes else "mean"  # sentence-transformers' own default


def _step(root: Path, kind: str, path: str) -> str:
    """Return one module after the pooling as a step. Raises _Unserved where it is not one that advisor runs."""
    if kind == "Normalize":
        return "normalize"
    folder = root / path
    if kind not in ("Dense", "LayerNorm"):
        raise _Unserved(f"modules.json lists {kind} after the pooling: Dense, LayerNorm and Normalize are served")
    if not (folder / "model.safetensors").is_file() or " " in path:
        raise _Unserved(f"{path} ({kind}) has no model.safetensors")
    if kind == "LayerNorm":
        return f"layer_norm {path}"
    config = _config(folder)
    name = str(config.get("activation_function", "torch.nn.Tanh")).rpartition(".")[2]
    own_input = config.get("module_input_name", "sentence_embedding") != "sentence_embedding"
    if name not in ACTIVATIONS or config.get("use_residual") or own_input:
        raise _Unserved(f"{path} (Dense) does more than a linear layer and a common activation: it is not served")
    return f"dense {path} {ACTIVATIONS[name]}".rstrip()
