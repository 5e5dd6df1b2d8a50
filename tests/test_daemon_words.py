"""What hosts say of themselves and of their jobs, as real processes: whose trials are told, and who has a device."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))

from fleet import Fleet

from advisor.daemon.arrival import HELD_S
from advisor.show.job_table import change
from advisor.storage.roster import BEAT_S
from advisor.web.served import Limits, Served

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


@pytest.fixture
def fleet(database_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Give no host yet."""
    made = Fleet(database_url, tmp_path)
    yield made
    made.close()


def test_a_job_tells_the_trials_that_were_run_while_it_ran(fleet: Fleet) -> None:
    """Of a study that a later job goes on with: what that one ran is not booked to the first, cancelled before."""
    fleet.start_replaying("a", ["GPU-0"], 0.05)
    fleet.slots(1)
    asked = {"exhaustive": True, "blocks": 0}
    served = Served.open(fleet.url, Limits())
    try:
        first = fleet.submit("org/model", **asked)
        fleet.until(lambda: served.told(first)["trials"] >= 4, 60.0, "some trials")
        served.jobs.cancel(first)
        fleet.all_over([first], 30.0)
        fleet.until(lambda: "last" in fleet.job(first).words, 10.0, "its last trial noted")
        before = served.told(first)
        assert before["trials"] == before["study_trials"]
        second = fleet.submit("org/model", **asked)
        fleet.all_over([second], 90.0)

        told, other = served.told(first), served.told(second)
        assert told["study"] == other["study"]
        assert told["trials"] == before["trials"]
        assert told["study_trials"] == other["study_trials"] == told["trials"] + other["trials"]
        assert other["trials"] > 0
        assert f"{told['trials']} trials of its study's {told['study_trials']} by now" in change(told)
    finally:
        served.close()


def test_a_slot_outside_its_hours_says_so(fleet: Fleet) -> None:
    """In its log, once; and whoever has the roster can tell."""
    now = datetime.now().astimezone()
    hours = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}"
    fleet.start_working(["--workers", "cpu", "--only", hours])
    why = f"it is only used {hours}"
    slot = fleet.until(
        lambda: next((s for s in fleet.slots(1) if s.state == "waiting"), None), 60.0, "a slot that waits"
    )
    assert slot.why == why
    told = fleet.until(lambda: [line for line in fleet.words() if line.get("what") == "waits"], 10.0, "its line")
    assert [(line["slot"], line["why"]) for line in told] == [(slot.name, why)]


def test_a_second_worker_of_a_device_says_who_has_it(fleet: Fleet) -> None:
    """Its first line says that it waits for whom; its slot says so once, and not with every look."""
    assert HELD_S > 10 * BEAT_S
    fleet.start_real("one")
    slot = fleet.until(lambda: next(iter(fleet.slots(1)), None), 60.0, "a slot")
    holder = f"process {slot.owner.split(':')[-2]} on {slot.host}"
    fleet.start_real("other")
    said = f"slot {slot.name}: {holder} has it, and is waited for"
    words = fleet.folder / "words"
    fleet.until(lambda: said in words.read_text().splitlines(), 60.0, "the first line")

    def told() -> list[str]:
        return [line["holder"] for line in fleet.words() if str(line.get("what", "")).startswith("another worker")]

    fleet.until(told, 60.0, "the slot's line")
    with pytest.raises(AssertionError):
        fleet.until(lambda: len(told()) > 1, 2.5 * BEAT_S, "a second line")
    assert told() == [holder]
    assert f"slot {slot.name}" in words.read_text().splitlines()
