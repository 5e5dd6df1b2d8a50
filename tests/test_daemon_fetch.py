"""Models that a daemon fetches: over real HTTP from a hub of this host, by a process that can be killed, where there is room."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))

from fleet import MODEL, Fleet

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """A hub that has the shipped model. sizes: that it says files have; is_slow: whether weights take for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        """Listen at any port."""
        super().__init__(("127.0.0.1", 0), Answering)
        self.files = {path.name: path.read_bytes() for path in MODEL.iterdir() if path.is_file()}
        self.sizes = {name: len(data) for name, data in self.files.items()}
        self.is_slow, self.is_over, self.asked = False, threading.Event(), threading.Event()

    @property
    def endpoint(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"


class Answering(BaseHTTPRequestHandler):
    """Answers what huggingface_hub asks: what a model consists of, and its files."""

    server: Hub

    def do_HEAD(self) -> None:
        """Tell of a file."""
        self._answer(is_whole=False)

    def do_GET(self) -> None:
        """Give a file."""
        self._answer(is_whole=True)

    def _answer(self, *, is_whole: bool) -> None:
        path, name = self.path.partition("?")[0], self.path.rpartition("/")[2]
        if path.startswith("/api/models/org/model/tree/"):
            tree = [
                {"type": "file", "path": file, "size": size, "oid": COMMIT} for file, size in self.server.sizes.items()
            ]
            self._give(json.dumps(tree).encode(), is_whole=True)
        elif path.startswith("/api/models/org/model"):
            siblings = [{"rfilename": file, "size": size} for file, size in self.server.sizes.items()]
            self._give(json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode(), is_whole=True)
        elif path.startswith("/org/model/resolve/") and name in self.server.files:
            self._give(
                self.server.files[name], is_whole=is_whole, is_slow=self.server.is_slow and "safetensors" in name
            )
        else:
            self.send_response(200 if path == "/" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _give(self, data: bytes, *, is_whole: bool, is_slow: bool = False) -> None:
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(data) & 0xFFFFFFFFFF:040x}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if not is_whole:
            return
        if is_slow:
            self.wfile.write(data[:1000])
            self.wfile.flush()
            self.server.asked.set()
            self.server.is_over.wait(60.0)
            return
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[Hub]:
    """Give a hub of this host."""
    with Hub() as made:
        serving = threading.Thread(target=made.serve_forever)
        serving.start()
        yield made
        made.is_over.set()
        made.shutdown()
        serving.join()


@pytest.fixture
def fleet(hub: Hub, sqlite_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Give hosts that ask that hub, with a cache of their own; none is started."""
    own = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "", "HF_ENDPOINT": hub.endpoint, "NO_PROXY": "127.0.0.1"}
    made = Fleet(sqlite_url, tmp_path, variables=own)
    yield made
    made.close()


def fetching(fleet: Fleet) -> list[psutil.Process]:
    """Return the processes that fetch."""
    daemon = psutil.Process(fleet.hosts["real"].pid)
    return [each for each in daemon.children(recursive=True) if "advisor.daemon.fetch" in " ".join(each.cmdline())]


def amid(fleet: Fleet, hub: Hub) -> tuple[str, psutil.Process]:
    """Submit a job whose model takes for ever, and wait until its weights come; return it and what fetches them."""
    hub.is_slow = True
    fleet.start_real()
    name = fleet.submit("org/model", lengths="16,12", trials=1, blocks=0, threads=1)
    assert hub.asked.wait(60.0)
    (process,) = fetching(fleet)
    return name, process


def test_a_model_of_the_hub_is_fetched_and_tuned(fleet: Fleet) -> None:
    """Its process is told neither the database nor the token, and is gone when the first trial runs."""
    fleet.start_real()
    name = fleet.submit("org/model", lengths="16,12", trials=1, blocks=0, threads=1)

    fleet.all_over([name], 120.0)

    assert (fleet.job(name).state, fetching(fleet)) == ("done", [])
    assert len(fleet.store.trials(fleet.job(name).study or 0)) == 1


def test_a_job_that_is_cancelled_amid_its_fetch_lets_go(fleet: Fleet, hub: Hub) -> None:
    """As soon as amid a trial: the process is gone within 2 s, and the slot takes the next job up."""
    name, process = amid(fleet, hub)
    assert not {"ADVISOR_DATABASE_URL", "ADVISOR_TOKEN"} & process.environ().keys()
    fleet.jobs.cancel(name)
    began = time.monotonic()
    fleet.until(lambda: not process.is_running(), 20.0, "the process gone")

    assert time.monotonic() - began < 2.0
    assert fleet.job(name).state == "cancelled"
    fleet.until(lambda: fleet.slots(1)[0].state == "idle", 20.0, "the slot idle")


def test_a_host_that_stops_amid_a_fetch_ends_in_time(fleet: Fleet, hub: Hub) -> None:
    """Its job goes back to the queue, and no process is left."""
    name, process = amid(fleet, hub)
    began = time.monotonic()
    fleet.hosts["real"].terminate()
    fleet.hosts["real"].wait(30.0)

    assert time.monotonic() - began < 8.0
    assert not process.is_running()
    assert fleet.job(name).state == "queued"
    assert "deaths" not in fleet.job(name).words


def test_a_slot_that_is_killed_amid_a_fetch_takes_that_along(fleet: Fleet, hub: Hub) -> None:
    """Nothing goes on downloading for nobody."""
    _, process = amid(fleet, hub)
    process.parent().kill()
    fleet.until(lambda: not process.is_running(), 5.0, "the process gone")


@pytest.mark.parametrize(
    ("flags", "size", "words"),
    [
        ([], 2**60, "org/model is 1073741824.0 GiB to download, and the disk of "),
        (["--max-download", "2MiB"], 3 * 2**20, "org/model is 3 MiB to download, and at most 2 MiB may be"),
    ],
)
def test_what_there_is_no_room_for_is_not_begun(
    fleet: Fleet, hub: Hub, flags: list[str], size: int, words: str
) -> None:
    """The job has failed with a line of what it takes and what there is, before anything came."""
    hub.sizes = {name: size if "safetensors" in name else 0 for name in hub.sizes}
    fleet.start_working(["--workers", "cpu", *flags])
    name = fleet.submit("org/model", lengths="16,12", trials=1, blocks=0, threads=1)

    fleet.all_over([name], 60.0)

    assert fleet.job(name).state == "failed"
    assert words in fleet.job(name).why
    assert not list(fleet.folder.glob("hf/**/*.safetensors"))
