"""The daemon's parts: what is let in, when a device may be used, what is left of a budget, jobs in their order, and slots."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import time, timedelta
from pathlib import Path
from typing import Any

import pytest
from daemons import waited
from made_databases import laid

from advisor.asking.submission import Submission, let_in
from advisor.daemon import deaths, engine
from advisor.daemon.budget import left_of
from advisor.daemon.courtesy import Courtesy, Hours, Watch
from advisor.daemon.fetch import Fetch, Wanted
from advisor.daemon.supervisor import Supervisor
from advisor.errors import BadInput, NotMeasured, StoreError
from advisor.faces.cli import run
from advisor.machine import processors
from advisor.machine.leftovers import owner
from advisor.machine.locks import is_wanted, wanting
from advisor.measure.runner import environment_of
from advisor.nouns.configuration import Configuration
from advisor.nouns.environment import Environment, Machine
from advisor.nouns.objective import Budget
from advisor.nouns.trial import Outcome, Trial
from advisor.storage.roster import Roster
from advisor.storage.store import Store
from advisor.web.served import Limits, NoDevice, QueueFull, Served

CPU = Environment("cpu", "a processor", None, 2**30, threads=1)
H100 = Environment("cuda", "NVIDIA H100", (9, 0), 80 * 2**30, driver="580.1", cuda="13.0")
DEFAULT = Configuration.of({"attention": "sdpa", "precision": "fp32"})

#: A process of this host that is gone: nobody can have this pid (proc(5), pid_max).
GONE = f"{owner().rsplit(':', 2)[0]}:4194305:1"


@pytest.fixture
def url(database_url: str) -> str:
    """Give a database that a daemon has run on."""
    Store.open(laid(database_url), write=True).close()
    engine.prepare(database_url)
    return database_url


@pytest.fixture
def served(url: str) -> Iterator[Served]:
    """Give its jobs, with one slot at work."""
    made = Served.open(url, Limits(most_waiting=3))
    assert Roster(made.store).enter("cpu-here", "here", CPU, owner())
    yield made
    made.close()


# ------------------------------------------------------------------------------------------------------- what is let in


@pytest.mark.parametrize("model", ["org/model", "bert-base-uncased", "Qwen/Qwen2.5-1.5B"])
def test_a_hub_id_is_let_in(model: str) -> None:
    """What looks like an id of the hub's is one, wherever the daemon runs."""
    assert let_in(model, None) == model


@pytest.mark.parametrize(
    "model",
    [
        "/etc/passwd",
        "../secret",
        "./here",
        "~/models/x",
        "a/b/c",
        "a/../b",
        "..",
        "org/..",
        "a\\b",
        "",
        "a\0b",
        "x" * 300,
        "out",
    ],
)
def test_a_path_is_not_let_in_beside_the_root(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request names no path of the host, not by a link out of the root either, and learns nothing of what is there."""
    root = tmp_path / "models"
    root.mkdir()
    (root / "out").symlink_to("/etc")
    with pytest.raises(BadInput, match="is no hub id, and no model that lies where"):
        let_in(model, root)


def test_a_path_under_the_root_is_let_in(tmp_path: Path) -> None:
    """What lies under the root is named by its path from there, or by its whole path; links within it are followed."""
    root = tmp_path / "models"
    (root / "org" / "own").mkdir(parents=True)
    (root / "link").symlink_to(root / "org" / "own")
    for name in ("org/own", "link", str(root / "org" / "own")):
        assert let_in(name, root) == str(root / "org" / "own")
    with pytest.raises(BadInput):
        let_in(str(root / "org" / "own"), None)


def test_a_folder_beside_the_daemon_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of this name that lies in the daemon's own folder is a path of the host, which a request may not name."""
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput):
        let_in("org/model", None)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"model": 3}, "model must be a hub id or a path, not 3"),
        ({"model": "m", "given": []}, "given must be options by name"),
        ({"model": "m", "shell": "x"}, "a job has no 'shell'"),
        ({"model": "m", "priority": 1e9}, "--priority must be a whole number from -1000 to 1000"),
        ({"model": "m", "priority": True}, "--priority must be a whole number"),
        ({"model": "m", "priority": 1001}, "--priority must be a whole number"),
        ({"model": "m", "device_class": 1}, "device_class must be a text"),
    ],
)
def test_what_is_no_submission_is_refused(payload: dict[str, object], words: str) -> None:
    """A payload that somebody sent is understood or refused, naming what is wrong."""
    with pytest.raises(BadInput, match=words):
        Submission.of(payload)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lengths": "8", "allow_pickle": True}, "--allow-pickle is decided by who runs the daemon"),
        ({"lengths": "8", "device": "cuda:1"}, "--device is a machine's own"),
        ({"lengths_from": "/etc/passwd"}, "--lengths-from names a file of this machine"),
        ({"lengths": "8", "budget": "3h"}, "--budget: 10800 s is more than the 3600 s that a job may spend"),
        ({"lengths": "8", "dry_run": True}, "a job has no option 'dry_run'"),
        ({"lengths": "none"}, "--lengths"),
        ({"lengths": "8", "budget": 20}, "--budget 20 has no unit .*write 20m or 20s"),
        ({"lengths": "8", "timeout": 1.5}, "--timeout 1.5 has no unit"),
        ({"lengths": "8", "max_latency": 2}, "--max-latency must be a time such as 80ms"),
        ({"lengths": ",".join(["8"] * 200_000)}, "a job takes at most 256 KiB"),
    ],
)
def test_what_a_daemon_does_not_take_is_refused(given: dict[str, object], words: str) -> None:
    """Options that are a machine's, the operator's, or beyond the daemon's limits are refused before anything is stored."""
    with pytest.raises(BadInput, match=words):
        Submission("org/model", given).checked(model_root=None, most_budget_s=3600.0)


