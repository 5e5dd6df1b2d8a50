"""A host whose devices are made up: its slots replay a recorded landscape, and each run takes a fixed time.

    python tests/faults/replay_host.py '{"url": URL, "devices": ["GPU-0", "GPU-1"], "host": "a", "run_s": 0.2, "log": PATH,
                                       "whole": false, "landscape": NAME, "recheck_after_s": null}'

What the daemon does is the daemon's own: its supervisor, a process for each slot, its queue, its store. Only what would measure
on a GPU answers from the recording, some twenty configurations of it or the whole. A job's model is a name alone: jobs of
different models have studies of their own. `org/deadly` kills its slot's process as soon as it is read, as a model that the host
has no memory for does, `org/often-deadly` in the second run of each process.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
LANDSCAPES = ROOT / "tests" / "landscapes"

#: Of what was recorded there: some twenty configurations, of which several are as good as the best.
ONLY = (
    ("attention", ("eager", "flash_attention_2", "flex_attention", "sdpa-efficient", "sdpa-math")),
    ("precision", ("bf16", "tf32")),
)


def machine(name: str, host: str, landscape: Any) -> Any:
    """Return a made-up device of the kind that the landscape was recorded on."""
    from advisor.nouns.environment import Machine

    return Machine(landscape.environment, host, name, 0, landscape.environment.memory_bytes)


def landscape(name: str) -> Any:
    """Return the recording."""
    from advisor.measure.landscape import Landscape

    return Landscape.of(json.loads((LANDSCAPES / f"{name}.json").read_text(encoding="utf-8")))


def model(name: str) -> Any:
    """Return a model of a name alone."""
    from advisor.nouns.model import ModelSource

    return ModelSource(name, "/nowhere", {"model_type": "llama"}, "trained", f"sha256:{name}", has_tokenizer=False)


def objective_of(recorded: Any, *, whole: bool) -> Any:
    """Return what is asked of a job: all that was recorded, or some of it."""
    return recorded.objective if whole else replace(recorded.objective, only=(*recorded.objective.only, *ONLY))


class Unchanging:
    """A bench whose device has the versions of a recording for ever, and whose models need no files."""

    def is_as_it_was(self) -> bool:
        """Whether it has them still."""
        return True

    def fetching(self, _: Any) -> Any:
        """Return what has nothing to bring."""
        from advisor.daemon.fetch import Fetch, Wanted

        return Fetch(Wanted("/nowhere"))

    def again(self, study: Any, also: tuple[Any, ...]) -> Any:
        """Return what measures a study's default and these again."""
        from advisor.nouns.objective import Budget
        from advisor.study.tuning import Job

        source, device = model(study.model_name), self.machine  # type: ignore[attr-defined]
        return Job(source, study.workload, study.objective, Budget(trials=1), device, also=also)


def note(log: int, words: Mapping[str, Any]) -> None:
    """Note what is run, in a line of an open file."""
    os.write(log, (json.dumps({**words, "at": time.time()}) + "\n").encode())


def _watching(somebody: Path) -> Any:
    """Return a watch that sees somebody else's process on its device where a file is there."""
    from advisor.daemon.courtesy import Watch

    class Seen(Watch):
        def hindrance(self, own_pids: Any = (), **more: Any) -> str:
            return "somebody else computes on it" if somebody.exists() else super().hindrance(own_pids, **more)

    return Seen


def _die_where(is_deadly: bool) -> None:
    if is_deadly:
        os.kill(os.getpid(), signal.SIGKILL)


def slot(settings: Mapping[str, Any]) -> int:
    """Be the slot of a made-up device."""
    from advisor.asking.submission import Submission
    from advisor.daemon import slot as slot_module
    from advisor.daemon.logs import log_json
    from advisor.daemon.process import at_work
    from advisor.machine.leftovers import die_with_parent
    from advisor.measure.messages import Answer, BlockAsked, Request, TrialAsked
    from advisor.measure.replay import ReplayRunner
    from advisor.measure.runner import Interrupted
    from advisor.nouns.objective import Budget
    from advisor.study.tuning import Job

    die_with_parent(settings["parent"])
    log_json()
    recorded = landscape(settings["landscape"])
    log = os.open(settings["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    class Fixed(ReplayRunner):
        """Takes a fixed time for every run, and can be stopped amid one."""

        def __init__(self, job: Job) -> None:
            super().__init__(recorded, seed=sum(map(ord, settings["device"])))
            self.job, self._stopped, self._runs = job, threading.Event(), 0

        def interrupt(self, why: str) -> None:
            self.interrupted = why
            self._stopped.set()

        def run(self, request: Request, timeout_s: float) -> Answer:
            if self.interrupted:
                raise Interrupted(self.interrupted)
            self._runs += isinstance(request, (TrialAsked, BlockAsked))
            _die_where(self.job.source.name == "org/often-deadly" and self._runs > 1)
            if not isinstance(request, (TrialAsked, BlockAsked)) or timeout_s == math.inf:  # a contestant of a block
                return super().run(request, timeout_s)
            is_block = isinstance(request, BlockAsked)
            asked = request.contestants if is_block else [request.configuration]
            words = {
                "device": settings["device"],
                "op": "block" if is_block else "trial",
                "model": self.job.source.name,
                "seed": request.seed if is_block else None,
                "asked": [configuration.key for configuration in asked],
            }
            note(log, {**words, "is": "begun"})
            result = super().run(request, timeout_s)
            if self._stopped.wait(settings["run_s"] * len(asked)):
                raise Interrupted(self.interrupted)
            note(log, {**words, "is": "over"})
            return result

    class Recording(Unchanging):
        """A bench that replays."""

        machine = machine(settings["device"], settings["host"], recorded)

        def tuning(self, submission: Submission) -> Job:
            _die_where(submission.model == "org/deadly")
            source = model(submission.model)
            given = submission.given
            budget = Budget(
                trials=given.get("trials"),
                exhaustive=given.get("trials") is None,
                blocks=given.get("blocks", Budget().blocks),
            )
            objective = objective_of(recorded, whole=settings["whole"])
            return Job(source, recorded.workload, objective, budget, self.machine, seed=0)

        def runner(self, job: Job, _: Callable[[Mapping[str, Any]], None]) -> Fixed:
            return Fixed(job)

    slot_module.__dict__["Watch"] = _watching(Path(settings["log"]).with_name(f"{settings['device']}.foreign"))
    return at_work(Recording(), settings)


def host(settings: Mapping[str, Any]) -> None:
    """Be the supervisor of a host with these devices, as `advisor worker` is."""
    from advisor.daemon.engine import prepare
    from advisor.daemon.logs import log_json
    from advisor.daemon.supervisor import Supervisor
    from advisor.storage.store import Store

    log_json()
    Store.open(settings["url"], write=True).close()
    prepare(settings["url"])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    recorded = landscape(settings["landscape"])
    devices = [machine(name, settings["host"], recorded) for name in settings["devices"]]
    shared = {
        "only": None,
        "assume_idle": True,
        "allow_pickle": False,
        **{name: settings[name] for name in ("host", "run_s", "log", "whole", "landscape")},
        "recheck_after_s": settings.get("recheck_after_s"),
    }
    command = (sys.executable, str(Path(__file__).resolve()), "--slot")
    Supervisor(settings["url"], devices, shared, command).run(stop)


if __name__ == "__main__":
    if sys.argv[1] == "--slot":
        sys.exit(slot(json.loads(sys.argv[2])))
    host(json.loads(sys.argv[1]))
