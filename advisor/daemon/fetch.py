"""Fetch: a model of the hub's is brought to this host in a process of its own, which can be killed like a run.

python -P -m advisor.daemon.fetch '{"parent": PID, "model": "org/model", …}'        as `Fetch.run` starts it
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from advisor.errors import BadInput
from advisor.measure.runner import Interrupted

#: What the process is not told: it asks the hub alone.
_SECRETS = ("ADVISOR_DATABASE_URL", "ADVISOR_TOKEN")


@dataclass(frozen=True)
class Wanted:
    """What is to be here. max_download: bytes that it may take, None for as many as the disk has room for."""

    model: str
    allow_pickle: bool = False
    max_download: int | None = None

    def is_here(self) -> bool:
        """Whether nothing is to be fetched: it is here, or it is nothing that a hub has."""
        from advisor.models import hub
        from advisor.models.checkpoint import find_model, is_hub_id

        if not is_hub_id(self.model) or hub.is_offline():
            return True
        with suppress(BadInput):
            find_model(self.model, allow_pickle=self.allow_pickle, download=False)
            return True
        return False


class Fetch:
    """Brings a model here. Another thread can stop it; what has come by then stays, and is gone on with."""

    def __init__(self, wanted: Wanted) -> None:
        """Bring this; nothing is started yet."""
        self.wanted, self.interrupted = wanted, ""
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def interrupt(self, why: str) -> None:
        """Have it killed at once, and not begun again."""
        with self._lock:
            self.interrupted = why
            if self._process is not None and self._process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def run(self) -> None:
        """Bring it here. Raises BadInput where that can't be, Interrupted where it was stopped."""
        if self.wanted.is_here():
            return
        command = [sys.executable, "-P", "-m", "advisor.daemon.fetch"]
        told = json.dumps({"parent": os.getpid(), **asdict(self.wanted)})
        environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
        environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        with self._lock:
            if self.interrupted:
                raise Interrupted(self.interrupted)
            self._process = subprocess.Popen(
                [*command, told],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        said, _ = self._process.communicate()
        if self.interrupted:
            raise Interrupted(self.interrupted)
        _understood(self.wanted.model, self._process.returncode, said)


def _understood(model: str, status: int, said: str) -> None:
    """Raise what a process says is wrong, as it would have been raised here."""
    with suppress(ValueError, LookupError, TypeError):
        found = json.loads(said.splitlines()[-1])
        if found["problem"] is None:
            return
        raise BadInput(str(found["problem"]), str(found["hint"] or ""))
    raise BadInput(f"{model} could not be fetched: what fetches it ended with status {status}")


def main(told: Mapping[str, Any]) -> int:
    """Bring a model here, and say on stdout what came of it, in a line of JSON."""
    from advisor.machine.leftovers import die_with_parent, name_process
    from advisor.models.checkpoint import find_model

    die_with_parent(told["parent"])
    name_process("advisor-fetch")
    said: dict[str, str | None] = {"problem": None, "hint": None}
    try:
        find_model(told["model"], allow_pickle=told["allow_pickle"], most_bytes=told["max_download"])
    except BadInput as error:
        said = {"problem": str(error.args[0]), "hint": error.hint}
    sys.stdout.write(json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
