"""Find the model that a user names: a hub id, a local directory, or a config.json. No torch, no transformers.

Remote code is never run and pickle checkpoints are refused unless asked for; a damaged file is told here, in a line,
before a worker is started.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advisor.errors import BadInput
from advisor.model import ModelSource
from advisor.space import refuse_unpadded
from advisor.tokenizing import has_tokenizer

#: Files up to this size are hashed whole; larger ones by their header and evenly spaced blocks.
WHOLE_HASH_BYTES = 256 * 2**20
_BLOCK_BYTES, _BLOCKS = 64 * 2**10, 256

#: How long to wait for the hub to answer at all, in seconds.
HUB_TIMEOUT_S = 3.0

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_PATTERNS = [
    "*.json",
    "*.safetensors",
    "tokenizer*",
    "*.model",
    "*.txt",
    "*.jinja",
    "*.tiktoken",
    "*.spm",
    "*.bpe",
    "*.codes",
]

#: Where transformers lists its kinds of models.
_TABLES = ("auto_mappings.py", "configuration_auto.py")

#: The kinds of models that are encoders unless they are set up to be decoders (`is_decoder`).
_ENCODERS = frozenset(
    {
        "albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert",
        "electra", "ernie", "esm", "eurobert", "flaubert", "fnet", "funnel", "ibert", "layoutlm", "longformer", "luke",
        "megatron-bert", "mobilebert", "modernbert", "mpnet", "nomic_bert", "nystromformer", "rembert", "roberta",
        "roberta-prelayernorm", "roformer", "splinter", "squeezebert", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip

#: The kinds whose first position is the one after the pad token's: as many of the positions declared are never used.
_COUNT_FROM_PAD = frozenset(
    {
        "camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
        "xlm-roberta", "xlm-roberta-xl", "xmod",
    }
)  # fmt: skip

#: The largest header that the safetensors format allows.
_HEADER_BYTES = 100_000_000


def find_model(name: str, *, allow_pickle: bool = False, download: bool = True) -> ModelSource:
    """Return the model called `name`. Raises BadInput, within 5 s where the hub can't be reached."""
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise BadInput(f"no such file or directory: {name}", str(error)) from None
    if path.is_file():
        return _from_config(name, path)
    if name and path.is_dir():
        return _from_directory(name, path, allow_pickle=allow_pickle)
    if name.startswith((".", "/", "~")) or name.endswith(".json") or not _HUB_ID.fullmatch(name):
        raise BadInput(f"no such file or directory: {name!r}")
    return _from_hub(name, download=download, allow_pickle=allow_pickle)


def max_positions(config: Mapping[str, Any]) -> int | None:
    """Return the longest sequence that a configuration declares, or None where it declares none."""
    unused = 0
    if config.get("model_type") in _COUNT_FROM_PAD and config.get("position_embedding_type", "absolute") == "absolute":
        pad = config.get("pad_token_id")
        unused = 1 + (pad if isinstance(pad, int) else 1)
    for part in (config, config.get("text_config")):
        for entry in ("max_position_embeddings", "n_positions", "max_sequence_length"):
            if isinstance(part, dict) and isinstance(part.get(entry), int):
                return int(part[entry]) - unused
    return None


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is an encoder's: such a model has no next token to ask for."""
    names = _architectures(config)
    if any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in names):
        return False
    masked = any(name.endswith("ForMaskedLM") for name in names)
    return masked or (config.get("model_type") in _ENCODERS and not config.get("is_decoder"))


def default_output(config: Mapping[str, Any]) -> str:
    """Return what is asked of a model when the user does not say: what its class in config.json was made to give.

    A classifier gives scores, a language model the logits of the last token, anything else an embedding.
    """
    names = _architectures(config)
    if any(name.endswith("ForSequenceClassification") for name in names):
        return "scores"
    if is_encoder(config):
        return "pooled"
    speaks = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    return "last-logits" if not names or any(name.endswith(speaks) for name in names) else "pooled"


def refuse_output(name: str, config: Mapping[str, Any], output: str, batch: int | None) -> None:
    """Raise BadInput where a model can't give this output, as far as its configuration tells: the worker tells the rest.

    batch: how many sequences at once, None where that is to be found.
    """
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    needs_pads = output == "scores" and not is_encoder(config)
    refuse_unpadded(name, pads=not needs_pads or text.get("pad_token_id", 0) is not None, batch=batch)
    if output == "last-logits" and is_encoder(config):
        raise BadInput(f"--output last-logits: {name} is an encoder ({config['model_type']}) and predicts no next token",
                       "leave --output out, or ask for pooled, scores, hidden or all-logits")  # fmt: skip


