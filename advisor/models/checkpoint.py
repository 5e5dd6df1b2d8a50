"""Find the model that a user names: a hub id, a local directory, or a config.json. No torch, no transformers.

Remote code is never run and pickle checkpoints are refused unless asked for; a damaged file is told here, in a line,
before a worker is started.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from advisor.errors import BadInput, named
from advisor.models import hub
from advisor.models.beside import kinds_of_modules, read_beside, transformer_folder
from advisor.models.tokenizing import has_tokenizer
from advisor.nouns.model import ModelSource
from advisor.nouns.near import nearest

#: Files up to this size are hashed whole; larger ones by their header and evenly spaced blocks.
WHOLE_HASH_BYTES = 256 * 2**20
_BLOCK_BYTES, _BLOCKS = 64 * 2**10, 256

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
#: torch's names of safetensors' floating-point types that a model can be made in.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

#: The largest header that the safetensors format allows.
_HEADER_BYTES = 100_000_000


def find_model(
    name: str, *, allow_pickle: bool = False, download: bool = True, most_bytes: int | None = None
) -> ModelSource:
    """Return the model called `name`. Raises BadInput, within 5 s where the hub can't be reached.

    most_bytes: that may be downloaded of it, None for as many as there is room for.
    """
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise BadInput(f"no such file or directory: {name}", str(error)) from None
    if path.is_file():
        return _from_config(name, path)
    if name and path.is_dir():
        return _from_directory(name, path, allow_pickle=allow_pickle)
    if not is_hub_id(name):
        raise BadInput(f"no such file or directory: {name!r}", beside(name))
    return _from_hub(name, download=download, allow_pickle=allow_pickle, most_bytes=most_bytes)


#: So many names of a folder are looked at for one that was meant.
_MOST_NAMES = 10_000


def beside(name: str) -> str:
    """Return "did you mean …?" with the path that there is where one of a path's names is nearly another's, else ""."""
    path = Path(name).expanduser()
    lacking = next((part for part in (*reversed(path.parents), path) if not part.exists()), path)
    with suppress(OSError, ValueError):
        rest, there = path.relative_to(lacking), islice(lacking.parent.iterdir(), _MOST_NAMES)
        models = {each.name: each / rest for each in there if _is_model(each / rest)}
        if near := nearest(lacking.name, models, most=1):
            return f"did you mean {models[near[0]]}?"
    return ""


def _is_model(path: Path) -> bool:
    """Whether a path is a file, or a folder with the configuration of a model or of what is built around one."""
    return path.is_file() or any((path / name).is_file() for name in ("config.json", "modules.json"))


def is_hub_id(name: str) -> bool:
    """Whether a name is the hub's to know: neither a path that is here, nor what can only be one."""
    is_path = name.startswith((".", "/", "~")) or name.endswith(".json") or not _HUB_ID.fullmatch(name)
    return not is_path and not Path(name).exists()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} can't be read as a model's config.json: {error}") from None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or not kind:
        raise BadInput(f"{path} is no model's config.json: it has no model_type")
    return dict(config)


def _from_config(name: str, path: Path) -> ModelSource:
    if path.suffix == ".gguf":
        raise BadInput(
            f"{name} is a GGUF file, which transformers turns into another model of fp32 weights",
            "give the checkpoint that it was made of",
        )
    if path.suffix != ".json":
        raise BadInput(f"{name} is a file, but no config.json", "give a hub id, a directory or a config.json")
    return ModelSource(
        name,
        str(path.resolve()),
        _read_config(path),
        "random",
        "random:0",
        has_tokenizer=False,
        beside=read_beside(path.resolve().parent),
    )


def _from_directory(name: str, path: Path, *, allow_pickle: bool) -> ModelSource:
    _refuse_other_forms(name, path)
    if not (path / "config.json").is_file():
        raise BadInput(f"{name} has no config.json")
    config = _read_config(path / "config.json")
    weights = _weight_files(name, path, allow_pickle=allow_pickle)
    for file in weights:
        if file.suffix == ".safetensors":
            _check_safetensors(file)
    size = sum(file.stat().st_size for file in weights)
    beside = {**read_beside(path.resolve()), "weight_bytes": size, "weights_dtype": _first_dtype(weights[0])}
    return ModelSource(
        name, str(path.resolve()), config, "trained", digest_of(weights), has_tokenizer(path), allow_pickle, beside
    )


def _refuse_other_forms(name: str, path: Path) -> None:
    """Raise BadInput for a folder that is something else than one transformers model: an adapter, GGUF, modules."""
    if (path / "adapter_config.json").is_file():
        raise BadInput(
            f"{name} is an adapter (LoRA or its kin), not a whole model",
            "merge it into its base with peft's merge_and_unload, and save that",
        )
    if any(path.glob("*.gguf")) and not any(path.glob("*.safetensors")):
        raise BadInput(f"{name} has its weights as GGUF alone", "give the checkpoint that it was made of")
    if (path / "config.json").is_file():
        return
    if folder := transformer_folder(path):
        raise BadInput(
            f"{name} is a sentence-transformers folder with its transformer in {folder}",
            f"give {path / folder}: its pooling is read from beside it",
        )
    if kinds := kinds_of_modules(path):
        raise BadInput(f"{name} has modules of kind {', '.join(kinds[:3])} and no transformer of its own")


