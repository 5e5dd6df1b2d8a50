"""What is no model, or a damaged one, is told in one line before anything is started or written."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import advisor
from advisor.errors import BadInput
from advisor.models.checkpoint import digest_of, find_model
from advisor.models.declared import max_positions, refuse_unknown

ROOT = Path(advisor.__file__).parent.parent
CAUSAL = Path(__file__).parent / "models" / "causal"
CONFIG = json.loads((CAUSAL / "config.json").read_text())
HEADER = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def safetensors(header: object = HEADER, data: bytes = bytes(8)) -> bytes:
    """Return the bytes of a safetensors file: the header's length, the header, the data."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def made(folder: Path, files: dict[str, object]) -> Path:
    """Write a model's directory: bytes as they are, anything else as JSON; config.json is there unless it is None."""
    folder.mkdir(parents=True)
    for name, content in {"config.json": CONFIG, **files}.items():
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return an environment in which everything that the command could write would lie under `home`."""
    places = ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME")
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "ADVISOR_", "TRANSFORMERS_"))
    }
    own = {name: str(home / name.lower()) for name in places}
    # What is refused before a worker is needed makes none ready.
    fixed = {"HOME": str(home), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "ADVISOR_START": "spawn"}
    return {**kept, **own, **fixed, **more}


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file and directory below a folder, with the files' contents."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def complaint(tmp_path: Path, *arguments: str, **more: str) -> str:
    """Run the real command on bad input, in a process of its own; return its one line."""
    command = [sys.executable, "-m", "advisor", *arguments]

    def run() -> subprocess.CompletedProcess[str]:
        variables = environment(tmp_path, **more)
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=variables, check=False, timeout=240
        )

    return line_of(run, tmp_path)


@pytest.fixture
def told(tmp_path: Path, in_process: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., str]:
    """Return what runs the same command in this process and gives its one line: for what no process is needed."""

    def run(*arguments: str) -> str:
        return line_of(lambda: in_process(*arguments, cwd=tmp_path, env=environment(tmp_path)), tmp_path)

    return run


def line_of(run: Callable[[], subprocess.CompletedProcess[str]], folder: Path) -> str:
    """Run it and return the one line that it says, seeing to it that nothing was written."""
    before = tree(folder)
    done = run()
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("advisor: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert tree(folder) == before
    return done.stderr


@pytest.fixture(scope="module")
def patience_s(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Return how long a command may take that asks the hub: 5 s more than it takes offline, here and today."""
    began = time.monotonic()
    complaint(tmp_path_factory.mktemp("offline"), "tune", "org/unknown", "--device", "cpu")
    return 5 + 3 * (time.monotonic() - began)


INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
WHOLE = safetensors()

