"""The process of a slot: its device is all that it sees, it dies with its supervisor, and SIGTERM has it let go and end.

python -m advisor.daemon.process '{"parent": PID, "cuda": true, …}'        as `advisor.daemon.supervisor` starts it
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any

from advisor.daemon.bench import Bench, DeviceBench
from advisor.daemon.courtesy import Courtesy, Hours
from advisor.daemon.logs import log_json
from advisor.daemon.slot import Slot
from advisor.machine.leftovers import die_with_parent, name_process
from advisor.storage.place import default_url


def at_work(bench: Bench, settings: Mapping[str, Any]) -> int:
    """Work on a bench's device, by the supervisor's settings and in the database of ADVISOR_DATABASE_URL; return the status."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    hours = settings["only"] and Hours.of(settings["only"])
    courtesy = Courtesy(hours or None, settings["assume_idle"])
    return Slot(bench, default_url(), courtesy, settings["supervisor"], settings.get("recheck_after_s")).run(stop)


def main(settings: Mapping[str, Any]) -> int:
    """Find the device that this process sees, and work on it."""
    die_with_parent(settings["parent"])
    name_process("advisor-slot")
    log_json()
    from advisor.machine import probe
    from advisor.machine.processors import slot_threads

    machine = probe.machine(None if settings["cuda"] else "cpu", slot_threads())
    allowed = {name: settings[name] for name in ("allow_pickle", "max_download")}
    return at_work(DeviceBench(machine, **allowed), settings)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