def test_a_request_that_names_no_end_gets_the_daemons() -> None:
    """What is bounded by trials alone, or by nothing, may take what a job may spend."""
    asked = Submission("org/model", {"lengths": "8", "exhaustive": True}).checked(model_root=None, most_budget_s=90.0)
    assert asked.effort(asked.question).budget == Budget(90.0, exhaustive=True)


def test_who_has_the_database_in_hand_decides_alone() -> None:
    """The limits are for requests."""
    asked = Submission("/models/own", {"lengths": "8", "budget": "3h", "allow_pickle": True})
    assert asked.checked(model_root=None, most_budget_s=3600.0, is_operator=True) == asked


# ------------------------------------------------------------------------------------------------------------- courtesy


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("22:00-07:00", [time(22), time(23, 59), time(0), time(6, 59)], [time(7), time(12), time(21, 59)]),
        ("9:30-17:00", [time(9, 30), time(16, 59)], [time(9, 29), time(17), time(0)]),
    ],
)
def test_hours_hold_over_midnight(hours: str, inside: list[time], outside: list[time]) -> None:
    """From the first moment to the last, which is not in them."""
    read = Hours.of(hours)
    assert all(read.hold(moment) for moment in inside)
    assert not any(read.hold(moment) for moment in outside)


@pytest.mark.parametrize("text", ["22-7", "25:00-07:00", "22:00", "22:00-22:00", "22:00-07:00:00", "", "٢٢:00-07:00"])
def test_what_are_no_hours_is_refused(text: str) -> None:
    """They are told apart from what can't be read."""
    with pytest.raises(BadInput, match="--only"):
        Hours.of(text)


def test_a_device_is_left_alone_outside_its_hours() -> None:
    """And is used within them."""
    watch = Watch(Machine(CPU, "here", "cpu-nobody", None, 2**30), Courtesy(Hours.of("22:00-07:00")))
    assert watch.hindrance(now=time(12)) == "it is only used 22:00-07:00"
    assert not watch.hindrance(now=time(23))


def test_a_gpu_whose_processes_cant_be_seen_is_not_taken_for_idle() -> None:
    """Where nobody can say who computes on it, the operator is asked to; NVML knows no such device here."""
    gpu = Machine(H100, "here", "GPU-none", 0, 2**30)
    assert "--assume-idle takes it for idle" in Watch(gpu, Courtesy()).hindrance()
    assert not Watch(gpu, Courtesy(assume_idle=True)).hindrance()


