"""Where a tune's seconds go: into timed, gated and confirmed work, or into what comes before and between."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from advisor.terminal import percent

#: The stages of `advisor.measure.worker` and `advisor.study.tune` in which figures are taken, and what the others are called.
WORK = frozenset(
    {
        "time",
        "warm-up",
        "gate",
        "independence probe",
        "layout in fp32",
        "reference",
        "reference in fp32",
        "what the device reaches at best",
    }
)
_OTHERS = {
    "": "starting",
    "reading the model": "starting",
    "load": "loading",
    "first call": "first calls and proof",
    "proof": "first calls and proof",
}


class Ledger:
    """Hears a tune's events, and adds up the seconds by stage. began: when the command did, by `now`."""

    def __init__(self, began: float, now: Callable[[], float] = time.monotonic) -> None:
        """Begin with starting."""
        self._now, self._began, self._since = now, began, began
        self._stage = ""
        self._seconds: dict[str, float] = defaultdict(float)

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take note of where a stage ends."""
        kind = event["event"]
        if kind == "stage":
            self._turn_to(str(event["stage"]))
        elif kind == "start":
            self._turn_to("starting a process")
        elif kind == "trial":
            self._turn_to("choosing and storing")

    def _turn_to(self, stage: str) -> None:
        now = self._now()
        self._seconds[self._stage] += now - self._since
        self._stage, self._since = stage, now

    @property
    def words(self) -> str:
        """How much of the time was work, and what took the rest, the most first."""
        self._turn_to(self._stage)
        whole_s = self._since - self._began
        work_s = sum(seconds for stage, seconds in self._seconds.items() if stage in WORK)
        rest: dict[str, float] = defaultdict(float)
        for stage, seconds in self._seconds.items():
            if stage not in WORK:
                rest["waiting" if stage.startswith("waiting") else _OTHERS.get(stage, stage)] += seconds
        most = sorted(rest.items(), key=lambda item: -item[1])[:4]
        told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in most if seconds >= 0.05)
        share = work_s / whole_s if whole_s > 0 else 0.0
        return f"{percent(share, 0)} of {whole_s:.1f} s were timed, gated and confirmed work" + (
            f"; {told}" if told else ""
        )
