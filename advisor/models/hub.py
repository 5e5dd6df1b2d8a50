"""The hub: a model's files in its cache, or downloaded there where there is room for them. No other module asks it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

from advisor.errors import BadInput, named
from advisor.terminal import gib

#: How long to wait for the hub to answer at all, in seconds.
HUB_TIMEOUT_S = 3.0

#: What is left free on the disk that a model is downloaded to, bytes: logs and databases can be on it.
LEFT_FREE_BYTES = 2**30

_PATTERNS = (
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
)


def patterns(*, allow_pickle: bool) -> list[str]:
    """Return which files of a model are of use."""
    return [*_PATTERNS, *(["*.bin"] if allow_pickle else [])]


def cached(name: str, wanted: Sequence[str]) -> Path | None:
    """Return the folder of a model in the cache, a part of it too; None where there is none. Raises ValueError for no name."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=list(wanted)))
    except LocalEntryNotFoundError:
        return None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def downloaded(name: str, wanted: Sequence[str], most_bytes: int | None = None) -> Path:
    """Download what is lacking of a model; return its folder. Raises BadInput.

    most_bytes: that it may take, None for as many as there is room for on the disk of the cache.
    """
    from huggingface_hub import snapshot_download

    try:
        size = _lacking_bytes(name, wanted)
        _refuse_too_large(name, size, most_bytes)
        return Path(snapshot_download(name, allow_patterns=list(wanted)))
    except BadInput:
        raise
    except Exception as error:  # noqa: BLE001 - HTTP, network, disk, names: what it raises has no base of its own
        said = " ".join(str(error).split())[:200]
        raise BadInput(f"the hub does not give {name}: {said}", "check the name and your token") from None


def _lacking_bytes(name: str, wanted: Sequence[str]) -> int:
    """Return how many bytes of a model are to be downloaded; of a file whose size the hub does not say, none."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.utils import filter_repo_objects

    found = HfApi().model_info(name, files_metadata=True)
    files = {each.rfilename: each.size or 0 for each in found.siblings or ()}
    lacking = (
        file
        for file in filter_repo_objects(files, allow_patterns=list(wanted))
        if not isinstance(try_to_load_from_cache(name, file, revision=found.sha), str)
    )
    return sum(files[file] for file in lacking)


def _refuse_too_large(name: str, size: int, most_bytes: int | None) -> None:
    """Raise BadInput where so many bytes are more than may be downloaded, or than the disk has room for."""
    from huggingface_hub import constants

    if most_bytes is not None and size > most_bytes:
        hint = f"{named('max_download')} is the operator's: advisor serve, advisor worker"
        raise BadInput(f"{name} is {gib(size)} to download, and at most {gib(most_bytes)} may be", hint)
    cache = Path(constants.HF_HUB_CACHE).expanduser()
    there = next((folder for folder in (cache, *cache.parents) if folder.is_dir()), Path("/"))
    free = shutil.disk_usage(there).free
    if size > max(0, free - LEFT_FREE_BYTES):
        room = f"{gib(size)} to download, and the disk of {cache} has {gib(free)} free"
        raise BadInput(f"{name} is {room}, of which {gib(LEFT_FREE_BYTES)} stay so", "HF_HOME names another disk")


def answers() -> bool:
    """Whether the hub, or a proxy on the way, answers a request within HUB_TIMEOUT_S, with whatever status.

    The hub's own client retries for most of a minute; name resolution has no time limit of its own, hence the thread.
    """
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310 - the user's own HF_ENDPOINT
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
