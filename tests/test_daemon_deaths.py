"""Jobs that take their slot's process with them: they end, and say why; what was let go of in order is no death."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))

from fleet import Fleet
from sqlalchemy import text

from advisor.daemon.deaths import MOST

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture
def fleet(database_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Give a host with a made-up device, as real processes."""
    made = Fleet(database_url, tmp_path)
    made.start_replaying("a", ["GPU-0"], 0.05)
    made.slots(1)
    yield made
    made.close()


def test_a_job_that_kills_its_slot_fails_and_others_go_on(fleet: Fleet) -> None:
    """It is tried a few times; then it has failed, says why, and who waits behind it has the device."""
    deadly = fleet.submit("org/deadly", priority=1, trials=2, blocks=0)
    other = fleet.submit("org/other", trials=2, blocks=0)

    fleet.all_over([deadly, other], 120.0)

    failed = fleet.job(deadly)
    said = f"its worker died {MOST} times while it ran, and no trial ended between: the log of GPU-0 says how"
    assert (failed.state, failed.why) == ("failed", said)
    assert fleet.job(other).state == "done"
    assert sum(line.get("what") == "a slot's process ended" for line in fleet.words()) == MOST


def test_a_job_that_gets_on_between_deaths_is_gone_on_with(fleet: Fleet) -> None:
    """A slot that dies after each trial brings the job to its end all the same."""
    name = fleet.submit("org/often-deadly", trials=MOST + 2, blocks=0)

    fleet.all_over([name], 180.0)

    assert fleet.job(name).state == "done"
    assert sum(line.get("what") == "a slot's process ended" for line in fleet.words()) > MOST


def test_a_host_ends_in_time_though_a_slot_hangs(fleet: Fleet) -> None:
    """SIGTERM is followed within 15 s, what ran is back in its queue, and nothing is left of the slot."""
    name = fleet.submit("org/model", exhaustive=True)
    fleet.until(lambda: len(fleet.lines()) > 1, 60.0, "a trial")
    (slot,) = fleet.processes("a", "worker")
    slot.suspend()
    began = time.monotonic()
    fleet.hosts["a"].terminate()
    fleet.hosts["a"].wait(30.0)

    assert time.monotonic() - began < 15.0
    assert fleet.job(name).state == "queued"
    assert "deaths" not in fleet.job(name).words
    assert not slot.is_running()


def _ran_more(fleet: Fleet, lines: int) -> bool:
    return len(fleet.lines()) > lines


def test_a_device_that_is_given_back_is_no_death(fleet: Fleet) -> None:
    """However often somebody else comes to it, and the host is stopped in order."""
    name = fleet.submit("org/model", exhaustive=True)
    somebody = fleet.log.with_name("GPU-0.foreign")
    for _ in range(2):
        begun = len(fleet.lines())
        fleet.until(partial(_ran_more, fleet, begun), 60.0, "a trial")
        somebody.touch()
        fleet.until(lambda: fleet.slots(1)[0].state == "waiting", 30.0, "the slot waits")
        somebody.unlink()
    begun = len(fleet.lines())
    fleet.until(partial(_ran_more, fleet, begun), 60.0, "a trial")
    fleet.hosts["a"].terminate()
    fleet.hosts["a"].wait(20.0)

    job = fleet.job(name)
    assert job.state == "queued"
    assert job.words["worker"] is None
    assert "deaths" not in job.words


def test_a_slot_whose_job_has_a_damaged_trial_comes_back(fleet: Fleet) -> None:
    """The job has failed and says which row it is; what waits behind it has the device."""
    name = fleet.submit("org/model", priority=1, exhaustive=True)
    other = fleet.submit("org/other", trials=2, blocks=0)
    fleet.until(lambda: len(fleet.lines()) > 4, 60.0, "a trial")
    (slot,) = fleet.processes("a", "worker")
    slot.suspend()
    with fleet.store._database.writing() as connection:
        connection.execute(text("UPDATE trials SET outcome = 'glorious' WHERE number = 0"))
    slot.kill()

    fleet.all_over([name, other], 60.0)

    assert fleet.job(name).state == "failed"
    assert "trials is damaged" in fleet.job(name).why
    assert fleet.job(other).state == "done"