def test_a_device_that_another_advisor_measures_on_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tune by hand holds the device's lock; the slot that works holds it itself."""
    import fcntl

    monkeypatch.setenv("ADVISOR_LOCK_DIR", str(tmp_path))
    watch = Watch(Machine(CPU, "here", "cpu-locked", None, 2**30), Courtesy())
    with (tmp_path / "advisor-cpu-locked.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert watch.hindrance() == "another advisor measures on it"
        assert not watch.hindrance(works=True)
    assert not watch.hindrance()
    with wanting("cpu-locked"), wanting("cpu-locked"):
        assert (
            watch.hindrance(works=True) == watch.hindrance() == "an advisor that somebody started by hand waits for it"
        )
    assert not watch.hindrance(works=True)


def test_nobody_who_looks_is_taken_for_one_who_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot looks from two threads, and another daemon may look as well: none of them gives the device back for it."""
    monkeypatch.setenv("ADVISOR_LOCK_DIR", str(tmp_path))
    with wanting("looked-at"):
        assert is_wanted("looked-at")

    def found(_: int) -> int:
        return sum(is_wanted("looked-at") for _ in range(5000))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(found, range(2))) == [0, 0]


def test_a_control_groups_quota_bounds_a_slots_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot uses no more threads than may run at once."""
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(processors, "_QUOTA", quota)
    monkeypatch.setattr(processors, "usual_threads", lambda: 8)
    for text, threads in (("250000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("1600000 100000", 8)):
        quota.write_text(text)
        assert processors.slot_threads() == threads
    quota.unlink()
    assert processors.slot_threads() == 8


# --------------------------------------------------------------------------------------------------------------- budget


def test_a_budget_counts_what_the_busiest_device_measured() -> None:
    """Not what was measured before the job, what is another study's, or the time between."""

    def trial(number: int, wall_s: float, device: str, reused_from: int | None = None) -> Trial:
        return Trial(
            number, DEFAULT, DEFAULT, Outcome.OK, "", wall_s=wall_s, device_uuid=device, reused_from=reused_from
        )

    trials = [trial(0, 500, "a"), trial(1, 20, "a"), trial(2, 30, "b"), trial(3, 25, "a"), trial(4, 99, "a", 0)]
    assert left_of(Budget(seconds=60.0), trials, 1).seconds == 15.0
    assert left_of(Budget(seconds=40.0), trials, 1).seconds == 0.0
    assert left_of(Budget(seconds=60.0), [], 0).seconds == 60.0
    assert left_of(Budget(trials=5), trials, 0) == Budget(trials=5)


# ---------------------------------------------------------------------------------------------------- jobs and the roster


def test_a_job_is_stored_listed_and_cancelled(served: Served) -> None:
    """By its id or a beginning of it, in the state that it is in."""
    asked = Submission("org/model", {"lengths": "8"}, priority=3)
    job = served.submit(asked)

    assert job.state == "queued"
    assert job.submission == Submission("org/model", {"lengths": "8"}, 3, CPU.device_class)
    assert served.jobs.job(job.id[:9]) == job
    assert served.listed("queued", 0, 10)[0]["id"] == job.id
    assert served.jobs.waiting() == served.jobs.waiting(CPU.device_class) == 1
    assert not served.jobs.is_cancelled(job.id)
    assert served.jobs.cancel(job.id).state == "cancelled"
    assert served.jobs.is_cancelled(job.id)
    assert served.jobs.waiting() == 0
    assert [each.id for each in served.jobs.page("cancelled")] == [job.id]
    json.dumps(served.told(job.id))


def test_a_nought_is_submitted_too(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No block and no padding are asked for, as another number is; a flag that nobody gave is not."""
    monkeypatch.setenv("ADVISOR_DATABASE_URL", served.url)
    work = ["--lengths", "8", "--padding", "0", "--batch", "2", "--blocks", "0"]
    assert run(["submit", "org/model", *work, "--format", "json"]) == 0
    given = json.loads(capsys.readouterr().out)["given"]
    assert (given["blocks"], given["padding"]) == (0, 0.0)
    assert "exhaustive" not in given


def test_jobs_are_listed_the_newest_first_in_pages(served: Served) -> None:
    """And a beginning that several have names none."""
    names = [served.submit(Submission("org/model", {"lengths": "8"})).id for _ in range(3)]
    assert [job.id for job in served.jobs.page(None, 0, 2)] == names[:0:-1]
    assert [job.id for job in served.jobs.page(None, 2, 2)] == names[:1]
    for name in ("", "1", "nothing", "%"):
        with pytest.raises(NotMeasured):
            served.jobs.job(name)


def test_a_queue_that_is_full_takes_no_more(served: Served) -> None:
    """It says so, and takes one again as soon as there is room."""
    jobs = [served.submit(Submission("org/model", {"lengths": "8"})) for _ in range(3)]
    with pytest.raises(QueueFull, match="3 jobs wait already"):
        served.submit(Submission("org/model", {"lengths": "8"}))
    served.jobs.cancel(jobs[0].id)
    served.submit(Submission("org/model", {"lengths": "8"}))


def test_a_job_waits_for_the_device_that_it_names(served: Served) -> None:
    """A GPU is preferred; a part of a name or of a key finds a device; one that nobody has is refused, with what there is."""
    served.roster.enter("GPU-1", "gone", H100, GONE)
    asked = Submission("org/model", {"lengths": "8"})
    assert served.submit(asked).submission.device_class == CPU.device_class  # the GPU's slot is gone
    served.roster.enter("GPU-1", "here", H100, owner(1))
    assert served.submit(asked).submission.device_class == "NVIDIA H100, 80 GiB"
    for on in ("processor", CPU.key[:6]):
        assert served.submit(
            Submission("org/model", {"lengths": "8", "on": on}), is_operator=True
        ).submission.device_class == (CPU.device_class)
    with pytest.raises(
        NoDevice, match=r"--on A100 names no device of this daemon's \(there are NVIDIA H100, 80 GiB; a processor"
    ):
        served.submit(Submission("org/model", {"lengths": "8", "on": "A100"}))


def test_a_database_that_no_daemon_ran_on_says_so(database_url: str) -> None:
    """Listing jobs makes nothing."""
    Store.open(laid(database_url), write=True).close()
    with (
        pytest.raises(NotMeasured, match="no daemon has run on this database"),
        closing(engine.Jobs(database_url)) as jobs,
    ):
        jobs.page()


def test_a_slot_is_one_processes_at_a_time(url: str) -> None:
    """Who comes second gets it when the first is gone: at once where that can be seen, after its lease where it can't."""
    with Store.open(url, write=True) as store:
        roster = Roster(store)
        assert roster.enter("GPU-1", "a", H100, owner(0))
        assert not roster.enter("GPU-1", "b", H100, owner(1))
        assert roster.beat("GPU-1", owner(0), "busy", job="j", busy_s=2.5)
        assert not roster.beat("GPU-1", owner(1), "idle")
        (slot,) = roster.slots()
        assert (slot.state, slot.job, slot.busy_s, slot.host, slot.is_there()) == ("busy", "j", 2.5, "a", True)
        roster.leave("GPU-1", owner(1))
        assert roster.slots()[0].is_there()
        roster.leave("GPU-1", owner(0))
        assert not roster.slots()[0].is_there()
        assert roster.slots()[0].payload["state"] == "gone"
        assert roster.enter("GPU-1", "b", H100, owner(1))
        assert roster.enter("GPU-1", "b", H100, GONE, is_alive=lambda name: name != owner(1))
        assert roster.slots()[0].busy_s == 2.5


def test_no_secret_is_where_others_can_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot is told the database's password in its environment, for its command is everybody's to read; a trial is told none."""
    import sys

    url = "postgresql+psycopg://advisor:hunter2@127.0.0.1:1/advisor"
    monkeypatch.setenv("ADVISOR_TOKEN", "token-of-the-daemon")
    monkeypatch.setenv("ADVISOR_DATABASE_URL", url)
    device = Machine(CPU, "here", "cpu-here", None, 2**30)
    command = (sys.executable, "-c", "import time; time.sleep(60)")
    slot = Supervisor(url, [device], {"only": None}, command)._started(device, str(tmp_path))
    try:
        # Both are empty for an instant after it was started.
        said = waited(Path(f"/proc/{slot.pid}/cmdline").read_bytes)
        assert b"time.sleep" in said
        assert b"hunter2" not in said
        assert f"ADVISOR_DATABASE_URL={url}".encode() in waited(Path(f"/proc/{slot.pid}/environ").read_bytes)
    finally:
        slot.kill()
        slot.wait()
    told = " ".join(environment_of(device).values())
    assert "hunter2" not in told
    assert "token-of-the-daemon" not in told


def test_a_job_of_a_slot_that_is_gone_goes_back_to_its_queue(url: str) -> None:
    """What a slot ran when it was killed is put back once, and taken up by the next; what is done is not touched."""
    import subprocess
    import sys

    ran = (
        "import os, sys, time; from advisor.daemon.engine import at_work\n"
        "def perform(name, number):\n"
        "    print(name, flush=True)\n"
        "    time.sleep(float(sys.argv[2]))\n"
        "    return ''\n"
        "with at_work(sys.argv[1], sys.argv[3], 'a device', perform):\n"
        "    time.sleep(30)\n"
    )

    def slot(seconds: float, name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", ran, url, str(seconds), name]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"}
        )

    jobs = engine.Jobs(url)
    name = jobs.submit(Submission("org/model", {}, 0, "a device"))
    first = slot(30, "GPU-1")
    try:
        assert first.stdout.readline().strip() == name
        first.kill()
        first.wait()
        assert jobs.job(name).state == "running"
        assert jobs.running_on(["GPU-1"]) == [name]
        assert engine.recover(url, ["GPU-1"]) == [name]
        assert engine.recover(url, ["GPU-1"]) == []
        assert jobs.job(name).state == "queued"
        second = slot(0.1, "GPU-2")
        try:
            assert second.stdout.readline().strip() == name
            done = threading.Event()
            for _ in range(200):
                if jobs.job(name).state == "done" or done.wait(0.05):
                    break
            assert jobs.job(name).state == "done"
            assert jobs.job(name).slot == "GPU-2"
        finally:
            second.kill()
            second.wait()
            second.stdout.close()
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
        jobs.close()


def test_what_a_share_meets_says_nothing_of_its_job(url: str) -> None:
    """A slot that helps and fails leaves the job to who has it; a job that was told to have failed stays so when put back."""
    from advisor.daemon.slot import Slot

    class Bench:
        machine = Machine(CPU, "here", "cpu-here", None, 2**30)

        def fetching(self, _: Submission) -> Fetch:
            return Fetch(Wanted("/nowhere"))

        def tuning(self, submission: Submission) -> None:
            raise BadInput(f"{submission.model} can't be tuned here")

    slot = Slot(Bench(), url, Courtesy())
    name = slot.jobs.submit(Submission("org/model", {"lengths": "8"}, 0, CPU.device_class))

    assert slot._perform(name, 1) == ""
    assert "outcome" not in slot.jobs.job(name).words
    assert slot._perform(name, 0) == "org/model can't be tuned here"
    assert slot.jobs.job(name).words["outcome"] == "failed"
    assert slot._perform(name, 0) == "org/model can't be tuned here"
    assert slot._perform(name, 1) == ""
    slot.jobs.close()
    slot.store.close()
    slot.watch.close()


def test_jobs_that_were_over_long_ago_are_removed(served: Served) -> None:
    """And shares that are over; neither a job that waits, however old, nor what was measured."""
    jobs = [served.submit(Submission("org/model", {"lengths": "8"})) for _ in range(3)]
    shares = [f"{jobs[2].id}+{number}" for number in (1, 2)]
    for number in (1, 2):
        served.jobs.share(jobs[2], number)
    for name in (jobs[0].id, jobs[1].id, shares[0]):
        served.jobs._client.cancel_workflow(name)
    day, now = timedelta(days=1), timedelta(days=-1)  # what is over ends before the next day

    assert served.jobs.prune(day) == 0
    assert served.jobs.prune(None) == 0
    assert len(served.jobs.page()) == 3
    assert served.jobs.prune(None, now) == 1
    assert [each.workflow_id for each in served.jobs._client.list_workflows(name="share")] == [shares[1]]
    assert served.jobs.prune(now) == 2
    assert [job.id for job in served.jobs.page()] == [jobs[2].id]
    with pytest.raises(NotMeasured):
        served.jobs.job(jobs[0].id)


def test_many_jobs_that_are_over_are_removed_in_parts(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction holds few of them, and all are gone in the end."""
    monkeypatch.setattr(engine, "PRUNED_AT_ONCE", 2)
    for _ in range(5):
        served.jobs.cancel(served.submit(Submission("org/model", {"lengths": "8"})).id)
    assert served.jobs.prune(timedelta(days=-1)) == 5
    assert served.jobs.page() == []


def test_a_supervisor_removes_what_was_over_long_ago(served: Served) -> None:
    """As soon as it is at work; what is not that old stays."""
    old, young = (served.submit(Submission("org/model", {"lengths": "8"})) for _ in range(2))
    for job in (old, young):
        served.jobs.cancel(job.id)
    table = served.jobs._client._sys_db.tables.workflow_status
    with served.jobs._client._sys_db.engine.begin() as connection:
        connection.execute(table.update().where(table.c.workflow_uuid == old.id).values(completed_at=1))
    stop = threading.Event()
    working = threading.Thread(target=Supervisor(served.url, [], {}, keep_jobs=timedelta(days=30)).run, args=(stop,))
    working.start()
    try:
        waited(lambda: [job.id for job in served.jobs.page()] == [young.id])
    finally:
        stop.set()
        working.join()


def test_a_slot_that_cannot_be_put_back_keeps_no_other_one(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ran on the others goes back to its queue in the same sweep, and the failure is told."""
    left = ["GPU-1", "GPU-2"]
    jobs = [served.submit(Submission("org/model", {"lengths": "8"})).id for _ in left]
    table = served.jobs._client._sys_db.tables.workflow_status
    with served.jobs._client._sys_db.engine.begin() as connection:
        for name, slot in zip(jobs, left, strict=True):
            running = {"status": "PENDING", "executor_id": slot}
            connection.execute(table.update().where(table.c.workflow_uuid == name).values(**running))
    for slot in left:
        assert Roster(served.store).enter(slot, "there", CPU, GONE)
    put_back = deaths.put_back

    def failing(url: str, store: Store, slot: str, *more: Any) -> list[str]:
        if slot == "GPU-1":
            raise StoreError("what ran on GPU-1 was not put back")
        return put_back(url, store, slot, *more)

    monkeypatch.setattr(deaths, "put_back", failing)
    with pytest.raises(StoreError, match="GPU-1 was not"):
        Supervisor(served.url, [], {}).sweep()
    assert [served.jobs.job(name).state for name in jobs] == ["running", "queued"]
    monkeypatch.undo()
    Supervisor(served.url, [], {}).sweep()
    assert [served.jobs.job(name).state for name in jobs] == ["queued", "queued"]


def test_workflows_of_another_application_are_no_jobs(served: Served) -> None:
    """A server's DBOS may have others', of the same names: they are in no list, count and queue of ours."""
    mine = served.submit(Submission("org/model", {"lengths": "8"})).id
    theirs = served.submit(Submission("org/model", {"lengths": "8"})).id
    assert served.jobs.before([mine, theirs]) == {mine: 0, theirs: 1}
    assert served.jobs.is_due(CPU.device_class, "cpu-here")
    table = served.jobs._client._sys_db.tables.workflow_status
    with served.jobs._client._sys_db.engine.begin() as connection:
        other = table.update().where(table.c.workflow_uuid == theirs)
        connection.execute(other.values(application_name="somebody", created_at=1))
    assert [job.id for job in served.jobs.page()] == [mine]
    assert served.jobs.counts() == {"queued": 1}
    assert served.jobs.before([mine, theirs]) == {mine: 0}
    served.jobs.cancel(mine)
    assert not served.jobs.is_due(CPU.device_class, "cpu-here")


@pytest.mark.parametrize("days", ["-1", "99999"])
def test_days_that_jobs_are_kept_are_from_nought_on(days: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nought is for ever."""
    assert run(["serve", "--keep-jobs", days]) == 2
    assert f"--keep-jobs takes days from 0, for ever, to 36525, not {days}" in capsys.readouterr().err