#: What a directory holds besides a right config.json (None takes that away), and words of the line.
BROKEN: dict[str, tuple[dict[str, object], str]] = {
    "no weights": ({}, "has no weights"),
    "only a tokenizer": ({"tokenizer.json": {}}, "has no weights"),
    "only an adapter": ({"adapter_model.safetensors": WHOLE}, "has no weights"),
    "no config.json": ({"config.json": None, "model.safetensors": WHOLE}, "has no config.json"),
    "truncated": ({"model.safetensors": WHOLE[:-3]}, "is corrupted"),
    "longer than it says": ({"model.safetensors": WHOLE + b"more"}, "is corrupted"),
    "garbage": ({"model.safetensors": bytes(range(256)) * 8}, "its header can't be read"),
    "empty file": ({"model.safetensors": b""}, "its header can't be read"),
    "header is a list": ({"model.safetensors": safetensors([1, 2])}, "its header can't be read"),
    "no offsets": ({"model.safetensors": safetensors({"w": {"data_offsets": []}})}, "its header can't be read"),
    "offsets are words": ({"model.safetensors": safetensors({"w": {"data_offsets": ["a", "b"]}})}, "its header can't"),
    "deep header": ({"model.safetensors": (200_000).to_bytes(8, "little") + b"[" * 300_000}, "its header can't"),
    "LFS pointer": ({"model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"}, "(git lfs pull)"),
    "missing shard": (
        {"model.safetensors.index.json": INDEX, "model-00001-of-00002.safetensors": WHOLE},
        "lacks 1 of its 2 weight files, model-00002-of-00002.safetensors among them",
    ),
    "index is no JSON": ({"model.safetensors.index.json": b"{", "a.safetensors": WHOLE}, "is no index of weights"),
    "index without map": ({"model.safetensors.index.json": {}, "a.safetensors": WHOLE}, "is no index of weights"),
    "pickle": ({"pytorch_model.bin": b"\x80\x02"}, "--allow-pickle"),
    "config is no JSON": ({"config.json": b"{'model_type': 'llama'}", "model.safetensors": WHOLE}, "can't be read"),
    "config is no UTF-8": ({"config.json": b"\xff\xfe", "model.safetensors": WHOLE}, "can't be read"),
    "config is deep": ({"config.json": b"[" * 300_000, "model.safetensors": WHOLE}, "can't be read"),
    "config is a list": ({"config.json": [1], "model.safetensors": WHOLE}, "it has no model_type"),
    "no model_type": ({"config.json": {"hidden_size": 4}, "model.safetensors": WHOLE}, "it has no model_type"),
    "model_type is a number": ({"config.json": {"model_type": 5}, "model.safetensors": WHOLE}, "it has no model_type"),
    "remote code": (
        {"config.json": {"model_type": "made_up", "auto_map": {"AutoConfig": "x.Y"}}, "model.safetensors": WHOLE},
        "its model_type 'made_up' needs Python code that comes with the model, and that is never run",
    ),
    "unknown model_type": (
        {"config.json": {"model_type": "made_up"}, "model.safetensors": WHOLE},
        "its model_type 'made_up' is unknown to the installed transformers",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_is_told_in_one_line(tmp_path: Path, told: Callable[..., str], case: str) -> None:
    """A directory that is no whole checkpoint gives one line that names it, status 2, no traceback and no file."""
    files, words = BROKEN[case]
    made(tmp_path / "model", files)
    line = told("tune", "model", "--device", "cpu", "--lengths", "8", "--padding", "0")

    assert words in line
    assert "model" in line


@pytest.mark.parametrize("case", ["truncated", "missing shard", "pickle", "no model_type"])
def test_suggest_refuses_a_broken_model_too(tmp_path: Path, told: Callable[..., str], case: str) -> None:
    """`suggest` does not answer for a checkpoint that could not be loaded."""
    files, words = BROKEN[case]
    made(tmp_path / "model", files)

    assert words in told("suggest", "model", "--lengths", "8", "--padding", "0")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "no such file"),
        ("./nothing", "no such file"),
        ("/nothing/at/all", "no such file"),
        ("nothing.json", "no such file"),
        ("a b/c", "no such file"),
        ("x/y/z", "no such file"),
        ("two\nlines", "no such file"),
        ("~nobody-of-that-name/model", "no such file"),
        ("a--b", "no hub id"),
        ("a..b/c", "no hub id"),
        ("x" * 97, "no hub id"),
        ("org/" + "x" * 300, "advisor: "),
        ("org/unknown", "HF_HUB_OFFLINE is set"),
        ("weights.bin", "is a file, but no config.json"),
    ],
)
def test_a_name_that_is_no_model_is_told_in_one_line(
    tmp_path: Path, told: Callable[..., str], name: str, words: str
) -> None:
    """A name that is neither a path that exists nor a model in the cache gives one line, and nothing is downloaded."""
    (tmp_path / "weights.bin").write_bytes(b"\x80")

    assert words in told("tune", name, "--device", "cpu")


def test_suggest_downloads_nothing(tmp_path: Path) -> None:
    """Asked for a hub model that is not in the cache, `suggest` says that it downloads nothing, and does not."""
    line = complaint(tmp_path, "suggest", "org/unknown", HF_HUB_OFFLINE="", HF_ENDPOINT="http://127.0.0.1:9")

    assert "this command downloads nothing" in line


def nobody_listens() -> str:
    """Return an address where connections are refused."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.mark.parametrize("hub", ["refuses", "accepts and says nothing"])
def test_an_unknown_model_costs_seconds_without_a_network(tmp_path: Path, patience_s: float, hub: str) -> None:
    """Where the hub refuses connections or never answers, an unknown model is told within 5 s, offline or not."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        endpoint = nobody_listens() if hub == "refuses" else f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        line = complaint(tmp_path, "tune", "org/unknown", "--device", "cpu", HF_HUB_OFFLINE="", HF_ENDPOINT=endpoint)

    assert "unknown model org/unknown" in line
    assert "the hub can't be reached" in line
    assert time.monotonic() - began < patience_s


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root can take the network away")
def test_an_unknown_model_costs_seconds_with_no_network_device(tmp_path: Path, patience_s: float) -> None:
    """In a process without any network the real hub's name can't even be looked up: the line comes within 5 s too."""
    command = ["unshare", "--net", sys.executable, "-m", "advisor", "tune", "org/unknown", "--device", "cpu"]
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine does not let root make a network namespace")
    began = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(tmp_path, HF_HUB_OFFLINE=""), check=False, timeout=240
    )

    assert time.monotonic() - began < patience_s
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "unknown model org/unknown" in done.stderr


@pytest.mark.parametrize("status", [401, 404, 503, 0], ids=["denied", "not found", "broken", "cut off"])
def test_what_the_hub_says_is_told_in_one_line(tmp_path: Path, patience_s: float, status: int) -> None:
    """A hub that does not give the model, or cuts the connection, gives one line too, within 5 s."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            if status or self.path == "/":
                self.send_response(status or 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        began = time.monotonic()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        line = complaint(tmp_path, "tune", "org/unknown", "--device", "cpu", HF_HUB_OFFLINE="", HF_ENDPOINT=endpoint)
        server.shutdown()

    assert "org/unknown" in line
    assert len(line) < 400
    assert time.monotonic() - began < patience_s


def cached(home: Path, files: dict[str, object]) -> None:
    """Lay a snapshot of org/model in the hub's cache."""
    repository = home / "hf_home" / "hub" / "models--org--model"
    made(repository / "snapshots" / ("0" * 40), files)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


