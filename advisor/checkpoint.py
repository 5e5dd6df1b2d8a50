"""Find the model that a user names: a hub id, a local directory, or a config.json. No torch, no transformers.

Remote code is never run and pickle checkpoints are refused unless asked for; a damaged file is told here, in a line,
before a worker is started.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from advisor.errors import BadInput
from advisor.model import ModelSource

#: Files up to this size are hashed whole; larger ones by their header and evenly spaced blocks.
WHOLE_HASH_BYTES = 256 * 2**20
_BLOCK_BYTES, _BLOCKS = 64 * 2**10, 256

#: How long to wait for the hub to answer at all, in seconds.
HUB_TIMEOUT_S = 3.0

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
_PATTERNS = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.txt"]


def find_model(name: str, *, allow_pickle: bool = False, download: bool = True) -> ModelSource:
    """Return the model called `name`. Raises BadInput, within 5 s where the hub can't be reached."""
    path = Path(name).expanduser()
    if path.is_file():
        return _from_config(name, path)
    if path.is_dir():
        return _from_directory(name, path, allow_pickle=allow_pickle)
    if name.startswith((".", "/", "~")) or name.endswith(".json") or not _HUB_ID.match(name):
        raise BadInput(f"no such file or directory: {name}")
    return _from_directory(name, _from_hub(name, download=download, allow_pickle=allow_pickle), allow_pickle=allow_pickle)


def max_positions(config: Mapping[str, Any]) -> int | None:
    """Return the longest sequence that a configuration declares, or None where it declares none."""
    for part in (config, config.get("text_config") or {}):
        for entry in ("max_position_embeddings", "n_positions", "max_sequence_length"):
            if isinstance(part.get(entry), int):
                return int(part[entry])
    return None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} can't be read as a model's config.json: {error}") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise BadInput(f"{path} is no model's config.json: it has no model_type")
    return config


def _from_config(name: str, path: Path) -> ModelSource:
    if path.suffix != ".json":
        raise BadInput(f"{name} is a file, but no config.json", "give a hub id, a directory or a config.json")
    return ModelSource(name, str(path.resolve()), _read_config(path), "random", "random:0", has_tokenizer=False)


def _from_directory(name: str, path: Path, *, allow_pickle: bool) -> ModelSource:
    if not (path / "config.json").is_file():
        raise BadInput(f"{name} has no config.json")
    config = _read_config(path / "config.json")
    weights = sorted(path.glob("*.safetensors"))
    if not weights and list(path.glob("*.bin")):
        if not allow_pickle:
            raise BadInput(f"{name} has only pickle weights, which can run code when loaded",
                           "convert them to safetensors, or pass --allow-pickle if you trust them")  # fmt: skip
        weights = sorted(path.glob("*.bin"))
    if not weights:
        raise BadInput(f"{name} has no weights", f"pass {name}/config.json to measure speed with random ones")
    _check_shards(name, path)
    for file in weights:
        if file.suffix == ".safetensors":
            _check_safetensors(file)
    tokenizer = any((path / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"))
    return ModelSource(name, str(path.resolve()), config, "trained", digest_of(weights), tokenizer, allow_pickle)


def _check_shards(name: str, path: Path) -> None:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(file for file in files if not (path / file).is_file())
        if missing:
            raise BadInput(f"{name} lacks {len(missing)} of its {len(files)} weight files, {missing[0]} among them")


def _check_safetensors(file: Path) -> None:
    """Raise BadInput unless the header is JSON and its offsets end where the file ends (safetensors' format)."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if 0 < length < size else {}
        end = max(entry["data_offsets"][1] for tensor, entry in header.items() if tensor != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"{file} is corrupted: its header can't be read", "download it again") from None
    if 8 + length + end != size:
        raise BadInput(f"{file} is corrupted: {size} bytes, but its header says {8 + length + end}", "download it again")


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


def _from_hub(name: str, *, download: bool, allow_pickle: bool) -> Path:
    """Return the directory of a hub model: from the cache, else downloaded where that is allowed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*_PATTERNS, *(["*.bin"] if allow_pickle else [])]
    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        pass
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    if not download or offline:
        why = "HF_HUB_OFFLINE is set" if offline else "this command downloads nothing"
        raise BadInput(f"unknown model {name}: no such directory, not in the local cache, and {why}")
    if not _hub_answers():
        raise BadInput(f"unknown model {name}: no such directory, not in the local cache, and the hub can't be reached")
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HfHubHTTPError as error:
        raise BadInput(f"the hub does not give {name}: {str(error).splitlines()[0]}", "check the name and your token") from None
    except OSError as error:
        raise BadInput(f"{name} could not be downloaded: {error}") from None


def _hub_answers() -> bool:
    """Whether a connection to the hub (or the proxy on the way) opens within HUB_TIMEOUT_S.

    The hub's own client retries for most of a minute; name resolution has no time limit of its own, hence the thread.
    """
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    target = urlsplit(proxy if proxy and "//" in proxy else f"//{proxy}") if proxy else endpoint
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((target.hostname or "", target.port or 443), timeout=HUB_TIMEOUT_S).close()
        except OSError:
            return
        answered.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return answered.is_set()