def _first_dtype(file: Path) -> str | None:
    """Return the dtype of the first floating-point tensor of a safetensors file by name, None of another file.

    This is what transformers loads weights in where config.json names no dtype (modeling_utils.get_state_dict_dtype).
    """
    if file.suffix != ".safetensors":
        return None
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    found = (_DTYPES.get(str(header[name].get("dtype"))) for name in sorted(header) if name != "__metadata__")
    return next((dtype for dtype in found if dtype), None)


def _weight_files(name: str, path: Path, *, allow_pickle: bool) -> list[Path]:
    """Return the files that transformers would load: one, or those of an index; safetensors before pickle."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        files = [path / stem] if (path / stem).is_file() else _shards(name, path / f"{stem}.index.json")
        if files and stem.endswith(".bin") and not allow_pickle:
            raise BadInput(
                f"{name} has only pickle weights, which can run code when loaded",
                f"convert them to safetensors, or pass {named('allow_pickle')} if you trust them",
            )
        if files:
            return files
    raise BadInput(f"{name} has no weights", f"pass {path / 'config.json'} to measure speed with random ones")


def _shards(name: str, index: Path) -> list[Path]:
    """Return the files that an index names, none where there is no index. Raises BadInput where one is missing."""
    if not index.is_file():
        return []
    try:
        files = sorted(set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise BadInput(f"{index} can't be read: it is no index of weights", "download it again") from None
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        raise BadInput(f"{name} lacks {len(missing)} of its {len(files)} weight files, {missing[0]} among them")
    return [index.parent / file for file in files]


def _check_safetensors(file: Path) -> None:
    """Raise BadInput unless the header is JSON and its offsets end where the file ends (safetensors' format)."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            header = json.loads(stream.read(length)) if 0 < length < min(size, _HEADER_BYTES) else {}
        end = max(int(entry["data_offsets"][1]) for tensor, entry in header.items() if tensor != "__metadata__")
    except OSError as error:
        raise BadInput(f"{file} can't be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        if start == b"version ":
            raise BadInput(f"{file} is a Git LFS pointer, not the weights themselves", "git lfs pull") from None
        raise BadInput(f"{file} is corrupted: its header can't be read", "download it again") from None
    if 8 + length + end != size:
        raise BadInput(
            f"{file} is corrupted: {size} bytes, but its header says {8 + length + end}", "download it again"
        )


def digest_of(files: list[Path]) -> str:
    """Return what identifies weights: 16 hex digits over the files' names and contents.

    A file in the hub's cache is named after its SHA-256, which is used; a small one is read whole; of a large one the first
    megabyte (a safetensors header holds all names and shapes), 256 evenly spaced blocks and the time it was written count.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        blob = file.resolve().name
        if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob):
            digest.update(blob.encode())
        else:
            _hash_file(digest, file)
    return digest.hexdigest()[:16]


def _hash_file(digest: Any, file: Path) -> None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= WHOLE_HASH_BYTES:
            while block := stream.read(2**20):
                digest.update(block)
            return
        digest.update(stream.read(2**20) + f"{size} {file.stat().st_mtime_ns}".encode())
        for number in range(_BLOCKS):
            stream.seek(number * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
            digest.update(stream.read(_BLOCK_BYTES))


def _from_hub(name: str, *, download: bool, allow_pickle: bool, most_bytes: int | None) -> ModelSource:
    """Return a hub model: from the cache where it is whole there, else downloaded where that is allowed."""
    wanted = hub.patterns(allow_pickle=allow_pickle)
    away = "no such directory, not in the local cache, and the hub can't be reached"
    lacking = BadInput(f"unknown model {name}: {away}", beside(name))
    try:
        if (cached := hub.cached(name, wanted)) is not None:
            return _from_directory(name, cached, allow_pickle=allow_pickle)
        if hub.is_offline() or not download:
            why = "HF_HUB_OFFLINE is set" if hub.is_offline() else "this command downloads nothing"
            raise BadInput(f"unknown model {name}: no such directory, not in the local cache, and {why}", beside(name))
    except BadInput as error:  # only a part of it is in the cache
        lacking = error
    except ValueError as error:  # the hub's rules for names
        raise BadInput(f"unknown model {name}: no such directory, and no hub id: {error}", beside(name)) from None
    if hub.is_offline() or not download or not hub.answers():
        raise lacking
    return _from_directory(name, hub.downloaded(name, wanted, most_bytes), allow_pickle=allow_pickle)