def test_a_part_of_a_model_in_the_cache_is_no_model(tmp_path: Path) -> None:
    """A download that broke off is told as what it lacks, offline and where the hub can't be reached."""
    cached(tmp_path, {"model.safetensors.index.json": INDEX, "model-00001-of-00002.safetensors": WHOLE})

    for more in ({}, {"HF_HUB_OFFLINE": "", "HF_ENDPOINT": nobody_listens()}):
        line = complaint(tmp_path, "tune", "org/model", "--device", "cpu", **more)

        assert "org/model lacks 1 of its 2 weight files" in line


def test_a_model_in_the_cache_is_found_offline(tmp_path: Path) -> None:
    """A whole snapshot in the hub's cache is the model: no network is asked, and suggest goes on to the database."""
    cached(tmp_path, {"model.safetensors": WHOLE})
    done = subprocess.run(
        [sys.executable, "-m", "advisor", "suggest", "org/model", "--lengths", "8", "--padding", "0"],
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        check=False,
        timeout=240,
    )

    assert done.returncode == 3, done.stderr
    assert "no database" in done.stderr


# ------------------------------------------------------------------------------------------------ the parts, in process


def test_the_shipped_model_is_found() -> None:
    """A directory is a trained model with the digest of its weights, its config.json alone one with random weights."""
    directory, config = find_model(str(CAUSAL)), find_model(str(CAUSAL / "config.json"))

    assert (directory.weights, directory.has_tokenizer, directory.has_random_weights) == ("trained", True, False)
    assert directory.weights_digest == digest_of([CAUSAL / "model.safetensors"])
    assert (config.weights, config.weights_digest, config.has_tokenizer) == ("random", "random:0", False)
    assert directory.architecture_key == config.architecture_key
    refuse_unknown(directory)


def test_an_index_says_which_files_are_the_weights(tmp_path: Path) -> None:
    """The digest covers the files that transformers loads, and not what else lies beside them."""
    shards = {f"model-0000{n}-of-00002.safetensors": safetensors(data=bytes([n] * 8)) for n in (1, 2)}
    one = made(tmp_path / "one", {"model.safetensors.index.json": INDEX, **shards})
    two = made(tmp_path / "two", {"model.safetensors.index.json": INDEX, **shards, "consolidated.safetensors": WHOLE})

    assert find_model(str(one)).weights_digest == find_model(str(two)).weights_digest
    (two / "model-00002-of-00002.safetensors").write_bytes(safetensors(data=b"another "))
    assert find_model(str(one)).weights_digest != find_model(str(two)).weights_digest


def test_pickle_is_loaded_where_it_is_allowed(tmp_path: Path) -> None:
    """With --allow-pickle a pickle checkpoint is a model, and safetensors beside it come first."""
    folder = made(tmp_path / "model", {"pytorch_model.bin": b"\x80\x02", "training_args.bin": b"\x80"})
    found = find_model(str(folder), allow_pickle=True)

    assert found.files.allow_pickle
    assert found.weights_digest == digest_of([folder / "pytorch_model.bin"])
    (folder / "model.safetensors").write_bytes(WHOLE)
    assert find_model(str(folder)).weights_digest == digest_of([folder / "model.safetensors"])


def test_known_kinds_of_models_need_no_code(tmp_path: Path) -> None:
    """An auto_map is no hindrance where transformers knows the kind of model itself; a foreign kind is refused."""
    for kind in ("llama", "falcon", "gpt2", "gemma2"):
        folder = made(tmp_path / kind, {"config.json": {"model_type": kind, "auto_map": {"AutoConfig": "x.Y"}}})
        refuse_unknown(find_model(str(folder / "config.json")))
    foreign = made(tmp_path / "foreign", {"config.json": {"model_type": "no_such_kind"}})
    with pytest.raises(BadInput, match="no_such_kind"):
        refuse_unknown(find_model(str(foreign / "config.json")))


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 8}, 8),
        ({"n_positions": 4}, 4),
        ({"max_sequence_length": 2}, 2),
        ({}, None),
        ({"text_config": {"max_position_embeddings": 6}}, 6),
        ({"text_config": ["x"]}, None),
        ({"max_position_embeddings": "many"}, None),
    ],
)
def test_positions_are_read_where_they_are_declared(config: dict[str, object], limit: int | None) -> None:
    """The longest sequence is found under every name that models use, and nothing is guessed."""
    assert max_positions(config) == limit


def test_large_weights_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of weights too large to be read whole, the header, the size, evenly spaced blocks and the time written count."""
    monkeypatch.setattr("advisor.models.checkpoint.WHOLE_HASH_BYTES", 1000)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(2**22))
    before = digest_of([file])

    assert digest_of([file]) == before
    with file.open("r+b") as stream:
        stream.write(b"x")
    os.utime(file, ns=(0, 0))
    first = digest_of([file])
    os.utime(file, ns=(0, 1))
    assert len({before, first, digest_of([file])}) == 3