def _architectures(config: Mapping[str, Any]) -> list[str]:
    names = config.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def refuse_unknown(source: ModelSource) -> None:
    """Raise BadInput where the installed transformers has no such kind of model: then its code would come with the model.

    That is read from transformers' files, for importing it takes seconds. Where they can't be read, the worker will tell.
    """
    found = importlib.util.find_spec("transformers")
    tables = Path(found.origin).parent / "models" / "auto" if found and found.origin else Path()
    texts = [file.read_text(encoding="utf-8") for name in _TABLES if (file := tables / name).is_file()]
    kind = source.config["model_type"]
    if not texts or any(f'"{kind}"' in text for text in texts):
        return
    what = f"{source.name}: its model_type {kind!r}"
    if "auto_map" in source.config:
        raise BadInput(f"{what} needs Python code that comes with the model, and that is never run")
    raise BadInput(f"{what} is unknown to the installed transformers", "pip install -U transformers")


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
    if path.suffix != ".json":
        raise BadInput(f"{name} is a file, but no config.json", "give a hub id, a directory or a config.json")
    return ModelSource(name, str(path.resolve()), _read_config(path), "random", "random:0", has_tokenizer=False)


def _from_directory(name: str, path: Path, *, allow_pickle: bool) -> ModelSource:
    if not (path / "config.json").is_file():
        raise BadInput(f"{name} has no config.json")
    config = _read_config(path / "config.json")
    weights = _weight_files(name, path, allow_pickle=allow_pickle)
    for file in weights:
        if file.suffix == ".safetensors":
            _check_safetensors(file)
    return ModelSource(
        name, str(path.resolve()), config, "trained", digest_of(weights), has_tokenizer(path), allow_pickle
    )


def _weight_files(name: str, path: Path, *, allow_pickle: bool) -> list[Path]:
    """Return the files that transformers would load: one, or those of an index; safetensors before pickle."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        files = [path / stem] if (path / stem).is_file() else _shards(name, path / f"{stem}.index.json")
        if files and stem.endswith(".bin") and not allow_pickle:
            raise BadInput(f"{name} has only pickle weights, which can run code when loaded",
                           "convert them to safetensors, or pass --allow-pickle if you trust them")  # fmt: skip
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


def _from_hub(name: str, *, download: bool, allow_pickle: bool) -> ModelSource:
    """Return a hub model: from the cache where it is whole there, else downloaded where that is allowed."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = [*_PATTERNS, *(["*.bin"] if allow_pickle else [])]
    lacking = BadInput(f"unknown model {name}: no such directory, not in the local cache, and the hub can't be reached")
    try:
        cached = Path(snapshot_download(name, local_files_only=True, allow_patterns=patterns))
        return _from_directory(name, cached, allow_pickle=allow_pickle)
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE or not download:
            why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "this command downloads nothing"
            raise BadInput(f"unknown model {name}: no such directory, not in the local cache, and {why}") from None
    except BadInput as error:  # only a part of it is in the cache
        lacking = error
    except ValueError as error:  # the hub's rules for names
        raise BadInput(f"unknown model {name}: no such directory, and no hub id: {error}") from None
    if constants.HF_HUB_OFFLINE or not download or not _hub_answers(constants.ENDPOINT):
        raise lacking
    try:
        path = Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # noqa: BLE001 - HTTP, network, disk, names: what it raises has no base of its own
        said = " ".join(str(error).split())[:200]
        raise BadInput(f"the hub does not give {name}: {said}", "check the name and your token") from None
    return _from_directory(name, path, allow_pickle=allow_pickle)


def _hub_answers(endpoint: str) -> bool:
    """Whether the hub, or a proxy on the way, answers a request within HUB_TIMEOUT_S, with whatever status.

    The hub's own client retries for most of a minute; name resolution has no time limit of its own, hence the thread.
    """
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 - the user's own HF_ENDPOINT
        try:
            urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S).close()  # noqa: S310
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError, http.client.HTTPException) as error:
            # A certificate that only Python's own list does not hold: the hub's client brings another list.
            if not isinstance(getattr(error, "reason", None), ssl.SSLError):
                return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return answered.is_set()
